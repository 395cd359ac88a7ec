"""`medfm <verb> --help`: every key of a schema with its type, default and meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from medfm.config.overrides import child_model, registry_of_items
from medfm.config.problems import show
from medfm.config.recipes import list_recipes
from medfm.config.verbs import Verb
from medfm.registry import OBJECTIVES, ComponentConfig, ComponentField, Config, Registry


def schema_of(verb: Verb) -> type[Config]:
    """The verb's Config class."""
    module, _, attribute = verb.schema.partition(":")
    return getattr(import_module(module), attribute)


def describe(verb: Verb, chosen: Mapping[str, str] | None = None) -> str:
    """The text of `medfm <verb> --help`, with the keys of the components that `chosen` names, e.g. {"objective": "dino"}.

    Raises:
        ConfigError: there is no such component.
    """
    lines = [f"medfm {verb.name}: {verb.help}", "", f"  {verb.example}", ""]
    if verb.recipes:
        names = ", ".join(sorted(r.name for r in list_recipes(verb.name)))
        lines += [f"  recipe=NAME or recipe=FILE.yaml; known: {names}", ""]
    rows = _rows(schema_of(verb), "", chosen or {})
    width = max(len(name) for name, _, _ in rows)
    defaults = min(max(len(default) for _, default, _ in rows), 28)
    return "\n".join(lines + [f"  {name:<{width}}  {default:<{defaults}}  {text}".rstrip() for name, default, text in rows])


def _rows(model: type[Config], prefix: str, chosen: Mapping[str, str]) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, info in model.model_fields.items():
        if name == "name" and issubclass(model, ComponentConfig):
            continue
        marks = [m for m in info.metadata if isinstance(m, ComponentField)]
        default = chosen.get(prefix + name, info.default)
        if marks and prefix + name in chosen:
            marks[0].registry.config_class(default)
        several = registry_of_items(info)
        if several is not None:
            rows += _listed(prefix + name, info, several, chosen)
            continue
        inner = child_model(model, name, default if isinstance(default, str) else {})
        if marks:
            rows.append((prefix + name, str(default), f"{marks[0].registry.kind}: {', '.join(marks[0].registry.names())}"))
        if inner is not None:
            rows += _rows(inner, f"{prefix}{name}.", chosen)
        elif not marks:
            rows.append((prefix + name, _default(info), info.description or _kind(info.annotation)))
    return rows


def _listed(name: str, info: FieldInfo, registry: Registry, chosen: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Rows of a list of components, with the keys of each where the section was asked for."""
    rows = [(name, _default(info), f"{info.description}; known: {', '.join(registry.names())}")]
    if name.rpartition(".")[0] in chosen and registry is not OBJECTIVES:
        for component in registry.names():
            rows += _rows(registry.config_class(component), f"{name}: [{{name: {component}}}].", {})
    return rows


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "" if info.default_factory else "required"
    if info.default is None:
        return "-"
    return show(list(info.default) if isinstance(info.default, tuple) else info.default).strip("'")


def _kind(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return re.sub(r"(typing\.|pathlib\.|, MustExist object at \w+|<medfm[^>]*>)", "", text)
