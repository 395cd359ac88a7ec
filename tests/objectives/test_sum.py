"""Several objectives on one encoder: weights, shared tensors, names of logs, and that the sum trains and resumes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from medfm.encoders.dual import DualEncoder
from medfm.objectives.base import Parts
from medfm.objectives.config import SumConfig
from medfm.objectives.sum import SumObjective, build
from medfm.registry import ENCODERS
from medfm.transforms.config import AugmentConfig, PreprocessConfig
from medfm.transforms.draws import Draws
from medfm.transforms.preprocess import Preprocess
from medfm.types import Batch

Make = Callable[..., Any]
TOKENIZER = {"name": "clip", "context_length": 12}
CONTRASTIVE = {
    "name": "contrastive",
    "text_encoder": {"name": "clip_text", "embed_dim": 16, "depth": 1, "num_heads": 2},
    "tokenizer": TOKENIZER,
    "embed_dim": 8,
}
M3AE = {"name": "m3ae", "tokenizer": TOKENIZER, "decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}
MOCO = {"name": "moco", "hidden_dim": 12, "out_dim": 6, "queue": 10}
TEXTS = ["small left effusion", "no effusion", "a nodule in the right lung", "large heart", "rib fracture", "normal film"]


def make(*terms: dict[str, Any], weights: tuple[float, ...] = ()) -> tuple[SumObjective, Parts]:
    """Same weights on every call."""
    config = SumConfig.model_validate({"terms": terms, "weights": weights})
    encoder = {"name": "vit", "img_size": [8, 8], "patch_size": [2, 2], "embed_dim": 16, "depth": 2, "num_heads": 2}
    contract = PreprocessConfig.model_validate({"size": [8, 8], "window": "none"})
    parts = Parts(ENCODERS.parse(encoder), Preprocess(contract), AugmentConfig(noise=0.05), 6, config.tokenizer_config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(config, parts), parts


@pytest.fixture
def batch() -> Batch:
    """Six stored images and reports; the last image has none."""
    _, parts = make(CONTRASTIVE)
    assert parts.tokenizer is not None
    tokens, mask = parts.tokenizer(TEXTS)
    images = torch.randint(0, 255, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    rows = torch.arange(6)
    return Batch(images, tokens, mask, rows, torch.tensor([0, 1, 2, 3, 4, -1]), torch.zeros(6, 0), rows)


def test_forward__weights_the_terms_losses_and_names_their_logs(batch: Batch) -> None:
    objective, _ = make(CONTRASTIVE, M3AE, MOCO, weights=(1.0, 0.5, 0.25))
    output = objective(batch, Draws(0))
    losses = [float(output.logs[f"{name}_loss"]) for name in ("contrastive", "m3ae", "moco")]
    assert min(losses) > 0
    assert float(output.loss.detach()) == pytest.approx(losses[0] + 0.5 * losses[1] + 0.25 * losses[2], rel=1e-6)
    assert {"contrastive_logit_scale", "m3ae_text_loss", "m3ae_image_loss", "moco_ema_momentum"} <= set(output.logs)
    twice, _ = make(M3AE, M3AE)
    assert {"m3ae_1_loss", "m3ae_2_loss"} <= set(twice(batch, Draws(0)).logs)


def test_terms__share_one_encoder_and_the_model_has_the_text_side(batch: Batch) -> None:
    objective, parts = make(M3AE, CONTRASTIVE, MOCO)
    encoders = [objective.terms[0].network, objective.terms[1].dual, objective.terms[2].student.network]  # type: ignore[union-attr]
    assert all(owner.image_encoder is parts.image_encoder for owner in encoders)  # type: ignore[union-attr]
    assert isinstance(objective.model(), DualEncoder)
    objective(batch, Draws(0)).loss.backward()
    without = {name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None}
    assert not without
    # What both terms ask of the encoder adds up.
    total = parts.image_encoder.blocks[0].mlp.fc1.weight.grad.clone()
    parts.image_encoder.zero_grad()
    for number in range(3):
        alone, other = make(M3AE, CONTRASTIVE, MOCO, weights=tuple(float(number == n) for n in range(3)))
        alone(batch, Draws(0)).loss.backward()
        total -= other.image_encoder.blocks[0].mlp.fc1.weight.grad
    assert float(total.abs().max()) < 1e-5


def test_training__lowers_both_losses(batch: Batch) -> None:
    objective, _ = make(CONTRASTIVE, M3AE, weights=(1.0, 0.5))
    optimiser = torch.optim.Adam(objective.parameters(), lr=5e-3)
    logs = []
    for step in range(40):
        optimiser.zero_grad()
        output = objective(batch, Draws(step % 4))
        output.loss.backward()
        optimiser.step()
        objective.after_optimizer_step(step + 1, 40)
        logs.append(output.logs)
    for name in ("contrastive_loss", "m3ae_loss"):
        first, last = (sum(float(log[name]) for log in some) for some in (logs[:4], logs[-4:]))
        assert last < 0.7 * first, name


def test_resume__goes_on_with_the_terms_state(batch: Batch, train: Make) -> None:
    batches = [replace(batch, images=batch.images + number) for number in range(4)]
    whole, stopped, resumed = (make(M3AE, MOCO)[0] for _ in range(3))
    losses = train(whole, batches)
    assert train(stopped, batches[:2], total=4) == losses[:2]
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    assert train(resumed, batches[2:], start=2, total=4) == losses[2:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"terms": [M3AE], "weights": [1, 2]}, "2 weights for 1 terms"),
        ({"terms": [M3AE, MOCO], "weights": [1, -1]}, "negative"),
        ({"terms": [CONTRASTIVE, {**M3AE, "tokenizer": "clip"}]}, "same tokenizer"),
        ({"terms": [{"name": "sum", "terms": [MOCO]}]}, "a sum holds no sum"),
    ],
)
def test_config__refuses(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SumConfig.model_validate(config)
