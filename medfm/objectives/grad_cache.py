"""Exact gradients of a batch that does not fit into memory, for a loss over all of its pairs.

A contrastive loss needs the features of the whole batch, but the activations behind them only one chunk at a time. So the
encoders run over chunks without keeping activations; the loss is taken on all features; then each chunk runs again, now with
activations, and its share of the gradient flows through. Activations take the memory of one chunk, whatever the batch. The
price is a second forward pass, for all chunks but the last, whose activations are still there when the backward begins.

The idea is Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache). Here it is
non-reentrant activation checkpointing around each chunk: one backward, in which each parameter's gradient is finished once,
so that data-parallel wrappers work as they are.

Exact means: dropout and other random draws of the second run repeat the first, from torch's global generators and from those
handed in. Batch normalisation sees one chunk at a time, so its statistics are the chunk's (as with a smaller batch); its
running averages move once a chunk, not again in the second run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from medfm.objectives.gather import Gather


def encode_in_chunks(
    encode: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor | None],
    chunk: int,
    *,
    modules: Sequence[nn.Module] = (),
    generators: Sequence[torch.Generator] = (),
    gather: Gather | None = None,
) -> tuple[Tensor, ...]:
    """`encode(*tensors)` by `chunk` rows at a time, with the activations of one chunk in memory.

    Args:
        encode: takes slices of `tensors` (None stays None) and returns feature tensors with as many rows.
        tensors: (B, ...) each, or None.
        chunk: rows of a chunk; 0: all at once.
        modules: what `encode` runs; their running averages are guarded in the second run.
        generators: generators that `encode` draws from, beside torch's global ones.
        gather: the devices, which all run `encode` equally often: sharded weights are gathered in every run, so that a device
            with fewer rows would leave the others waiting. What it runs beyond its rows gets gradients of zero.

    Returns:
        What `encode` returns, for all B rows.
    """
    rows = next(t.shape[0] for t in tensors if t is not None)
    starts = [*range(0, rows, chunk)] if chunk else [0]
    runs = len(starts) or 1
    if gather is not None and gather.world_size > 1 and chunk:
        device = next(t.device for t in tensors if t is not None)
        runs = int(gather.max(torch.tensor(float(runs), device=device)))
    parts = []
    for number in range(runs):
        spare = number >= len(starts)
        start, stop = (0, 1) if spare else (starts[number], starts[number] + (chunk or rows))
        part = [None if t is None else t[start:stop] for t in tensors]
        if not torch.is_grad_enabled() or number == runs - 1:
            features = encode(*part)
        else:
            features = checkpoint(encode, *part, use_reentrant=False, context_fn=lambda: _contexts(modules, generators))
        parts.append(tuple(f[:0] for f in features) if spare else features)
    return tuple(torch.cat(features) for features in zip(*parts, strict=True))


def _contexts(
    modules: Sequence[nn.Module], generators: Sequence[torch.Generator]
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first and the second run of a chunk; called when the first begins."""
    return nullcontext(), _replay(modules, generators, [g.get_state() for g in generators])


@contextmanager
def _replay(modules: Sequence[nn.Module], generators: Sequence[torch.Generator], states: list[Tensor]) -> Iterator[None]:
    now = [g.get_state() for g in generators]
    norms = [
        m for module in modules for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats and m.training
    ]
    momenta = [m.momentum for m in norms]
    counts = [None if m.num_batches_tracked is None else m.num_batches_tracked.clone() for m in norms]
    try:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        for norm in norms:
            norm.momentum = 0.0  # the averages stay; writing them back afterwards would invalidate what autograd has saved
        yield
    finally:
        for generator, state in zip(generators, now, strict=True):
            generator.set_state(state)
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)
