"""One rank of a gloo group: losses, logs and gradients of masked autoencoding on its share of a batch, written to a file.

Run by test_devices_mae.py:

python devices_mae.py RANK WORLD FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from medfm.encoders.config import VitConfig
from medfm.encoders.vit import VisionTransformer
from medfm.objectives.config import MaeConfig
from medfm.objectives.mae import MaeObjective
from medfm.transforms.draws import Draws
from medfm.types import Batch

CASES: dict[str, dict[str, Any]] = {
    "mae": {},
    "block": {"masking": "block", "norm_pix": False, "loss": "l1"},
    "foreground": {"masking": "foreground", "foreground_share": 0.6, "background_weight": 0.2},
    "channels": {"mask_channels": 0.5},
    "simmim": {"encode_all": True, "head": "linear", "mask_ratio": 0.5, "mask_unit": 2},
}


def step(rank: int, world: int, knobs: dict[str, Any]) -> dict[str, Tensor]:
    """Forward and backward of this rank's run of rows of six volumes, three of which are half air."""
    torch.manual_seed(0)
    vit = VitConfig(
        img_size=(4, 8, 8), patch_size=(1, 2, 2), in_channels=2, embed_dim=12, depth=2, num_heads=2, pos_embed="sincos"
    )
    config = MaeConfig(decoder_dim=12, decoder_depth=2, decoder_heads=2, **knobs)
    objective = MaeObjective(config, VisionTransformer(vit)).double()
    images = torch.randn(6, 2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    images[:3, ..., :4] = 0
    mine = images[rank * 6 // world : (rank + 1) * 6 // world]
    rows = torch.arange(len(mine))
    batch = Batch(mine, None, None, rows, rows, torch.zeros(len(mine), 0), rows)
    wrapped = DistributedDataParallel(objective) if world > 1 else objective
    output = wrapped(batch, Draws(7, rank=rank, world=world))
    output.loss.backward()
    logs = {name: value for name, value in output.logs.items() if name != "masked_foreground"}  # of this device alone
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(objective.parameters()))
    return {"value": output.loss.detach(), **logs, **gradients}


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    torch.save({name: step(rank, world, knobs) for name, knobs in CASES.items()}, folder / f"{rank}-of-{world}.pt")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
