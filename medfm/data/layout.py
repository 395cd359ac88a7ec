"""Carry out a data card's layout: a folder -> variables of each image -> values of each manifest column."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from medfm.data.card_layout import Labels, Layout, Source, Table
from medfm.data.cards import DataCard
from medfm.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Variables = dict[str, str]
EMPTY = frozenset({"", "nan", "NaN", "none", "None", "NA", "N/A"})


@dataclass
class Applied:
    """Variables of each image path, and (path, reason) of what the layout rejects."""

    variables: dict[str, Variables]
    rejected: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)


def find(root: Path, layout: Layout) -> list[Path]:
    """Image files: of the first glob that finds any.

    Raises:
        DataError: none does; names the globs.
    """
    for pattern in layout.images:
        files = sorted(p for p in root.glob(pattern) if p.is_file())
        if files:
            return files
    raise DataError(
        f"no image in '{root}' fits the card's layout: looked for {', '.join(layout.images)}. Is root= the data set's folder?"
    )


def read_source(root: Path, table: Source, joined: Collection[str]) -> tuple[list[pd.DataFrame], list[str]]:
    """The tables of the files that `table.file` finds, and their relative paths.

    Raises:
        DataError: a file is unreadable, or lacks a column that is parsed or joined on.
    """
    from medfm.data.records import SUFFIXES, read_records
    from medfm.data.table import read_table

    files = sorted({p for pattern in table.file for p in root.glob(pattern) if p.is_file() and not p.name.startswith("._")})
    frames = []
    for path in files:
        if path.suffix.lower() in SUFFIXES:
            frame = read_records(path, table.records, table.xml, table.encoding)
        else:
            frame = read_table(path, table.encoding, table.names, delimiter=table.delimiter, quoted=table.quoted)
        if frame.empty and not len(frame.columns):
            continue
        for column, pattern in table.parse.items():
            if column not in frame:
                raise DataError(f"table '{path.relative_to(root)}' has no column '{column}', which the card parses")
            found = frame[column].str.extract(pattern)
            for name in found.columns:
                frame[name] = found[name].fillna("").astype(object)
        for name, value in table.set.items():
            frame[name] = value
        missing = [c for c in joined if c not in frame]
        if missing:
            columns = ", ".join(map(str, frame.columns[:20]))
            raise DataError(
                f"table '{path.relative_to(root)}' has no column '{missing[0]}', which the card joins on; it has {columns}"
            )
        frames.append(frame)
    return frames, [p.relative_to(root).as_posix() for p in files]


def image_variables(path: str, layout: Layout, pattern: re.Pattern[str] | None) -> Variables | None:
    """What an image's own relative path says; None where it does not fit the card's pattern."""
    # A reference such as folder#series=KEY says which image of the folder: the layout knows folders only.
    place = path.partition("#")[0] if "=" in path.rpartition("#")[2] else path
    pure = PurePosixPath(place)
    values: Variables = {"path": place, "name": pure.name, "stem": pure.name.split(".")[0], **layout.set}
    if pattern is not None:
        match = pattern.search(place)
        if match is None:
            return None
        values.update({k: v for k, v in match.groupdict().items() if v})
    return values


def apply(root: Path, paths: list[str], layout: Layout) -> Applied:
    """Variables of `paths` (relative, posix), tables joined.

    Raises:
        DataError: a table that is not optional is missing or lacks a column.
    """
    pattern = re.compile(layout.path) if layout.path else None
    variables: dict[str, Variables] = {}
    rejected: list[tuple[str, str]] = []
    notes: list[str] = []
    for path in paths:
        values = image_variables(path, layout, pattern)
        if values is None:
            rejected.append((path, "the path does not fit the card's layout"))
        else:
            variables[path] = values
    for table in layout.tables:
        frames, names = read_source(root, table, table.join)
        if not frames:
            if table.optional:
                notes.append(f"optional table {table.file[0]} is absent")
                continue
            raise DataError(f"the card's table {' or '.join(table.file)} is not in '{root}'")
        rejected += _join(variables, table, frames, names, notes)
    for path, values in list(variables.items()):
        wrong = next((k for k, allowed in layout.keep.items() if values.get(k, "") not in allowed), None)
        if wrong is not None:
            rejected.append((path, f"{wrong} is '{values.get(wrong, '')}', the card keeps {', '.join(layout.keep[wrong])}"))
            del variables[path]
    for values in variables.values():
        _add_files(root, values, layout)
        _add_sections(values, layout)
    return Applied(variables, rejected, notes)


def _add_files(root: Path, values: Variables, layout: Layout) -> None:
    for name, templates in layout.files.items():
        for template in templates:
            try:
                place = template.format_map(values)
            except KeyError:
                continue
            if (root / place).exists():
                values[name] = place
                break


def _add_sections(values: Variables, layout: Layout) -> None:
    texts = {heading: values.get(variable, "") for heading, variable in layout.sections.items()}
    found = [f"{heading}: {text}" for heading, text in texts.items() if text not in EMPTY]
    if found:
        values["sections"] = "\n\n".join(found)


def _join(
    variables: dict[str, Variables], table: Table, frames: list[pd.DataFrame], names: list[str], notes: list[str]
) -> list[tuple[str, str]]:
    rows: dict[tuple[str, ...], list[Variables]] = {}
    for frame in frames:
        columns = [str(c) for c in frame.columns]
        keys = [columns.index(c) for c in table.join]
        taken = {*table.take, *table.join, *table.set} if table.take else set(columns)
        for row in frame.itertuples(index=False, name=None):
            key = tuple(row[k].strip() for k in keys)
            values = {c: "" if v.strip() in EMPTY else v.strip() for c, v in zip(columns, row, strict=True) if c in taken}
            known = rows.setdefault(key, [])
            # Readers who agree are several votes; rows that are equal otherwise are one.
            if table.several == "majority" or values not in known:
                known.append(values)
    used: set[tuple[str, ...]] = set()
    rejected = []
    for path, mine in list(variables.items()):
        key = tuple(mine.get(v, "") for v in table.join.values())
        if key not in rows:
            if table.required_match:
                rejected.append((path, f"no row in {_named(names)}"))
                del variables[path]
            continue
        used.add(key)
        if len(rows[key]) > 1 and table.several == "reject":
            rejected.append((path, f"several different rows in {_named(names)}"))
            del variables[path]
            continue
        theirs = rows[key][0] if len(rows[key]) == 1 else _merged(rows[key], table.several)
        variables[path] = {**theirs, **{k: v for k, v in mine.items() if v or k not in theirs}}
    if len(rows) > len(used):
        notes.append(f"{len(rows) - len(used):,} rows of {_named(names)} are about no image here")
    return rejected


def _named(names: list[str]) -> str:
    return " or ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1:,} other files"


def _merged(rows: list[Variables], how: str) -> Variables:
    """One row of several that differ; `how` as in `Table.several`."""
    if how == "first":
        return rows[0]
    merged: Variables = {}
    for name in dict.fromkeys(n for row in rows for n in row):
        texts = [row.get(name, "") for row in rows]
        ones = sum(t in ("1", "1.0") for t in texts)
        zeros = sum(t in ("0", "0.0") for t in texts)
        if len(set(texts)) == 1:
            merged[name] = texts[0]
        elif ones + zeros < len(texts):
            merged[name] = ""  # not 0 and 1: readers' names, boxes
        elif how == "any":
            merged[name] = "1" if ones else "0"
        else:
            merged[name] = "1" if ones > zeros else "0" if zeros > ones else "-1"
    return merged


def column(values: Mapping[str, str], layout: Layout, name: str) -> str:
    """The value of a manifest column: the first variable that has one, respelled."""
    for source in layout.columns.get(name, ()):  # type: ignore[call-overload]
        text = values.get(source, "")
        if text not in EMPTY:
            return layout.values.get(name, {}).get(text, text)  # type: ignore[call-overload]
    return ""


def report_text(root: Path, values: Mapping[str, str], layout: Layout) -> tuple[str, str]:
    """(text, problem) of the study's report file; ("", "") where none exists."""
    for template in layout.reports:
        try:
            path = root / template.format_map(values)
        except KeyError:
            continue
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8-sig"), ""
            except UnicodeDecodeError:
                return "", f"report file '{path.relative_to(root).as_posix()}' is not UTF-8"
    return "", ""


