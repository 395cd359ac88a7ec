"""Resizing to a shape, and resampling to a spacing with the affine kept true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import interpolate

from medfm.errors import DataError

# A spacing this near counts as the wanted one, so that an image on the wanted grid stays as it is.
_SAME = 1e-4


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


def resample_to_spacing(
    array: np.ndarray,
    affine: np.ndarray,
    spacing: tuple[float, float, float],
    order: Literal["linear", "nearest"] = "linear",
    antialias: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The image on a grid of `spacing` mm along its own axes, and that grid's affine.

    The centre of the volume stays where it is, and as many voxels are taken as fit its extent best, at least one. Points up to
    half a voxel outside the first and last voxel centres take the nearest value.

    Args:
        array: (i, j, k) or (i, j, k, c) numbers; (i, j, 1) is a film or a slice.
        affine: (4, 4), voxel index to mm.
        spacing: mm along i, j and k.
        order: "linear" gives float32; "nearest" keeps the dtype, for masks.
        antialias: where an axis shrinks, take a triangle as wide as two new voxels instead of the two nearest old ones.

    Returns:
        (array, affine); the very array and affine where the spacing is there already.

    Raises:
        DataError: a spacing is not above 0, or the result would have over 2^31 numbers.
    """
    affine = np.asarray(affine, np.float64)
    first, steps, new = spaced_grid(array.shape[:3], affine, spacing)
    old = array.shape[:3]
    if (steps == 1).all():
        return array, affine
    if float(new.prod()) * math.prod(array.shape[3:]) > 2**31:
        raise DataError(f"an image would have {_words(new)} voxels at a spacing of {_words(spacing)} mm; is its own right?")
    moved = affine.copy()
    moved[:3, :3] *= steps
    moved[:3, 3] = affine[:3, :3] @ first + affine[:3, 3]
    points = [a + np.arange(int(n)) * s for a, n, s in zip(first, new, steps, strict=True)]
    if order == "nearest":
        picks = [np.clip(np.floor(p + 0.5), 0, n - 1).astype(np.intp) for p, n in zip(points, old, strict=True)]
        return array[np.ix_(*picks)], moved
    filters = [
        None if s == 1 else _filter(p, int(n), s if antialias else 1.0) for p, n, s in zip(points, old, steps, strict=True)
    ]
    # Memory order of volumes is (k, j, i): slices are worked on one at a time, so that they stay in the processor's cache.
    channels = np.moveaxis(array, 3, 0) if array.ndim == 4 else array[None]
    out = np.empty((len(channels), *(int(n) for n in new[::-1])), np.float32)
    for channel, target in zip(channels, out, strict=True):
        _separable(channel.transpose(), filters[::-1], target)
    out = out.transpose(3, 2, 1, 0)
    return (out if array.ndim == 4 else out[..., 0]), moved


def spaced_grid(
    shape: Sequence[int], affine: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The grid of `resample_to_spacing`: along each axis voxel n of it lies at `first + n * step` of the old one.

    Returns:
        (first (3,), step (3,), number of voxels (3,)); 0, 1 and `shape` where the spacing is there already.

    Raises:
        DataError: a spacing is not above 0.
    """
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(edges).all() and edges.min() > 0 and np.isfinite(spacing).all() and min(spacing) > 0):
        raise DataError(f"an image of spacing {_words(edges)} mm cannot be resampled to {_words(spacing)} mm")
    steps = np.asarray(spacing, np.float64) / edges  # in old voxels
    steps = np.where(np.abs(steps - 1) < _SAME, 1.0, steps)
    old = np.array(shape)
    new = np.maximum(1, np.floor(old / steps + 0.5))
    return (old - 1) / 2 - (new - 1) / 2 * steps, steps, new


def _words(numbers: Any) -> str:
    return " x ".join(f"{float(n):.4g}" for n in numbers)


# Where each output sample takes its values along an axis, (n, taps), and their weights, (n, taps), which sum to 1.
_Filter = tuple[np.ndarray, np.ndarray]


def _filter(points: np.ndarray, length: int, width: float) -> _Filter:
    """A triangle of half-width max(1, `width`) samples around each of `points`; beyond the ends lie the end values."""
    half = max(1.0, width)
    taps = 2 * math.ceil(half)
    start = np.floor(points).astype(np.intp) - taps // 2 + 1
    where = start[:, None] + np.arange(taps)
    weights = np.maximum(0, 1 - np.abs(where - points[:, None]) / half)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(where, 0, length - 1), weights.astype(np.float32)


def _separable(volume: np.ndarray, filters: list[_Filter | None], out: np.ndarray) -> None:
    """(k, j, i) -> `out`, one axis after the other, each slice's rows and columns together."""
    along, *within = filters
    depth = len(volume)
    if along is None or len(out) <= depth:
        for n, target in enumerate(out):
            _plane(volume[n] if along is None else _mixed(volume, along, n), within, target)
        return
    # More slices come out than went in: the planes first.
    planes = np.empty((depth, *out.shape[1:]), np.float32)
    for source, target in zip(volume, planes, strict=True):
        _plane(source, within, target)
    for n, target in enumerate(out):
        target[:] = _mixed(planes, along, n)


def _mixed(slices: np.ndarray, along: _Filter, n: int) -> np.ndarray:
    """The `n`-th output slice: a weighted sum of slices, float32."""
    where, weights = along
    total = np.multiply(slices[where[n, 0]], weights[n, 0], dtype=np.float32)
    for place, weight in zip(where[n, 1:], weights[n, 1:], strict=True):
        if weight:
            total += np.multiply(slices[place], weight, dtype=np.float32)
    return total


def _plane(plane: np.ndarray, filters: list[_Filter | None], out: np.ndarray) -> None:
    """(j, i) -> `out`; columns are gathered from the plane with fewer rows."""
    rows, columns = filters
    if plane.dtype.itemsize > 2:
        plane = np.asarray(plane, np.float32)  # the product with a weight would be float64
    if rows is not None and len(out) > len(plane):
        plane, columns = _gathered(plane, columns, 1), None
    if rows is not None:
        plane = _gathered(plane, rows, 0)
    out[:] = plane if columns is None else _gathered(plane, columns, 1)


def _gathered(plane: np.ndarray, filter_: _Filter | None, axis: int) -> np.ndarray:
    if filter_ is None:
        return plane
    where, weights = filter_
    if axis == 0:
        weights = weights[:, :, None]
    total = np.take(plane, where[:, 0], axis) * weights[:, 0]
    for tap in range(1, where.shape[1]):
        part = np.take(plane, where[:, tap], axis) * weights[:, tap]
        total += part
    return total
