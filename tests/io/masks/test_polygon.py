"""Even-odd filling, against matplotlib's point-in-polygon test and against what polygons must be."""

from __future__ import annotations

import numpy as np
import pytest

from medfm.io.masks import polygon
from medfm.io.masks.polygon import cross, fill

SHAPE = (40, 50)


def star(rng: np.random.Generator, points: int = 12) -> np.ndarray:
    angle = np.sort(rng.uniform(0, 2 * np.pi, points))
    radius = rng.uniform(3, 25, points)
    return np.stack([20 + radius * np.cos(angle), 25 + radius * np.sin(angle)], axis=1)


def box(a0: float, a1: float, b0: float, b1: float) -> np.ndarray:
    return np.array([[a0, b0], [a1, b0], [a1, b1], [a0, b1]])


@pytest.mark.parametrize("seed", range(25))
def test_fill__agrees_with_point_in_polygon(seed: int) -> None:
    path = pytest.importorskip("matplotlib.path")
    points = star(np.random.default_rng(seed))
    centres = np.indices(SHAPE).reshape(2, -1).T
    expected = path.Path(points).contains_points(centres).reshape(SHAPE)
    np.testing.assert_array_equal(fill([points], SHAPE), expected)
    np.testing.assert_array_equal(fill([points[::-1]], SHAPE), expected)


@pytest.mark.parametrize("shift", [0.0, 0.5, 0.3])
def test_fill__polygons_that_tile_the_plane_cover_each_pixel_once(shift: float) -> None:
    """Also with every vertex and edge on pixel centres."""
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(np.arange(-4.0, 48, 4), np.arange(-4.0, 60, 4), indexing="ij"), -1) + shift
    grid[1:-1, 1:-1] += rng.integers(-1, 2, grid[1:-1, 1:-1].shape)
    count = np.zeros(SHAPE, int)
    for a in range(grid.shape[0] - 1):
        for b in range(grid.shape[1] - 1):
            p, q, r, s = grid[a, b], grid[a + 1, b], grid[a + 1, b + 1], grid[a, b + 1]
            count += fill([np.array([p, q, r])], SHAPE)
            count += fill([np.array([p, r, s])], SHAPE)
    np.testing.assert_array_equal(count, 1)


def test_fill__area_is_unbiased() -> None:
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    areas = [
        fill([np.stack([20.3 + d + 12 * np.cos(angle), 25.1 + 12 * np.sin(angle)], 1)], SHAPE).sum()
        for d in np.linspace(0, 1, 20)
    ]
    assert np.mean(areas) == pytest.approx(np.pi * 144, rel=3e-3)


def test_fill__a_polygon_within_another_is_a_hole_and_one_within_that_is_not() -> None:
    rings = [box(2.5, 30.5, 2.5, 40.5), box(6.5, 20.5, 6.5, 30.5), box(8.5, 10.5, 8.5, 12.5)]
    expected = np.zeros(SHAPE, bool)
    expected[3:31, 3:41] = True
    expected[7:21, 7:31] = False
    expected[9:11, 9:13] = True
    np.testing.assert_array_equal(fill(rings, SHAPE), expected)


@pytest.mark.parametrize("channel", [15.0, 15.3])
def test_fill__a_keyhole_is_outline_and_hole(channel: float) -> None:
    outer, inner = box(2.5, 30.5, 2.5, 40.5), box(8.5, 20.5, 8.5, 30.5)
    start, stop = [2.5, channel], [8.5, channel]
    outline = [start, [2.5, 40.5], [30.5, 40.5], [30.5, 2.5], [2.5, 2.5], start]
    hole = [stop, [8.5, 8.5], [20.5, 8.5], [20.5, 30.5], [8.5, 30.5], stop]
    np.testing.assert_array_equal(fill([np.array(outline + hole)], SHAPE), fill([outer, inner], SHAPE))


def test_fill__what_lies_outside_is_clipped() -> None:
    assert fill([box(-1e9, 1e9, -1e9, 1e9)], SHAPE).all()
    assert fill([box(-10, 4.5, -3, 6.5)], SHAPE).sum() == 5 * 7
    assert not fill([box(100, 120, 5, 9)], SHAPE).any()
    assert not fill([box(5, 9, -20, -3)], SHAPE).any()
    assert not fill([], SHAPE).any()
    assert not fill([np.array([[1.0, 2.0], [5.0, 8.0]])], SHAPE).any()


def test_fill__in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points = star(np.random.default_rng(5), 300)
    whole = fill([points], SHAPE)
    monkeypatch.setattr(polygon, "_CHUNK", 7)
    np.testing.assert_array_equal(fill([points], SHAPE), whole)


def test_cross__nested_and_separate_polygons_do_not() -> None:
    assert not cross([box(2.5, 30.5, 2.5, 40.5), box(6.5, 20.5, 6.5, 30.5)], SHAPE)
    assert not cross([box(2.5, 6.5, 2.5, 40.5), box(6.5, 20.5, 6.5, 30.5)], SHAPE)
    assert cross([box(2.5, 10.5, 2.5, 10.5), box(6.5, 20.5, 6.5, 30.5)], SHAPE)
