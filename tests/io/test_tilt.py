"""Gantry tilt: refused, or sheared back as dcm2niix does."""

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
from medfm.io.load import load_image

Writer = Callable[..., Path]


def test_tilt__equals_dcm2niix(data_dir: Path, tmp_path: Path) -> None:
    oracle = pytest.importorskip("dcm2niix")
    folder = data_dir / "dicom" / "dicom2nifti" / "failing" / "gantrytilting" / "001"
    subprocess.run([oracle.bin, "-o", str(tmp_path), "-f", "o", "-b", "n", str(folder)], check=True, capture_output=True)
    (made,) = tmp_path.glob("*Tilt*.nii")
    expected: Any = nibabel.as_closest_canonical(nibabel.load(made))
    image = load_image(folder, tilt="resample")
    array, affine = reorient(image.array, image.affine, "RAS")
    np.testing.assert_allclose(affine, expected.affine, atol=1e-3)
    assert array.shape == expected.shape
    apart = np.abs(array.astype(float) - np.asarray(expected.dataobj)) > 1
    # Rounding aside, only the last row before the empty corner differs: dcm2niix mixes the padding into it.
    assert apart.any(axis=(0, 2)).sum() <= 3
    assert apart.any(axis=0).sum(axis=0).max() <= 1
    assert any("gantry tilt of 14.0 degrees" in note for note in image.notes)


@pytest.mark.parametrize("direction", [1, -1])
def test_tilt__a_straight_rod_stands_upright_again(write_series: Writer, direction: int) -> None:
    # Slices drift by 0.5 mm = half a row; a rod fixed in space wanders through the rows the other way.
    count, rows = 9, 20
    volume = np.zeros((count, rows, 6), np.uint16)
    for n in range(count):
        place = 10 - direction * n / 2
        low = int(np.floor(place))
        volume[n, low, 3] = round(1000 * (1 - (place - low)))
        volume[n, low + 1, 3] = round(1000 * (place - low))
    positions = [[0.0, direction * 0.5 * n, 2.0 * n] for n in range(count)]
    folder = write_series(volume, positions, PixelSpacing=[1, 1])
    with pytest.raises(DataError, match=r"gantry tilt: slices shift sideways by 4 mm \(14\.0 degrees\).*tilt='resample'"):
        load_image(folder)
    image = load_image(folder, tilt="resample")
    assert image.shape == (6, rows + 4, count)
    np.testing.assert_allclose(image.affine[:3, 2], [0, 0, 2])
    rod = np.array([-3, -10, 4, 1.0])  # RAS
    i, j, _, _ = np.linalg.inv(image.affine) @ rod
    profile = image.array[round(i)].astype(float)
    centre = (profile * np.arange(len(profile))[:, None]).sum(axis=0) / profile.sum(axis=0)
    np.testing.assert_allclose(centre, j, atol=0.02)
    np.testing.assert_allclose(profile.sum(axis=0), 1000, atol=2)


def test_tilt__drift_along_the_rows_too(write_series: Writer) -> None:
    volume = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    folder = write_series(volume, [[2.0 * n, 1.0 * n, 3.0 * n] for n in range(4)], PixelSpacing=[1, 1])
    image = load_image(folder, tilt="resample")
    assert image.shape == (6 + 6, 5 + 3, 4)
    for n in range(4):  # whole pixels: nothing is interpolated
        np.testing.assert_array_equal(image.array[2 * n : 2 * n + 6, n : n + 5, n], volume[n].T)
    assert image.array[0, 0, 3] == 0


def test_tilt__irregular_drift_is_no_tilt(write_series: Writer) -> None:
    positions = [[0.0, y, 2.0 * n] for n, y in enumerate((0, 3, 1, 4, 2.0))]
    folder = write_series(np.zeros((5, 4, 4), np.uint16), positions)
    for tilt in ("refuse", "resample"):
        with pytest.raises(DataError, match="without the regularity of a gantry tilt"):
            load_image(folder, tilt=tilt)  # type: ignore[arg-type]


def test_tilt__uneven_spacing_stays_refused(data_dir: Path) -> None:
    with pytest.raises(DataError, match="slice spacing is not uniform"):
        load_image(data_dir / "dicom" / "dcm_qa_ct_ge" / "In" / "GE", tilt="resample")


def test_tilt__a_small_drift_along_the_other_axis_is_not_lost(write_series: Writer) -> None:
    # Values are linear in space, so that every voxel's value tells where it was.
    steps = np.array([[0.15 * n, 1.5 * n, 3.0 * n] for n in range(4)])
    i, j = np.arange(12.0), np.arange(10.0)
    volume = np.stack([5000 + 100 * (x + i[None, :]) + 10 * (y + j[:, None]) for x, y, _ in steps]).astype(np.uint16)
    image = load_image(write_series(volume, steps.tolist(), PixelSpacing=[1, 1]), tilt="resample")
    x, y, z = (np.moveaxis(np.indices(image.shape), 0, -1) @ image.affine[:3, :3].T + image.affine[:3, 3]).T
    x, y = -x.T, -y.T
    n = np.rint(z.T / 3)
    inside = (x - 0.15 * n > 0.01) & (x - 0.15 * n < 10.99) & (y - 1.5 * n > 0.01) & (y - 1.5 * n < 8.99)
    assert inside.sum() > 0.7 * volume.size
    np.testing.assert_allclose(image.array[inside], (5000 + 100 * x + 10 * y)[inside], atol=2)
