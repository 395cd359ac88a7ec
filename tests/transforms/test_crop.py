from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfm.transforms.crop import border_box, fit, foreground_box, random_start


def cropped(x: np.ndarray) -> np.ndarray:
    return x[(slice(None), *border_box(x))]


@pytest.mark.parametrize("border", [0.0, 1.0])
def test_border_box__frame_of_either_colour(border: float) -> None:
    x = np.full((1, 100, 120), border, np.float32)
    x[0, 10:90, 30:100] = np.random.default_rng(0).uniform(0.2, 0.8, (80, 70))
    x[0, 2:4, 5:8] = 1 - border  # a marker on the border
    np.testing.assert_array_equal(cropped(x), x[:, 10:90, 30:100])


def test_border_box__leaves_what_shows_nothing_or_too_little() -> None:
    assert border_box(np.zeros((1, 20, 30), np.float32)) == (slice(0, 20), slice(0, 30))
    corner = np.zeros((1, 100, 100), np.float32)
    corner[0, 80:, 80:] = np.random.default_rng(0).uniform(0, 1, (20, 20))
    assert border_box(corner) == (slice(0, 100), slice(0, 100))  # would lose more than half of each axis


def test_border_box__volume() -> None:
    x = np.zeros((1, 14, 20, 24), np.float32)
    x[0, 2:12, 2:18, 2:22] = np.random.default_rng(0).uniform(0.2, 1, (10, 16, 20))
    assert cropped(x).shape == (1, 10, 16, 20)


def test_foreground_box__body_in_air_without_noise_and_table_edge() -> None:
    ct = np.full((60, 50, 40), -1000, np.int16)
    ct[10:50, 5:45, 3:37] = 40
    ct[55, 20, 20] = 3000  # one bright voxel is no body
    assert foreground_box(ct, -500) == (slice(10, 50), slice(5, 45), slice(3, 37))
    assert foreground_box(np.full((4, 5, 6), -1000), -500) == (slice(0, 4), slice(0, 5), slice(0, 6))


@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    data=st.data(),
)
def test_fit__agrees_with_padding_then_cutting(shape: list[int], data: st.DataObject) -> None:
    size = [data.draw(st.integers(1, 9)) for _ in shape]
    rng = np.random.default_rng(0)
    x = rng.integers(1, 1000, (2, *shape)).astype(np.int16)
    start = random_start(shape, size, rng)
    out = fit(x, size, np.array([-7, -8]), start)
    assert out.shape == (2, *size)
    assert out.dtype == x.dtype
    for channel, fill in enumerate((-7, -8)):
        before = [max(0, (want - have) // 2) for have, want in zip(shape, size, strict=True)]
        wide = np.pad(x[channel], [(b, 9) for b in before], constant_values=fill)
        box = tuple(slice(s, s + want) for s, want in zip(start, size, strict=True))
        np.testing.assert_array_equal(out[channel], wide[box])


def test_fit__takes_the_middle_by_itself_and_views_what_it_only_cuts() -> None:
    x = np.arange(12.0).reshape(1, 3, 4)
    np.testing.assert_array_equal(fit(x, (5, 2))[0], [[0, 0], [1, 2], [5, 6], [9, 10], [0, 0]])
    assert np.shares_memory(fit(x, (2, 2)), x)
    with pytest.raises(ValueError, match="leaves an axis of 4"):
        fit(x, (2, 2), start=(0, 3))


def test_random_start__reaches_every_place_and_never_beyond() -> None:
    rng = np.random.default_rng(0)
    starts = {random_start((5, 3, 2), (3, 3, 4), rng) for _ in range(200)}
    assert starts == {(0, 0, 0), (1, 0, 0), (2, 0, 0)}
