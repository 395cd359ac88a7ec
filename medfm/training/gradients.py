"""Gradient norms and clipping, of whole gradients and of those shared out over devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn


def _local(tensor: Tensor) -> Tensor:
    """This device's part of a tensor that is shared out; any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def is_shard(tensor: Tensor) -> bool:
    """Whether this device holds a part of the tensor, of which others hold the rest."""
    return any(place.is_shard() for place in getattr(tensor, "placements", ()))


def all_finite(tensor: Tensor) -> bool:
    """Whether this device's part of a tensor is finite."""
    return bool(torch.isfinite(_local(tensor)).all())


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """(n,) the norm of each gradient, over all devices where it is shared out: one small reduction for all of them."""
    norms = torch.stack(torch._foreach_norm([_local(g) for g in gradients]))
    shards = [is_shard(g) for g in gradients]
    if not any(shards):
        return norms
    shared = torch.tensor(shards, device=norms.device)
    squares = torch.where(shared, norms.square(), 0.0)
    dist.all_reduce(squares)
    return torch.where(shared, squares.sqrt(), norms)


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], largest: float, by: Literal["global", "parameter"] = "global") -> Tensor:
    """Scale gradients whose norm exceeds `largest`, in place; returns the norm of all of them before.

    Args:
        largest: 0 clips nothing.
        by: "global" scales all by one factor; "parameter" each by its own norm's (DINO, utils.py: clip_gradients).
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    limit = largest or float("inf")
    if by == "global" and not any(is_shard(g) for g in gradients):
        return nn.utils.clip_grad_norm_(parameters, limit)
    norms = _norms(gradients)
    total = torch.linalg.vector_norm(norms)
    if largest:
        factors = (limit / ((norms if by == "parameter" else total.expand(len(norms))) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([_local(g) for g in gradients], list(factors.unbind()))
    return total
