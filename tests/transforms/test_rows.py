"""Sums along an axis are products with a matrix of each image's own."""

from __future__ import annotations

import pytest
import torch

from medfm.transforms.rows import Taps, blur_taps, resample_taps, sum_rows


def dense(taps: Taps, length: int) -> torch.Tensor:
    """(N, size, length)."""
    matrix = torch.zeros(*taps.places.shape[:2], length, dtype=taps.weights.dtype)
    return matrix.scatter_add(2, taps.places, taps.weights)


@pytest.mark.parametrize("shape", [(7, 9), (5, 7, 6)])
@pytest.mark.parametrize("views", [1, 3])
def test_sum_rows__equals_products_with_matrices(shape: tuple[int, ...], views: int) -> None:
    images = torch.rand(2, 2, *shape, dtype=torch.float64)
    for axis, length in enumerate(shape):
        first = Taps(torch.randint(length, (2 * views, 8, 4)), torch.randn(2 * views, 8, 4, dtype=torch.float64))
        second = Taps(torch.randint(8, (2 * views, 5, 3)), torch.randn(2 * views, 5, 3, dtype=torch.float64))
        product = dense(second, 8) @ dense(first, length)
        expected = torch.einsum("nol,nc...l->nc...o", product, images.repeat_interleave(views, 0).movedim(2 + axis, -1))
        found = sum_rows(images, 2 + axis, [first, second], views)
        torch.testing.assert_close(found, expected.movedim(-1, 2 + axis))


def test_resample_taps__sum_to_one_and_lie_inside() -> None:
    share, mirrored = torch.rand(50) * 0.95 + 0.05, torch.rand(50) < 0.5
    centre = (2 * torch.rand(50) - 1) * (1 - share)
    for size in (5, 40):
        taps = resample_taps(32, size, share, centre, mirrored, largest=max(1.0, 32 / size))
        torch.testing.assert_close(taps.weights.sum(-1), torch.ones(50, size))
        assert int(taps.places.min()) >= 0
        assert int(taps.places.max()) < 32
        # A larger bound only adds zeros.
        torch.testing.assert_close(dense(taps, 32), dense(resample_taps(32, size, share, centre, mirrored, 20.0), 32))


def test_blur_taps__no_blur_is_exactly_nothing() -> None:
    torch.testing.assert_close(dense(blur_taps(9, torch.tensor([0.0]), 2.0), 9)[0], torch.eye(9), rtol=0, atol=0)
