"""Series: order, affine and values against dcm2niix and dicom2nifti; every reason to refuse."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io.geometry import reorient
from medfm.io.load import load_image, peek
from medfm.types import Image

Writer = Callable[..., Path]


def assert_same_volume(image: Image, path: Path) -> None:
    """Equal values at equal places, whatever the order of axes."""
    expected: Any = nibabel.as_closest_canonical(nibabel.load(path))
    array, affine = reorient(image.array, image.affine, "RAS")
    np.testing.assert_allclose(affine, expected.affine, atol=2e-3)
    values = np.asarray(expected.dataobj)
    np.testing.assert_allclose(array, values.reshape(array.shape) if values.shape[3:] == (1,) else values, rtol=1e-6)


def test_read_series__whole_brain_equals_dcm2niix(data_dir: Path, tmp_path: Path) -> None:
    oracle = pytest.importorskip("dcm2niix")
    folder = data_dir / "dicom" / "mr_sag_mprage"
    subprocess.run([oracle.bin, "-o", str(tmp_path), "-f", "o", "-b", "n", str(folder)], check=True, capture_output=True)
    image = load_image(folder)
    assert image.shape == (256, 256, 192)
    assert image.modality == "MR"
    assert_same_volume(image, tmp_path / "o.nii")


@pytest.mark.parametrize(
    "name",
    [
        "ge/anatomical/001",
        "generic/anatomical/001",
        "generic/anatomical/002_non_isotropic",  # a rescale of its own for each slice
        "generic/compressed/001",
        "generic/compressed_j2k/001",
        "generic/compressed_jpeg/001",
        "generic/compressed_jpegls/001",
        "generic/compressed_rle/001",
        "hitachi/anatomical/001",
        "philips/anatomical/001",
        "siemens/anatomical/001",
        "failing/slicecount/001",  # two slices: too few for dicom2nifti by default, a good volume all the same
        "ge/fmri/001",  # two volumes in time
        "siemens/fmri_classic/001",
        "siemens_multiframe/anatomical/001",
        "hyperfine/anatomical/001",
        "philips_enhanced/anatomical/001",
    ],
)
def test_read_series__equals_dicom2nifti(data_dir: Path, name: str) -> None:
    folder = data_dir / "dicom" / "dicom2nifti"
    assert_same_volume(load_image(folder / name), folder / f"{name}_ground_truth.nii.gz")


def test_read_series__colour(data_dir: Path) -> None:
    folder = data_dir / "dicom" / "dicom2nifti" / "generic" / "rgb"
    image, expected = load_image(folder / "001"), load_image(folder / "001_ground_truth.nii.gz")
    assert image.last_axis == expected.last_axis == "colour"
    ours, theirs = reorient(image.array, image.affine), reorient(expected.array, expected.affine)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dicom2nifti/failing/gantrytilting/001", r"gantry tilt.*14\.0 degrees"),
        ("dicom2nifti/failing/notavolume/001", "all 4 images lie at one position"),
        ("dicom2nifti/failing/sliceincrement/001", "missing slices: 1"),
        ("dicom2nifti/failing/sliceincrement/002", r"missing slices: 1 .*gantry tilt as well \(15\.5 degrees\)"),
        ("dicom2nifti/failing/sliceorientation/001", "differ in pixel spacing by up to 0.236 mm and orientation by up to"),
        ("dcm_qa_ct_ge/In/GE", r"spacing is not uniform: from 1\.081 to 6\.999 mm.*gantry tilt as well \(18\.5 degrees\)"),
        ("dcm_qa_ts/In", "all 9 images lie at one position"),  # one mosaic in nine encodings
        ("pydicom_data", "mixed patients"),
    ],
)
def test_read_series__real_series_that_are_refused(data_dir: Path, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        load_image(data_dir / "dicom" / name)


def ramp(count: int) -> np.ndarray:
    """(slices, 2, 3) uint16; the value says the slice and the pixel."""
    return (np.arange(count)[:, None, None] * 100 + np.arange(6).reshape(2, 3)).astype(np.uint16)


def line(*heights: float) -> list[list[float]]:
    return [[1.0, 2.0, z] for z in heights]


def test_read_series__order_and_affine_by_hand(write_series: Writer) -> None:
    # Written from the top down, and named in yet another order.
    image = load_image(write_series(ramp(4), line(40, 37, 34, 31)))
    assert image.shape == (3, 2, 4)
    np.testing.assert_array_equal(image.array[0, 0], [300, 200, 100, 0])  # from the feet up
    assert image.array[2, 1, 0] == 305
    np.testing.assert_allclose(image.affine, [[-1, 0, 0, -1], [0, -2, 0, -2], [0, 0, 3, 31], [0, 0, 0, 1]])
    assert image.oriented
    assert image.spaced
    assert peek(image.source).shape == (3, 2, 4)


def test_read_series__rescale_of_each_slice(write_series: Writer) -> None:
    change = {1: {"RescaleSlope": "0.5", "RescaleIntercept": "0"}}
    image = load_image(write_series(ramp(3), line(0, 1, 2), change=change))
    assert image.array.dtype == np.float32
    np.testing.assert_allclose(image.array[1, 0], [1, 50.5, 201])


@pytest.mark.parametrize(
    ("heights", "reason"),
    [
        ((0, 1, 2, 4, 5), "missing slices: 1"),
        ((0, 1, 2, 3, 6, 7), "missing slices: 2"),
        ((0, 1, 2, 3.4, 5, 6), "not uniform"),
        ((0, 1, 2, 2, 3), "duplicate slices: 5 images lie at 4 positions"),
        ((0, 1, 0, 1), "2 images at each of 2 positions.* no attribute orders"),
        ((0, 0, 0), "all 3 images lie at one position"),
    ],
)
def test_read_series__uneven_positions(write_series: Writer, heights: tuple[float, ...], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        load_image(write_series(ramp(len(heights)), line(*heights)))


def test_read_series__rounded_positions_are_even(write_series: Writer) -> None:
    # 1.25 mm slices whose positions were written with one decimal.
    heights = [round(1.25 * n, 1) for n in range(9)]
    assert load_image(write_series(ramp(9), line(*heights))).spacing[2] == pytest.approx(1.25)


def test_read_series__sheared_stack(write_series: Writer) -> None:
    positions = [[1.0, 2.0 + 0.3 * n, float(n)] for n in range(5)]
    with pytest.raises(DataError, match=r"gantry tilt: slices shift sideways by 1\.2 mm \(16\.7 degrees\)"):
        load_image(write_series(ramp(5), positions))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"SeriesInstanceUID": "9.9"}, r"2 series \(of 3, 1 files\)"),
        ({"PatientID": "SECRET-2"}, "mixed patients: files of 2 patients"),
        ({"FrameOfReferenceUID": "1.9"}, "differ in frame of reference"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "spacing is not uniform"),  # the scout is set apart
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "differ in orientation by up to 90 degrees"),
        ({"ImageOrientationPatient": None}, "1 of 4 images have no usable .*ImageOrientationPatient is missing"),
        ({"ImageOrientationPatient": None, "ImagePositionPatient": None}, "1 of 4 images have no usable"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "1 of 4 images .*ImageOrientationPatient is damaged"),
        ({"ImagePositionPatient": [0, 0, 2e5]}, "more than 10 m"),
        ({"PixelSpacing": [2, 1.5]}, r"differ in pixel spacing by up to 0\.5 mm"),
        ({"PixelSpacing": [2, 1e6]}, "1 of 4 images .*PixelSpacing is not two numbers"),
        ({"PixelSpacing": None}, "1 of 4 images .*no pixel spacing"),
        ({"Rows": 3, "Columns": 2}, r"differ in Rows \(2, 3\) and Columns \(2, 3\)"),
        ({"Modality": "CT"}, r"differ in Modality \(CT, MR\)"),
        ({"Modality": "SR"}, "structured report"),
        ({"NumberOfFrames": 3}, r"multi-frame \(3 frames\)"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
    ],
)
def test_read_series__one_odd_file(write_series: Writer, change: dict, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        load_image(write_series(ramp(4), line(0, 1, 2, 3), change={2: change}))
    assert "SECRET" not in str(caught.value)


def test_read_series__the_same_file_twice(write_series: Writer) -> None:
    folder = write_series(ramp(4), line(0, 1, 2, 3))
    first = sorted(folder.iterdir())[0]
    (folder / "copy.dcm").write_bytes(first.read_bytes())
    with pytest.raises(DataError, match=r"duplicate slices: .*copy\.dcm are the same image"):
        load_image(folder)


def test_read_series__other_files_do_not_disturb(write_series: Writer) -> None:
    folder = write_series(ramp(3), line(0, 1, 2))
    (folder / "LICENSE").write_text("text")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / ".hidden.dcm").write_bytes(b"rubbish")
    assert load_image(folder).shape == (3, 2, 3)
    (folder / "broken.dcm").write_bytes(b"rubbish" * 100)
    with pytest.raises(DataError, match=r"broken\.dcm"):
        load_image(folder)


def test_read_series__folder_without_dicom(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no DICOM"):
        load_image(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "zeros", "short"])
def test_read_series__a_damaged_end_slice_without_suffix_is_no_missing_slice(write_series: Writer, damage: str) -> None:
    folder = write_series(ramp(4), line(0, 1, 2, 3))
    for number, path in enumerate(sorted(folder.iterdir(), key=lambda p: p.stem[-1])):
        last = path.rename(folder / f"IM{number}")
    assert load_image(folder).shape == (3, 2, 4)
    data = last.read_bytes()
    last.write_bytes({"empty": b"", "zeros": bytes(len(data)), "short": data[:100]}[damage])
    (folder / "README").write_text("")
    with pytest.raises(DataError, match=r"IM3.*1 of 4 files are not readable"):
        load_image(folder)
    last.write_bytes(data[132:])  # without its preamble
    assert load_image(folder).shape == (3, 2, 4)
