"""A batch as a whole: moved to a device, page-locked, cut to its first rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from medfm.types import Batch, Texts

B = TypeVar("B", bound=Batch)


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same value with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Texts):
        return Texts(**{f.name: change(getattr(value, f.name)) for f in fields(Texts)})
    return {k: _map(v, change) for k, v in value.items()} if isinstance(value, dict) else value


def change_tensors(batch: B, change: Callable[[Tensor], Tensor]) -> B:
    """A batch with every tensor changed, those of its further texts too."""
    return type(batch)(**{f.name: _map(getattr(batch, f.name), change) for f in fields(batch)})


def tensors_of(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch."""
    found: list[Tensor] = []
    change_tensors(batch, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def to_device(batch: B, device: torch.device | str) -> B:
    """The batch on another device; the host does not wait where the batch is page-locked."""
    return change_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def first_rows(batch: B, count: int) -> B:
    """The first `count` rows, with the further texts that belong to them."""
    cut = {}
    for f in fields(batch):
        value = getattr(batch, f.name)
        if isinstance(value, Tensor):
            value = value[:count]
        elif f.name == "texts":
            value = {kind: _first(texts, count) for kind, texts in value.items()}
        cut[f.name] = value
    return type(batch)(**cut)


def _first(texts: Texts, count: int) -> Texts:
    kept = texts.row < count
    return Texts(**{f.name: getattr(texts, f.name)[kept] for f in fields(Texts)})


@dataclass
class LoadedBatch(Batch):
    """A batch out of a loader, which torch's loader can page-lock; a dataclass without this method it leaves as it is."""

    def pin_memory(self) -> LoadedBatch:
        return change_tensors(self, lambda tensor: tensor.pin_memory())
