"""A two-block image-report model and batches for it, small enough for exact comparisons in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medfm.encoders.config import ClipTextConfig, VitConfig
from medfm.encoders.dual import DualEncoder
from medfm.encoders.pooling import pooled
from medfm.encoders.text import ClipTextEncoder
from medfm.encoders.vit import VisionTransformer
from medfm.objectives.config import ContrastiveConfig
from medfm.objectives.contrastive import ContrastiveObjective
from medfm.types import Batch


class DoubleDual(DualEncoder):
    """The DualEncoder without its casts to float32, so that comparisons can be exact."""

    def encode_image(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return F.normalize(self.image_projection(pooled(self.image_encoder(x, keep), "cls")), dim=-1)

    def encode_text(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return F.normalize(self.text_projection(self.text_encoder(tokens, attention_mask).pooled), dim=-1)


def make_objective(
    dropout: float = 0.0, to_float: Callable[[Tensor], Tensor] | None = None, **knobs: Any
) -> ContrastiveObjective:
    """Same weights on every call."""
    config = ContrastiveConfig(embed_dim=8, **knobs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = VisionTransformer(
            VitConfig(
                img_size=(8, 8), patch_size=(2, 2), embed_dim=16, depth=2, num_heads=2, dropout=dropout, drop_path=dropout
            )
        )
        text = ClipTextEncoder(
            ClipTextConfig(vocab_size=32, context_length=6, embed_dim=16, depth=2, num_heads=2, dropout=dropout)
        )
        bias = config.logit_bias if config.loss == "sigmoid" else None
        dual = DoubleDual(image, text, 8, config.projection, config.temperature, config.learn_temperature, bias)
    return ContrastiveObjective(config, dual.double(), to_float)


def make_batch(n: int = 10, seed: int = 0) -> Batch:
    """Rows 2 and 3 are one patient, 4 and 5 the same text, row 1 has no text."""
    generator = torch.Generator().manual_seed(seed)
    patient = torch.arange(n)
    patient[3] = 2
    group = torch.arange(n) + 100
    group[5] = 104
    group[1] = -1
    tokens = torch.randint(1, 31, (n, 6), generator=generator)
    tokens[:, -1] = 31
    return Batch(
        images=torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64),
        tokens=tokens,
        attention_mask=torch.ones(n, 6, dtype=torch.int64),
        patient=patient,
        text_group=group,
        labels=torch.zeros(n, 0),
        index=torch.arange(n),
    )


def gradients(objective: ContrastiveObjective) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Layers this small only wait for each other on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(name="make_objective")
def _make_objective() -> Callable[..., ContrastiveObjective]:
    return make_objective


@pytest.fixture(name="make_batch")
def _make_batch() -> Callable[..., Batch]:
    return make_batch


@pytest.fixture(name="gradients")
def _gradients() -> Callable[[ContrastiveObjective], dict[str, Tensor]]:
    return gradients
