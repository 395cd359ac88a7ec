"""One rank of a gloo group: losses and gradients of its share of a batch, written to a file. Run by test_gather.py.

python devices.py RANK WORLD FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import gradients, make_batch, make_objective
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from medfm.objectives.gather import current_gather

CASES = {
    "convirt": {"image_weight": 0.75, "tile": 2},
    "siglip": {"loss": "sigmoid", "logit_bias": -2.0, "tile": 2},
    "unmasked": {"mask_same_patient": False, "mask_same_text": False},
    "convirt cached": {"image_weight": 0.75, "cache_chunk": 2},
    "siglip cached": {"loss": "sigmoid", "logit_bias": -2.0, "cache_chunk": 2},
}


def step(rank: int, world: int, knobs: dict[str, object], without_text: slice | None = None) -> dict[str, Tensor]:
    """Forward and backward of rows rank, rank + world, ...: loss, logs and gradients as the optimiser would see them."""
    batch = make_batch(9)  # an odd number, and one row without text: the devices' sizes differ
    if without_text is not None:
        batch.text_group[without_text] = -1
    batch = replace(batch, **{name: value[rank::world] for name, value in vars(batch).items() if isinstance(value, Tensor)})
    objective = make_objective(**knobs)
    wrapped = DistributedDataParallel(objective) if world > 1 else objective  # must live until the backward has run
    output = wrapped(batch)
    output.loss.backward()
    logs = {name: value for name, value in output.logs.items() if name != "rows_without_text"}
    return {"value": output.loss.detach(), **logs, **gradients(objective)}


def gathered(rank: int) -> dict[str, Tensor]:
    """Two rows on rank 0, three on others, through the gather and back with a gradient that differs by rank."""
    gather = current_gather()
    mine = (torch.arange(4.0 + 2 * min(rank, 1)).reshape(-1, 2) + 10 * rank).requires_grad_()
    everyone = gather.rows(mine, gather.sizes(len(mine), mine.device))
    weight = torch.arange(float(everyone.numel())).reshape(everyone.shape) * (rank + 1)
    (everyone * weight).sum().backward()
    assert mine.grad is not None
    return {"everyone": everyone.detach(), "grad": mine.grad}


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    results = {name: step(rank, world, knobs) for name, knobs in CASES.items()}
    results["one device without text"] = step(rank, world, {}, without_text=slice(0, None, 2))
    if world > 1:
        results["gathered"] = gathered(rank)
        dist.destroy_process_group()
    torch.save(results, folder / f"{rank}-of-{world}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
