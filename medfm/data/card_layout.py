"""The part of a data card that says how a folder becomes rows: tables, labels, masks, questions.

    images:    the first of these globs that finds anything gives the images
    path:      a regular expression over an image's path; its named groups become the image's variables
    tables:    each adds its columns to the variables of the images whose `join` variables match
    reports:   templates of a study's report file, with variables in braces
    files:     templates of files that go with an image (a mask); the first that exists becomes a variable
    sections:  variables that are written one after another, each under its heading, as the variable `sections`
    columns, values, labels: which variable fills which column of the manifest, and how its values are spelled there
    questions: tables of questions and answers about the images (see `medfm.data.questions`)

Besides named groups and table columns, an image has the variables `path`, `name` and `stem`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from medfm.data.index_config import Names
from medfm.registry import Config


def _texts(value: Any) -> Any:
    # YAML reads 1 as a number, and `on`, `no` as booleans; card values are texts.
    if isinstance(value, dict):
        return {str(k): _texts(v) for k, v in value.items()}
    return value


Mapping = Annotated[dict[str, str], BeforeValidator(_texts)]
Column = Literal["patient_id", "study_id", "view", "modality", "split", "report", "sex", "age", "mask"]
QuestionColumn = Literal[
    "question", "answer", "question_id", "answer_type", "question_type", "phrase_type", "language", "official_split"
]


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


class XmlRows(Config):
    """How an XML document becomes rows. Paths are those of xml.etree; `@name` at the end takes an attribute.

    Several matches of a field are joined with '|'.
    """

    rows: str = Field(default=".", description="path of the elements that are rows, from the root element")
    document: Mapping = Field(default_factory=dict, description="column <- path from the root element: the same in all rows")
    row: Mapping = Field(default_factory=dict, description="column <- path from the row's element")


class Source(Config):
    """Where a table lies and how it is read: CSV, TSV, parquet, JSON, JSON lines, XML; by the file's suffix."""

    file: Names = Field(description="globs; all files found are read as one table")
    names: tuple[str, ...] = Field(default=(), description="column names of a table without a header")
    records: str = Field(
        default="",
        description="JSON: dotted key of the list of rows (or of {name: value}); nested keys become columns a.b",
    )
    xml: XmlRows | None = Field(default=None, description="needed for .xml files")
    parse: dict[str, str] = Field(
        default_factory=dict, description="column -> regular expression whose named groups become columns"
    )
    set: Mapping = Field(default_factory=dict, description="columns with one value, e.g. {split: train}")
    encoding: str = "utf-8"
    delimiter: str = Field(default="", max_length=1, description="of a text table; read off the first line where empty")
    quoted: bool = Field(default=True, description="false: quotation marks in a text table mean nothing")

    @field_validator("parse")
    @classmethod
    def _patterns(cls, value: dict[str, str]) -> dict[str, str]:
        for pattern in value.values():
            _regex(pattern)
        return value


class Table(Source):
    """A table that knows something of images."""

    join: Mapping = Field(description="table column -> image variable: how a row finds its images")
    take: tuple[str, ...] = Field(
        default=(), description="only these columns (and the joined ones); rows that agree in them are one row"
    )
    several: Literal["reject", "majority", "any", "first"] = Field(
        default="reject",
        description="rows that differ about one image: reject the image; per column the majority of readers, a tie being "
        "-1 (uncertain) for 1 and 0, else empty; 1 where any reader says 1; or the first row",
    )
    optional: bool = Field(default=False, description="the file may be absent")
    required_match: bool = Field(default=True, description="reject images that no row is about")


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
    head: str = Field(default="", description="for list: an entry ends before this text: with '/', 'Opacity/lung' is Opacity")
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


class Questions(Source):
    """A table of questions and answers: many rows an image."""

    join: Mapping = Field(description="table column -> image variable")
    columns: dict[QuestionColumn, str] = Field(description="what -> table column; question and answer at least")
    values: dict[QuestionColumn, Mapping] = Field(default_factory=dict, description="spelling in the data -> our spelling")
    optional: bool = Field(default=False, description="the file may be absent")

    @model_validator(mode="after")
    def _complete(self) -> Questions:
        missing = {"question", "answer"} - set(self.columns)
        if missing:
            raise ValueError(f"questions need a column for {' and '.join(sorted(missing))}")
        return self


class Layout(Config):
    """How the folder of a data set becomes rows; see the module's text."""

    images: Names
    path: str = Field(default="", description="regular expression, searched in the relative path")
    tables: tuple[Table, ...] = ()
    reports: Names = ()
    files: dict[str, Names] = Field(
        default_factory=dict, description="variable <- path templates, relative to root: the first that exists"
    )
    sections: Mapping = Field(
        default_factory=dict, description="heading -> variable: texts that make one report, in the variable `sections`"
    )
    set: Mapping = Field(default_factory=dict, description="variables that are the same for every image")
    columns: dict[Column, Names] = Field(
        default_factory=dict, description="manifest column <- variable; of several the first with a value"
    )
    values: dict[Column, Mapping] = Field(default_factory=dict, description="spelling in the data -> spelling in the manifest")
    labels: tuple[Labels, ...] = ()
    questions: tuple[Questions, ...] = ()
    keep: dict[str, Names] = Field(default_factory=dict, description="variable -> values; images with others are rejected")
    modalities: Names = Field(default=(), description="DICOM modalities taken; images whose header names another are rejected")
    val_from_train: bool = Field(default=False, description="official splits without val: draw val patients out of train")

    @field_validator("path")
    @classmethod
    def _pattern(cls, value: str) -> str:
        return _regex(value)
