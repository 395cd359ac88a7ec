"""A CUDA device's choices, made while tracing on fake CPU tensors: autocast's list, fused dropout, fused attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from medfm.encoders import attention
from medfm.training.plan.flops import attention_flops

# Autocast runs these in float32 on CUDA, beside what it does so on a CPU (PyTorch, "CUDA Op-Specific Behavior").
_FLOAT32_NAMES = (
    "__pow__ __rpow__ pow acos asin binary_cross_entropy_with_logits cosh cosine_embedding_loss cdist cosine_similarity "
    "cross_entropy cumprod cumsum dist exp expm1 group_norm kl_div l1_loss layer_norm log log10 log1p log2 log_softmax "
    "mse_loss nll_loss norm normalize pdist prod reciprocal rsqrt sinh smooth_l1_loss softmax softmin softplus sum tan"
)
_FLOAT32 = frozenset(_FLOAT32_NAMES.split())
_HALF = (torch.bfloat16, torch.float16)


class FusedAttention(torch.autograd.Function):
    """The memory that FlashAttention takes (Dao 2023) and the operations that it stands for, without computing anything.

    The backward pass keeps q, k, v, the output and one float32 a row; while it runs, dq is summed up in float32.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, count: Callable[[int, Tensor], None]) -> Tensor:
        # Kernels write (B, N, heads, d), so that joining the heads copies nothing.
        batch, heads, queries, _ = q.shape
        out = q.new_empty(batch, queries, heads, v.shape[-1]).transpose(1, 2)
        rows = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, out, rows)
        ctx.flops = attention_flops(q.shape[:-2].numel(), q.shape[-2], k.shape[-2], q.shape[-1], is_causal)
        ctx.count = count
        count(ctx.flops, q)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, _, rows = ctx.saved_tensors
        delta, summed = torch.empty_like(rows), torch.empty(q.shape, dtype=torch.float32, device=q.device)
        out = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None, None
        del delta, summed
        ctx.count(2 * ctx.flops, q)
        return out


class Kernels(TorchFunctionMode):
    """Replaces calls of torch's functions by what the device would run.

    Args:
        cuda: a CUDA device is planned for, else the CPU.
        count: told of operations that no aten call shows.
    """

    def __init__(self, cuda: bool, count: Callable[[int, Tensor], None]) -> None:
        super().__init__()
        self.cuda = cuda
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if self.cuda and func is F.dropout:
            return _dropout(*args, **kwargs)
        if self.cuda and getattr(func, "__name__", "") in _FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _to_float32, (args, kwargs))
        return func(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            half = torch.get_autocast_dtype("cpu")
            query, key, value = (x.to(half) for x in (query, key, value))
        return FusedAttention.apply(query, key, value, is_causal, self.count)


def _to_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return input
    return torch.native_dropout(input, p, True)[0]


@contextmanager
def cuda_attention(cuda: bool) -> Iterator[None]:
    """`attend` chooses plain matrix products for short sequences on a CPU; a GPU has a kernel for all lengths."""
    before = attention.prefers_plain
    if cuda:
        attention.prefers_plain = lambda *args, **kwargs: False
    try:
        yield
    finally:
        attention.prefers_plain = before
