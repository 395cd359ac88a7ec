"""A 2D encoder over a volume's slices, with attention slice pooling: every 2D weight serves volumes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medfm.encoders.config import SlicesConfig
from medfm.encoders.pooling import pooled
from medfm.encoders.positions import sincos_positions
from medfm.encoders.recompute import batch_norms, recomputed
from medfm.encoders.vit import Attention
from medfm.encoders.volume import VolumeEncoder
from medfm.errors import ConfigError
from medfm.registry import ENCODERS
from medfm.types import EncoderOutput


class SlicePool(nn.Module):
    """Slices' features to a volume's: multi-head self-attention over slices with sin-cos positions, then the mean.

    `V = mean(MHSA(I + PE))`; with `residual`, `mean(I) + mean(MHSA(I + PE))`, which without training is near the mean of the
    slices' features, and MHSA's last matrix starts small.

    Source: Lu et al. 2024, "RadCLIP", equation of the slice pooling adapter, V = MHSA(I + PE(P)); the paper's text does not say
    how the attended slices become one vector: the mean is taken here.
    """

    def __init__(self, dim: int, num_heads: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.attn = Attention(dim, num_heads, qkv_bias=True, dropout=0.0)
        for layer in (self.attn.qkv, self.attn.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02) if residual else nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, slices: Tensor) -> Tensor:
        """slices (B, D, E) -> (B, E)."""
        read = self.attn(slices + self._positions(slices)).mean(dim=1)
        return slices.mean(dim=1) + read if self.residual else read

    def values(self, tokens: Tensor) -> Tensor:
        """tokens (B, D, n, E) -> the same shape: each as if its slice were its own vector and attended to itself alone, so that
        it lies where `forward` puts volumes."""
        read: Tensor = self.attn.values(tokens + self._positions(tokens)[:, :, None])
        return tokens + read if self.residual else read

    @staticmethod
    def _positions(x: Tensor) -> Tensor:
        """(1, D, E)."""
        return sincos_positions(x.shape[1:2], x.shape[-1]).to(device=x.device, dtype=x.dtype)


class SlicesEncoder(VolumeEncoder):
    """`config.encoder`, a 2D encoder of any kind, over the axial slices of a volume.

    `cls_token` is the attention-pooled vector of the slices' features (each slice's by the 2D encoder's own `pool`), the patch
    tokens are those of all slices, on the grid (D, H, W). Slices go through `slice_chunk` at a time; with
    `gradient_checkpointing` a chunk is computed again in the backward pass, so that one chunk's activations are alive at once.
    With chunks, batch norms of a 2D CNN in training see a chunk of slices at a time.

    Raises:
        ConfigError: `pool_heads` does not divide the 2D encoder's width; or as `VolumeEncoder`.
    """

    def __init__(self, config: SlicesConfig) -> None:
        inner: Any = ENCODERS.build(config.encoder)
        plane = dict(zip(config.axes[1:], inner.patch_size, strict=True))
        super().__init__(config, (1, plane["H"], plane["W"]))
        self.encoder = inner
        centre = getattr(inner, "token_centre", (0.5, 0.5))
        self.token_centre = (0.5, *(centre[config.axes[1:].index(a)] for a in "HW"))
        self.embed_dim = int(inner.embed_dim)
        self.chunk = config.slice_chunk
        self.grid_size = (config.img_size[0], *(inner.grid_size[config.axes[1:].index(a)] for a in "HW"))
        if self.embed_dim % config.pool_heads:
            raise ConfigError(f"encoder.pool_heads {config.pool_heads} does not divide the 2D encoder's width {self.embed_dim}")
        self.slice_pool = SlicePool(self.embed_dim, config.pool_heads, config.pool_residual) if config.pool == "cls" else None

    def forward(self, x: Tensor, keep: Tensor | None = None) -> EncoderOutput:
        if keep is not None:
            raise ConfigError("patch dropout: the encoder 'slices' encodes all patches; set objective.patch_dropout=0")
        return self._forward(x, dense=False)

    def forward_dense(self, x: Tensor) -> EncoderOutput:
        """As forward, with patch tokens that lie where a volume's vector does, as far as the 2D encoder offers it (MaskCLIP,
        see `VisionTransformer.forward_dense`), through the slice pooling's values."""
        output = self._forward(x, dense=True)
        if self.slice_pool is None:
            return output
        tokens = output.patch_tokens
        split = tokens.view(tokens.shape[0], output.grid_size[0], -1, tokens.shape[-1])
        return EncoderOutput(self.slice_pool.values(split).flatten(1, 2), output.cls_token, output.grid_size)

    def _forward(self, x: Tensor, dense: bool) -> EncoderOutput:
        self.check(x)
        x = x.permute(0, 1, *self._to_network)
        batch, depth = x.shape[0], x.shape[2]
        planes = x.transpose(1, 2).flatten(0, 1)  # (B D, C, H, W)
        parts = [self._encode(chunk, dense) for chunk in planes.split(self.chunk)]
        grid = parts[0][2]
        tokens = torch.cat([tokens for tokens, _, _ in parts])
        tokens = tokens.view(batch, depth, *grid, -1).permute(0, *(n - 1 for n in self._to_ours), 4)
        vectors = torch.cat([vectors for _, vectors, _ in parts]).view(batch, depth, -1)
        return EncoderOutput(
            patch_tokens=tokens.flatten(1, 3),
            cls_token=None if self.slice_pool is None else self.slice_pool(vectors),
            grid_size=tuple(tokens.shape[1:4]),
        )

    def _encode(self, planes: Tensor, dense: bool) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """planes (n, C, H, W) -> patch tokens (n, N, E), vectors (n, E), the grid."""
        inner: Any = self.encoder
        grid: list[tuple[int, ...]] = []

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            way = getattr(inner, "forward_dense", inner) if dense and inner.pool == "cls" else inner
            output = way(x)
            grid.append(tuple(output.grid_size))
            return output.patch_tokens, pooled(output, inner.pool)

        if self.gradient_checkpointing and self.training:
            tokens, vectors = recomputed(run, batch_norms(inner), planes)
        else:
            tokens, vectors = run(planes)
        return tokens, vectors, grid[0]

    def layer_groups(self) -> list[tuple[str, ...]]:
        raise NotImplementedError("the 2D encoder inside has its own layers")
