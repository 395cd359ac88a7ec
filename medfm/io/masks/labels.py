"""Label maps <-> layers, and the names of labels inside a NIfTI file.

Names are kept in a NIfTI header extension as the label table of Connectome Workbench ("Caret"), the form in which
TotalSegmentator writes and reads them.
"""

from __future__ import annotations

import gzip
import html
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medfm.errors import DataError
from medfm.io.masks.grid import check_bytes

# A label map of whole-body anatomy has some hundred labels; thousands mean that the file is an image.
MAX_LABELS = 4096
_LABEL = re.compile(r'<Label\b[^>]*?\bKey="(-?\d{1,9})"[^>]*>(?:\s*<!\[CDATA\[(.*?)\]\]>\s*|([^<]*))</Label>', re.DOTALL)
_LARGEST_TABLE = 2**24
# Other programs list all labels they know; in medfm's files each one listed is a segment, if an empty one.
_ALL = "<!-- medfm: every label is a segment -->"


def labels_in(values: np.ndarray, path: str) -> list[int]:
    """The labels that occur in whole numbers, ascending, without 0.

    Raises:
        DataError: negative or too large, or more than `MAX_LABELS`.
    """
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0:
        raise DataError(f"'{path}': a label map holds 0 and positive labels; this file goes down to {low}")
    if high < 2**24:
        seen = np.zeros(high + 1, bool)
        seen[values] = True
        found = np.flatnonzero(seen[1:]) + 1
    else:
        found = np.setdiff1d(values, [0])
    if len(found) > MAX_LABELS:
        raise DataError(f"'{path}' holds {len(found):,} different values: it is an image, not a mask")
    return [int(n) for n in found]


def split(
    values: np.ndarray, names: Mapping[int, str], always: Iterable[int], only: Sequence[str], path: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """A label map as layers, one a label, ascending.

    Args:
        values: (i, j, k) whole numbers, 0 is the background.
        names: label -> name; the others are called "label 7".
        always: labels that have a layer even where they do not occur.
        only: names to keep, even where they do not occur; empty keeps all.

    Raises:
        DataError: as `labels_in` and `check_bytes`, or a name in `only` is unknown.
    """
    asked = (label for label, name in names.items() if name in only)
    found = sorted({*labels_in(values, path), *(label for label in (*always, *asked) if label > 0)})
    named = {label: names.get(label) or f"label {label}" for label in found}
    kept = [label for label in found if not only or named[label] in only]
    check_only(only, named.values(), path)
    check_bytes(len(kept), values.shape, path)
    layers = np.empty((len(kept), *values.shape), bool)
    for layer, label in zip(layers, kept, strict=True):
        np.equal(values, label, out=layer)
    return layers, tuple(named[label] for label in kept)


def check_only(only: Sequence[str], names: Iterable[str], path: str) -> None:
    """Raises DataError where `only` asks for a name that is not among `names`."""
    if isinstance(only, str):
        raise DataError(f"only= takes a list of names, for example only=['{only}']")
    here = list(names)
    missing = [name for name in only if name not in here]
    if missing:
        raise DataError(f"'{path}' has no segment named {', '.join(map(repr, missing))}; it has {len(here)} others")


def join(layers: np.ndarray) -> np.ndarray | None:
    """Layers as a label map (i, j, k) of labels 1 to S, uint8 or uint16; None where two layers overlap or S is too large."""
    if len(layers) > 65535:
        return None
    values = np.zeros(layers.shape[1:], np.uint8 if len(layers) < 256 else np.uint16)
    for label, layer in enumerate(layers, start=1):
        if len(layers) > 1 and values[layer].any():
            return None
        values[layer] = label
    return values


def label_table(names: Mapping[int, str]) -> bytes:
    """The XML of a label table, for a NIfTI header extension. Colours are spread over the hues."""
    import colorsys

    rows = []
    for number, (label, name) in enumerate(names.items()):
        red, green, blue = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.8, 1.0)
        text = name.replace("]]>", "]]]]><![CDATA[>")
        rows.append(
            f'<Label Key="{label}" Red="{red:.3f}" Green="{green:.3f}" Blue="{blue:.3f}" Alpha="1"><![CDATA[{text}]]></Label>'
        )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>{_ALL}<VolumeInformation Index="0"><LabelTable>\n'
        + "\n".join(rows)
        + "\n</LabelTable></VolumeInformation></CaretExtension>"
    ).encode()


def read_label_table(path: str | Path) -> tuple[dict[int, str], bool]:
    """({label: name}, whether each is a segment even where it does not occur) from the header extensions of a NIfTI file.

    ({}, False) where it has none, or they are damaged.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            start = file.read(544)
            if len(start) < 352:
                return {}, False
            first = 544 if struct.unpack("<i", start[:4])[0] in (540, 469893120) else 352
            file.seek(first - 4)
            flag = file.read(4)
            text = file.read(_LARGEST_TABLE) if flag[:1] == b"\x01" else b""
    except (OSError, EOFError, zlib.error):
        return {}, False
    end = text.find(b"</LabelTable>")
    begin = text.rfind(b"<LabelTable>", 0, end)
    if begin < 0 or end < 0:
        return {}, False
    found = {}
    for key, plain, escaped in _LABEL.findall(text[begin:end].decode("utf-8", errors="replace")):
        name = (plain.replace("]]]]><![CDATA[>", "]]>") if plain else html.unescape(escaped)).strip()
        if name and int(key) > 0:
            found[int(key)] = name
    return found, _ALL.encode() in text[:begin]
