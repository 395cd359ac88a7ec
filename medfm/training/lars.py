"""LARS, for large batches with stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling: SGD with momentum whose step of each weight is scaled to the weight's norm.

    For a weight `w` with gradient `g`, decayed to `d = g + weight_decay * w`, the step is `trust * |w| / |d| * d`, then
    momentum, then the learning rate. Biases and norms (one axis or none) take the plain gradient: neither scaled nor decayed.

    Source: You et al. 2017, "Large Batch Training of Convolutional Networks", Algorithm 1, in the form that SimCLR, BYOL,
    Barlow Twins and MoCo v3 use, in which the momentum holds scaled gradients and not learning rates.

    Args:
        params: parameters or groups, which may set `lr` and `weight_decay` of their own.
        lr: learning rate; LARS wants large ones (SimCLR: 0.3 x batch / 256).
        weight_decay: of weights with two axes or more.
        momentum: of the scaled gradients.
        trust: the coefficient eta.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates = _updates(params, group["weight_decay"], group["trust"])
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            torch._foreach_add_(params, buffers, alpha=-group["lr"])
        return loss


def _updates(params: list[Tensor], weight_decay: float, trust: float) -> list[Tensor]:
    """The gradients, those of weights decayed and scaled."""
    weights = [p for p in params if p.ndim > 1]
    gradients = [p.grad for p in params if p.grad is not None]
    if not weights:
        return gradients
    decayed = torch._foreach_add([g for g in gradients if g.ndim > 1], weights, alpha=weight_decay)
    for weight, update, change in zip(torch._foreach_norm(weights), torch._foreach_norm(decayed), decayed, strict=True):
        # A weight or gradient of zero says nothing about the step's size.
        ratio = trust * weight / update
        change.mul_(torch.where((weight > 0) & (update > 0), ratio, torch.ones_like(ratio)))
    scaled = iter(decayed)
    return [next(scaled) if g.ndim > 1 else g for g in gradients]
