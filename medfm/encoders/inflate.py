"""2D weights as the start of 3D ones.

Source: Carreira and Zisserman 2017, "Quo Vadis, Action Recognition?" (I3D), section 2.4: a kernel repeated over depth and
divided by its depth gives, on a volume that is constant along depth, what the 2D kernel gave. Arnab et al. 2021 (ViViT),
section 3.4, for transformers: the same, or the kernel at the middle and zero elsewhere; positions repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from medfm.encoders.positions import resample_positions

How = Literal["average", "center"]


def inflate_kernel(weight: Tensor, depth: int, how: How) -> Tensor:
    """(O, I, H, W) -> (O, I, depth, H, W), whose sum over depth is `weight`.

    "center" fills depth `depth // 2` alone: exact also where zeros are padded along depth.
    """
    if how == "average":
        return (weight / depth).unsqueeze(2).repeat(1, 1, depth, 1, 1)
    made = weight.new_zeros(*weight.shape[:2], depth, *weight.shape[2:])
    made[:, :, depth // 2] = weight
    return made


def inflate_positions(positions: Tensor, old_grid: Sequence[int], new_grid: Sequence[int], prefix: int) -> Tensor:
    """Positions of a 2D grid (1, prefix + H*W, E) for (D, H', W'): resampled in plane, the same at each depth."""
    flat = resample_positions(positions, old_grid, new_grid[1:], prefix)
    return torch.cat([flat[:, :prefix], flat[:, prefix:].repeat(1, new_grid[0], 1)], dim=1)
