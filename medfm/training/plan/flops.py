"""Floating-point operations, counted as the multiplications and additions of plain matrix arithmetic.

One multiply-add is two operations. Only matrix products and convolutions count, forward and backward; attention counts its
two products whole, however the kernel computes them (torch's own counter misses the fused kernel of the CPU, and counts the
recomputation of the fused kernel of a GPU).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

# Counted by `attention_flops`, whatever the kernel is.
_ATTENTION = {
    packet
    for name in ("flash", "efficient", "cudnn")
    for suffix in ("", "_backward")
    if (packet := getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention{suffix}", None)) is not None
}


def op_flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Operations of one aten call; 0 for all but matrix products and convolutions."""
    packet = func._overloadpacket
    if packet in _ATTENTION:
        return 0
    if packet is torch.ops.aten.convolution_backward:
        return _convolution_backward(*args, **kwargs)
    count = flop_registry.get(packet)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *options: Any) -> int:
    """As many for the input's gradient as for the weight's, each what the forward pass had. (torch's own count forgets the
    groups: 49 times too many for ConvNeXt's depthwise layers.)
    """
    transposed, wanted = options[4], options[-1]
    positions = x if transposed else grad
    return 2 * positions.numel() * weight[0].numel() * sum(wanted[:2])


def attention_flops(batch_heads: int, queries: int, keys: int, width: int, is_causal: bool = False) -> int:
    """Operations of the forward pass of attention: `q k^T` and `weights v`, each 2 * N * M * d a head; the backward has twice.

    A causal kernel skips the half that is hidden.
    """
    full = 4 * batch_heads * queries * keys * width
    return full // 2 if is_causal else full


def vit_forward_flops(tokens: int, patches: int, patch_values: int, width: int, depth: int, mlp_ratio: float = 4.0) -> int:
    """The textbook count of a Vision Transformer's forward pass, for comparison: patch embedding, then for each block the
    four projections (8 N E^2), the two products of attention (4 N^2 E) and the MLP (4 r N E^2).

    Args:
        tokens: N, prefix tokens included.
        patches: tokens that are embedded.
        patch_values: pixels of a patch times channels.
    """
    block = 8 * tokens * width**2 + 4 * tokens**2 * width + round(4 * mlp_ratio * tokens * width**2)
    return 2 * patches * patch_values * width + depth * block
