"""Spacing, affines, views, reorientation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medfm.io.geometry import is_singular, parse_orientation, reorient
from medfm.io.load import load_image

Writer = Callable[..., Path]
FILM = np.zeros((4, 6), np.uint16)


def test_spacing__row_spacing_comes_first(write_dicom: Writer) -> None:
    image = load_image(write_dicom(FILM, PixelSpacing=[0.2, 0.1]))
    # Rows lie 0.2 mm apart, that is along j; columns 0.1 mm, along i.
    assert image.spacing == pytest.approx((0.1, 0.2, 1.0))
    assert image.spaced
    assert not image.oriented


def test_spacing__imager_spacing_with_a_note(write_dicom: Writer) -> None:
    image = load_image(write_dicom(FILM, ImagerPixelSpacing=[0.15, 0.15]))
    assert image.spacing[:2] == pytest.approx((0.15, 0.15))
    assert any("ImagerPixelSpacing" in note for note in image.notes)


@pytest.mark.parametrize("value", [None, [0, 0]])
def test_spacing__absent_or_zero_is_said(write_dicom: Writer, value: list[float] | None) -> None:
    image = load_image(write_dicom(FILM, PixelSpacing=value))
    assert not image.spaced
    np.testing.assert_array_equal(image.affine, np.eye(4))


def test_affine__single_oblique_slice_by_hand(write_dicom: Writer) -> None:
    tags = {
        "Modality": "MR",
        "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],  # sagittal: columns run to the back, rows to the feet
        "ImagePositionPatient": [10, -20, 30],
        "PixelSpacing": [2, 3],
        "SliceThickness": 5,
    }
    affine = load_image(write_dicom(FILM, **tags)).affine
    # LPS: i -> +y 3 mm, j -> -z 2 mm, normal = y x (-z) = -x 5 mm. RAS flips x and y.
    expected = [[0, 0, 5, -10], [-3, 0, 0, 20], [0, -2, 0, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine, expected, atol=1e-12)
    assert nibabel.aff2axcodes(affine) == ("P", "I", "R")


def test_affine__film_with_patient_orientation(write_dicom: Writer) -> None:
    image = load_image(write_dicom(FILM, PatientOrientation=["L", "F"], PixelSpacing=[0.2, 0.1]))
    assert image.oriented
    np.testing.assert_allclose(image.affine[:3, 0], [-0.1, 0, 0])
    np.testing.assert_allclose(image.affine[:3, 1], [0, 0, -0.2])


@pytest.mark.parametrize(
    ("tags", "view"),
    [
        ({"ViewPosition": "PA"}, "PA"),
        ({"ViewPosition": "ap"}, "AP"),
        ({"ViewPosition": "LL"}, "LATERAL"),
        ({"ViewPosition": "MLO"}, "MLO"),
        ({"PatientOrientation": ["A", "F"]}, "LATERAL"),
        ({"PatientOrientation": ["L", "F"]}, ""),
        ({}, ""),
    ],
)
def test_view__from_position_or_orientation(write_dicom: Writer, tags: dict, view: str) -> None:
    assert load_image(write_dicom(FILM, **tags)).view == view


def test_view__from_code_sequence(write_dicom: Writer) -> None:
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeMeaning = "postero-anterior"
    assert load_image(write_dicom(FILM, ViewCodeSequence=[code])).view == "PA"


def test_reorient__every_orientation_agrees_with_nibabel() -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 99, (3, 4, 5))
    for axes in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.diag(signs)[:, axes] * [1.0, 2.0, 3.0] + 0.1 * rng.normal(size=(3, 3))
            affine[:3, 3] = rng.normal(size=3)
            expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(array.astype(np.int16), affine))
            turned, moved = reorient(array, affine, "RAS")
            np.testing.assert_array_equal(turned, np.asarray(expected.dataobj))
            np.testing.assert_allclose(moved, expected.affine, atol=1e-12)
            assert nibabel.aff2axcodes(reorient(array, affine, "LPI")[1]) == ("L", "P", "I")


def test_reorient__a_voxel_keeps_its_place_and_time_stays_last() -> None:
    affine = np.array([[0, -2.0, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    array = np.zeros((3, 4, 5, 2))
    array[1, 2, 3, 1] = 1
    turned, moved = reorient(array, affine, "PSR")
    assert turned.shape[-1] == 2
    where = np.argwhere(turned)[0]
    np.testing.assert_allclose(moved @ [*where[:3], 1], affine @ [1, 2, 3, 1])


@pytest.mark.parametrize("word", ["RA", "RAX", "RRS", "ras", "RASA"])
def test_parse_orientation__refuses(word: str) -> None:
    with pytest.raises(ValueError, match=r"R/L"):
        parse_orientation(word)


def test_is_singular() -> None:
    assert not is_singular(np.diag([0.01, 5, 3, 1]))
    assert is_singular(np.diag([0.0, 5, 3, 1]))
    flat = np.eye(4)
    flat[:3, 1] = flat[:3, 0]
    assert is_singular(flat)
    assert is_singular(np.full((4, 4), np.nan))
