"""One rank of a gloo group: three steps on its share of each batch, then all weights and buffers. Run by test_devices_ssl.py.

python devices_ssl.py RANK WORLD FOLDER
"""

from __future__ import annotations

from functools import partial
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from conftest import make_batch, make_m3ae, make_network, make_objective, make_two_views, train
from ranks import main, share
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from medfm.encoders.image import ImageModel
from medfm.objectives.config import SumConfig
from medfm.objectives.distill import DistillObjective
from medfm.objectives.frozen import FrozenTeacher
from medfm.objectives.ssl_config import DistillConfig
from medfm.objectives.sum import SumObjective
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.draws import Draws


def distillation(**knobs: Any) -> DistillObjective:
    """A student with a wider teacher."""
    config = DistillConfig(teacher=Path(__file__), **knobs)
    contract = PreprocessConfig.model_validate({"size": [8, 8], "window": "none"})
    teacher = FrozenTeacher(make_network(embed_dim=24, depth=1), contract, (0.4,), (0.3,), 1, (8, 8))
    torch.manual_seed(1)
    return DistillObjective(config, make_network(), teacher).double()


def several() -> SumObjective:
    """Alignment, M3AE and MoCo with a queue on one encoder; the batch's images are what each of them takes."""
    contrastive = make_objective()
    encoder = contrastive.dual.image_encoder
    terms = [contrastive, make_m3ae(encoder), make_two_views("moco", network=ImageModel(encoder), queue=20)]
    names = [{"name": "contrastive"}, {"name": "m3ae"}, {"name": "moco"}]
    config = SumConfig.model_validate({"terms": names, "weights": [1.0, 0.5, 0.25]})
    same: Any = SimpleNamespace(prepare=lambda preprocess, images, draws: images, preprocess=None)
    return SumObjective(config, terms, same, same)


CASES: dict[str, Any] = {
    "simclr": partial(make_two_views, "simclr", tile=3),
    "moco": partial(make_two_views, "moco", tile=3),
    "moco queue": partial(make_two_views, "moco", queue=20),
    "byol": partial(make_two_views, "byol"),
    "barlow": partial(make_two_views, "barlow"),
    "distill masked patches": partial(distillation, target="patches", mask_ratio=0.5),
    "distill similarity": partial(distillation, target="similarity", label_weight=0.5, label_count=2),
    "m3ae": make_m3ae,
    "sum": several,
}


def steps(objective: Any, rank: int, world: int) -> dict[str, Tensor]:
    """Losses of three steps, the logs of the last batch, and the state after them."""
    wrapped = DistributedDataParallel(objective) if world > 1 else objective
    batches = []
    for seed in range(3):
        batch = make_batch(12, seed)
        batch.attention_mask[7, 3:] = 0  # a shorter report; row 1, on the first device, has none
        batch.labels = torch.tensor([[1.0, nan], [nan, nan], [0, -1], [1, 0]]).repeat(3, 1)
        batches.append(share(batch, rank, world))
    draws = partial(Draws, rank=rank, world=world)
    losses = train(wrapped, batches, lr=0.05, draws=draws)
    logs = wrapped(batches[0], draws(7)).logs
    logs.pop("contrastive_rows_without_text", None)  # a number of this device's
    return {"losses": torch.tensor(losses, dtype=torch.float64), **logs, **objective.state_dict()}


if __name__ == "__main__":
    main(lambda rank, world: {name: steps(make(), rank, world) for name, make in CASES.items()})
