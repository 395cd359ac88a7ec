"""NIfTI: values, affines, and files that are not whole."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io.load import load_image, peek
from medfm.io.nifti import save_nifti

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 0, 3, -20], [0, 4, 0, 30], [0, 0, 0, 1]])


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def patched(path: Path, offset: int, data: bytes) -> Path:
    """Overwrite bytes of a .nii file's header."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, bool, np.int64, np.float16])
def test_save_and_load__round_trip(tmp_path: Path, suffix: str, dtype: Any) -> None:
    array = ramp(3, 4, 5).astype(dtype)
    save_nifti(array, AFFINE, tmp_path / f"a{suffix}")
    image = load_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(image.array, array)
    np.testing.assert_allclose(image.affine, AFFINE)
    np.testing.assert_allclose(np.asarray(nibabel.load(tmp_path / f"a{suffix}").dataobj), array)  # type: ignore[attr-defined]
    assert image.oriented
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_load__scaling_is_applied_once(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    save_nifti(ramp(2, 2, 2), AFFINE, path)
    patched(path, 112, struct.pack("<2f", 0.5, -3.0))  # scl_slope, scl_inter
    image = load_image(path)
    np.testing.assert_array_equal(image.array, ramp(2, 2, 2) * 0.5 - 3)
    assert image.array.dtype == np.float32
    patched(path, 112, struct.pack("<2f", 2.0, -1024.0))
    np.testing.assert_array_equal(load_image(path).array, ramp(2, 2, 2) * 2 - 1024)
    assert load_image(path).array.dtype == np.int16


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_load__versions_and_byte_orders(tmp_path: Path, kind: Any, order: str) -> None:
    image = kind(ramp(3, 4, 5), AFFINE, kind.header_class(endianness=order))
    image.set_data_dtype(np.dtype(f"{order}i2"))
    nibabel.save(image, tmp_path / "a.nii")
    read = load_image(tmp_path / "a.nii")
    np.testing.assert_array_equal(read.array, ramp(3, 4, 5))
    assert read.array.dtype.isnative
    np.testing.assert_allclose(read.affine, AFFINE)


def test_load__real_volumes_equal_nibabel(data_dir: Path) -> None:
    paths = [data_dir / "mr3d_stroke" / "T1.nii.gz", *sorted((data_dir / "mr3d_hippocampus").rglob("*.nii.gz"))[:3]]
    for path in paths:
        image, expected = load_image(path), nibabel.load(path)
        np.testing.assert_allclose(image.array, expected.get_fdata(), rtol=1e-6)  # type: ignore[attr-defined]
        np.testing.assert_allclose(image.affine, expected.affine)  # type: ignore[attr-defined]
        assert peek(path).shape == image.shape


def test_load__modality_makes_hounsfield_units(tmp_path: Path) -> None:
    save_nifti(ramp(2, 2, 2) - 1000, AFFINE, tmp_path / "a.nii.gz")
    assert load_image(tmp_path / "a.nii.gz").intensity_units == "arbitrary"
    image = load_image(tmp_path / "a.nii.gz", modality="CT")
    assert (image.modality, image.intensity_units) == ("CT", "HU")


def test_load__time_and_trailing_axes(tmp_path: Path) -> None:
    save_nifti(ramp(2, 3, 4, 5), AFFINE, tmp_path / "t.nii")
    assert load_image(tmp_path / "t.nii").last_axis == "time"
    save_nifti(ramp(2, 3, 4, 1), AFFINE, tmp_path / "one.nii")
    assert load_image(tmp_path / "one.nii").shape == (2, 3, 4)
    save_nifti(ramp(2, 3), AFFINE, tmp_path / "flat.nii")
    assert load_image(tmp_path / "flat.nii").shape == (2, 3, 1)


def test_load__colour(tmp_path: Path) -> None:
    rgb = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    packed = rgb.copy().view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(packed, AFFINE), tmp_path / "c.nii")
    image = load_image(tmp_path / "c.nii")
    np.testing.assert_array_equal(image.array, rgb)
    assert image.photometric == "RGB"


def test_load__without_sform_and_qform(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ramp(2, 3, 4), None)
    image.header.set_zooms((1, 2, 3))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "a.nii")
    read = load_image(tmp_path / "a.nii")
    assert not read.oriented
    assert read.spacing == (1, 2, 3)
    assert any("orientation is unknown" in note for note in read.notes)


def test_load__qform_where_there_is_no_sform(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ramp(2, 3, 4), AFFINE)
    image.set_sform(None, 0)
    image.set_qform(AFFINE, 1)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(load_image(tmp_path / "a.nii").affine, AFFINE, atol=1e-5)


