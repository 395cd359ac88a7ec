"""Scaled dot-product attention, by the implementation that is fastest for the device, dtype and length."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Below these many tokens plain matmuls beat SDPA on a CPU in bfloat16: measured in benchmarks/results/attention_cpu.md.
# SDPA's backward there costs several times its forward, so the bound is higher in training; causal SDPA skips half the work.
# (Beyond 1,024 plain training is still a little faster, but keeps N x N weights for each head: memory decides.)
PLAIN_BELOW_FORWARD = 320
PLAIN_BELOW_BACKWARD = 1024


def prefers_plain(device: torch.device, dtype: torch.dtype, length: int, backward: bool, is_causal: bool = False) -> bool:
    """True where plain matmul attention is the faster: bfloat16 on a CPU, fewer keys than the bounds above."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    return length < (PLAIN_BELOW_BACKWARD if backward and not is_causal else PLAIN_BELOW_FORWARD)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """`softmax(q k^T / sqrt(d) + mask) v` by two matmuls; arguments as `attend`."""
    # Autocast would make the softmax float32; it accumulates in float32 as it is, and its result is rounded either way.
    with torch.autocast(q.device.type, enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if is_causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(hidden, float("-inf"))
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
        weights = scores.softmax(dim=-1)
        if dropout:
            weights = F.dropout(weights, dropout)
        return weights @ v


class _Recomputed(torch.autograd.Function):
    """Plain attention that keeps no weights for its backward and computes them again, image by image."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        out = torch.empty_like(q.transpose(1, 2)).transpose(1, 2)  # the layout that the output projection reads
        for row, parts in zip(out, zip(q, k, v, strict=True), strict=True):
            row.copy_(plain_attention(*parts))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        grads = tuple(torch.empty_like(x) for x in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            for image, out in enumerate(grad):
                scaled, key = q[image] * scale, k[image]
                weights = (scaled @ key.transpose(-2, -1)).softmax(dim=-1)
                grads[2][image] = weights.transpose(-2, -1) @ out
                to_weights = out @ v[image].transpose(-2, -1)
                to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
                grads[0][image] = (to_scores @ key).mul_(scale)
                grads[1][image] = to_scores.transpose(-2, -1) @ scaled
        return grads


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    recompute: bool = False,
) -> Tensor:
    """Attention of `q` (B, heads, N, d) over `k`, `v` (B, heads, M, d); returns (B, heads, N, d).

    Args:
        mask: broadcastable to (B, heads, N, M): boolean, True where a key may be seen, or float, added to the scores.
        is_causal: token n sees keys 0..n only (N = M). May not be combined with `mask`.
        dropout: probability of dropping an attention weight; hand in 0 when not training.
        recompute: where plain attention is taken, keep no N x M weights for its backward: SDPA's memory for 1.6 times the
            backward's time, still half of SDPA's there.
    """
    assert mask is None or not is_causal, "give a mask or is_causal, not both"
    backward = torch.is_grad_enabled() and q.requires_grad
    if prefers_plain(q.device, q.dtype, k.shape[-2], backward, is_causal):
        if recompute and backward and mask is None and not is_causal and not dropout and not torch.compiler.is_compiling():
            made: Tensor = _Recomputed.apply(q, k, v)
            return made
        return plain_attention(q, k, v, mask, is_causal, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
