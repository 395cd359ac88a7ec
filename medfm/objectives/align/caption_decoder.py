"""A text decoder that looks at an image: causal self-attention and cross-attention in turn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medfm.encoders.attention import attend


class Attention(nn.Module):
    """Multi-head attention of x over y, with the parameter names of `nn.MultiheadAttention`; over itself it is causal."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, T, d) over y (B, N, d), or over itself up to each position -> (B, T, d)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        other = x if y is None else y
        q, k, v = (
            self._split(nn.functional.linear(t, w, b)) for t, w, b in zip((x, other, other), weights, biases, strict=True)
        )
        return self.out_proj(attend(q, k, v, is_causal=y is None).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class DecoderBlock(nn.Module):
    """Pre-norm residual block; with `cross` its attention goes to the image, whose tokens have a norm of their own."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, cross: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.ln_1_kv = nn.LayerNorm(dim) if cross else None
        self.attn = Attention(dim, num_heads)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(dim, int(dim * mlp_ratio)))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(int(dim * mlp_ratio), dim))

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        seen = None if self.ln_1_kv is None else self.ln_1_kv(image)
        x = x + self.attn(self.ln_1(x), seen)
        return x + self.mlp(self.ln_2(x))


class CaptionDecoder(nn.Module):
    """CoCa's multimodal decoder: at each depth a causal block over the words, then one that looks at the image.

    State-dict names and start are those of open_clip's `MultimodalTransformer`, but for its `text_projection`.

    Source: Yu et al. 2022, "CoCa: Contrastive Captioners are Image-Text Foundation Models", figure 2 and section 3.2.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_ratio: float, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        self.resblocks = nn.ModuleList(DecoderBlock(dim, num_heads, mlp_ratio, cross=False) for _ in range(depth))
        self.cross_attn = nn.ModuleList(DecoderBlock(dim, num_heads, mlp_ratio, cross=True) for _ in range(depth))
        self.ln_final = nn.LayerNorm(dim)
        for module in self.modules():
            if isinstance(module, DecoderBlock):
                nn.init.normal_(module.attn.in_proj_weight, std=dim**-0.5)
                nn.init.normal_(module.attn.out_proj.weight, std=dim**-0.5 * (2 * depth) ** -0.5)
                mlp: Any = module.mlp
                nn.init.normal_(mlp.c_fc.weight, std=(2 * dim) ** -0.5)
                nn.init.normal_(mlp.c_proj.weight, std=dim**-0.5 * (2 * depth) ** -0.5)

    def forward(self, words: Tensor, image: Tensor) -> Tensor:
        """words (B, T, dim), image tokens (B, N, dim) -> (B, T, dim); position t knows words 0..t."""
        x = words
        for own, cross in zip(self.resblocks, self.cross_attn, strict=True):
            if self.gradient_checkpointing and self.training:
                x = checkpoint(own, x, use_reentrant=False)
                x = checkpoint(cross, x, image, use_reentrant=False)
            else:
                x = cross(own(x), image)
        return self.ln_final(x)