def test_load__micrometres_become_millimetres(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ramp(2, 3, 4), np.diag([500.0, 500, 1000, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    assert load_image(tmp_path / "a.nii").spacing == pytest.approx((0.5, 0.5, 1.0))


def test_load__nan_becomes_the_lowest_value(tmp_path: Path) -> None:
    array = np.array([[[np.nan, -5.0, 3.0, np.inf]]], np.float32)
    save_nifti(array, AFFINE, tmp_path / "a.nii")
    image = load_image(tmp_path / "a.nii")
    np.testing.assert_array_equal(image.array, [[[-5, -5, 3, -5]]])
    assert any(note.startswith("2 voxels") for note in image.notes)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_load__truncated(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20), dtype=np.int16)
    save_nifti(noise, AFFINE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="truncated"):
        load_image(path)


def test_load__one_flipped_bit_in_a_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20), dtype=np.int16)
    save_nifti(noise, AFFINE, path)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # the checksum itself: the voxels inflate without complaint
    path.write_bytes(bytes(content))
    assert np.asarray(nibabel.load(path).dataobj).shape == (20, 20, 20)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="gzip checksum"):
        load_image(path)


@pytest.mark.parametrize("zipped", [False, True])
def test_load__a_claim_beyond_the_file_allocates_nothing(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.nii"
    save_nifti(ramp(2, 3, 4), AFFINE, path)
    patched(path, 40, struct.pack("<4h", 3, 30000, 30000, 30000))
    if zipped:
        path = Path(f"{path}.gz")
        path.write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    with pytest.raises(DataError, match=r"claims 54,000,000,000,352 bytes"):
        load_image(path)


def test_load__content_is_what_counts(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"text" * 200)
    with pytest.raises(DataError, match="not a NIfTI file"):
        load_image(tmp_path / "a.nii")
    save_nifti(ramp(2, 3, 4), AFFINE, tmp_path / "b.nii")
    (tmp_path / "b.nii").rename(tmp_path / "b.nii.gz")  # not zipped, whatever its name says
    assert load_image(tmp_path / "b.nii.gz").shape == (2, 3, 4)
    with pytest.raises(DataError, match="5 dimensions"):
        load_image(patched(tmp_path / "b.nii.gz", 40, struct.pack("<6h", 5, 2, 3, 2, 1, 2)))


def test_load__complex_is_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.complex64), AFFINE), tmp_path / "a.nii")
    with pytest.raises(DataError, match="complex64"):
        load_image(tmp_path / "a.nii")


def test_save__refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.nii or \.nii\.gz"):
        save_nifti(ramp(2, 2, 2), AFFINE, tmp_path / "a.mha")
    with pytest.raises(DataError, match="singular"):
        save_nifti(ramp(2, 2, 2), np.zeros((4, 4)), tmp_path / "a.nii")
    with pytest.raises(DataError, match="32 bits"):
        save_nifti(np.array([[[2**40]]]), AFFINE, tmp_path / "a.nii")
    assert not list(tmp_path.iterdir())


# Byte offsets of NIfTI-1 fields (nifti1.h), their struct code, and what contradicts the rest of a (2, 3, 4) int16 file.
CONTRADICTIONS = {
    "dim[0] is 0": (40, "<h", (0,), "0 dimensions"),
    "dim[0] is 9": (40, "<h", (9,), "9 dimensions"),
    "a dimension is negative": (44, "<h", (-3,), "shape"),
    "sizes beyond dim[0]": (48, "<h", (5,), "sizes for more|truncated"),
    "dim[0] too small": (40, "<h", (2,), "sizes for more"),
    "a smaller volume than there is": (46, "<h", (3,), "bytes follow"),
    "bitpix of another type": (72, "<h", (32,), "contradicts itself: voxels of type int16 with bitpix 32"),
    "unknown data type": (70, "<h", (77,), "unknown data type"),
    "vox_offset before the end of the header": (108, "<f", (340.0,), "vox_offset"),
    "vox_offset is no number": (108, "<f", (float("nan"),), "vox_offset"),
    "vox_offset is broken": (108, "<f", (352.5,), "vox_offset"),
    "vox_offset too large": (108, "<f", (368.0,), "truncated"),
    "pixdim is NaN": (80, "<f", (float("nan"),), "pixdim"),
    "pixdim is infinite": (84, "<f", (float("inf"),), "pixdim"),
    "pixdim is 0": (88, "<f", (0.0,), "pixdim"),
    "pixdim is negative": (88, "<f", (-4.0,), "pixdim"),
    "spacing other than the affine's": (88, "<f", (5.0,), "differ|contradicts"),
    "slope is infinite": (112, "<f", (float("inf"),), "scl_slope"),
    "intercept is NaN": (112, "<2f", (2.0, float("nan")), "scl_inter"),
    "values beyond float32": (112, "<2f", (3e38, 0.0), "float32"),
    "sform_code is unknown": (254, "<h", (77,), "sform_code 77"),
    "an sform that differs from the qform of the same space": (284, "<f", (25.0,), "differ"),
    "an sform that is no number": (284, "<f", (float("nan"),), "sform"),
    "an affine in another galaxy": (292, "<f", (1e30,), "damaged|differ"),
}


