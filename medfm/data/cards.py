"""Data cards: what a data set is, where it is had, and how its folder becomes a manifest.

A card is a Markdown file, `data_cards/<name>.md`: YAML front matter (this schema) and prose. The layout is declarative:

    images: the first of these globs that finds anything gives the images
    path:   a regular expression over an image's path; its named groups become the image's variables
    tables: each adds its columns to the variables of the images whose `join` variables match
    reports: templates of a study's report file, with variables in braces
    columns, values, labels: which variable fills which column of the manifest, and how its values are spelled there

Besides named groups and table columns, an image has the variables `path`, `name` and `stem`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from medfm.data.index_config import Names
from medfm.errors import ConfigError
from medfm.registry import Config, suggest


def _texts(value: Any) -> Any:
    # YAML reads 1 as a number, and `on`, `no` as booleans; card values are texts.
    if isinstance(value, dict):
        return {str(k): _texts(v) for k, v in value.items()}
    return value


Mapping = Annotated[dict[str, str], BeforeValidator(_texts)]
Column = Literal["patient_id", "study_id", "view", "modality", "split", "report", "sex", "age", "mask"]


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


class Table(Config):
    """A CSV table (or a list of names) that knows something of images."""

    file: Names = Field(description="globs; all files found are read as one table")
    join: Mapping = Field(description="table column -> image variable: how a row finds its images")
    names: tuple[str, ...] = Field(default=(), description="column names of a table without a header")
    parse: dict[str, str] = Field(
        default_factory=dict, description="column -> regular expression whose named groups become columns"
    )
    set: Mapping = Field(default_factory=dict, description="columns with one value, e.g. {split: train}")
    encoding: str = "utf-8"
    optional: bool = Field(default=False, description="the file may be absent")
    required_match: bool = Field(default=True, description="reject images that no row is about")

    @field_validator("parse")
    @classmethod
    def _patterns(cls, value: dict[str, str]) -> dict[str, str]:
        for pattern in value.values():
            _regex(pattern)
        return value


class Labels(Config):
    """Where labels come from.

    columns: one table column a finding, 1, 0, -1 or empty; a prefix "label:" is dropped.
    list: one variable that lists what is present ("Mass|Nodule"); what is not listed is 0.
    values: one variable whose value stands for labels ({NORMAL: {pneumonia: 0}}).

    Where several specifications state one finding, the last that says something of an image holds.
    """

    encoding: Literal["columns", "list", "values"]
    column: str = Field(default="", description="the variable, for list and values")
    columns: tuple[str, ...] = Field(default=(), description="for columns; 'label:*' takes all so named")
    rename: Mapping = Field(default_factory=dict, description="spelling in the data -> finding")
    separator: str = Field(default="|", description="for list; brackets and quotes of a Python list are dropped")
    names: tuple[str, ...] = Field(default=(), description="for list: the findings; empty takes all that occur")
    none: tuple[str, ...] = Field(default=(), description="for list: entries that say that nothing is present")
    unknown: tuple[str, ...] = Field(default=(), description="for list: entries that say nothing")
    values: dict[str, dict[str, float]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Labels:
        needed = {"columns": self.columns, "list": self.column, "values": self.column and self.values}[self.encoding]
        if not needed:
            what = {"columns": "columns", "list": "column", "values": "column and values"}[self.encoding]
            raise ValueError(f"labels of encoding '{self.encoding}' need {what}")
        return self


class Layout(Config):
    """How the folder of a data set becomes rows; see the module's text."""

    images: Names
    path: str = Field(default="", description="regular expression, searched in the relative path")
    tables: tuple[Table, ...] = ()
    reports: Names = ()
    set: Mapping = Field(default_factory=dict, description="variables that are the same for every image")
    columns: dict[Column, Names] = Field(
        default_factory=dict, description="manifest column <- variable; of several the first with a value"
    )
    values: dict[Column, Mapping] = Field(default_factory=dict, description="spelling in the data -> spelling in the manifest")
    labels: tuple[Labels, ...] = ()
    keep: dict[str, Names] = Field(default_factory=dict, description="variable -> values; images with others are rejected")
    val_from_train: bool = Field(default=False, description="official splits without val: draw val patients out of train")

    @field_validator("path")
    @classmethod
    def _pattern(cls, value: str) -> str:
        return _regex(value)


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
    layout: Layout
    traps: tuple[str, ...] = ()


def card_folder() -> Path:
    """Where the built-in cards lie: in the package once installed, at the project's top in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_data_cards"
    return installed if installed.is_dir() else package.parent / "data_cards"


def card_names() -> list[str]:
    return sorted(p.stem for p in card_folder().glob("*.md") if p.stem != "README")


def load_card(name_or_path: str | Path) -> DataCard:
    """The front matter of a built-in card by name, or of a file (a text with '/' or ending in .md).

    Raises:
        ConfigError: unknown name (with the nearest), missing file, no front matter, or every problem of the schema at once.
    """
    text = str(name_or_path)
    if "/" in text or text.endswith(".md"):
        path = Path(text)
        if not path.is_file():
            raise ConfigError(f"data card '{path}' does not exist")
    else:
        path = card_folder() / f"{text}.md"
        if not path.is_file():
            names = card_names()
            raise ConfigError(f"unknown data card '{text}'{suggest(text, names) or '; known: ' + ', '.join(names)}")
    return parse_card(path.read_text(encoding="utf-8"), path)


def parse_card(text: str, path: Path) -> DataCard:
    """The card in `text`; `path` is named in errors. Raises ConfigError."""
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
    if card.name != path.stem:
        raise ConfigError(f"data card '{path}' is named '{card.name}' inside; the two must agree")
    return card
