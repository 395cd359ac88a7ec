"""Contours on an image's grid, against shapes whose voxels are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io.masks import load_mask
from medfm.types import Image

SHAPE = (60, 64, 40)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def circle(radius: float, centre: tuple[float, float], count: int = 360) -> np.ndarray:
    """(count, 2) mm in the plane of a slice."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], 1)


def to_patient(points: np.ndarray, place: float, affine: np.ndarray) -> np.ndarray:
    """In-plane mm and a slice number -> (n, 3) LPS mm."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    voxels = np.c_[points / spacing[:2], np.full(len(points), place), np.ones(len(points))]
    return (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine @ voxels.T).T[:, :3]


def discs(affine: np.ndarray, shape: str, step: float = 1.0) -> tuple[list[np.ndarray], np.ndarray]:
    """(contours of a sphere or a torus around the slice axis, the voxels whose centre lies within)."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    middle = (np.array(SHAPE) - 1) / 2 * spacing + 0.137
    big, small = (0.0, 20.0) if shape == "sphere" else (15.0, 8.0)
    contours = []
    for place in np.arange(0, SHAPE[2] - 0.5, step):
        away = place * spacing[2] - middle[2]
        if abs(away) < small:
            half = np.sqrt(small**2 - away**2)
            rings = [big + half] if big == 0 or big < half else [big + half, big - half]
            contours += [to_patient(circle(radius, (middle[0], middle[1])), place, affine) for radius in rings]
    i, j, k = np.indices(SHAPE) * spacing[:, None, None, None] - middle[:, None, None, None]
    return contours, (np.hypot(i, j) - big) ** 2 + k**2 < small**2


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
@pytest.mark.parametrize("shape", ["sphere", "torus"])
def test_load_mask__a_sphere_and_a_torus_fill_their_voxels(
    shape: str, kind: str, oblique: np.ndarray, blank: Callable[..., Image], write_rtstruct: Callable[..., Path]
) -> None:
    contours, expected = discs(oblique, shape)
    mask = load_mask(write_rtstruct({shape: contours}, kind=kind), blank(SHAPE, oblique))
    assert mask.names == (shape,)
    assert dice(mask.array[0], expected) > 0.999
    # What is left is the polygon's 360 corners, within a hundredth of a voxel of the circle.
    assert (mask.array[0] != expected).sum() < 3e-4 * expected.sum() + 3
    np.testing.assert_array_equal(mask.affine, oblique)
    assert mask.notes == ("the image names no frame of reference: that both share one is taken on trust",)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)])
def test_load_mask__the_image_may_be_turned(
    axes: tuple[int, int, int], oblique: np.ndarray, blank: Callable[..., Image], write_rtstruct: Callable[..., Path]
) -> None:
    contours, expected = discs(oblique, "torus")
    affine = oblique[:, [*axes, 3]].copy()
    affine[:3, 3] += affine[:3, 0] * (SHAPE[axes[0]] - 1)
    affine[:3, 0] *= -1
    mask = load_mask(write_rtstruct({"t": contours}), blank(tuple(SHAPE[a] for a in axes), affine))
    assert dice(mask.array[0], np.flip(expected.transpose(axes), 0)) > 0.999


@pytest.mark.parametrize("shape", ["sphere", "torus"])
def test_load_mask__contours_at_another_spacing_take_the_nearest_plane(
    shape: str, oblique: np.ndarray, blank: Callable[..., Image], write_rtstruct: Callable[..., Path]
) -> None:
    coarse, every = discs(oblique, shape, step=2.0)
    mask = load_mask(write_rtstruct({"s": coarse}), blank(SHAPE, oblique))
    # Contours on slices 0, 2, 4, ...: each is taken for its own slice and the next.
    expected = every.copy()
    expected[..., 1::2] = every[..., ::2]
    np.testing.assert_array_equal(mask.array[0], expected)
    assert any("2 slices apart" in note for note in mask.notes)
    fine, expected = discs(oblique, "torus", step=0.25)
    mask = load_mask(write_rtstruct({"s": fine}), blank(SHAPE, oblique))
    assert dice(mask.array[0], expected) > 0.99
    assert any("finer than the slices" in note for note in mask.notes)


