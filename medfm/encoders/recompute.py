"""Gradient checkpointing that leaves batch norm's running statistics as they are without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(run: Callable[..., Any], norms: list[_BatchNorm], *args: Tensor | None) -> Any:
    """`run(*args)`, whose activations are computed again in the backward pass.

    Args:
        norms: the batch norms in it, of which the second pass makes no second step of the running statistics.
    """
    if not norms:
        return checkpoint(run, *args, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(norms)

    return checkpoint(run, *args, use_reentrant=False, context_fn=contexts)


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms inside `module` that keep running statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@contextmanager
def _statistics_kept(norms: list[_BatchNorm]) -> Iterator[None]:
    # Not `track_running_stats`: without statistics a batch norm saves other tensors, which checkpointing refuses.
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def keep_statistics(module: nn.Module) -> None:
    """For checkpointing that is another library's: the batch norms in `module` leave their running statistics as they are when
    they run within a backward pass, which is again."""
    for norm in batch_norms(module):
        norm.register_forward_pre_hook(_before_norm)
        norm.register_forward_hook(_after_norm, always_call=True)


def _before_norm(norm: Any, _: Any) -> None:
    norm.again = norm.training and torch._C._current_graph_task_id() != -1
    if norm.again:
        norm.kept = norm.momentum, norm.num_batches_tracked
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()


def _after_norm(norm: Any, *_: Any) -> None:
    if norm.again:
        norm.momentum, norm.num_batches_tracked = norm.kept
        norm.again, norm.kept = False, None
