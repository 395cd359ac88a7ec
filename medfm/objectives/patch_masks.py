"""Which patches of the global views are masked for iBOT: a share of the views, each with a share of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from medfm.transforms.draws import Draws

_BOXES = 12  # tries to place a box; BEiT stops after ten failures in a row
_SMALLEST_BOX = 4  # patches
_ASPECT = 0.3  # how flat a box may be


def draw_patch_masks(
    rows: int,
    views: int,
    grid: Sequence[int],
    probability: float,
    ratio: tuple[float, float],
    draws: Draws,
    masking: Literal["block", "random"] = "block",
) -> Tensor:
    """Masks of `views` views of each of `rows` images, drawn for all devices' images together.

    The share `probability` of all views has masked patches, at least one view, at least one patch each. The masked views'
    shares are spread over `ratio`: the n-th of them draws from the n-th slice of that range.

    Source: DINOv2, data/collate.py and data/masking.py (boxes: BEiT, Bao et al. 2022, algorithm 1); 3DINO, data/masking.py,
    masks patches one by one.

    Args:
        grid: patches along each axis.
        draws: on the device where the masks are wanted.

    Returns:
        (views * rows, N) bool, view-major, True where masked.
    """
    patches = math.prod(grid)
    everyone = draws.world * rows * views
    order = torch.rand(everyone, generator=draws.generator, device=draws.device).argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(everyone, device=order.device)
    place = place.view(-1, views)[draws.rank * rows : (draws.rank + 1) * rows]
    masked_views = max(1, int(everyone * probability))
    low, high = ratio
    share = low + (high - low) * (place + draws.rand(rows, views)) / masked_views
    count = ((share * patches).int().clamp(1, patches - 1) * (place < masked_views)).flatten()
    score = draws.rand(rows, views, patches).flatten(0, 1)
    if masking == "block":
        score += _boxes(count, grid, draws.rand(rows, views, _BOXES, 2 * len(grid) + 1).flatten(0, 1))
    # Boxes first, then single patches until the count is full.
    rank = torch.empty_like(score, dtype=torch.int64)
    best = score.argsort(dim=1, descending=True)
    rank.scatter_(1, best, torch.arange(patches, device=score.device).expand_as(best))
    return (rank < count[:, None]).view(rows, views, patches).transpose(0, 1).flatten(0, 1)


def _boxes(count: Tensor, grid: Sequence[int], noise: Tensor) -> Tensor:
    """(n, N) bool: boxes laid down one after the other as long as no more than `count` (n,) patches are covered."""
    axes = len(grid)
    masked = torch.zeros(len(count), math.prod(grid), dtype=torch.bool, device=count.device)
    stretch = (1 - 2 * noise[..., :axes]) * math.log(_ASPECT)
    stretch = (stretch - stretch.mean(dim=-1, keepdim=True)).exp()
    for box in range(noise.shape[1]):
        left = count - masked.sum(dim=1)
        volume = _SMALLEST_BOX + (left - _SMALLEST_BOX) * noise[:, box, 2 * axes]
        inside: Tensor | None = None
        for axis, n in enumerate(grid):
            side = (volume.clamp(min=1) ** (1 / axes) * stretch[:, box, axis]).round().clamp(1, n)
            start = (noise[:, box, axes + axis] * (n - side + 1)).floor()
            at = torch.arange(n, device=count.device)
            along = (at >= start[:, None]) & (at < (start + side)[:, None])
            inside = along if inside is None else (inside[:, :, None] & along[:, None]).flatten(1)
        assert inside is not None
        fits = (inside & ~masked).sum(dim=1) <= left
        masked |= inside & fits[:, None]
    return masked
