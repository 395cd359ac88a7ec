"""Filling polygons: a pixel is inside where its centre is, by the even-odd rule.

Drawing libraries (Pillow, OpenCV) also colour the pixels that an outline touches, which adds half a pixel all round; here an
area is unbiased. On an edge the left and upper side counts as inside, the right and lower does not, so that polygons
that share an edge share no pixel and leave none out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Contours are stored in decimal millimetres: crossings this close to a pixel's centre are on it.
_DECIMALS = 6
_CHUNK = 2**22
_MANY = 100


def fill(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels inside an odd number of closed polygons, so that a polygon within another is a hole.

    Args:
        polygons: (n, 2) vertices each, in pixels; the centre of pixel (a, b) is at (a, b). The last joins the first.
        shape: pixels along the two axes.

    Returns:
        (a, b) bool of `shape`.
    """
    inside = np.zeros(shape, bool)
    window = _window(polygons, shape)
    if window is None:
        return inside
    (a0, a1), (b0, b1) = window
    edges = np.concatenate([np.concatenate([p, np.roll(p, -1, axis=0)], axis=1) for p in polygons if len(p) > 2])
    edges = np.round(edges, _DECIMALS)
    # Each edge runs downwards, so that two edges which share a vertex both begin or both end there.
    edges = np.where((edges[:, 1] > edges[:, 3])[:, None], edges[:, [2, 3, 0, 1]], edges)
    first = np.clip(np.ceil(edges[:, 1]), b0, b1 + 1).astype(np.intp)
    last = np.clip(np.ceil(edges[:, 3]), b0, b1 + 1).astype(np.intp)  # one past
    count = last - first
    width, height = a1 - a0 + 2, b1 - b0 + 1
    crossings = np.zeros(width * height, np.intp)
    for part in _chunks(count):
        rows, row = np.repeat(part, count[part]), _counting(first[part], count[part])
        x0, y0, x1, y1 = edges[rows].T
        x = np.round(x0 + (row - y0) * ((x1 - x0) / (y1 - y0)), _DECIMALS)
        column = np.clip(np.ceil(x), a0, a1 + 1).astype(np.intp)
        crossings += np.bincount((row - b0) * width + column - a0, minlength=len(crossings))
    odd = np.logical_xor.accumulate(crossings.reshape(height, width) % 2 == 1, axis=1)[:, :-1]
    inside[a0 : a1 + 1, b0 : b1 + 1] = odd.T
    return inside


def _window(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The pixels that polygons can reach, as (first, last) along both axes; None where there are none."""
    points = [p for p in polygons if len(p) > 2]
    if not points:
        return None
    low = np.min([p.min(0) for p in points], axis=0)
    high = np.max([p.max(0) for p in points], axis=0)
    ranges = []
    for axis in range(2):
        first = int(np.clip(np.floor(low[axis]), 0, shape[axis]))
        last = int(np.clip(np.ceil(high[axis]), -1, shape[axis] - 1))
        if first > last:
            return None
        ranges.append((first, last))
    return ranges[0], ranges[1]


def _chunks(count: np.ndarray) -> list[np.ndarray]:
    """Indices of edges that cross a row, in parts of a bounded number of crossings."""
    some = np.flatnonzero(count)
    if not len(some):
        return []
    part = np.cumsum(count[some]) // _CHUNK
    return np.split(some, np.flatnonzero(np.diff(part)) + 1)


def _counting(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... count[0] of them, then those of first[1]: [3, 7], [2, 1] -> [3, 4, 7]."""
    starts = np.cumsum(count) - count
    return np.arange(int(count.sum())) - np.repeat(starts - first, count)


def cross(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> bool:
    """Whether the areas of two polygons overlap without one lying within the other. Not looked into where there are many."""
    if len(polygons) > _MANY:
        return False
    boxes = [(p.min(0), p.max(0)) for p in polygons]
    filled: dict[int, np.ndarray] = {}
    for a in range(len(polygons)):
        for b in range(a + 1, len(polygons)):
            (low, high), (low_, high_) = boxes[a], boxes[b]
            if (low >= high_).any() or (low_ >= high).any():
                continue
            for n in (a, b):
                if n not in filled:
                    filled[n] = fill([polygons[n]], shape)
            both = np.count_nonzero(filled[a] & filled[b])
            if both and both != min(np.count_nonzero(filled[a]), np.count_nonzero(filled[b])):
                return True
    return False
