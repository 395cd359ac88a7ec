"""What the scripts of the device tests share: one process of a gloo group, which writes what it has computed to a file.

python SCRIPT RANK WORLD FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from medfm.objectives.align.encode import pick_texts
from medfm.types import Batch


def share(batch: Batch, rank: int, world: int) -> Batch:
    """The rows of this rank: as many on each, one rank's after the other's, as the training loop deals them out."""
    size = len(batch.index)
    rows = torch.arange(size)[rank * size // world : (rank + 1) * size // world]
    fields: dict[str, Any] = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **fields, texts=pick_texts(batch.texts, rows, size))


def main(compute: Callable[[int, int], dict[str, Any]]) -> None:
    """Save `compute(rank, world)` as FOLDER/RANK-of-WORLD.pt, in a process group where there is more than one process."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    torch.save(compute(rank, world), folder / f"{rank}-of-{world}.pt")
    if world > 1:
        dist.destroy_process_group()
