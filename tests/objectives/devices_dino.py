"""One rank of a gloo group: three steps on its share of each batch, then all weights and buffers. Run by test_devices_dino.py.

python devices_dino.py RANK WORLD FOLDER
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from conftest import gradients, make_batch, make_dino, train
from ranks import main, share
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from medfm.transforms.draws import Draws

CASES: dict[str, dict[str, Any]] = {
    "dino": {},
    "ibot": {"ibot_weight": 1.0, "norm_last_layer": False},
    "dinov2": {"ibot_weight": 1.0, "separate_head": True, "ibot_out_dim": 16, "centring": "sinkhorn", "koleo_weight": 0.1},
    "random masks": {"ibot_weight": 1.0, "masking": "random", "mask_probability": 0.1},  # some devices mask nothing
}


def steps(knobs: dict[str, Any], rank: int, world: int) -> dict[str, Tensor]:
    """Losses of three steps, logs and gradients of one more batch, and the state after them."""
    objective = make_dino(momentum=0.9, freeze_last_layer=0.0, **knobs)
    wrapped: Any = DistributedDataParallel(objective) if world > 1 else objective
    draws = partial(Draws, rank=rank, world=world)
    losses = train(wrapped, [share(make_batch(8, seed), rank, world) for seed in range(3)], draws=draws)
    wrapped.zero_grad()
    output = wrapped(share(make_batch(8, 3), rank, world), draws(9))
    output.loss.backward()
    numbers = {"losses": torch.tensor(losses, dtype=torch.float64), **output.logs, **objective.state_dict()}
    return numbers | {f"gradient of {name}": value for name, value in gradients(objective).items()}


if __name__ == "__main__":
    main(lambda rank, world: {name: steps(knobs, rank, world) for name, knobs in CASES.items()})
