"""Where recipes live: `./recipes`, `$MEDFM_RECIPES`, then the ones shipped with medfm."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from medfm.errors import ConfigError
from medfm.registry import suggest


def shipped(folder: str) -> Path:
    """A data folder that a wheel carries as `medfm/_<folder>` and a checkout has at its top."""
    package = Path(__file__).resolve().parents[1]
    inside = package / f"_{folder}"
    return inside if inside.is_dir() else package.parent / folder


@dataclass(frozen=True)
class RecipeFile:
    """A recipe found by name."""

    name: str
    verb: str
    path: Path
    place: str


def _places() -> list[tuple[str, Path]]:
    places = [("./recipes", Path("recipes"))]
    for entry in os.environ.get("MEDFM_RECIPES", "").split(os.pathsep):
        if entry:
            places.append(("$MEDFM_RECIPES", Path(entry)))
    places.append(("shipped with medfm", shipped("recipes")))
    return places


def list_recipes(verb: str | None = None) -> list[RecipeFile]:
    """All recipes that can be named, each file once."""
    found: dict[Path, RecipeFile] = {}
    for place, folder in _places():
        for path in sorted(folder.glob(f"{verb or '*'}/**/*.yaml")):
            name = path.relative_to(folder).parts
            recipe = RecipeFile("/".join(name[1:]).removesuffix(".yaml"), name[0], path, place)
            found.setdefault(path.resolve(), recipe)
    return list(found.values())


def find_recipe(name: str, verb: str, relative_to: Path | None = None) -> Path:
    """The file of a recipe.

    A value with `/` or `.yaml` is a path (tried from `relative_to` as well), anything else a name.

    Raises:
        ConfigError: no such recipe, or two different files of that name.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        for candidate in (Path(name), *([relative_to / name] if relative_to else [])):
            if candidate.is_file():
                return candidate
        raise ConfigError(f"recipe file '{name}' does not exist")
    known = list_recipes(verb)
    hits = [r for r in known if r.name == name]
    if len(hits) > 1:
        where = " and ".join(f"{r.path} ({r.place})" for r in hits)
        raise ConfigError(
            f"recipe '{name}' exists more than once: {where}; give the path of the one you mean, e.g. recipe={hits[0].path}"
        )
    if not hits:
        names = sorted(r.name for r in known)
        hint = suggest(name, names) or f"; known: {', '.join(names) or 'none'}"
        raise ConfigError(f"there is no {verb} recipe '{name}'{hint}")
    return hits[0].path
