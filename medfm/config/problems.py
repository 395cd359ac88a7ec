"""From pydantic's errors to lines a researcher can act on: key, what is wrong, where it was written."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from medfm.config.overrides import child_model
from medfm.registry import Config

_NOUNS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


@dataclass(frozen=True)
class Problem:
    """One line of the report."""

    path: str
    message: str
    where: str = ""


def report(problems: Iterable[Problem], title: str) -> str:
    """All problems, aligned, as they are printed."""
    problems = sorted(set(problems), key=lambda p: p.path)
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    paths = max(len(p.path) for p in problems)
    messages = min(max(len(p.message) for p in problems), 72)
    lines = [f"{p.path:<{paths}}  {p.message:<{messages}}   {f'({p.where})' if p.where else ''}".rstrip() for p in problems]
    return "\n".join([f"{count} in {title}", *(f"  {line}" for line in lines)])


def show(value: Any) -> str:
    """A value as a person would write it."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str) else str(value)


def leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of every key of a schema, sections included."""
    names = []
    for name, info in model.model_fields.items():
        names.append(prefix + name)
        default = info.default
        inner = child_model(model, name, default if isinstance(default, str) else {}) if issubclass(model, Config) else None
        if inner is not None:
            names += leaves(inner, f"{prefix}{name}.")
    return names


def unknown_key(path: str, model: type[Config], root: type[Config]) -> str:
    """The message for a key that no schema has: the nearest sibling, else the same name elsewhere."""
    parent, _, key = path.rpartition(".")
    near = difflib.get_close_matches(key, model.model_fields, n=1, cutoff=0.6)
    if near:
        return f"unknown key; did you mean '{f'{parent}.' if parent else ''}{near[0]}'?"
    everywhere = leaves(root)
    listed = any(part.isdigit() for part in parent.split("."))  # one of several components: a namesake elsewhere means another
    if listed or path in everywhere:  # a key of the default component, where another one was chosen
        return f"unknown key here; known: {', '.join(model.model_fields)}"
    elsewhere = [n for n in everywhere if n.rpartition(".")[2] == key] or difflib.get_close_matches(
        path, everywhere, n=1, cutoff=0.75
    )
    return (
        f"unknown key; did you mean '{elsewhere[0]}'?" if elsewhere else f"unknown key; known: {', '.join(model.model_fields)}"
    )


def explain(errors: list[Mapping[str, Any]], model: type[Config], root: type[Config], prefix: str) -> list[Problem]:
    """Problems of one validated section, unions folded into one line each."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    broken = {error["loc"][:-1] for error in errors if error["loc"] and isinstance(error["loc"][-1], int)}
    for error in errors:
        if error["type"] == "too_short" and error["loc"] in broken:
            continue  # what is wrong with its items is said; without them none is left
        grouped.setdefault(_clean(error["loc"], model), []).append(error)
    problems = []
    for inner, group in grouped.items():
        path = ".".join(p for p in (prefix, inner) if p)
        if _is_secret(inner, model):
            group = [{**error, "input": "what was given"} for error in group]
        problems.append(Problem(path or "keys", _message(group, inner, path, model, root)))
    return problems


def _is_secret(inner: str, model: type[Config]) -> bool:
    """Whether a key's value may name a patient, so that no message repeats it."""
    info = model.model_fields.get(inner.partition(".")[0])
    return info is not None and "SecretStr" in str(info.annotation)


def _clean(loc: tuple[Any, ...], model: type[Config]) -> str:
    """The dotted path without the tags that pydantic adds for unions."""
    parts: list[str] = []
    current: type[Config] | None = model
    for part in loc:
        if isinstance(part, int):
            parts.append(str(part))
        elif current is not None:
            parts.append(str(part))
            current = child_model(current, str(part), {})
    return ".".join(parts)


def _message(group: list[Mapping[str, Any]], inner: str, path: str, model: type[Config], root: type[Config]) -> str:
    first = group[0]
    kind, value, context = first["type"], first.get("input"), first.get("ctx", {})
    if kind == "extra_forbidden":
        section: type[Config] | None = model
        for part in inner.split(".")[:-1]:
            section = child_model(section, part, {})
        return unknown_key(path, section or model, root)
    if kind == "missing":
        return "is required and not set"
    nouns: list[str] = []
    for error in group:
        if error["type"] == "literal_error":
            nouns.append(error["ctx"]["expected"].replace(" or ", ", "))
        elif error["type"] in _NOUNS:
            nouns.append(_NOUNS[error["type"]])
    nouns = list(dict.fromkeys(nouns))
    if nouns and len(group) == sum(e["type"] in _NOUNS or e["type"] == "literal_error" for e in group):
        if len(nouns) == 1 and "," in nouns[0]:
            options = [o.strip(" '") for o in nouns[0].split(",")]
            near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.6)
            return f"{show(value)} is not one of {nouns[0]}" + (f"; did you mean '{near[0]}'?" if near else "")
        return f"{show(value)} is not {' or '.join(nouns)}"
    bounds = {
        "less_than": ("lt", "is not below"),
        "less_than_equal": ("le", "is above"),
        "greater_than": ("gt", "is not above"),
        "greater_than_equal": ("ge", "is below"),
    }
    for error in group:
        if error["type"] in bounds:
            key, words = bounds[error["type"]]
            limit = error["ctx"][key]
            return f"{show(error.get('input'))} {words} {limit:g}"
    if kind in ("too_short", "too_long"):
        wanted = context.get("min_length", context.get("max_length"))
        return f"has {context.get('actual_length')} values, {wanted} are wanted"
    if kind == "value_error":
        return str(context.get("error", first["msg"]))
    return f"{first['msg'].lower()} (got {show(value)})"
