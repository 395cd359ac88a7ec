"""Siemens mosaics against dcm2niix."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from medfm.errors import DataError
from medfm.io.geometry import reorient
from medfm.io.load import load_image, peek


@pytest.mark.parametrize("number", range(1, 10))
def test_mosaic__equals_dcm2niix(data_dir: Path, number: int) -> None:
    folder = data_dir / "dicom" / "dcm_qa_ts"
    image = load_image(folder / "In" / f"{number}.dcm")
    expected: Any = nibabel.as_closest_canonical(nibabel.load(folder / "Ref" / f"{number}.nii"))
    array, affine = reorient(image.array, image.affine, "RAS")
    np.testing.assert_allclose(affine, expected.affine, atol=1e-3)
    np.testing.assert_array_equal(array, np.asarray(expected.dataobj))
    assert peek(folder / "In" / f"{number}.dcm").shape == image.shape == (64, 64, 35)


def test_mosaic__a_series_is_a_time_series(data_dir: Path, tmp_path: Path) -> None:
    oracle = pytest.importorskip("dcm2niix")
    source = data_dir / "dicom" / "dcm_qa_ts" / "In" / "1.dcm"
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(3):
        dataset = pydicom.dcmread(source)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{n + 1}"
        dataset.InstanceNumber = n + 1
        dataset.AcquisitionNumber = n + 1
        dataset.AcquisitionTime = f"1200{3 * n:02d}.0"
        dataset.PixelData = (np.minimum(dataset.pixel_array, 4000) + n).astype(np.uint16).tobytes()
        dataset.save_as(folder / f"{'bca'[n]}.dcm")
    subprocess.run([oracle.bin, "-o", str(tmp_path), "-f", "o", "-b", "n", str(folder)], check=True, capture_output=True)
    image = load_image(folder)
    assert (image.shape, image.last_axis) == ((64, 64, 35, 3), "time")
    expected: Any = nibabel.as_closest_canonical(nibabel.load(tmp_path / "o.nii"))
    array, affine = reorient(image.array, image.affine, "RAS")
    np.testing.assert_allclose(affine, expected.affine, atol=1e-3)
    np.testing.assert_array_equal(array, np.asarray(expected.dataobj))
    np.testing.assert_array_equal(load_image(f"{folder}#volume=2").array, image.array[..., 2])


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("Rows", None, "no pixels"),
        ("SpacingBetweenSlices", None, "without position, orientation, pixel spacing or spacing between slices"),
        ("ImageOrientationPatient", [0, 1, 0, 0, 0, 1], "slice normal .* contradicts its orientation"),
        ("private", None, "without a count of its tiles"),
    ],
)
def test_mosaic__faults_are_named(data_dir: Path, tmp_path: Path, keyword: str, value: Any, reason: str) -> None:
    path = Path(shutil.copy(data_dir / "dicom" / "dcm_qa_ts" / "In" / "1.dcm", tmp_path))
    dataset = pydicom.dcmread(path)
    if keyword == "private":
        dataset.remove_private_tags()
    elif value is None:
        delattr(dataset, keyword)
    else:
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    with pytest.raises(DataError, match=reason):
        load_image(path)
    assert peek(path).problem
