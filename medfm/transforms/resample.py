"""Antialiased resizing, padding and cropping of 2D and 3D arrays."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

# A row or column whose 2nd to 98th percentile differ by less than this (of 1) shows nothing: collimation border or black
# margin.
_FLAT = 0.04


def resize(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Linear interpolation of the last axes of a float32 array (C, *spatial) to `shape`, with a filter as wide as the
    reduction.

    Pixel areas are aligned (align_corners=False), so that nothing shifts. Same shape: the array itself.
    """
    spatial = array.shape[1:]
    if spatial == tuple(shape):
        return array
    x = torch.from_numpy(np.ascontiguousarray(array))[None]
    if len(spatial) == 2:
        return _resize_plane(x, shape)[0].numpy()
    channels, depth, height, width = array.shape
    # Separable: the planes first (a depth is a batch of them), then the depth as one axis of a plane. interpolate() itself
    # antialiases in 2D only.
    x = _resize_plane(x.reshape(1, channels * depth, height, width), shape[1:])
    x = x.reshape(1, channels, depth, shape[1] * shape[2])
    x = _resize_plane(x, (shape[0], shape[1] * shape[2]))
    return x.reshape(channels, *shape).numpy()


def _resize_plane(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if tuple(x.shape[2:]) == tuple(shape):
        return x
    return interpolate(x, size=list(shape), mode="bilinear", antialias=True, align_corners=False)


def center_fit(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Cut the middle of, or pad with 0 around, the last axes of (C, *spatial) to `shape`."""
    if array.shape[1:] == tuple(shape):
        return array
    out = np.zeros((array.shape[0], *shape), array.dtype)
    source, target = [slice(None)], [slice(None)]
    for have, want in zip(array.shape[1:], shape, strict=True):
        length = min(have, want)
        source.append(slice((have - length) // 2, (have - length) // 2 + length))
        target.append(slice((want - length) // 2, (want - length) // 2 + length))
    out[tuple(target)] = array[tuple(source)]
    return out


def crop_borders(array: np.ndarray) -> np.ndarray:
    """Cut rows, columns (and slices) without content off the ends of (C, *spatial) in [0, 1]; black and bright borders alike.

    A line counts as a border while its values, text and markers of under 4 % aside, differ by less than 0.04. An end that
    would lose more than half of its axis is left as it is.
    """
    for _ in range(2):  # a dark frame hides in the rows until the columns are cut, and the reverse
        before = array.shape
        for axis in range(1, array.ndim):
            first, last = _content(array, axis)
            array = array[(slice(None),) * axis + (slice(first, last),)]
        if array.shape == before:
            break
    return array


def _content(array: np.ndarray, axis: int) -> tuple[int, int]:
    """[first, last) of the lines with content along `axis`."""
    lines = np.moveaxis(array, axis, 0)
    # At most ~256 samples along each other axis: a border is seen as well, at a hundredth of the time.
    steps = [slice(None, None, max(1, n // 256)) for n in lines.shape[1:]]
    lines = lines[(slice(None), *steps)].reshape(lines.shape[0], -1)
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
