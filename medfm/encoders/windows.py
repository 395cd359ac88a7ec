"""Attention within windows of a token grid, 2D or 3D, with prefix tokens that see and are seen by all."""

from __future__ import annotations

import torch
from torch import Tensor

from medfm.encoders.attention import attend
from medfm.errors import ConfigError


def window_attend(
    q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, ...], window: tuple[int, ...], recompute: bool = False
) -> Tensor:
    """Attention in which patch tokens attend to the patches of their window and to all prefix tokens, prefix tokens to all.

    What a mask over full attention would give, for prod(window) + prefix keys a patch in place of all.

    Source of the windows: Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet), section
    3, which has no class token; SAM's image encoder.

    Args:
        q, k, v: (B, heads, prefix + N, d), N = prod(grid) patches in the order of the grid behind the prefix tokens.
        window: patches along each axis; divides the grid. An axis on which the grid is smaller is one window.

    Raises:
        ConfigError: the window does not divide the grid.
    """
    window = tuple(min(w, g) for w, g in zip(window, grid, strict=True))
    if any(g % w for g, w in zip(grid, window, strict=True)):
        raise ConfigError(f"encoder.window: {list(window)} patches do not divide this image's {list(grid)}")
    patches = torch.Size(grid).numel()
    prefix = q.shape[2] - patches
    batch = q.shape[0]

    def split(x: Tensor, own: bool) -> Tensor:
        """(B, heads, prefix + N, d) -> (B * windows, heads, [prefix +] tokens of a window, d)."""
        heads, d = x.shape[1], x.shape[3]
        sizes = [n for g, w in zip(grid, window, strict=True) for n in (g // w, w)]
        axes = len(grid)
        body = x[:, :, prefix:].reshape(batch, heads, *sizes, d)
        order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2), 2 + 2 * axes]
        body = body.permute(order).reshape(-1, heads, torch.Size(window).numel(), d)
        if own or not prefix:
            return body
        count = body.shape[0] // batch
        head = x[:, None, :, :prefix].expand(-1, count, -1, -1, -1).flatten(0, 1)
        return torch.cat([head, body], dim=2)

    out = attend(split(q, True), split(k, False), split(v, False), recompute=recompute)
    heads, d = q.shape[1], q.shape[3]
    counts = [g // w for g, w in zip(grid, window, strict=True)]
    axes = len(grid)
    out = out.reshape(batch, *counts, heads, *window, d)
    order = [0, 1 + axes, *(n for i in range(axes) for n in (1 + i, 2 + axes + i)), 2 + 2 * axes]
    out = out.permute(order).reshape(batch, heads, patches, d)
    if not prefix:
        return out
    return torch.cat([attend(q[:, :, :prefix], k, v, recompute=recompute), out], dim=2)