def label_values(variables: list[Variables], specs: tuple[Labels, ...]) -> dict[str, list[str]]:
    """Finding -> one text value an image ("1", "0", "-1", "")."""
    result: dict[str, list[str]] = {}
    for spec in specs:
        if spec.encoding == "columns":
            columns = _expand(spec.columns, variables)
            found = {spec.rename.get(c, c.removeprefix("label:")): [v.get(c, "") for v in variables] for c in columns}
        elif spec.encoding == "values":
            found = _valued(variables, spec)
        else:
            found = _listed(variables, spec)
        for name, texts in found.items():
            before = result.get(name, [""] * len(variables))
            result[name] = [new or old for new, old in zip(texts, before, strict=True)]
    return result


def _expand(columns: tuple[str, ...], variables: list[Variables]) -> list[str]:
    """'label:*' -> every variable so named, in the order of the table."""
    known = dict.fromkeys(name for v in variables for name in v) if any(c.endswith("*") for c in columns) else {}
    found: dict[str, None] = {}
    for c in columns:
        found |= dict.fromkeys(k for k in known if k.startswith(c[:-1])) if c.endswith("*") else {c: None}
    return list(found)


def _valued(variables: list[Variables], spec: Labels) -> dict[str, list[str]]:
    stated = [spec.values.get(v.get(spec.column, ""), {}) for v in variables]
    names = dict.fromkeys(name for labels in spec.values.values() for name in labels)
    return {name: [f"{labels[name]:g}" if name in labels else "" for labels in stated] for name in names}


def _listed(variables: list[Variables], spec: Labels) -> dict[str, list[str]]:
    entries = []
    for v in variables:
        listed = [e.strip().strip("[]'\" ").strip() for e in v.get(spec.column, "").split(spec.separator)]
        if spec.head:
            listed = [e.split(spec.head)[0].strip() for e in listed]
        entries.append([spec.rename.get(e, e) for e in listed if e])
    silent = {*spec.none, *spec.unknown}
    names = list(spec.names) or sorted({e for listed in entries for e in listed if e not in silent})
    result: dict[str, list[str]] = {}
    for name in names:
        result[name] = [
            "" if not listed or set(listed) & set(spec.unknown) else "1" if name in listed else "0" for listed in entries
        ]
    return result


def describe(card: DataCard) -> str:
    """One line for the index report."""
    return (
        f"{card.title} ({card.licence}; {card.access}{'' if card.verified else '; card not yet verified on the data itself'})"
    )
