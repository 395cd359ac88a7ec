"""The YAML files that prompts and knowledge are kept in: found by name or path, read strictly, problems told together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medfm.errors import ConfigError
from medfm.registry import suggest


def shipped_names(folder: Path) -> list[str]:
    """Names of the files that medfm ships in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_file(name_or_path: str | Path, folder: Path, noun: str) -> tuple[Path, str]:
    """A shipped file by name, or any by path (a value with `/` or `.yaml`); and what to call it in errors.

    Raises:
        ConfigError: unknown name (with the nearest one), or no such file; `noun` says of what.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        if not Path(text).is_file():
            raise ConfigError(f"{noun} file '{text}' does not exist")
        return Path(text), text
    path = folder / f"{text}.yaml"
    if not path.is_file():
        known = shipped_names(folder)
        raise ConfigError(f"unknown {noun} '{text}'{suggest(text, known)}; shipped: {', '.join(known)}; or give a .yaml file")
    return path, path.name


def phrases_of(value: object, place: str, problems: list[str]) -> tuple[str, ...]:
    """One phrase or a list of them; what is no text is added to `problems`."""
    items = value if isinstance(value, list | tuple) else [value]
    for item in items:
        if not isinstance(item, str):
            problems.append(f"{place}: {item!r} is not text; put it in quotes")
        elif not item.strip():
            problems.append(f"{place}: holds an empty phrase")
    return tuple(item.strip() for item in items if isinstance(item, str))


def unknown_keys(mapping: Mapping[Any, Any], known: tuple[str, ...], prefix: str, problems: list[str]) -> None:
    """Adds keys that are not known to `problems`, with the nearest that is."""
    for key in mapping:
        if key not in known:
            problems.append(f"{prefix}{key}: unknown key{suggest(str(key), known)}")


def report_problems(where: str, problems: list[str]) -> str:
    """One message for all problems of a file."""
    head = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {where}"
    return "\n".join([head, *(f"  {problem}" for problem in problems)])


def read_yaml(path: Path) -> object:
    """What a YAML file holds. Raises ConfigError: not UTF-8, not YAML, or a key given twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader which refuses a key given twice; PyYAML would keep the last one silently."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = loader.construct_object(key_node)
            if key in seen:
                raise ConfigError(f"{path}, line {key_node.start_mark.line + 1}: the key '{key}' is given twice")
            seen.add(key)
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
