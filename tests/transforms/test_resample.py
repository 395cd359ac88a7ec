"""Resizing to a shape; resampling to a spacing, against SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pictures

from medfm.errors import DataError
from medfm.io.load import load_image
from medfm.transforms.resample import resample_to_spacing, resize

# Oblique, with unequal spacing of 0.8, 0.9 and 2.5 mm.
_TURN = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = _TURN * [-0.8, 0.9, 2.5]
AFFINE[:3, 3] = [12, -34, 56]


def test_resize__equals_pillows_antialiased_bilinear() -> None:
    x = np.random.default_rng(0).random((1, 60, 90)).astype(np.float32)
    expected = np.asarray(Pictures.fromarray(x[0]).resize((30, 25), Pictures.Resampling.BILINEAR))
    np.testing.assert_allclose(resize(x, (25, 30))[0], expected, atol=1e-5)


def test_resize__same_shape_is_the_same_array() -> None:
    x = np.zeros((1, 4, 4), np.float32)
    assert resize(x, (4, 4)) is x


@pytest.mark.parametrize("shape", [(4, 5, 6), (16, 20, 24), (8, 5, 30)])
def test_resize__3d_keeps_a_ramp_along_each_axis(shape: tuple[int, int, int]) -> None:
    for axis in range(3):
        line = (np.arange(12, dtype=np.float32) + 0.5) / 12
        x = np.broadcast_to(np.expand_dims(line, [a for a in range(3) if a != axis]), (12, 12, 12))[None]
        out = np.moveaxis(resize(x, shape)[0], axis, 0)
        middle = out[1:-1]  # ends lie outside the first sample's centre
        centres = (np.arange(shape[axis]) + 0.5) / shape[axis]
        np.testing.assert_allclose(middle.reshape(len(middle), -1).mean(1), centres[1:-1], atol=0.02)
        assert np.ptp(middle.reshape(len(middle), -1), axis=1).max() < 1e-5


def test_resize__3d_antialiases_every_axis() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((1, 40, 40, 40)).astype(np.float32)
    # A tenth of the length averages about 10 values an axis, so that noise nearly vanishes; plain interpolation keeps 0.2.
    assert resize(x, (4, 4, 4)).std() < 0.02


def sitk_linear(array: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], grid: np.ndarray) -> np.ndarray:
    """SimpleITK's linear resampling of (i, j, k) onto another grid."""
    import SimpleITK

    def placed(target: Any, a: np.ndarray, names: tuple[str, str, str]) -> None:
        lps = np.diag([-1.0, -1, 1, 1]) @ a
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        values = (spacing, lps[:3, 3], (lps[:3, :3] / spacing).ravel())
        for name, value in zip(names, values, strict=True):
            getattr(target, name)(value.tolist())

    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    placed(image, affine, ("SetSpacing", "SetOrigin", "SetDirection"))
    resample = SimpleITK.ResampleImageFilter()
    placed(resample, grid, ("SetOutputSpacing", "SetOutputOrigin", "SetOutputDirection"))
    resample.SetSize([int(n) for n in shape])
    resample.SetInterpolator(SimpleITK.sitkLinear)
    resample.SetOutputPixelType(SimpleITK.sitkFloat32)
    return SimpleITK.GetArrayFromImage(resample.Execute(image)).transpose(2, 1, 0)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32, np.float32])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.5, 0.6, 2.5), (0.8, 2.0, 1.0)])
def test_resample_to_spacing__equals_simpleitk(dtype: type, spacing: tuple[float, float, float]) -> None:
    array = np.random.default_rng(0).integers(0, 200, (20, 17, 9)).astype(dtype)
    out, affine = resample_to_spacing(array, AFFINE, spacing)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), spacing)
    expected = sitk_linear(array, AFFINE, out.shape, affine)
    inside = tuple(slice(2, -2) for _ in range(3))  # SimpleITK gives 0 outside the outermost voxels
    np.testing.assert_allclose(out[inside], expected[inside], atol=2e-3)


