"""Data cards: what a data set is, where it is had, and how its folder becomes a manifest.

A card is a Markdown file, `data_cards/<name>.md`: YAML front matter (this schema) and prose. How a folder becomes rows is in
`medfm.data.card_layout`, where the files are fetched in `medfm.data.card_download`.

A data set of several releases or tasks is one card with `variants`: what differs from the card, merged over it key by key,
lists replaced. `card=msd:hippocampus` names one. A card with variants and no `default_variant` is only used by a variant, for
units, labels and addresses differ between them, and a mixture would be wrong.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from medfm.data.card_download import Apply, Download, DownloadFile
from medfm.data.card_layout import Labels, Layout, Questions, Table
from medfm.data.index_config import Names
from medfm.errors import ConfigError
from medfm.registry import Config, suggest

_NAME = re.compile(r"[a-z0-9_]+(:[a-z0-9_]+)?")


def _numbered(value: Any) -> Any:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value


class DataCard(Config):
    """The front matter of a data card."""

    name: str
    title: str
    modality: Names = Field(description="DICOM codes")
    body_part: str
    kind: Literal["2d", "3d"]
    size: str = Field(default="", description="images, studies, patients, as the authors count them")
    where: str = Field(description="the official page")
    access: Literal["open", "registration", "credentialed", "generated"]
    licence: str
    citation: str
    verified: bool = Field(default=False, description="false: written from memory, not checked against the data set itself")
    public_ids: bool = Field(
        default=False, description="ids are public pseudonyms and stay as they are; otherwise they are coded"
    )
    intensity_units: Literal["HU", "BQML", "SUV", "display", "arbitrary"]
    text_kind: Literal["report", "label sentences", "none"]
    language: str = Field(default="en", description="of the reports, ISO 639-1")
    mask_labels: Annotated[dict[str, str], BeforeValidator(_numbered)] = Field(
        default_factory=dict,
        description="value in the mask -> structure; empty where masks say it themselves or there are none",
    )
    layout: Layout
    download: Download | None = None
    traps: tuple[str, ...] = ()
    unconfirmed: tuple[str, ...] = Field(default=(), description="what of this card no public page was found for")


def card_folder() -> Path:
    """Where the built-in cards lie: in the package once installed, at the project's top in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_data_cards"
    return installed if installed.is_dir() else package.parent / "data_cards"


def card_names(variants: bool = True) -> list[str]:
    """Names of the built-in cards, 'msd:hippocampus' for each variant; without `variants`, one name a file."""
    names: list[str] = []
    for path in sorted(card_folder().glob("*.md")):
        if path.stem == "README":
            continue
        data = _front_matter(path.read_text(encoding="utf-8"), path) if variants else {}
        found = data.get("variants") or {}
        names += [f"{path.stem}:{v}" for v in found] if found else [path.stem]
    return names


def load_card(name_or_path: str | Path) -> DataCard:
    """The front matter of a built-in card by name ('msd:hippocampus'), or of a file (a text with '/' or ending in .md).

    A variant of a file follows its path: `./mine.md:small`.

    Raises:
        ConfigError: unknown name or variant (with the nearest), missing file, no front matter, or all problems of the schema.
    """
    text = str(name_or_path)
    if "/" in text or text.endswith(".md") or ".md:" in text:
        head, colon, variant = text.rpartition(":")
        if not (colon and head.endswith(".md")):
            head, variant = text, ""
        path = Path(head)
        if not path.is_file():
            raise ConfigError(f"data card '{path}' does not exist")
    else:
        stem, _, variant = text.partition(":")
        path = card_folder() / f"{stem}.md"
        if not _NAME.fullmatch(text) or not path.is_file():
            names = card_names(variants=False)
            raise ConfigError(f"unknown data card '{text}'{suggest(stem, names) or '; known: ' + ', '.join(names)}")
    return parse_card(path.read_text(encoding="utf-8"), path, variant)


def _front_matter(text: str, path: Path) -> dict[str, Any]:
    import yaml

    match = re.match(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", text, re.DOTALL)
    if match is None:
        raise ConfigError(f"data card '{path}' does not start with YAML front matter between '---' lines")
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 2}" if mark is not None else ""
        raise ConfigError(f"data card '{path}'{where}: not readable as YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"data card '{path}': its front matter is no mapping of keys")
    return data


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{k: _merge(base[k], v) if k in base else v for k, v in over.items()}}
    return over


def _chosen(data: dict[str, Any], variant: str, path: Path) -> dict[str, Any]:
    """`data` with its variant merged in; its name becomes name:variant."""
    variants = data.pop("variants", None) or {}
    default = data.pop("default_variant", "")
    known = list(map(str, variants))
    if default and default not in known:
        raise ConfigError(f"data card '{path}': default_variant '{default}' is none of {', '.join(known)}")
    name = variant or default
    if not variants and not name:
        return data
    if name not in known:
        if not variants:
            raise ConfigError(f"data card '{path.stem}' has no variants: use card={path.stem}")
        if not name:
            raise ConfigError(
                f"data card '{path.stem}' has variants; choose one: card={path.stem}:{known[0]} (of {', '.join(known)})"
            )
        hint = suggest(name, known) or f"; it has {', '.join(known)}"
        raise ConfigError(f"data card '{path.stem}' has no variant '{name}'{hint}")
    if not isinstance(variants[name], dict):
        raise ConfigError(f"data card '{path}': variant '{name}' is no mapping of keys")
    merged = _merge(data, variants[name])
    return {**merged, "name": f"{data.get('name')}:{name}"}


def parse_card(text: str, path: Path, variant: str = "") -> DataCard:
    """The card in `text`; `path` is named in errors. Raises ConfigError."""
    data = _chosen(_front_matter(text, path), variant, path)
    try:
        card = DataCard.model_validate(data)
    except ValidationError as error:
        problems = []
        for e in error.errors():
            key = ".".join(str(part) for part in e["loc"])
            if e["type"] == "extra_forbidden":
                problems.append(f"  {key}  unknown key{suggest(str(e['loc'][-1]), DataCard.model_fields)}")
            else:
                problems.append(f"  {key}  {e['msg']}")
        raise ConfigError(
            f"{len(problems)} problem{'s' * (len(problems) > 1)} in data card '{path}'\n" + "\n".join(problems)
        ) from None
    if card.name.partition(":")[0] != path.stem:
        raise ConfigError(f"data card '{path}' is named '{card.name.partition(':')[0]}' inside; the two must agree")
    return card


__all__ = [
    "Apply",
    "DataCard",
    "Download",
    "DownloadFile",
    "Labels",
    "Layout",
    "Questions",
    "Table",
    "card_folder",
    "card_names",
    "load_card",
    "parse_card",
]
