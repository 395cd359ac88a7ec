"""NIfTI, PNG and JPEG: words go, pixels and geometry stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfm.data.deidentify.nifti import clean_nifti
from medfm.data.deidentify.pictures import clean_picture
from medfm.errors import DataError
from medfm.io.load import load_image


@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_clean_nifti__keeps_voxels_scaling_and_geometry(tmp_path: Path, kind: str, suffix: str) -> None:
    import nibabel

    affine = np.array([[2.0, 0, 0, 5], [0, -3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    image = getattr(nibabel, kind)(np.arange(120, dtype=np.int16).reshape(4, 5, 6), affine)
    image.header.set_slope_inter(2.0, -3.0)
    image.header["descrip"] = "Doe"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe" * 300))
    nibabel.save(image, tmp_path / f"a{suffix}")
    done = clean_nifti(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
    assert "NIfTI descrip" in done
    assert "NIfTI extensions" in done
    before, after = nibabel.load(tmp_path / f"a{suffix}"), nibabel.load(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(before.get_fdata(), after.get_fdata())
    np.testing.assert_array_equal(before.affine, after.affine)
    assert not list(after.header.extensions)
    np.testing.assert_array_equal(after.get_fdata(), load_image(tmp_path / f"b{suffix}").array)


def test_clean_nifti__damage_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"Doe" * 200)
    with pytest.raises(DataError, match="no NIfTI"):
        clean_nifti(tmp_path / "a.nii", tmp_path / "b.nii")
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)), tmp_path / "c.nii")
    (tmp_path / "c.nii").write_bytes((tmp_path / "c.nii").read_bytes()[:900])
    with pytest.raises(DataError, match="truncated"):
        clean_nifti(tmp_path / "c.nii", tmp_path / "d.nii")
    assert not (tmp_path / "d.nii").exists()
    # What is compressed anew gets a checksum that fits, so that the old one must be tested.
    voxels = np.random.default_rng(0).integers(-9, 9, (16, 16, 16), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "e.nii.gz")
    whole = (tmp_path / "e.nii.gz").read_bytes()
    for place in range(600, len(whole), 211):
        broken = bytearray(whole)
        broken[place] ^= 16
        (tmp_path / "e.nii.gz").write_bytes(broken)
        with pytest.raises(DataError):
            clean_nifti(tmp_path / "e.nii.gz", tmp_path / "f.nii.gz")
        assert not (tmp_path / "f.nii.gz").exists()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_clean_picture__keeps_pixels_and_orientation(tmp_path: Path, name: str, orientation: int) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, "Doe"
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    options = {"progressive": True, "comment": "Doe", "icc_profile": b"Doe" * 50} if name.endswith("jpg") else {}
    Image.fromarray(pixels).save(tmp_path / name, exif=exif, **options)
    assert clean_picture(tmp_path / name, tmp_path / f"clean-{name}")
    assert b"Doe" not in (tmp_path / f"clean-{name}").read_bytes()
    before, after = load_image(tmp_path / name), load_image(tmp_path / f"clean-{name}")
    np.testing.assert_array_equal(before.array, after.array)
    assert before.shape == ((30, 20, 1, 3) if orientation < 5 else (20, 30, 1, 3))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_clean_picture__damage_is_one_error(tmp_path: Path, name: str) -> None:
    from PIL import Image

    Image.fromarray(np.arange(10000, dtype=np.uint16).astype(np.uint8).reshape(100, 100)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (3, 10, len(whole) // 2, len(whole) - 3):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"truncated|neither"):
            clean_picture(tmp_path / name, tmp_path / f"b{name}")


def test_clean_picture__real_pictures(data_dir: Path, tmp_path: Path) -> None:
    files = sorted((data_dir / "cxr_ieee8023" / "images").iterdir())[:4] + sorted((data_dir / "vqa_rad").rglob("*.jpg"))[:4]
    for path in files:
        clean_picture(path, tmp_path / path.name)
        np.testing.assert_array_equal(load_image(path).array, load_image(tmp_path / path.name).array)