@pytest.mark.parametrize(("off", "slices"), [(0.0, {7}), (0.4, {7}), (-0.4, {7}), (0.5, {8}), (-0.5, {7}), (0.6, {8})])
def test_load_mask__a_plane_goes_to_the_one_slice_within_half_a_slice(
    off: float, slices: set[int], oblique: np.ndarray, blank: Callable[..., Image], write_rtstruct: Callable[..., Path]
) -> None:
    contour = to_patient(circle(9.0, (25, 30)), 7 + off, oblique)
    mask = load_mask(write_rtstruct({"s": [contour]}), blank(SHAPE, oblique))
    assert set(np.flatnonzero(mask.array[0].any((0, 1)))) == slices
    assert any("off the slices" in note for note in mask.notes) == (abs(off) > 0.1)


def test_load_mask__two_blobs_far_apart_leave_the_slices_between_them_empty(
    blank: Callable[..., Image], write_rtstruct: Callable[..., Path]
) -> None:
    contours = [to_patient(circle(9.0, (25, 30)), place, np.eye(4)) for place in (3, 4, 5, 20, 21)]
    mask = load_mask(write_rtstruct({"s": contours}), blank(SHAPE, np.eye(4)))
    assert np.flatnonzero(mask.array[0].any((0, 1))).tolist() == [3, 4, 5, 20, 21]
    assert any("14 slices between" in note for note in mask.notes)


def test_load_mask__points_copies_and_crossing_contours_are_told(
    blank: Callable[..., Image], write_rtstruct: Callable[..., Path]
) -> None:
    ring = to_patient(circle(9.0, (25, 30)), 7, np.eye(4))
    other = to_patient(circle(9.0, (30, 30)), 9, np.eye(4))
    crossing = to_patient(circle(9.0, (36, 30)), 9, np.eye(4))
    path = write_rtstruct(
        {"a": [ring, ring[::-1], (ring[:1], "POINT")], "b": [other, crossing], "marker": [(ring[:1], "POINT")], "none": []}
    )
    mask = load_mask(path, blank(SHAPE, np.eye(4)))
    assert mask.names == ("a", "b")
    assert mask.array[0].sum() == pytest.approx(np.pi * 81, rel=0.05)
    notes = " | ".join(mask.notes)
    assert "2 points and open lines" in notes
    assert "2 of 4 regions have no closed contour" in notes
    assert "region 1: 1 contours occur twice" in notes
    assert "region 2: contours of one plane cross" in notes
    assert "SECRET" not in notes


def test_load_mask__what_lies_outside_is_left_out_and_all_outside_is_refused(
    blank: Callable[..., Image], write_rtstruct: Callable[..., Path]
) -> None:
    contours = [to_patient(circle(9.0, (25, 30)), place, np.eye(4)) for place in range(-3, 5)]
    mask = load_mask(write_rtstruct({"s": contours}), blank(SHAPE, np.eye(4)))
    assert np.flatnonzero(mask.array[0].any((0, 1))).tolist() == [0, 1, 2, 3, 4]
    assert any("3 of 8 contours lie outside" in note for note in mask.notes)
    edge = to_patient(circle(9.0, (60, 30)), 7, np.eye(4))
    assert (
        "1 of 1 contours reach beyond the image's edge and were clipped"
        in load_mask(write_rtstruct({"s": [edge]}), blank(SHAPE, np.eye(4))).notes
    )
    with pytest.raises(DataError, match="does not overlap"):
        load_mask(write_rtstruct({"s": contours[:2]}), blank(SHAPE, np.eye(4)))
    beside = [to_patient(circle(9.0, (900, 30)), place, np.eye(4)) for place in range(5)]
    with pytest.raises(DataError, match="does not overlap"):
        load_mask(write_rtstruct({"s": beside}), blank(SHAPE, np.eye(4)))


