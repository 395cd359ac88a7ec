"""A small picture of a series for the page, and its brightness for the check of polarity."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medfm.types import Image

SIDE = 176  # pixels of a thumbnail's longer side
_MOST = 1024  # pixels of a side that are looked at


def middle_plane(image: Image) -> tuple[np.ndarray, tuple[float, float]]:
    """((rows, columns) or (rows, columns, 3), (row spacing, column spacing)) of the middle slice at the middle time.

    A volume from a NIfTI file, whose axes may run anyhow, is turned to show an axial slice as radiologists see it; DICOM
    slices are shown as they are stored.
    """
    from medfm.io.geometry import reorient

    array, affine = image.array, image.affine
    if image.last_axis in ("time", "time, colour"):
        array = array[:, :, :, array.shape[3] // 2]
    if image.oriented and image.array.shape[2] > 1 and image.source.endswith((".nii", ".nii.gz")):
        array, affine = reorient(array, affine, "LPS")
    plane = array[:, :, array.shape[2] // 2]
    i, j = np.linalg.norm(affine[:3, :2], axis=0).tolist()
    return plane.swapaxes(0, 1), (j, i)


def brightness(plane: np.ndarray, image: Image) -> np.ndarray:
    """(rows, columns) float32 of at most 1024 pixels a side: larger is brighter, after the declared polarity; no window."""
    step = max(1, -(-max(plane.shape[:2]) // _MOST))
    plane = plane[::step, ::step]
    if plane.ndim == 3:
        return plane.mean(axis=2, dtype=np.float32)
    return -plane.astype(np.float32) if image.photometric == "MONOCHROME1" else plane.astype(np.float32)


def thumbnail(image: Image) -> bytes:
    """JPEG of the middle plane, windowed as the file asks (HU: the file's window or -160 to 240), pixels made square."""
    from PIL import Image as Pictures

    plane, (row_mm, column_mm) = middle_plane(image)
    step = max(1, min(plane.shape[:2]) // (2 * SIDE))
    shown = _display(plane[::step, ::step], image)
    height, width = shown.shape[0] * row_mm, shown.shape[1] * column_mm
    if not image.spaced or not np.isfinite(height + width) or not 0.1 < height / width < 10:
        height, width = shown.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Pictures.fromarray(shown).resize(size, Pictures.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=70)
    return buffer.getvalue()


def _display(plane: np.ndarray, image: Image) -> np.ndarray:
    """(rows, columns[, 3]) uint8."""
    from medfm.transforms.window import apply_window, to_range

    if plane.ndim == 3:
        if plane.dtype == np.uint8:
            return np.ascontiguousarray(plane)
        top = float(plane.max(initial=0)) or 1.0
        return (np.clip(plane / top, 0, 1) * 255).astype(np.uint8)
    if image.windows and image.windows[0].width != 1:
        values = apply_window(plane, image.windows[0])
    elif image.intensity_units == "HU":
        values = to_range(plane, -160, 240)
    elif plane.dtype == np.uint8:
        values = to_range(plane, 0, 255)
    else:
        low, high = np.percentile(plane, (0.5, 99.5))
        values = to_range(plane, float(low), float(high))
    if image.photometric == "MONOCHROME1":
        values = 1 - values
    return (values * 255).astype(np.uint8)
