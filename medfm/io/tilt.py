"""Gantry tilt: a stack whose slices shift sideways, sheared back onto a rectangular grid.

Every slice is shifted within its own plane by the drift of its position, with linear interpolation, and the picture is made
larger so that nothing is cut off. dcm2niix does the same along the columns (`nii_saveNII3Dtilt`).
"""

from __future__ import annotations

import numpy as np

from medfm.io.stack import Layout

# Pixels; a drift along the other axis below this comes from rounded positions, and is not worth another interpolation.
_ROUNDING = 0.05


def unshear(volume: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Resample a sheared stack.

    Args:
        volume: (slice, row, column) values.
        layout: its grid, tilted.

    Returns:
        (slice, row', column') of the same dtype, integers rounded, empty corners at the lowest value; and the LPS position of
        the first voxel, mm. The step between its slices is the normal part of `layout.step`.
    """
    position = layout.position.copy()
    empty = volume.min()
    # (1, columns per slice, along i), (0, rows per slice, along j): a slice's drift in pixels.
    for axis, spacing, direction in ((2, layout.spacing[1], layout.axes[0]), (1, layout.spacing[0], layout.axes[1])):
        shifts = np.arange(len(volume)) * float(layout.shear @ direction) / spacing
        if np.abs(shifts).max() < _ROUNDING:
            continue
        # The new first pixel is the farthest that any slice reaches back.
        start = int(np.floor(shifts.min()))
        volume = _shift(volume, shifts - start, axis, int(np.ceil((shifts - start).max())), empty)
        position = position + start * spacing * direction
    return volume, position


def _shift(volume: np.ndarray, shifts: np.ndarray, axis: int, more: int, empty: np.generic) -> np.ndarray:
    """Shift each slice forward along `axis` by its own number of pixels >= 0, on a picture longer by `more`."""
    length = volume.shape[axis]
    size = list(volume.shape)
    size[axis] = length + more
    result = np.full(size, empty, volume.dtype)
    for number, shift in enumerate(shifts):
        whole, part = int(shift), float(shift - int(shift))
        source, target = np.moveaxis(volume[number], axis - 1, 0), np.moveaxis(result[number], axis - 1, 0)
        if part == 0:
            target[whole : whole + length] = source
            continue
        # Pixel n lands between whole + n and whole + n + 1: pixel m draws from n = m - whole - 1 and n = m - whole.
        mixed = part * source[:-1].astype(np.float32) + (1 - part) * source[1:].astype(np.float32)
        target[whole + 1 : whole + length] = np.rint(mixed) if volume.dtype.kind in "iu" else mixed
    return result
