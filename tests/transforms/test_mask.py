"""Masks take every step that their image takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medfm.transforms.config import PreprocessConfig
from medfm.transforms.mask import with_mask
from medfm.transforms.preprocess import Preprocess
from medfm.types import Image

TURNED = np.array([[0.0, -1.5, 0, 5], [2.0, 0, 0, -3], [0, 0, -1.0, 8], [0, 0, 0, 1]])


def image_of(array: np.ndarray, affine: np.ndarray | None = None) -> Image:
    return Image(array, np.eye(4) if affine is None else affine, "OT", "arbitrary", "made")


def blob(shape: tuple[int, ...]) -> np.ndarray:
    """An off-centre box that no flip or exchange of axes maps onto itself."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(n // 5, n // 5 + max(1, n // (2 + axis))) for axis, n in enumerate(shape))] = True
    return mask


@pytest.mark.parametrize(
    "options",
    [
        {"size": (12, 16, 10)},
        {"size": (12, 16, 10), "orientation": "LPS", "resize": "crop"},
        {"size": (40, 8, 30), "resize": "none"},
        {"size": (9, 11, 13), "resize": "stretch", "orientation": "SAR"},
        {"size": (16, 16, 16), "spacing": (1.3, 0.7, 2.1)},
        {"size": (12, 16, 10), "foreground_threshold": 0.5},
        {"size": (12, 16, 10), "crop_foreground": True},
    ],
)
def test_with_mask__of_an_image_that_is_its_own_mask_is_the_image(options: dict[str, Any]) -> None:
    mask = blob((20, 24, 18))
    preprocess = Preprocess(PreprocessConfig(window="none", dtype="float32", **options))
    stored, covered = with_mask(preprocess, image_of(mask.astype(np.float32), TURNED), mask[None])
    np.testing.assert_array_equal(stored, preprocess(image_of(mask.astype(np.float32), TURNED)))
    assert 0 < covered.mean() <= 1
    np.testing.assert_allclose(covered, stored, atol=1e-6)


def test_with_mask__in_2d_and_with_a_border_the_image_decides() -> None:
    rng = np.random.default_rng(0)
    array = np.zeros((40, 30, 1), np.float32)
    array[5:35, 4:28, 0] = rng.random((30, 24))
    mask = blob((40, 30, 1))
    preprocess = Preprocess(
        PreprocessConfig(size=(24, 30), window="none", crop_foreground=True, resize="none", dtype="float32")
    )
    stored, covered = with_mask(preprocess, image_of(array), np.stack([mask, ~mask]))
    # (H, W) = (j, i), and the frame without content is cut off.
    np.testing.assert_array_equal(stored[0], array[5:35, 4:28, 0].T)
    np.testing.assert_array_equal(covered[0], mask[5:35, 4:28, 0].T)
    np.testing.assert_array_equal(covered[1], 1 - covered[0])


def test_with_mask__gives_the_covered_share_where_it_shrinks_and_nothing_around() -> None:
    mask = np.zeros((16, 16, 1), bool)
    mask[:, :8] = True
    preprocess = Preprocess(PreprocessConfig(size=(4, 12), window="none"))
    _, covered = with_mask(preprocess, image_of(np.zeros((16, 16, 1), np.float32)), mask[None])
    assert covered.shape == (1, 4, 12)
    assert (covered[0][:, :4] == 0).all()
    assert (covered[0][:, 8:] == 0).all()
    assert covered.sum() * 16 == pytest.approx(mask.sum(), rel=0.01)


def test_with_mask__refuses_layers_of_another_grid() -> None:
    preprocess = Preprocess(PreprocessConfig(size=(4, 4), window="none"))
    with pytest.raises(ValueError, match="not on the image's grid"):
        with_mask(preprocess, image_of(np.zeros((8, 8, 1), np.float32)), np.zeros((1, 8, 9, 1), bool))
