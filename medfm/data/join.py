"""Which row of a report table belongs to which image, when no card says it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from medfm.data.scan import Item
from medfm.data.values import normalise_path
from medfm.errors import ConfigError, DataError
from medfm.registry import suggest

if TYPE_CHECKING:
    import pandas as pd


_SELECTED = re.compile(r"#(series|volume)=[0-9a-f]+(,volume=\d+)?$")


def _stem(name: str) -> str:
    for suffix in (".nii.gz", ".gz"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name.rsplit(".", 1)[0] if "." in name.strip(".") else name


def _place(item: Item) -> str:
    """The path without the selector of a series."""
    return _SELECTED.sub("", item.path)


def _folders(item: Item) -> list[str]:
    """The folders an image lies in, the innermost first; that which mixes several series is one of them."""
    place = PurePosixPath(_place(item))
    mixes = place.as_posix() != item.path and item.files > 1
    return [*([place.name] if mixes else []), *place.parent.parts[::-1]]


def _header(attribute: str) -> Callable[[Item], list[str]]:
    return lambda item: [v] if item.header is not None and (v := getattr(item.header, attribute)) else []


# What an image can be known by, the most specific first.
KEYS: dict[str, Callable[[Item], list[str]]] = {
    "path": lambda item: [item.path],
    "image": _header("image_id"),
    "name": lambda item: [PurePosixPath(_place(item)).name],
    "stem": lambda item: [_stem(PurePosixPath(_place(item)).name)],
    "series": _header("series_id"),
    "study": _header("study_id"),
    "folder": _folders,
    "patient": _header("patient_id"),
}
# Two images may share these; a name or a stem that two images share says nothing.
_SHARED = frozenset({"series", "study", "folder", "patient"})
SAYS = {
    "path": "relative path",
    "image": "SOP Instance UID",
    "name": "file name",
    "stem": "file name without suffix",
    "series": "Series Instance UID",
    "study": "Study Instance UID",
    "folder": "folder name",
    "patient": "patient id",
}


@dataclass
class Join:
    """A way to join. `rows[i]` are the table positions of item i, usually one."""

    column: str
    key: str
    rows: list[list[int]]

    @property
    def matched(self) -> int:
        return sum(1 for r in self.rows if r)

    @property
    def rate(self) -> float:
        return self.matched / max(len(self.rows), 1)

    def __str__(self) -> str:
        return f"column '{self.column}' = {SAYS[self.key]} ({self.matched:,} of {len(self.rows):,} images, {self.rate:.1%})"


def _item_keys(items: list[Item], key: str) -> list[list[str]]:
    values = [KEYS[key](item) for item in items]
    if key not in _SHARED:
        often = Counter(v for vs in values for v in vs)
        values = [[v for v in vs if often[v] == 1] for vs in values]
    return values


def _table_keys(column: pd.Series, key: str) -> dict[str, list[int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for i, value in enumerate(column):
        text = normalise_path(value)
        if key == "name":
            text = text.rsplit("/", 1)[-1]
        elif key == "stem":
            text = _stem(text.rsplit("/", 1)[-1])
        if text:
            places[text].append(i)
    return places


def _match(known: list[list[str]], frame: pd.DataFrame, column: str, key: str) -> Join:
    places = _table_keys(frame[column], key)
    return Join(column, key, [next((places[v] for v in values if v in places), []) for values in known])


def find_join(
    items: list[Item], frame: pd.DataFrame, on: str | None, match: str, table: str, other: Collection[str] = ()
) -> Join:
    """The join that reaches most images; ties go to the most specific key.

    Args:
        on: the column, or None to look through all.
        match: a key of `KEYS`, or "auto".
        other: columns known to hold something else.

    Raises:
        ConfigError: `on` is no column, or two columns reach equally many images through different rows.
        DataError: nothing matches; says what the table and the images look like, without values.
    """
    columns = [str(c) for c in frame.columns]
    if on is not None and on not in columns:
        hint = suggest(on, columns) or f"; it has {', '.join(columns[:20])}"
        raise ConfigError(f"on={on}: table '{table}' has no such column{hint}")
    keys = list(KEYS) if match == "auto" else [match]
    searched = [on] if on is not None else [c for c in columns if c not in other]
    tries = []
    for key in keys:
        known = _item_keys(items, key)
        tries += [_match(known, frame, c, key) for c in searched]
    # Exact paths before names taken out of paths: `tries` is ordered by key, and max keeps the first of equals.
    best = max(tries, key=lambda j: j.matched)
    if best.matched == 0:
        where = f"column '{on}'" if on is not None else f"none of the columns {', '.join(columns[:20])}"
        raise DataError(
            f"table '{table}' joins no image: {where} holds the {' or '.join(SAYS[k] for k in keys)} of one of "
            f"{len(items):,} images. Name the column with on=COLUMN, and start root= where its paths start"
        )
    if on is None:
        # Other columns reach some images by accident ("1" is a folder's name): only near-complete rivals with other rows count.
        rivals = [
            j
            for j in tries
            if j.column != best.column and j.matched >= 0.9 * best.matched and j.rows != best.rows and j.key == best.key
        ]
        if rivals:
            raise ConfigError(
                f"table '{table}' can be joined in {len(rivals) + 1} ways that disagree: "
                f"{best}; {'; '.join(map(str, rivals[:3]))}. "
                "Choose with on=COLUMN"
            )
    return best
