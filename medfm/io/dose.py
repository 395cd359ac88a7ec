"""RT dose grids: frames at the offsets of GridFrameOffsetVector, scaled by DoseGridScaling.

Source: DICOM PS3.3 C.8.8.3 (RT dose), C.8.8.3.2 (grid frame offset vector).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medfm.errors import DataError
from medfm.io.dataset import frame_count, text
from medfm.io.geometry import floats
from medfm.types import IntensityUnits

if TYPE_CHECKING:
    from pydicom import Dataset

    from medfm.io.slices import Slice


def dose_slice(whole: Slice, dataset: Dataset) -> Slice:
    """`whole` with the number of planes and the step between them.

    Raises:
        DataError: the grid has no place, its planes are uneven, or it has no usable scaling. The text leaves out the path.
    """
    count = frame_count(dataset)
    scale = floats(dataset, "DoseGridScaling")
    if len(scale) != 1 or scale[0] <= 0:
        raise DataError("is a radiotherapy dose without a usable DoseGridScaling")
    if whole.cosines is None or whole.position is None or whole.spacing[0] <= 0:
        raise DataError("is a radiotherapy dose without position, orientation or pixel spacing")
    axes = np.array(whole.cosines).reshape(2, 3)
    normal = np.cross(axes[0], axes[1])
    if count == 1:
        return replace(whole, count=1, step=tuple((normal * (whole.thickness or 1.0)).tolist()))
    offsets = np.array(floats(dataset, "GridFrameOffsetVector"))
    if len(offsets) != count:
        raise DataError(f"is a radiotherapy dose of {count} planes whose GridFrameOffsetVector holds {len(offsets)}")
    gaps = np.diff(offsets)
    gap = float(gaps.mean())
    if abs(gap) < 1e-3 or np.abs(gaps - gap).max() > max(0.01 * abs(gap), 1e-3):
        raise DataError(
            f"is a radiotherapy dose whose plane spacing is not uniform: from {gaps.min():.4g} to {gaps.max():.4g} mm"
        )
    # A first offset of 0 marks distances along the normal; any other, z coordinates of a transverse grid.
    if abs(offsets[0]) < 1e-6:
        step = normal * gap
    elif abs(abs(normal[2]) - 1) < 1e-4 and abs(offsets[0] - whole.position[2]) < 0.5 * abs(gap):
        step = np.array([0.0, 0.0, gap])
    else:
        raise DataError("is a radiotherapy dose whose GridFrameOffsetVector neither starts at 0 nor at the grid's position")
    return replace(
        whole, header=replace(whole.header, shape=(whole.columns, whole.rows, count)), count=count, step=tuple(step.tolist())
    )


def dose_units(dataset: Dataset) -> tuple[IntensityUnits, list[str]]:
    """("GY" or "arbitrary", notes)."""
    notes = []
    if text(dataset, "DoseType").upper() == "ERROR":
        notes.append("a difference of doses (DoseType ERROR), not a dose")
    if text(dataset, "DoseUnits").upper() == "GY":
        return "GY", notes
    return "arbitrary", [*notes, "dose units are relative or not given; values were scaled by DoseGridScaling"]
