"""Siemens mosaics: the slices of a volume tiled in one picture.

Source: the Siemens CSA header (NumberOfImagesInMosaic, SliceNormalVector), read by nibabel. The position in the DICOM header is
that of a picture of the whole mosaic's size around the same centre, so that the first tile lies half the difference inwards:
nibabel's `doc/source/dicom/dicom_mosaic.rst`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medfm.errors import DataError
from medfm.io.geometry import floats
from medfm.io.quiet import quiet

if TYPE_CHECKING:
    from pydicom import Dataset

    from medfm.io.slices import Slice


def mosaic_slice(whole: Slice, dataset: Dataset) -> Slice:
    """`whole`, placed as the mosaic's picture, with size, position and step of its tiles.

    Raises:
        DataError: the CSA header is missing or damaged, or does not fit the picture. The text says what the file is, without
            its path.
    """
    tags = _csa_tags(dataset)
    count, normal = _numbers(tags, "NumberOfImagesInMosaic")[:1], _numbers(tags, "SliceNormalVector")
    gap = floats(dataset, "SpacingBetweenSlices")[:1]
    if not count or not 1 <= count[0] <= 4096 or count[0] != int(count[0]):
        raise DataError("is a Siemens mosaic without a count of its tiles (CSA header); convert it with dcm2niix")
    number = int(count[0])
    side = math.ceil(math.sqrt(number))
    if whole.rows % side or whole.columns % side:
        raise DataError(f"is a mosaic of {number} tiles, which do not divide {whole.columns} x {whole.rows} pixels")
    if whole.cosines is None or whole.position is None or whole.spacing[0] <= 0 or not gap or gap[0] <= 0:
        raise DataError("is a mosaic without position, orientation, pixel spacing or spacing between slices")
    axes = np.array(whole.cosines).reshape(2, 3)
    along = np.cross(axes[0], axes[1])
    if len(normal) != 3 or abs(abs(float(along @ normal)) - 1) > 1e-3:
        raise DataError("is a mosaic whose slice normal (CSA header) is missing or contradicts its orientation")
    rows, columns = whole.rows // side, whole.columns // side
    inwards = axes[0] * whole.spacing[1] * (whole.columns - columns) / 2 + axes[1] * whole.spacing[0] * (whole.rows - rows) / 2
    step = along * np.sign(along @ normal) * gap[0]
    return replace(
        whole,
        header=replace(whole.header, shape=(columns, rows, number)),
        rows=rows,
        columns=columns,
        position=tuple((np.array(whole.position) + inwards).tolist()),
        count=number,
        step=tuple(step.tolist()),
    )


def untile(picture: np.ndarray, one: Slice) -> np.ndarray:
    """(rows, columns) of the whole mosaic -> (slice, rows, columns) of its tiles; the empty last tiles are left out."""
    across = picture.shape[1] // one.columns
    tiles = picture.reshape(-1, one.rows, across, one.columns).swapaxes(1, 2)
    return tiles.reshape(-1, one.rows, one.columns)[: one.count]


def _csa_tags(dataset: Dataset) -> dict[str, Any]:
    try:
        with quiet():
            # nibabel warns on import that its DICOM readers are experimental; the CSA parser has been stable for a decade.
            from nibabel.nicom.csareader import get_csa_header

            found = get_csa_header(dataset, "image")
    except Exception as error:  # struct.error, CSAReadError, AssertionError, UnicodeDecodeError
        raise DataError(f"is a mosaic whose CSA header is damaged ({type(error).__name__})") from None
    return found["tags"] if found else {}


def _numbers(tags: dict[str, Any], name: str) -> list[float]:
    try:
        numbers = [float(v) for v in tags[name]["items"]]
    except (KeyError, TypeError, ValueError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []
