"""How much memory a step takes: every tensor's bytes from its making to its end, followed without computing anything."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# What a byte of the CUDA caching allocator's smallest block is; every tensor is rounded up to it.
_BLOCK = 512


def rounded(nbytes: int) -> int:
    """Bytes as the CUDA caching allocator hands them out."""
    return -(-nbytes // _BLOCK) * _BLOCK


class Ledger:
    """Bytes of the tensors alive, by storage; views and in-place results count once.

    Attributes:
        live: bytes alive that are neither weights nor gradients nor given from outside.
        peak: the largest `live`.
        peak_with_gradients: the largest sum of `live` and gradients.
    """

    def __init__(self) -> None:
        self.live = self.peak = self.gradients = self.peak_with_gradients = 0
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._outside: set[int] = set()
        self._gradients: set[int] = set()

    def exclude(self, tensor: Tensor) -> None:
        """`tensor` is counted elsewhere: a weight, an input."""
        storage = tensor.untyped_storage()
        self._outside.add(storage._cdata)
        self._keep_alive(storage)

    def _keep_alive(self, storage: Any) -> None:
        # An address may be given out again after its storage died: then it is no longer outside.
        key = storage._cdata
        self._known[key] = (weakref.ref(storage, lambda _: self._forget_outside(key)), 0)

    def _forget_outside(self, key: int) -> None:
        self._outside.discard(key)
        self._known.pop(key, None)

    def add(self, tensor: Tensor) -> None:
        """`tensor` has come into being, or is a view of one that has."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        nbytes = rounded(storage.nbytes())
        self._known[key] = (weakref.ref(storage, lambda _: self._end(key)), nbytes)
        self.live += nbytes
        self._mark()

    def _end(self, key: int) -> None:
        _, nbytes = self._known.pop(key)
        if key in self._gradients:
            self._gradients.discard(key)
            self.gradients -= nbytes
        else:
            self.live -= nbytes

    def to_gradient(self, tensor: Tensor) -> None:
        """From now on `tensor` is a parameter's gradient."""
        key = tensor.untyped_storage()._cdata
        if key in self._known and key not in self._gradients:
            nbytes = self._known[key][1]
            self._gradients.add(key)
            self.live -= nbytes
            self.gradients += nbytes

    def _mark(self) -> None:
        self.peak = max(self.peak, self.live)
        self.peak_with_gradients = max(self.peak_with_gradients, self.live + self.gradients)

    def restart(self) -> None:
        """Forget the peaks."""
        self.peak, self.peak_with_gradients = self.live, self.live + self.gradients


@dataclass(frozen=True)
class Weights:
    """Bytes and numbers that do not depend on the batch.

    Attributes:
        count: parameters, teachers included.
        trainable: parameters with a gradient.
        weights: bytes of parameters and buffers.
        gradients: bytes of their gradients.
        optimizer: bytes of the optimiser's states.
        largest_block: bytes of the largest unit that FSDP gathers: a transformer block, or what lies outside of blocks.
    """

    count: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    largest_block: int


# States that an optimiser keeps for each parameter.
_STATES = {"adamw": 2, "adam": 2, "sgd": 1, "lars": 1}


def weigh(objective: nn.Module, optimizer: str = "adamw") -> Weights:
    """Weights, gradients and states of `objective`, in the dtype that it has."""
    parameters = list(objective.parameters())
    beside = [t for part in getattr(objective, "outside", list)() for t in (*part.parameters(), *part.buffers())]
    buffers = {id(b): b for b in (*objective.buffers(), *beside)}.values()
    trainable = [p for p in parameters if p.requires_grad]
    gradients = sum(_bytes(p) for p in trainable)
    blocks = [m for stack in objective.modules() if isinstance(stack, nn.ModuleList) for m in stack]
    inside = {id(p) for block in blocks for p in block.parameters()}
    outside = sum(_bytes(p) for p in parameters if id(p) not in inside)
    largest = max([outside, *(sum(map(_bytes, block.parameters())) for block in blocks)], default=0)
    return Weights(
        count=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in trainable),
        weights=sum(map(_bytes, parameters)) + sum(map(_bytes, buffers)),
        gradients=gradients,
        optimizer=_STATES.get(optimizer, 2) * gradients,
        largest_block=largest,
    )


def _bytes(tensor: Tensor) -> int:
    return rounded(tensor.numel() * tensor.element_size())


def saved_bytes(run: Any, excluded: list[Tensor]) -> tuple[Any, int]:
    """Run `run()` and count the bytes that autograd keeps for the backward pass, by storage.

    Args:
        excluded: tensors whose storage does not count: parameters, buffers, inputs.

    Returns:
        What `run` returned, and the bytes.
    """
    outside = {t.untyped_storage()._cdata for t in excluded}
    kept: dict[int, int] = {}
    alive: list[Any] = []  # an address counts once only as long as its storage lives

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in outside and storage._cdata not in kept:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return result, sum(kept.values())
