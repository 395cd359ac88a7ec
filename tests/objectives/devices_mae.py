"""One rank of a gloo group: losses, logs and gradients of masked autoencoding on its share of a batch, written to a file.

Run by test_devices_mae.py:

python devices_mae.py RANK WORLD FOLDER
"""

from __future__ import annotations

from typing import Any

import torch
from ranks import main, share
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


def make(knobs: dict[str, Any]) -> tuple[MaeObjective, Tensor]:
    """A tiny autoencoder, and six volumes, three of which are half air."""
    torch.manual_seed(0)
    vit = VitConfig(
        img_size=(4, 8, 8), patch_size=(1, 2, 2), in_channels=2, embed_dim=12, depth=2, num_heads=2, pos_embed="sincos"
    )
    config = MaeConfig(decoder_dim=12, decoder_depth=2, decoder_heads=2, **knobs)
    objective = MaeObjective(config, VisionTransformer(vit)).double()
    images = torch.randn(6, 2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    images[:3, ..., :4] = 0
    return objective, images


def batch_of(images: Tensor) -> Batch:
    rows = torch.arange(len(images))
    return Batch(images, None, None, rows, rows, torch.zeros(len(images), 0), rows)


def step(rank: int, world: int, knobs: dict[str, Any]) -> dict[str, Tensor]:
    """Forward and backward of this rank's run of rows."""
    objective, images = make(knobs)
    batch = share(batch_of(images), rank, world)
    wrapped = DistributedDataParallel(objective) if world > 1 else objective
    output = wrapped(batch, Draws(7, rank=rank, world=world))
    output.loss.backward()
    logs = {name: value for name, value in output.logs.items() if name != "masked_foreground"}  # of this device alone
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(objective.parameters()))
    return {"value": output.loss.detach(), **logs, **gradients}


@torch.no_grad()
def validation(rows: int) -> dict[str, Tensor]:
    """Of the first rows, as each device validates for itself."""
    objective, images = make({})
    output = objective.eval()(batch_of(images[:rows]), Draws(7))
    return {"value": output.loss, **output.logs}


if __name__ == "__main__":
    main(
        lambda rank, world: {
            **{name: step(rank, world, knobs) for name, knobs in CASES.items()},
            **({f"validation of {rows}": validation(rows) for rows in (2, 3)} if world == 1 else {}),
            **({f"validation of {2 + rank}": validation(2 + rank)} if world > 1 else {}),
        }
    )
