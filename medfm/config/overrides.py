"""`key=value` words of the command line, and the merging of recipe trees."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from medfm.errors import ConfigError
from medfm.registry import ComponentField, Config, Registry

Tree = dict[str, Any]


def parse_value(text: str) -> Any:
    """The value of one override: YAML as OmegaConf reads it (1e-4 is a number), otherwise the text itself. Digits after a
    leading zero stay a text: 00123 is an identifier, and YAML would read it as octal; so do times: YAML would read 24:00:00 as
    86400.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if re.fullmatch(r"0\d+|[-+]?\d+(:\d+)+(\.\d*)?", text):
        return text
    try:
        tree = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException):
        return text
    value = tree["value"] if isinstance(tree, dict) and set(tree) == {"value"} else text
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        return text
    if isinstance(value, str):
        return value if text[:1] in "'\"" else text  # a text keeps its '#'
    return value if value is None or isinstance(value, bool | int | float | list | dict) else text


def parse_words(words: Iterable[str], texts: Collection[str] = ()) -> dict[str, Any]:
    """`["trainer.devices=8", "recipe=x"]` -> `{"trainer.devices": 8, "recipe": "x"}`, split on the first `=`.

    Args:
        texts: keys whose value is a text as it was typed: YAML reads 12:30 as 750, and so another patient.

    Raises:
        ConfigError: a word without `=`, an empty key, or a key given twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{word}' is not of the form key=value")
        if key in values:
            raise ConfigError(f"'{key}' is given twice")
        value = parse_value(text)
        values[key] = text if key in texts and isinstance(value, bool | int | float) else value
    return values


def text_keys(model: type[Config]) -> set[str]:
    """Keys of a schema's first level that hold one text."""
    return {
        name
        for name, info in model.model_fields.items()
        if {info.annotation, *getattr(info.annotation, "__args__", ())} & {str, SecretStr}
        and not getattr(info.annotation, "__origin__", None)
    }


def _model_of(annotation: Any) -> type[Config] | None:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_of(part)
        if found is not None:
            return found
    return None


def registry_of_items(info: FieldInfo) -> Registry | None:
    """The registry of a field that holds a tuple of components."""
    marks = (m for part in getattr(info.annotation, "__args__", ()) for m in getattr(part, "__metadata__", ()))
    return next((m.registry for m in marks if isinstance(m, ComponentField)), None)


def _registry_of(model: type[Config] | None, key: str) -> Registry | None:
    if model is None or key not in model.model_fields:
        return None
    marks = [m for m in model.model_fields[key].metadata if isinstance(m, ComponentField)]
    return marks[0].registry if marks else None


def child_model(model: type[Config] | None, key: str, value: Any) -> type[Config] | None:
    """The Config class that describes `value` under `key`, or None where it is no section or unknown."""
    if model is None or key not in model.model_fields:
        return None
    registry = _registry_of(model, key)
    if registry is None:
        return _model_of(model.model_fields[key].annotation)
    name = value.get("name") if isinstance(value, Mapping) else value
    try:
        return registry.config_class(str(name))
    except ConfigError:
        return None


def default_component(model: type[Config] | None, key: str) -> str | None:
    """The name of the component that `key` holds by default."""
    if _registry_of(model, key) is None:
        return None
    assert model is not None
    default = model.model_fields[key].default
    return default if isinstance(default, str) else None


def merge(base: Tree, over: Mapping[str, Any], model: type[Config] | None) -> Tree:
    """`over` laid over `base`. A component that changes its name takes none of the old one's keys along."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if _registry_of(model, key) is not None:
            value = {"name": value} if isinstance(value, str) else value
            old = {"name": old} if isinstance(old, str) else old
            if isinstance(value, Mapping):
                before = (
                    old.get("name", default_component(model, key))
                    if isinstance(old, Mapping)
                    else default_component(model, key)
                )
                name = value.get("name", before)
                value = {"name": name, **value}
                if name != before:
                    old = {}
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(dict(old), value, child_model(model, key, {**old, **value}))
        elif isinstance(value, Mapping):
            merged[key] = merge({}, value, child_model(model, key, value))
        else:
            merged[key] = value
    return merged


def nest(dotted: Mapping[str, Any], model: type[Config], base: Tree) -> Tree:
    """Dotted overrides laid over `base`, whole sections before keys inside them, so that `objective=dino` and
    `objective.x=1` work in either order."""
    for key in sorted(dotted, key=lambda k: k.count(".")):
        over: Any = dotted[key]
        for part in reversed(key.split(".")):
            over = {part: over}
        base = merge(base, over, model)
    return base
