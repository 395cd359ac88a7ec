"""Positions: MAE's table, timm's resampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medfm.encoders.positions import resample_positions, sincos_positions


def mae_1d(dim: int, positions: np.ndarray) -> np.ndarray:
    """`get_1d_sincos_pos_embed_from_grid` of MAE's util/pos_embed.py, written out."""
    omega = 1.0 / 10000 ** (np.arange(dim // 2, dtype=np.float64) / (dim / 2))
    out = np.einsum("m,d->md", positions.reshape(-1), omega)
    return np.concatenate([np.sin(out), np.cos(out)], axis=1)


def test_sincos_positions__is_maes_table() -> None:
    dim, height, width = 32, 3, 5
    # MAE: np.meshgrid(grid_w, grid_h), "here w goes first".
    grid = np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=0)
    expected = np.concatenate([mae_1d(dim // 2, grid[0]), mae_1d(dim // 2, grid[1])], axis=1)
    np.testing.assert_allclose(sincos_positions((height, width), dim)[0].numpy(), expected, atol=1e-6)


def test_sincos_positions__three_axes_are_told_apart() -> None:
    table = sincos_positions((2, 3, 4), 50)  # 50 is no multiple of 6: two channels are left over
    assert table.shape == (1, 24, 50)
    assert table[0, :, 48:].abs().max() == 0
    cells = table[0].reshape(2, 3, 4, 50)
    torch.testing.assert_close(cells[0, 0, :, :16], cells[1, 2, :, :16])  # the last axis alone decides the first third
    assert torch.pdist(table[0]).min() > 0.1


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_resample_positions__equals_timm(prefix: int) -> None:
    from timm.layers import resample_abs_pos_embed

    positions = torch.randn(1, prefix + 12, 8, generator=torch.Generator().manual_seed(0))
    mine = resample_positions(positions, (3, 4), (7, 5), prefix)
    theirs = resample_abs_pos_embed(positions, [7, 5], [3, 4], num_prefix_tokens=prefix)
    torch.testing.assert_close(mine, theirs)


def test_resample_positions__three_axes_keep_a_linear_ramp() -> None:
    ramp = torch.linspace(0, 1, 4)[:, None, None].expand(4, 4, 4).reshape(1, 64, 1)
    bigger = resample_positions(ramp, (4, 4, 4), (8, 4, 4))[0].reshape(8, 4, 4)
    torch.testing.assert_close(bigger[:, 0, 0], bigger[:, 3, 2])
    torch.testing.assert_close(bigger[1:7, 0, 0].diff(), torch.full((5,), 1 / 6))


def test_resample_positions__same_grid_is_the_same_tensor() -> None:
    positions = torch.randn(1, 13, 8)
    assert resample_positions(positions, (3, 4), [3, 4], 1) is positions
