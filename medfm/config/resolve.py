"""Schema defaults < `extends:` parent < recipe < command line; every problem reported at once, each with its place."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from medfm.config.overrides import Tree, child_model, default_component, merge, nest, registry_of_items
from medfm.config.problems import Problem, explain, report
from medfm.config.recipes import find_recipe
from medfm.errors import ConfigError
from medfm.registry import ComponentField, Config, MustExist, Registry

M = TypeVar("M", bound=Config)


@dataclass
class Resolved(Generic[M]):
    """A validated configuration and where it came from."""

    config: M
    recipe: Path | None
    parents: list[Path] = field(default_factory=list)


def resolve(
    model: type[M],
    verb: str,
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    files: bool = True,
) -> Resolved[M]:
    """The configuration of a verb.

    Args:
        model: the verb's schema.
        verb: the folder under `recipes/` that a recipe's name is searched in.
        recipe: a recipe's name or path, or None.
        overrides: dotted keys to values; the last word.
        files: files that will be read must be there.

    Raises:
        ConfigError: with every problem of the recipe and the overrides, each with its line.
    """
    overrides = dict(overrides or {})
    layers = _read_layers(recipe, verb) if recipe else []
    title = f"recipe '{Path(recipe).stem}' ({layers[-1].path})" if recipe else f"'medfm {verb}'"
    _import_plugins([layer.tree for layer in layers] + [overrides])
    tree: Tree = {}
    for layer in layers:
        tree = merge(tree, layer.tree, model)
    tree = nest(overrides, model, tree)
    tree = _interpolate(tree, title)
    problems, config = _validate(tree, model, files=files)
    if problems:
        placed = [Problem(p.path, p.message, _where(p.path, layers, overrides)) for p in problems]
        raise ConfigError(report(placed, title))
    assert config is not None
    return Resolved(config, layers[-1].path if layers else None, [layer.path for layer in layers[:-1]])


@dataclass
class _Layer:
    path: Path
    tree: Tree
    lines: dict[str, int]


def _read_layers(recipe: str, verb: str) -> list[_Layer]:
    """The recipe and its parents, oldest first."""
    layers: list[_Layer] = []
    seen: list[Path] = []
    name: str | None = recipe
    folder: Path | None = None
    while name is not None:
        path = find_recipe(name, verb, relative_to=folder)
        if path.resolve() in seen:
            chain = " -> ".join(str(p) for p in [*seen, path.resolve()])
            raise ConfigError(f"recipe '{recipe}' extends itself: {chain}")
        seen.append(path.resolve())
        layer = _read_yaml(path)
        parent = layer.tree.pop("extends", None)
        if parent is not None and not isinstance(parent, str):
            raise ConfigError(f"{path}: 'extends' must be the name or path of one recipe, got {parent}")
        layers.insert(0, layer)
        name, folder = parent, path.parent
    return layers


def _read_yaml(path: Path) -> _Layer:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        text = path.read_text(encoding="utf-8")
        tree = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if text.strip() else {}
        lines = _lines(yaml.compose(text))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: not readable as YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values")
    return _Layer(path, {str(k): v for k, v in tree.items()}, lines)


def _lines(node: Any, prefix: str = "") -> dict[str, int]:
    """Dotted key -> line number in the file."""
    import yaml

    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}{key.value}"
            lines[path] = key.start_mark.line + 1
            lines.update(_lines(value, f"{path}."))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[f"{prefix}{number}"] = value.start_mark.line + 1
            lines.update(_lines(value, f"{prefix}{number}."))
    return lines


def _where(path: str, layers: list[_Layer], overrides: Mapping[str, Any]) -> str:
    """The place that set a key, or the nearest section above it."""
    if any(path == key or path.startswith(f"{key}.") for key in overrides):
        return "command line"
    while path:
        for layer in reversed(layers):
            if path in layer.lines:
                name = "" if layer is layers[-1] else f"{layer.path}, "
                return f"{name}line {layer.lines[path]}"
        if any(key.startswith(f"{path}.") for key in overrides):
            return "command line"
        path = path.rpartition(".")[0]
    return ""


def _import_plugins(trees: list[Mapping[str, Any]]) -> None:
    """Import modules named under `plugins`, and entry points of the group `medfm.plugins`, so that they register."""
    from importlib.metadata import entry_points

    for entry in entry_points(group="medfm.plugins"):
        entry.load()
    for tree in trees:
        names = tree.get("plugins") or []
        if not isinstance(names, str | list | tuple):
            raise ConfigError(f"plugins: {names} is not a list of modules")
        for name in [names] if isinstance(names, str) else names:
            if str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))  # a laboratory's own module lies beside its recipe
            try:
                import_module(str(name))
            except ImportError as error:
                raise ConfigError(f"plugins: cannot import '{name}': {error}") from None


def _interpolate(tree: Tree, title: str) -> Tree:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{title}: {str(error).splitlines()[0]}") from None
    assert isinstance(resolved, dict)
    return {str(k): v for k, v in resolved.items()}


def _validate(
    tree: Mapping[str, Any], model: type[M], root: type[Config] | None = None, prefix: str = "", files: bool = True
) -> tuple[list[Problem], M | None]:
    """Components first, each by its own schema, so that every problem keeps its own path; then the whole."""
    root = root or model
    problems: list[Problem] = []
    values = dict(tree)
    for key, info in model.model_fields.items():
        marks = [m for m in info.metadata if isinstance(m, ComponentField)]
        path = f"{prefix}.{key}" if prefix else key
        if key not in values and marks:
            values[key] = default_component(model, key)
        if values.get(key) is None and (key not in values or (marks and info.default is None)):
            continue  # not given, or a component that may be left out
        if files and (lacking := _missing_file(values[key], info)):
            problems.append(Problem(path, lacking))
        if (registry := registry_of_items(info)) is not None and isinstance(values[key], list | tuple):
            found, items = _components(values[key], registry, root, path, files)
            problems += found
            if found:
                values.pop(key)
            else:
                values[key] = items
            continue
        if marks:
            value = {"name": values[key]} if isinstance(values[key], str) else values[key]
            if not isinstance(value, dict):
                problems.append(Problem(path, f"must name {marks[0].registry.a_kind}"))
                values.pop(key)
                continue
            try:
                schema: type[Config] | None = marks[0].registry.config_class(str(value.get("name")))
            except ConfigError as error:
                problems.append(Problem(path, str(error)))
                values.pop(key)
                continue
        else:
            value, schema = values[key], child_model(model, key, values[key])
        if schema is None or not isinstance(value, dict):
            continue
        found, config = _validate(value, schema, root, path, files)
        problems += found
        if config is None:
            values.pop(key)
        else:
            values[key] = config
    reported = {p.path for p in problems}
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        own = explain(list(error.errors()), model, root, prefix)
        # A section left out above because of its own problems is not "missing" as well, and what compares sections would judge
        # the default in its place.
        whole = prefix or "keys"
        for problem in own:
            known = any(path == problem.path or path.startswith(f"{problem.path}.") for path in reported)
            if not known and not (reported and problem.path == whole):
                problems.append(problem)
        config = None
    return problems, config if not problems else None


def _components(
    given: Sequence[Any], registry: Registry, root: type[Config], path: str, files: bool
) -> tuple[list[Problem], list[Any]]:
    """Each component of a list by its own schema."""
    problems: list[Problem] = []
    items: list[Any] = []
    for number, item in enumerate(given):
        value = {"name": item} if isinstance(item, str) else item
        place = f"{path}.{number}"
        if not isinstance(value, dict):
            problems.append(Problem(place, f"must name {registry.a_kind}"))
            continue
        try:
            schema: type[Config] = registry.config_class(str(value.get("name", "")))
        except ConfigError as error:
            problems.append(Problem(place, str(error)))
            continue
        found, config = _validate(value, schema, root, place, files)
        problems += found
        items.append(config)
    return problems, items


def _missing_file(value: Any, info: FieldInfo) -> str:
    """Says so where `value` names a file to be read that is not there, else ""."""
    mark = _must_exist(info.annotation, info.metadata)
    if not isinstance(value, str | Path) or mark is None or Path(value).exists() or str(value) in _literals(info.annotation):
        return ""
    if mark.reference and any(sign in str(value) for sign in "#|"):
        from medfm.io.sequences import missing_part  # imports numpy: only where it is needed

        return missing_part(value)
    return f"'{value}' does not exist"


def _literals(annotation: Any) -> set[str]:
    parts = getattr(annotation, "__args__", ())
    return {p for p in parts if isinstance(p, str)}.union(*(_literals(p) for p in parts))


def _must_exist(annotation: Any, metadata: Sequence[Any]) -> MustExist | None:
    """The mark of a field that is an `InputPath`, or a union with one."""
    own = [mark for mark in metadata if isinstance(mark, MustExist)]
    parts = (_must_exist(part, getattr(part, "__metadata__", ())) for part in getattr(annotation, "__args__", ()))
    return own[0] if own else next((mark for mark in parts if mark is not None), None)
