"""One rank of a gloo group: three steps of every alignment term on its share of each batch, then all weights. Run by
test_devices_align.py.

python devices_align.py RANK WORLD FOLDER
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from conftest import make_objective, make_text_batch, train
from ranks import main, share
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from medfm.objectives.align.base import Encoded
from medfm.objectives.align.encode import pick_texts
from medfm.transforms.draws import Draws

CASES: dict[str, dict[str, Any]] = {
    "filip": {"terms": [{"name": "filip", "held": 300}]},
    "gloria": {"terms": ["gloria"], "cache_chunk": 2},
    "further texts": {"terms": ["levels", {"name": "sentences", "weight": 0.5}, "hard_negatives"], "weight": 0.0},
    "knowledge": {"terms": ["knowledge"], "knowledge": "chest"},
    "concepts": {"terms": ["concepts"], "knowledge": "chest", "cache_chunk": 2},
    "concepts with heads": {"terms": [{"name": "concepts", "heads": "own", "scale": 3.0, "bias": -1.0}], "knowledge": "chest"},
    "streams": {"terms": [{"name": "streams", "dim": 8, "depth": 2, "num_heads": 2, "dropout": 0.0}], "knowledge": "chest"},
    "captioning": {"terms": [{"name": "captioning", "depth": 2, "num_heads": 2}, {"name": "masked_words", "ratio": 0.4}]},
    "captioning of the embedding": {
        "terms": [{"name": "captioning", "depth": 1, "num_heads": 2, "inputs": "embedding", "share_embedding": True}]
    },
    "intra_modal": {"terms": [{"name": "intra_modal", "momentum": 0.7}]},
    "declip": {
        "terms": [
            {"name": "image_views", "hidden_dim": 12, "out_dim": 8, "predictor_dim": 6},
            {"name": "nearest_text", "bank": 20},
            "masked_words",
        ]
    },
    "slip": {"terms": [{"name": "image_views", "loss": "simclr", "hidden_dim": 12, "out_dim": 8}], "weight": 0.0},
}


def noisy_views(count: int, encoded: Encoded) -> Tensor:
    """Views in float64: noise, the same however many devices draw it. (Cut views are float32.)"""
    images = encoded.batch.images
    return torch.cat([images.flip(-1) + encoded.rand(*images.shape[1:]).to(images) for _ in range(count)])


def steps(knobs: dict[str, Any], rank: int, world: int) -> dict[str, Tensor]:
    """Losses of three steps, the logs of the last batch, and the state after them."""
    objective = make_objective(**knobs)
    for term in objective.terms:
        if hasattr(term, "views"):
            term.views = partial(noisy_views, term.config.views.global_count)
    wrapped: Any = DistributedDataParallel(objective) if world > 1 else objective
    batches = [make_text_batch(12, seed) for seed in range(3)]
    batches[1].text_group[:6] = -1  # the first device has nothing to say
    for kind in batches[2].texts:  # the second device has no further texts
        batches[2].texts[kind] = pick_texts({kind: batches[2].texts[kind]}, torch.arange(6), 12)[kind]
    shares = [share(batch, rank, world) for batch in batches]
    draws = partial(Draws, rank=rank, world=world)
    losses = train(wrapped, shares, lr=0.05, draws=draws)
    logs = wrapped(shares[0], draws(7)).logs
    logs.pop("rows_without_text")  # a number of this device's
    return {"losses": torch.tensor(losses, dtype=torch.float64), **logs, **objective.state_dict()}


if __name__ == "__main__":
    main(lambda rank, world: {name: steps(knobs, rank, world) for name, knobs in CASES.items()})
