"""Which part of an image is kept: content without its borders, a box of given size, and what is put around."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A row or column whose 2nd to 98th percentile differ by less than this (of 1) shows nothing: collimation border or black
# margin.
_FLAT = 0.04
# A plane belongs to the foreground where this share of it lies above the threshold; less is noise or a marker.
_FOREGROUND = 0.005


def border_box(array: np.ndarray) -> tuple[slice, ...]:
    """The spatial box that leaves out rows, columns (and slices) without content at the ends of (C, *spatial) in [0, 1]; black
    and bright borders alike.

    A line counts as a border while its values, text and markers of under 4 % aside, differ by less than 0.04. An end that
    would lose more than half of its axis is left as it is.
    """
    box = [slice(0, n) for n in array.shape[1:]]
    for _ in range(2):  # a dark frame hides in the rows until the columns are cut, and the reverse
        before = list(box)
        for axis in range(1, array.ndim):
            first, last = _content(array[(slice(None), *box)], axis)
            start = box[axis - 1].start
            box[axis - 1] = slice(start + first, start + last)
        if box == before:
            break
    return tuple(box)


def _content(array: np.ndarray, axis: int) -> tuple[int, int]:
    """[first, last) of the lines with content along `axis`."""
    lines = _lines(array, axis)
    rank = max(1, round(0.02 * lines.shape[1]))
    if 2 * rank >= lines.shape[1]:
        return 0, len(lines)
    ordered = np.partition(lines, (rank, lines.shape[1] - 1 - rank), axis=1)
    shown = np.flatnonzero(ordered[:, -1 - rank] - ordered[:, rank] >= _FLAT)
    if not len(shown):
        return 0, len(lines)
    first, last = int(shown[0]), int(shown[-1]) + 1
    half = len(lines) // 2
    return (first if first <= half else 0), (last if len(lines) - last <= half else len(lines))


def _lines(array: np.ndarray, axis: int) -> np.ndarray:
    """(n, samples): every line along `axis`, and at most ~256 samples along each other axis: what a line shows is seen as well,
    at a hundredth of the time.
    """
    lines = np.moveaxis(array, axis, 0)
    steps = [slice(None, None, max(1, n // 256)) for n in lines.shape[1:]]
    return lines[(slice(None), *steps)].reshape(lines.shape[0], -1)


def foreground_box(array: np.ndarray, threshold: float) -> tuple[slice, ...]:
    """The box of an array's planes of which at least 0.5 % lies above `threshold`; all of it where none does."""
    box = []
    for axis in range(array.ndim):
        above = (_lines(array, axis) > threshold).mean(axis=1)
        shown = np.flatnonzero(above >= _FOREGROUND)
        box.append(slice(int(shown[0]), int(shown[-1]) + 1) if len(shown) else slice(0, array.shape[axis]))
    return tuple(box)


def fit(array: np.ndarray, size: Sequence[int], fill: np.ndarray | float = 0, start: Sequence[int] | None = None) -> np.ndarray:
    """Cut a box of `size` out of, or pad around, the last axes of (C, *spatial).

    Args:
        fill: what is put around: a number, or one a channel.
        start: first index of the box along each axis that is cut; None takes the middle. An axis that is padded has the image
            in its middle.

    Returns:
        (C, *size): a view where nothing is padded.
    """
    source, target, padded = [slice(None)], [slice(None)], False
    for axis, (have, want) in enumerate(zip(array.shape[1:], size, strict=True)):
        first = (have - want) // 2 if start is None else int(start[axis])
        if have >= want and not 0 <= first <= have - want:
            raise ValueError(f"a box of {want} from {first} leaves an axis of {have}")
        source.append(slice(first, first + want) if have >= want else slice(0, have))
        before = max(0, (want - have) // 2)
        target.append(slice(before, before + min(have, want)))
        padded = padded or have < want
    part = array[tuple(source)]
    if not padded:
        return part
    out = np.empty((array.shape[0], *size), array.dtype)
    out[...] = np.reshape(fill, (-1, *[1] * len(size)))
    out[tuple(target)] = part
    return out


def random_start(shape: Sequence[int], size: Sequence[int], rng: np.random.Generator) -> tuple[int, ...]:
    """Where a random box of `size` begins in `shape`, uniform over all places it fits; 0 along axes that are too short."""
    room = np.maximum(np.subtract(shape, size), 0)
    return tuple(rng.integers(0, room + 1).tolist())