def test_load_mask__another_orientation_or_frame_is_refused(
    oblique: np.ndarray,
    blank: Callable[..., Image],
    write_rtstruct: Callable[..., Path],
    write_series: Callable[..., Path],
) -> None:
    contours, _ = discs(oblique, "sphere")
    with pytest.raises(DataError, match="another orientation"):
        load_mask(write_rtstruct({"s": contours}), blank(SHAPE, np.diag([1.0, 1.0, 1.0, 1.0])))
    source = write_series(np.zeros((2, 4, 4), np.int16), [[0, 0, 0], [0, 0, 1]], FrameOfReferenceUID="1.2.3.9")
    image = blank(SHAPE, oblique, source)
    assert load_mask(write_rtstruct({"s": contours}, frame="1.2.3.9"), image).notes == ()
    with pytest.raises(DataError, match="another frame of reference") as caught:
        load_mask(write_rtstruct({"s": contours}, frame="1.2.3.8"), image)
    assert "1.2.3.8" not in str(caught.value)


def change(path: Path, edit: Callable[[Any], None]) -> Path:
    import pydicom

    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: setattr(d.ROIContourSequence[0].ContourSequence[0], "ContourData", ["1", "2", "3", "4"]), "triples"),
        (lambda d: setattr(d.ROIContourSequence[0].ContourSequence[0], "ContourData", ["1e30", "2", "3"] * 3), "triples"),
        (lambda d: setattr(d.ROIContourSequence[0], "ReferencedROINumber", 77), "does not have"),
        (lambda d: setattr(d, "ROIContourSequence", []), "no closed contours"),
        (lambda d: d.ROIContourSequence[0].ContourSequence[0].pop("ContourGeometricType"), "no closed contours"),
    ],
)
def test_load_mask__damage_is_named(
    edit: Callable[[Any], None], message: str, blank: Callable[..., Image], write_rtstruct: Callable[..., Path]
) -> None:
    path = write_rtstruct({"s": [to_patient(circle(9.0, (25, 30)), 3, np.eye(4))]})
    with pytest.raises(DataError, match=message):
        load_mask(change(path, edit), blank(SHAPE, np.eye(4)))


def test_load_mask__text_among_coordinates_is_named(blank: Callable[..., Image], write_rtstruct: Callable[..., Path]) -> None:
    path = write_rtstruct({"s": [np.full((4, 3), 123.125)]})
    path.write_bytes(path.read_bytes().replace(b"123.125", b"1x3.125"))
    with pytest.raises(DataError, match="no number"):
        load_mask(path, blank(SHAPE, np.eye(4)))


def test_load_mask__names_and_only(blank: Callable[..., Image], write_rtstruct: Callable[..., Path]) -> None:
    ring = to_patient(circle(9.0, (25, 30)), 7, np.eye(4))
    path = write_rtstruct({"a": [ring], "b": [np.add(ring, [0, 0, 4])]})
    image = blank(SHAPE, np.eye(4))
    assert load_mask(path, image, names={2: "second"}).names == ("a", "second")
    kept = load_mask(path, image, only=["b"])
    assert (kept.names, np.flatnonzero(kept.array[0].any((0, 1))).tolist()) == (("b",), [11])
    with pytest.raises(DataError, match="no segment named 'c'"):
        load_mask(path, image, only=["c"])


def test_load_mask__pydicoms_structure_set(blank: Callable[..., Image]) -> None:
    """A box of 400 x 300 mm on planes 10 mm apart, and two isocentres."""
    from pydicom.data import get_testdata_file

    affine = np.diag([-10.0, -10.0, 10.0, 1.0])
    affine[:3, 3] = 255.0, 205.0, -210.0
    mask = load_mask(str(get_testdata_file("rtstruct.dcm")), blank((52, 42, 5), affine))
    assert mask.names == ("patient",)
    expected = np.zeros((52, 42, 5), bool)
    expected[6:46, 6:36, 1:4] = True
    np.testing.assert_array_equal(mask.array[0], expected)
    assert "2 points and open lines enclose nothing and were left out" in mask.notes
