"""Masks in NIfTI files and pictures, and files that are no masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io.geometry import reorient
from medfm.io.load import load_image
from medfm.io.masks import load_mask
from medfm.io.nifti import save_nifti
from medfm.types import Image

SHAPE = (8, 9, 10)


def labels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, SHAPE, np.uint8)


def split(values: np.ndarray) -> np.ndarray:
    return np.stack([values == n for n in (1, 2, 3)])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_load_mask__label_map(
    tmp_path: Path, oblique: np.ndarray, blank: Callable[..., Image], dtype: Any, suffix: str
) -> None:
    save_nifti(labels().astype(dtype), oblique, tmp_path / f"m{suffix}")
    mask = load_mask(tmp_path / f"m{suffix}", blank(SHAPE, oblique))
    np.testing.assert_array_equal(mask.array, split(labels()))
    assert mask.names == ("label 1", "label 2", "label 3")
    assert mask.notes == ()
    np.testing.assert_array_equal(mask.affine, oblique)
    assert mask.source == str(tmp_path / f"m{suffix}")


def test_load_mask__turned_and_on_a_series_of_frames(tmp_path: Path, oblique: np.ndarray, blank: Callable[..., Image]) -> None:
    turned, affine = reorient(labels(), oblique, "SPL")
    save_nifti(turned, affine, tmp_path / "m.nii.gz")
    mask = load_mask(tmp_path / "m.nii.gz", blank((*SHAPE, 5), oblique, last_axis="time"))
    np.testing.assert_array_equal(mask.array, split(labels()))
    assert mask.notes == ("the mask's axes were turned onto the image's",)


def test_load_mask__names_make_layers(tmp_path: Path, blank: Callable[..., Image]) -> None:
    save_nifti(labels(), np.eye(4), tmp_path / "m.nii")
    image = blank(SHAPE, np.eye(4))
    mask = load_mask(tmp_path / "m.nii", image, names={2: "liver", 5: "spleen"})
    assert mask.names == ("label 1", "liver", "label 3", "spleen")
    assert not mask.array[3].any()
    assert load_mask(tmp_path / "m.nii", image, names={2: "liver"}, only=["liver"]).array.sum() == (labels() == 2).sum()


def test_load_mask__one_volume_a_segment(tmp_path: Path, blank: Callable[..., Image]) -> None:
    layers = np.random.default_rng(0).random((3, *SHAPE)) < 0.5
    save_nifti(np.moveaxis(layers, 0, 3), np.eye(4), tmp_path / "m.nii")
    mask = load_mask(tmp_path / "m.nii", blank(SHAPE, np.eye(4)))
    np.testing.assert_array_equal(mask.array, layers)
    assert load_mask(tmp_path / "m.nii", blank(SHAPE, np.eye(4)), only=["label 2"]).array.shape == (1, *SHAPE)
    save_nifti(np.moveaxis(layers, 0, 3) * np.uint8(2), np.eye(4), tmp_path / "m.nii")
    with pytest.raises(DataError, match="not binary"):
        load_mask(tmp_path / "m.nii", blank(SHAPE, np.eye(4)))


def test_load_mask__probabilities_are_cut_and_images_refused(tmp_path: Path, blank: Callable[..., Image]) -> None:
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    save_nifti(values, np.eye(4), tmp_path / "m.nii")
    mask = load_mask(tmp_path / "m.nii", blank(SHAPE, np.eye(4)))
    np.testing.assert_array_equal(mask.array[0], values >= 0.5)
    assert "cut at 0.5" in mask.notes[0]
    for wrong, message in (
        (values * 3, "it is an image"),
        (labels().astype(np.int16) - 1, "down to -1"),
        (np.full(SHAPE, 1e12), "it is an image"),
        (np.arange(20**3, dtype=np.int16).reshape(20, 20, 20), "different values"),
    ):
        save_nifti(wrong, np.eye(4), tmp_path / "m.nii")
        with pytest.raises(DataError, match=message):
            load_mask(tmp_path / "m.nii", blank(SHAPE, np.eye(4)))


def test_load_mask__an_empty_mask_has_no_layers(tmp_path: Path, blank: Callable[..., Image]) -> None:
    save_nifti(np.zeros(SHAPE, np.uint8), np.eye(4), tmp_path / "m.nii")
    assert load_mask(tmp_path / "m.nii", blank(SHAPE, np.eye(4))).array.shape == (0, *SHAPE)
    assert load_mask(tmp_path / "m.nii", blank(SHAPE, np.eye(4)), names={1: "tumour"}).array.shape == (1, *SHAPE)


def test_load_mask__without_orientation_sizes_must_agree(tmp_path: Path, blank: Callable[..., Image]) -> None:
    save_nifti(labels(), np.diag([3.0, 1, 1, 1]), tmp_path / "m.nii")
    image = blank(SHAPE, np.eye(4), oriented=False)
    mask = load_mask(tmp_path / "m.nii", image)
    np.testing.assert_array_equal(mask.array, split(labels()))
    assert "orientation is unknown" in mask.notes[-1]
    with pytest.raises(DataError, match="differ in size"):
        load_mask(tmp_path / "m.nii", blank((9, 8, 10), np.eye(4), oriented=False))


def test_load_mask__pictures(tmp_path: Path, blank: Callable[..., Image]) -> None:
    from PIL import Image as Pictures

    pixels = np.random.default_rng(0).integers(0, 2, (9, 8), np.uint8)
    film = blank((8, 9, 1), np.eye(4), oriented=False)
    for white in (255, 1):
        Pictures.fromarray(pixels * np.uint8(white)).save(tmp_path / "m.png")
        mask = load_mask(tmp_path / "m.png", film)
        assert mask.names == ("label 1",)
        np.testing.assert_array_equal(mask.array[0, :, :, 0], pixels.T.astype(bool))
    Pictures.fromarray(np.stack([pixels * 7] * 3, -1)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "grey.png", film).array, mask.array)
    Pictures.fromarray(pixels + pixels.T.reshape(9, 8)).save(tmp_path / "three.png")
    assert load_mask(tmp_path / "three.png", film, names={2: "b"}).names == ("label 1", "b")
    Pictures.fromarray(pixels).save(tmp_path / "m.jpg")
    # A value that has a name is that label, though no other is there.
    lungs = {1: "left lung", 2: "right lung"}
    Pictures.fromarray(pixels * np.uint8(2)).save(tmp_path / "right.png")
    right = load_mask(tmp_path / "right.png", film, names=lungs)
    assert dict(zip(right.names, right.array.sum(axis=(1, 2, 3)), strict=True)) == {"left lung": 0, "right lung": pixels.sum()}
    Pictures.fromarray(pixels * np.uint8(255)).save(tmp_path / "white.png")
    assert load_mask(tmp_path / "white.png", film, names={255: "lung"}, only=["lung"]).array.sum() == pixels.sum()
    Pictures.fromarray(np.stack([pixels, pixels, 1 - pixels], -1)).save(tmp_path / "colour.png")
    for name, message in (("m.jpg", "JPEG"), ("colour.png", "colours")):
        with pytest.raises(DataError, match=message):
            load_mask(tmp_path / name, film)
    with pytest.raises(DataError, match="differ in size"):
        load_mask(tmp_path / "m.png", blank((9, 8, 1), np.eye(4)))


def test_load_mask__a_folder_of_one_file_a_structure(tmp_path: Path, oblique: np.ndarray, blank: Callable[..., Image]) -> None:
    layers = split(labels())
    for name, layer in zip(("aorta", "liver.left", "spleen"), layers, strict=True):
        turned, affine = reorient(layer, oblique, "RAS")
        save_nifti(turned, affine, tmp_path / f"{name}.nii.gz")
    save_nifti(np.zeros(SHAPE, np.uint8), oblique, tmp_path / "tumour.nii")
    image = blank(SHAPE, oblique)
    mask = load_mask(tmp_path, image)
    assert mask.names == ("aorta", "liver.left", "spleen", "tumour")
    np.testing.assert_array_equal(mask.array[:3], layers)
    assert not mask.array[3].any()
    assert mask.notes == ("the mask's axes were turned onto the image's",)
    (tmp_path / "aorta.nii.gz").write_bytes(b"broken, but not asked for")
    mask = load_mask(tmp_path, image, only=["spleen", "liver.left"])
    assert mask.names == ("liver.left", "spleen")
    np.testing.assert_array_equal(mask.array, layers[1:])
    with pytest.raises(DataError, match="no segment named 'kidney'"):
        load_mask(tmp_path, image, only=["kidney"])
    save_nifti(labels(), oblique, tmp_path / "aorta.nii.gz")
    with pytest.raises(DataError, match="each file holds one segment"):
        load_mask(tmp_path, image)


def test_load_mask__what_is_no_mask_is_named(tmp_path: Path, blank: Callable[..., Image]) -> None:
    image = blank(SHAPE, np.eye(4))
    (tmp_path / "empty.nii").touch()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.dcm").write_bytes(b"x" * 400)
    for name, message in (
        ("none.nii", "does not exist"),
        ("empty.nii", "is empty"),
        ("a.txt", "no mask that medfm reads"),
        ("folder", "holds 0 DICOM files"),
        ("bad.dcm", "not a DICOM file"),
    ):
        with pytest.raises(DataError, match=message):
            load_mask(tmp_path / name, image)
    with pytest.raises(DataError, match="singular"):
        load_mask(tmp_path / "a.txt", blank(SHAPE, np.zeros((4, 4))))


def test_load_mask__organs_have_their_density(data_dir: Path) -> None:
    """A label map in NIfTI on the DICOM series that it was made from: turned axes would put livers into the air."""
    folder = data_dir / "ct3d_totalsegmentator"
    image = load_image(folder / "exampleCTdicom")
    mask = load_mask(folder / "exampleCTdicom_seg.nii.gz", image)
    assert mask.array.shape == (31, *image.shape)
    mean = {name: float(image.array[layer].mean()) for name, layer in zip(mask.names, mask.array, strict=True)}
    assert 70 < mean["spleen"] < 100
    assert 70 < mean["liver"] < 100
    assert 150 < mean["aorta"] < 250
    assert all(value > 150 for name, value in mean.items() if name.startswith(("rib_", "vertebrae_", "humerus_")))
    two = load_mask(folder / "exampleCTdicom_seg.nii.gz", image, only=["liver", "kidney_left"])
    assert two.names == ("kidney_left", "liver")
    assert two.array.any((1, 2, 3)).tolist() == [False, True]


def test_load_mask__lungs_on_a_film(data_dir: Path) -> None:
    film = sorted((data_dir / "cxr_hannover" / "masks").iterdir())[0]
    image = load_image(next((data_dir / "cxr_hannover" / "images").glob(f"{film.stem}.*")))
    mask = load_mask(film, image)
    assert mask.array.shape == (1, *image.shape[:3])
    inside, outside = image.array[mask.array[0]].mean(), image.array[~mask.array[0]].mean()
    assert inside < outside
