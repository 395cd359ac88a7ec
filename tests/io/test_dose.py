"""Radiotherapy dose grids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from medfm.errors import DataError
from medfm.io.load import load_image, peek

Writer = Callable[..., Path]


@pytest.mark.parametrize("name", ["rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm"])
def test_dose__real_relative_grid(name: str) -> None:
    path = str(get_testdata_file(name))
    image, dataset = load_image(path), pydicom.dcmread(path)
    assert (image.modality, image.intensity_units, image.shape, image.last_axis) == ("RTDOSE", "arbitrary", (10, 10, 15), None)
    assert peek(path).shape == image.shape
    expected = dataset.pixel_array.astype(float) * float(dataset.DoseGridScaling)
    np.testing.assert_allclose(image.array.transpose(2, 1, 0), expected, rtol=1e-6)
    start, offsets = np.array(dataset.ImagePositionPatient, float), np.array(dataset.GridFrameOffsetVector, float)
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [-start[0], -start[1], start[2], 1])
    np.testing.assert_allclose(image.affine[:3, 2], [0, 0, offsets[1] - offsets[0]])


@pytest.fixture
def write_dose(write_dicom: Writer) -> Writer:
    """Three planes of 2 rows and 3 columns."""

    def write(**tags: Any) -> Path:
        common = {
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2",
            "Modality": "RTDOSE",
            "NumberOfFrames": 3,
            "Rows": 2,
            "Columns": 3,
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [1, 2, 50],
            "PixelSpacing": [2, 2],
            "GridFrameOffsetVector": [0, 4, 8],
            "DoseGridScaling": "0.001",
            "DoseUnits": "GY",
        }
        pixels = (np.arange(3)[:, None, None] * 100 + np.arange(6).reshape(2, 3)).astype(np.uint32).reshape(6, 3)
        return write_dicom(pixels, **{**common, **tags})

    return write


@pytest.mark.parametrize("offsets", [[50, 54, 58], [0, 4, 8]])
def test_dose__offsets_from_zero_or_as_coordinates(write_dose: Writer, offsets: list[float]) -> None:
    image = load_image(write_dose(GridFrameOffsetVector=offsets))
    assert (image.intensity_units, image.notes) == ("GY", ())
    np.testing.assert_allclose(image.affine, [[-2, 0, 0, -1], [0, -2, 0, -2], [0, 0, 4, 50], [0, 0, 0, 1]])
    np.testing.assert_allclose(image.array[1, 0], [0.001, 0.101, 0.201])


def test_dose__planes_downwards_and_turned_grid(write_dose: Writer) -> None:
    image = load_image(write_dose(GridFrameOffsetVector=[50, 46, 42]))
    np.testing.assert_allclose(image.affine[:3, 2:], [[0, -1], [0, -2], [-4, 50]])
    # A prone grid: the normal still points to the head, coordinates count along z.
    image = load_image(write_dose(GridFrameOffsetVector=[50, 54, 58], ImageOrientationPatient=[-1, 0, 0, 0, -1, 0]))
    np.testing.assert_allclose(image.affine[:3, 2], [0, 0, 4])
    # Columns and rows swapped sides: the normal points to the feet, and offsets from 0 count along it.
    image = load_image(write_dose(ImageOrientationPatient=[1, 0, 0, 0, -1, 0]))
    np.testing.assert_allclose(image.affine[:3, 2], [0, 0, -4])


def test_dose__relative_units_are_noted(write_dose: Writer) -> None:
    image = load_image(write_dose(DoseUnits="RELATIVE", DoseType="ERROR"))
    assert image.intensity_units == "arbitrary"
    assert any("ERROR" in note for note in image.notes)
    assert any("relative" in note for note in image.notes)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"GridFrameOffsetVector": [0, 4, 9]}, "plane spacing is not uniform: from 4 to 5 mm"),
        ({"GridFrameOffsetVector": [0, 4]}, "3 planes whose GridFrameOffsetVector holds 2"),
        ({"GridFrameOffsetVector": [7, 11, 15]}, "neither starts at 0 nor at the grid's position"),
        ({"GridFrameOffsetVector": [0, 0, 0]}, "not uniform"),
        ({"DoseGridScaling": None}, "DoseGridScaling"),
        ({"DoseGridScaling": "0"}, "DoseGridScaling"),
        ({"ImagePositionPatient": None}, "without position, orientation or pixel spacing"),
        ({"NumberOfFrames": 4, "GridFrameOffsetVector": [0, 4, 8, 12]}, "claims 96 bytes"),
    ],
)
def test_dose__faults_are_named(write_dose: Writer, tags: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        load_image(write_dose(**tags))
