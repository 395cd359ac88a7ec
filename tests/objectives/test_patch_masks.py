from __future__ import annotations

import pytest
import torch

from medfm.objectives.patch_masks import draw_patch_masks
from medfm.transforms.draws import Draws


@pytest.mark.parametrize("masking", ["block", "random"])
@pytest.mark.parametrize("grid", [(14, 14), (4, 6, 6)])
def test_draw_patch_masks__shares_are_the_asked_ones(grid: tuple[int, ...], masking: str) -> None:
    patches = torch.Size(grid).numel()
    masks = draw_patch_masks(50, 2, grid, 0.5, (0.1, 0.5), Draws(0), masking)
    assert masks.shape == (100, patches)
    shares = masks.double().mean(dim=1)
    masked = shares[shares > 0].sort().values
    assert len(masked) == 50
    # Evenly spread over the range: the n-th lies in the n-th slice of it, to within a patch.
    low = 0.1 + 0.4 * torch.arange(50, dtype=torch.float64) / 50
    assert bool((masked >= low - 1 / patches - 1e-9).all())
    assert bool((masked <= low + 0.4 / 50 + 1e-9).all())
    assert 10 < int((shares[:50] > 0).sum()) < 40  # of the first views; not the first half of the batch


def test_draw_patch_masks__devices_share_the_batch() -> None:
    whole = draw_patch_masks(6, 2, (4, 4), 0.5, (0.2, 0.6), Draws(3)).view(2, 6, -1)
    for rank in (0, 1):
        own = draw_patch_masks(3, 2, (4, 4), 0.5, (0.2, 0.6), Draws(3, rank=rank, world=2)).view(2, 3, -1)
        assert bool((own == whole[:, 3 * rank : 3 * rank + 3]).all())


def test_draw_patch_masks__blocks_hang_together() -> None:
    """Of the masked patches' neighbours more are masked than with random masks of the same sizes."""

    def neighbours(masking: str) -> float:
        masks = draw_patch_masks(60, 1, (14, 14), 1.0, (0.3, 0.3), Draws(1), masking).view(-1, 14, 14)
        pairs = (masks[:, 1:] & masks[:, :-1]).sum() + (masks[:, :, 1:] & masks[:, :, :-1]).sum()
        return float(pairs / masks.sum())

    assert neighbours("random") == pytest.approx(2 * 0.3, abs=0.1)
    assert neighbours("block") > 1.4


def test_draw_patch_masks__small_batches_mask_something_and_never_everything() -> None:
    for seed in range(5):
        masks = draw_patch_masks(1, 2, (2, 2), 0.1, (0.01, 0.99), Draws(seed))
        counts = masks.sum(dim=1)
        assert int((counts > 0).sum()) == 1
        assert 1 <= int(counts.max()) <= 3
