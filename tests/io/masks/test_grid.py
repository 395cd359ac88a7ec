"""Layers from one grid to another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io.geometry import reorient
from medfm.io.masks import grid
from medfm.io.masks.grid import apart, place, shared_lattice

ORIENTATIONS = ["".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)]


def layers_of(shape: tuple[int, int, int], count: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *shape)) < 0.4


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_place__any_order_and_direction_of_axes_is_exact(orientation: str, oblique: np.ndarray) -> None:
    layers = layers_of((5, 6, 7))
    turned, affine = reorient(np.moveaxis(layers, 0, 3), oblique, orientation)
    placed, notes = place(np.moveaxis(turned, 3, 0), affine, (5, 6, 7), oblique, "m")
    np.testing.assert_array_equal(placed, layers)
    assert notes == (["the mask's axes were turned onto the image's"] if affine.tolist() != oblique.tolist() else [])


def test_place__a_part_of_the_grid_is_laid_in_its_place(oblique: np.ndarray) -> None:
    layers = layers_of((8, 9, 10))
    corner = oblique.copy()
    corner[:3, 3] += oblique[:3, :3] @ [2, 3, 4]
    placed, notes = place(layers[:, 2:7, 3:8, 4:9], corner, (8, 9, 10), oblique, "m")
    expected = np.zeros_like(layers)
    expected[:, 2:7, 3:8, 4:9] = layers[:, 2:7, 3:8, 4:9]
    np.testing.assert_array_equal(placed, expected)
    assert notes == []


def test_place__what_is_cut_off_is_counted(oblique: np.ndarray) -> None:
    layers = layers_of((8, 9, 10))
    corner = oblique.copy()
    corner[:3, 3] += oblique[:3, :3] @ [2, 3, 4]
    placed, notes = place(layers, oblique, (8, 4, 30), corner, "m")
    np.testing.assert_array_equal(placed[:, :6, :, :6], layers[:, 2:, 3:7, 4:])
    assert not placed[:, 6:].any()
    assert not placed[..., 6:].any()
    lost = layers.sum() - layers[:, 2:, 3:7, 4:].sum()
    assert notes == [f"{lost:,} marked voxels lie outside the image and were cut off"]


def test_place__rounded_headers_change_nothing_and_are_noted_where_they_show(oblique: np.ndarray) -> None:
    layers = layers_of((8, 9, 10))
    near = oblique.copy()
    near[:3, 3] += 1e-3
    assert place(layers, near, (8, 9, 10), oblique, "m")[1] == []
    near[:3, 3] += 0.2
    placed, notes = place(layers, near, (8, 9, 10), oblique, "m")
    np.testing.assert_array_equal(placed, layers)
    assert len(notes) == 1
    assert "voxels off" in notes[0]


def test_place__other_grids_take_the_nearest_voxel_as_simpleitk_does(oblique: np.ndarray) -> None:
    sitk = pytest.importorskip("SimpleITK")
    layers = layers_of((20, 22, 12), seed=3)
    target = np.diag([-1.3, -1.7, 1.9, 1.0])
    target[:3, 3] = 38.0, 50.0, -118.0
    shape = (16, 14, 15)
    placed, notes = place(layers, oblique, shape, target, "m")

    def oriented(image: object, affine: np.ndarray) -> object:
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())  # type: ignore[attr-defined]
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())  # type: ignore[attr-defined]
        image.SetOrigin(lps[:3, 3].tolist())  # type: ignore[attr-defined]
        return image

    frame = oriented(sitk.Image(list(shape), sitk.sitkUInt8), target)
    for layer, mine in zip(layers, placed, strict=True):
        image = oriented(sitk.GetImageFromArray(layer.astype(np.uint8).T), oblique)
        theirs = sitk.GetArrayFromImage(sitk.Resample(image, frame, sitk.Transform(), sitk.sitkNearestNeighbor, 0)).T
        assert mine.any()
        np.testing.assert_array_equal(mine, theirs.astype(bool))
    assert notes[0] == "the mask's grid differs from the image's: resampled by the nearest voxel"
    assert notes[1] == "a part of the mask lies outside the image and was cut off"


def test_place__finer_and_coarser_grids_cover_the_same_place() -> None:
    layers = np.zeros((1, 10, 10, 10), bool)
    layers[0, 2:6, 3:8, 4:9] = True
    fine = np.diag([0.5, 0.5, 0.5, 1.0])
    fine[:3, 3] = -0.25
    placed, notes = place(layers, np.eye(4), (20, 20, 20), fine, "m")
    np.testing.assert_array_equal(placed, layers.repeat(2, 1).repeat(2, 2).repeat(2, 3))
    assert notes == ["the mask's grid differs from the image's: resampled by the nearest voxel"]
    np.testing.assert_array_equal(place(placed, fine, (10, 10, 10), np.eye(4), "m")[0], layers)


def test_place__midway_between_two_voxels_the_upper_is_taken(oblique: np.ndarray) -> None:
    layers = layers_of((6, 7, 8))
    placed, _ = place(layers, oblique, (10, 12, 14), oblique @ np.diag([0.5, 0.5, 0.5, 1.0]), "m")
    up = [(np.arange(n) + 1) // 2 for n in (10, 12, 14)]
    np.testing.assert_array_equal(placed, layers[:, up[0]][:, :, up[1]][..., up[2]])


@pytest.mark.parametrize("shift", [(100, 0, 0), (0, -100, 0), (0, 0, 1000.5)])
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_place__no_overlap_is_refused(shift: tuple[float, float, float], scale: float) -> None:
    affine = np.diag([scale, scale, scale, 1.0])
    affine[:3, 3] = shift
    with pytest.raises(DataError, match="does not overlap"):
        place(layers_of((8, 8, 8)), affine, (8, 8, 8), np.eye(4), "m")


def test_place__one_slice_needs_no_slice_distance(oblique: np.ndarray) -> None:
    layers = layers_of((6, 7, 1))
    thick = oblique.copy()
    thick[:3, 2] *= 4
    placed, notes = place(layers, oblique, (6, 7, 1), thick, "m")
    np.testing.assert_array_equal(placed, layers)
    assert notes == []


def test_place__too_large_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "MAX_BYTES", 1000)
    small = np.diag([0.9, 0.9, 0.9, 1.0])
    for affine in (np.eye(4), small):
        with pytest.raises(DataError, match="GiB"):
            place(layers_of((5, 5, 5)), np.eye(4), (10**4, 10**5, 10**6), affine, "m")


def test_shared_lattice__none_for_another_spacing_or_a_turn() -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    assert shared_lattice((20, 20, 20), np.eye(4), (20, 20, 20), turn) is None
    assert shared_lattice((20, 20, 20), np.eye(4), (20, 20, 20), np.diag([1.1, 1, 1, 1])) is None
    # 2 mm against 1 mm: rounding the ratio alone would not tell.
    assert shared_lattice((20, 20, 20), np.eye(4), (20, 20, 20), np.diag([2.0, 1, 1, 1])) is None


def test_apart__is_the_largest_distance_of_corners() -> None:
    other = np.diag([1.01, 1.0, 1.0, 1.0])
    assert apart((11, 5, 5), np.eye(4), other) == pytest.approx(0.1)
    assert apart((11, 5, 5), np.diag([2.0, 2.0, 2.0, 1.0]), np.diag([2.0, 2.0, 2.0, 1.0])) == 0
