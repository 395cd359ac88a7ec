"""Position embeddings of N-d token grids and of texts: fixed sin-cos ones, and resampling of learned ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(grid_size: Sequence[int], embed_dim: int) -> Tensor:
    """Fixed positions (1, N, E) of a token grid, rows before columns, the last axis fastest.

    Each axis has an equal share of the channels, sines then cosines, the last axis first: for two axes that is MAE's layout
    (`get_2d_sincos_pos_embed`, columns then rows). Channels left over where E is no multiple of twice the axes are zero.

    Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", util/pos_embed.py.
    """
    per_axis = embed_dim // (2 * len(grid_size)) * 2
    frequencies = 10000.0 ** -(torch.arange(per_axis // 2, dtype=torch.float64) / (per_axis / 2))
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid_size), indexing="ij")
    parts = []
    for coordinates in reversed(axes):
        angles = coordinates.flatten()[:, None] * frequencies
        parts += [angles.sin(), angles.cos()]
    table = torch.cat(parts, dim=1)
    return F.pad(table, (0, embed_dim - table.shape[1])).float()[None]


def resample_positions(positions: Tensor, old_grid: Sequence[int], new_grid: Sequence[int], prefix: int = 0) -> Tensor:
    """Learned positions (1, prefix + prod(old_grid), E) for another grid: (1, prefix + prod(new_grid), E).

    Two axes: bicubic with antialiasing, as timm's `resample_abs_pos_embed`; three: trilinear. The first `prefix` positions
    (class and register tokens) are kept. Differentiable.
    """
    if tuple(old_grid) == tuple(new_grid):
        return positions
    head, body = positions[:, :prefix], positions[:, prefix:]
    body = body.to(torch.promote_types(body.dtype, torch.float32)).reshape(1, *old_grid, -1).movedim(-1, 1)
    if len(old_grid) == 2:
        body = F.interpolate(body, size=tuple(new_grid), mode="bicubic", antialias=True)
    else:
        body = F.interpolate(body, size=tuple(new_grid), mode="trilinear")
    body = body.movedim(1, -1).flatten(1, -2).to(positions.dtype)
    return torch.cat([head, body], dim=1)


def stretch_positions(positions: Tensor, length: int, keep: int = 20) -> Tensor:
    """Learned positions of a text (T, E) for another length, (length, E): cut to fewer, stretched to more.

    The first `keep`, which are trained best, stay as they are; between the others positions are interpolated linearly, and
    behind the last the line through the last two goes on. 77 -> 248 is Long-CLIP's factor of four.

    Source: Zhang et al. 2024, "Long-CLIP: Unlocking the Long-Text Capability of CLIP", section 3.1.
    """
    count = len(positions)
    if length <= count:
        return positions[:length]  # the first positions mean the same in a shorter context
    keep = max(0, min(keep, count - 2))
    place = torch.arange(length - keep, dtype=torch.float64) * (count - keep) / (length - keep) + keep
    below = place.floor().clamp(max=count - 2).long()
    share = (place - below)[:, None]
    old = positions.double()
    stretched = old[below] * (1 - share) + old[below + 1] * share
    return torch.cat([old[:keep], stretched]).to(positions.dtype)