def test_resample_to_spacing__a_field_linear_in_space_stays_itself() -> None:
    grid = np.stack(np.meshgrid(*map(np.arange, (12, 10, 8)), indexing="ij"), -1)
    x, y, z = np.moveaxis(grid @ AFFINE[:3, :3].T + AFFINE[:3, 3], -1, 0)
    field = (2 * x - 3 * y + 0.5 * z).astype(np.float32)
    for antialias, near in ((False, 1e-3), (True, 0.2)):  # a sampled triangle's mean lies a little off its middle
        out, affine = resample_to_spacing(field, AFFINE, (1.1, 1.3, 3.0), antialias=antialias)
        at = np.stack(np.meshgrid(*map(np.arange, out.shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
        inner = (slice(2, -2),) * 3
        np.testing.assert_allclose(out[inner], (at @ [2, -3, 0.5])[inner], atol=near)


def test_resample_to_spacing__keeps_the_centre_and_nearly_the_extent() -> None:
    array = np.zeros((31, 20, 7), np.float32)
    out, affine = resample_to_spacing(array, AFFINE, (1.0, 2.0, 1.0))
    for shape, a in ((array.shape, AFFINE), (out.shape, affine)):
        centre = a[:3, :3] @ ((np.array(shape) - 1) / 2) + a[:3, 3]
        np.testing.assert_allclose(centre, AFFINE[:3, :3] @ [15, 9.5, 3] + AFFINE[:3, 3])
    assert out.shape == (25, 9, 18)  # 24.8, 9.0 and 17.5 mm


def test_resample_to_spacing__same_spacing_is_the_same_array() -> None:
    array = np.zeros((3, 4, 5), np.int16)
    out, affine = resample_to_spacing(array, AFFINE, (0.8, 0.9, 2.50001))
    assert out is array
    np.testing.assert_array_equal(affine, AFFINE)


def test_resample_to_spacing__nearest_keeps_labels() -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 3, 200], np.uint8), (8, 9, 10))
    out, affine = resample_to_spacing(labels, AFFINE, (0.4, 0.45, 1.25), order="nearest")
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, labels.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(affine[:3, 3], AFFINE[:3, :3] @ np.full(3, -0.25) + AFFINE[:3, 3])


def test_resample_to_spacing__channels_and_single_slices() -> None:
    film = np.random.default_rng(0).random((12, 10, 1, 3)).astype(np.float32)
    out, _ = resample_to_spacing(film, np.eye(4), (2.0, 0.5, 1.0))
    assert out.shape == (6, 20, 1, 3)
    for c in range(3):
        np.testing.assert_array_equal(out[..., c], resample_to_spacing(film[..., c], np.eye(4), (2.0, 0.5, 1.0))[0])


def test_resample_to_spacing__antialias_averages_what_shrinks() -> None:
    noise = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    plain, _ = resample_to_spacing(noise, np.eye(4), (4.0, 4.0, 4.0))
    smooth, _ = resample_to_spacing(noise, np.eye(4), (4.0, 4.0, 4.0), antialias=True)
    assert smooth.std() < 0.25 * plain.std()


def test_resample_to_spacing__real_ct_within_a_thousandth_hu_of_simpleitk(data_dir: Path) -> None:
    image = load_image(data_dir / "ct3d_totalsegmentator" / "exampleCT_crop.nii.gz", "CT")
    out, affine = resample_to_spacing(image.array, image.affine, (2.0, 2.0, 2.0))
    expected = sitk_linear(image.array, image.affine, out.shape, affine)
    inner = (slice(1, -1),) * 3
    assert float(np.sqrt(np.mean((out - expected)[inner].astype(np.float64) ** 2))) < 1e-3


@pytest.mark.parametrize("spacing", [(0.0, 1, 1), (1, -1.0, 1), (float("nan"), 1, 1), (1e-4, 1e-4, 1e-4)])
def test_resample_to_spacing__refuses(spacing: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match=r"spacing|voxels"):
        resample_to_spacing(np.zeros((40, 40, 40), np.float32), np.eye(4), spacing)
