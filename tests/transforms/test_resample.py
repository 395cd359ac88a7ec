"""Resizing, fitting, border cropping."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pictures

from medfm.transforms.resample import center_fit, crop_borders, resize


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


def test_center_fit__cuts_and_pads_the_middle() -> None:
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    np.testing.assert_array_equal(center_fit(x, (5, 2))[0], [[0, 0], [1, 2], [5, 6], [9, 10], [0, 0]])


@pytest.mark.parametrize("border", [0.0, 1.0])
def test_crop_borders__frame_of_either_colour(border: float) -> None:
    rng = np.random.default_rng(0)
    x = np.full((1, 100, 120), border, np.float32)
    x[:, 10:90, 30:100] = rng.random((80, 70)) * 0.8 + 0.1
    x[:, 3, 5:7] = 1 - border  # a marker in the border
    np.testing.assert_array_equal(crop_borders(x), x[:, 10:90, 30:100])


def test_crop_borders__leaves_what_shows_nothing_or_too_little() -> None:
    empty = np.full((1, 50, 50), 0.3, np.float32)
    assert crop_borders(empty).shape == empty.shape
    corner = np.zeros((1, 100, 100), np.float32)
    corner[:, :20, :20] = np.random.default_rng(0).random((20, 20))
    assert crop_borders(corner).shape == corner.shape  # would lose more than half of each axis


def test_crop_borders__volume() -> None:
    x = np.zeros((1, 20, 30, 40), np.float32)
    x[:, 5:15, 8:24, 10:30] = np.random.default_rng(0).random((10, 16, 20)) + 0.1
    assert crop_borders(x).shape == (1, 10, 16, 20)