@pytest.mark.parametrize(("offset", "code", "values", "words"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_load__contradictions_are_refused(
    tmp_path: Path, offset: int, code: str, values: tuple[float, ...], words: str
) -> None:
    path = tmp_path / "a.nii"
    save_nifti(ramp(2, 3, 4) + 1, AFFINE, path)
    assert load_image(path).shape == (2, 3, 4)
    with pytest.raises(DataError, match=words) as caught:
        load_image(patched(path, offset, struct.pack(code, *values)))
    assert str(path) in str(caught.value)


def test_load__qform_alone_that_is_no_rotation(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ramp(2, 3, 4), AFFINE)
    image.set_sform(None, 0)
    image.set_qform(AFFINE, 1)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match="qform"):
        load_image(patched(tmp_path / "a.nii", 256, struct.pack("<3f", 0.9, 0.9, 0.9)))


def test_load__forms_of_different_spaces_may_differ(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ramp(2, 3, 4), AFFINE)
    image.set_qform(AFFINE, 1)
    standard = AFFINE.copy()
    standard[:3, 3] += 50
    image.set_sform(standard, 4)  # MNI
    nibabel.save(image, tmp_path / "a.nii")
    read = load_image(tmp_path / "a.nii")
    np.testing.assert_allclose(read.affine, standard)
    assert any("differ" in note for note in read.notes)


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_load__no_slope_means_as_stored(tmp_path: Path, slope: float) -> None:
    save_nifti(ramp(2, 3, 4), AFFINE, tmp_path / "a.nii")
    patched(tmp_path / "a.nii", 112, struct.pack("<2f", slope, 7.0))
    np.testing.assert_array_equal(load_image(tmp_path / "a.nii").array, ramp(2, 3, 4))


def test_load__extensions_are_passed_over(tmp_path: Path) -> None:
    for length in (5, 5000):
        save_nifti(ramp(2, 3, 4), AFFINE, tmp_path / "a.nii.gz", extension=b"x" * length)
        np.testing.assert_array_equal(load_image(tmp_path / "a.nii.gz").array, ramp(2, 3, 4))
        assert peek(tmp_path / "a.nii.gz").shape == (2, 3, 4)
        read = nibabel.load(tmp_path / "a.nii.gz")
        assert read.header.extensions[0].get_content().rstrip(b"\x00") == b"x" * length  # type: ignore[attr-defined]


def test_load__an_extension_that_overlaps_the_voxels(tmp_path: Path) -> None:
    save_nifti(ramp(2, 3, 4), AFFINE, tmp_path / "a.nii", extension=b"names")
    with pytest.raises(DataError, match="extension overlaps"):
        load_image(patched(tmp_path / "a.nii", 352, struct.pack("<i", 4096)))


def test_load__halves_and_forerunners_are_named(tmp_path: Path) -> None:
    pair = nibabel.Nifti1Pair(ramp(2, 3, 4), AFFINE)
    nibabel.save(pair, tmp_path / "a.img")
    (tmp_path / "a.hdr").rename(tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"\.hdr/\.img pair"):
        load_image(tmp_path / "a.nii")
    nibabel.save(nibabel.AnalyzeImage(ramp(2, 3, 4), np.eye(4)), tmp_path / "b.img")
    (tmp_path / "b.hdr").rename(tmp_path / "b.nii")
    with pytest.raises(DataError, match="Analyze"):
        load_image(tmp_path / "b.nii")


def test_load__vectors_are_named(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4, 1, 3), np.float32), AFFINE)
    image.header.set_intent(1007)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"vectors \(intent_code 1007\)"):
        load_image(tmp_path / "a.nii")


def test_load__more_voxels_than_claimed_in_a_gzip_file(tmp_path: Path) -> None:
    save_nifti(ramp(20, 30, 40), AFFINE, tmp_path / "a.nii")
    patched(tmp_path / "a.nii", 46, struct.pack("<h", 39))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    with pytest.raises(DataError, match="1,200 bytes follow"):
        load_image(tmp_path / "b.nii.gz")


def test_peek__inflates_the_beginning_alone(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 30000, (40, 40, 40), dtype=np.int16)
    save_nifti(noise, AFFINE, tmp_path / "a.nii.gz")
    content = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(content[:2000])
    assert peek(tmp_path / "a.nii.gz").shape == (40, 40, 40)


def test_save__equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        save_nifti(ramp(9, 8, 7), AFFINE, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_save__without_orientation(tmp_path: Path) -> None:
    save_nifti(ramp(2, 3, 4), AFFINE, tmp_path / "a.nii", oriented=False)
    read = load_image(tmp_path / "a.nii")
    assert not read.oriented
    assert read.spacing == pytest.approx((2, 4, 3))


def test_save__a_sheared_affine_goes_into_the_sform_alone(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[0, 2] = 1.0
    save_nifti(ramp(2, 3, 4), sheared, tmp_path / "a.nii")
    np.testing.assert_allclose(load_image(tmp_path / "a.nii").affine, sheared)
    assert int(nibabel.load(tmp_path / "a.nii").header["qform_code"]) == 0  # type: ignore[attr-defined]
