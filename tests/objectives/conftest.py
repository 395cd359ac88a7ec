"""A two-block image-report model and batches for it, small enough for exact comparisons in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfm.encoders.config import ClipTextConfig, VitConfig
from medfm.encoders.dual import DualEncoder
from medfm.encoders.image import ImageModel
from medfm.encoders.text import ClipTextEncoder
from medfm.encoders.vit import VisionTransformer
from medfm.objectives.config import ContrastiveConfig, M3aeConfig
from medfm.objectives.contrastive import ContrastiveObjective
from medfm.objectives.dino import DinoObjective
from medfm.objectives.m3ae import M3aeObjective
from medfm.objectives.ssl_config import DinoConfig
from medfm.objectives.two_views import TeacherObjective, TwoViewsObjective
from medfm.registry import OBJECTIVES, TERMS
from medfm.text.knowledge import Concept, Knowledge
from medfm.transforms.config import AugmentConfig, PreprocessConfig
from medfm.transforms.draws import Draws
from medfm.transforms.preprocess import Preprocess
from medfm.transforms.views import Views
from medfm.types import Batch, Texts


class TinyTokenizer:
    """A word is a token; 31 ends a text."""

    vocab_size, context_length, pad_id, mask_id, special_ids = 32, 6, 0, 30, (31,)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens = torch.zeros(len(texts), 6, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            words = [1 + sum(word.encode()) % 29 for word in text.lower().split()][:5]
            row[: len(words) + 1] = torch.tensor([*words, 31])
        return tokens, (tokens > 0).long()

    def to_state(self) -> dict[str, str]:
        return {}


KNOWLEDGE = Knowledge(
    "tiny",
    (
        Concept("Opacity", definition="brighter lung"),
        Concept("Lung", "anatomy"),
        Concept("Nodule", definition="a round opacity", synonyms=("coin lesion",), parents=("Opacity",)),
        Concept("Apex", "anatomy", parents=("Lung",)),
        Concept("Effusion", definition="fluid"),
        Concept("Pleura", "anatomy"),
    ),
)


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
        dual = DualEncoder(
            image, text, 8, config.projection, config.temperature, config.learn_temperature, bias, config.dense
        ).double()
        contract = Preprocess(PreprocessConfig.model_validate({"size": [8, 8], "window": "none"}))
        given = {"preprocess": contract, "tokenizer": TinyTokenizer(), "knowledge": KNOWLEDGE, "augment": AugmentConfig()}
        terms = [TERMS.build(term, dual=dual, **given) for term in config.terms]
    return ContrastiveObjective(config, dual, to_float, terms=[term.double() for term in terms])


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


KINDS = ("findings", "impression", "sentences", "swapped", "negated")


def make_text_batch(n: int = 10, seed: int = 0) -> Batch:
    """`make_batch` with shorter texts and further ones: as many as row % 4 sentences, the same one in every third row, and no
    other text of a kind in rows 3 and 6."""
    batch = make_batch(n, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    assert batch.tokens is not None
    assert batch.attention_mask is not None
    for texts, mask, row in zip(batch.tokens, batch.attention_mask, range(n), strict=True):
        length = 3 + row % 3
        texts[length - 1], texts[length:], mask[length:] = 31, 0, 0
    for kind in KINDS:
        rows = [r for r in range(n) for _ in range(r % 4)] if kind == "sentences" else [r for r in range(n) if r not in (3, 6)]
        tokens = torch.randint(1, 31, (len(rows), 5), generator=generator)
        code = torch.arange(len(rows)) + 1000 * KINDS.index(kind)
        for number, row in enumerate(rows):
            if row % 3 == 0:
                tokens[number], code[number] = torch.tensor([7, 8, 9, 10, 11]), 77
        tokens[:, 4] = 31
        batch.texts[kind] = Texts(tokens, torch.ones_like(tokens), torch.tensor(rows), code)
    batch.concepts = torch.randint(0, 3, (n, len(KNOWLEDGE)), generator=generator).float()
    batch.concepts[batch.concepts == 2] = torch.nan
    anatomy = batch.concepts[:, 1::2]  # is named or not, never denied
    anatomy[anatomy == 0] = torch.nan
    batch.relations = torch.rand(n, len(KNOWLEDGE), len(KNOWLEDGE), generator=generator) < 0.5
    batch.relations |= batch.relations.transpose(1, 2).clone()
    present = batch.concepts == 1
    batch.relations &= present[:, :, None] & present[:, None]
    return batch


def make_network(**knobs: Any) -> ImageModel:
    """A two-block image model in float64; same weights on every call."""
    sizes = {"img_size": (8, 8), "patch_size": (2, 2), "embed_dim": 16, "depth": 2, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageModel(VisionTransformer(VitConfig(**sizes | knobs))).double()


def noisy_views(stored: Tensor, draws: Draws) -> Views:
    """Two views in float64: noise, the same however many devices draw it."""
    noise = [draws.rand(len(stored), *stored.shape[1:]).to(stored) - 0.5 for _ in range(2)]
    return Views(torch.cat([stored + noise[0], stored.flip(-1) + noise[1]]), None)


def make_two_views(name: str, batch_size: int = 8, network: ImageModel | None = None, **knobs: Any) -> TwoViewsObjective:
    """A tiny objective by its recipe name, in float64; same weights on every call."""
    small = {"out_dim": 8} if name == "barlow" else {"out_dim": 8, "hidden_dim": 12}
    config: Any = OBJECTIVES.parse({"name": name, **small, **knobs})
    kind = getattr(import_module(f"medfm.objectives.{name}"), f"{name.capitalize()}Objective")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sizes = {"batch_size": batch_size} if issubclass(kind, TeacherObjective) else {}
        objective: TwoViewsObjective = kind(config, network or make_network(), noisy_views, **sizes)
    return objective.double()


def crops(stored: Tensor, draws: Draws) -> Views:
    """Two global views and three local ones of half the size in float64: noise and corners, however many devices draw them."""
    noise = draws.rand(len(stored), 5, *stored.shape[1:]).to(stored).sub_(0.5).transpose(0, 1)
    small = (..., *[slice(0, n // 2) for n in stored.shape[2:]])
    return Views((stored + noise[:2]).flatten(0, 1), (stored + noise[2:]).flatten(0, 1)[small])


def make_dino(network: ImageModel | None = None, out_dim: int = 24, **knobs: Any) -> DinoObjective:
    """A tiny self-distillation in float64; same weights on every call."""
    config = DinoConfig(**{"hidden_dim": 12, "bottleneck_dim": 8, "views": {"local_count": 3}, **knobs})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return DinoObjective(config, network or make_network(), crops, out_dim).double()


def make_m3ae(encoder: nn.Module | None = None, **knobs: Any) -> M3aeObjective:
    """A tiny M3AE over the tokens of `make_batch`, in float64; 31 ends a text."""
    config = M3aeConfig(decoder_dim=12, decoder_depth=2, decoder_heads=2, **knobs)
    network = make_network() if encoder is None else ImageModel(encoder)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return M3aeObjective(config, network, vocab_size=32, context_length=6, special=[31]).double()


def train(
    objective: Any, batches: list[Batch], lr: float = 0.1, *, start: int = 0, total: int | None = None, draws: Any = Draws
) -> list[float]:
    """A step of plain SGD a batch from step `start` of `total`, with the calls that the training loop makes; the losses."""
    total = total or len(batches)
    wrapped, objective = objective, getattr(objective, "module", objective)
    optimiser = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=lr)
    losses = []
    for step, batch in enumerate(batches, start=start):
        objective.before_step(step, total)
        optimiser.zero_grad()
        loss = wrapped(batch, draws(step)).loss
        loss.backward()
        optimiser.step()
        objective.after_optimizer_step(step + 1, total)
        losses.append(float(loss.detach()))
    return losses


def gradients(objective: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Layers this small only wait for each other on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


Numbers = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Callable[[str], tuple[Numbers, Numbers, Numbers]]:
    """Runs a script beside this file (see ranks.py): what one process alone computes, and each of two together."""

    def run(script: str) -> tuple[Numbers, Numbers, Numbers]:
        folder = tmp_path_factory.mktemp(Path(script).stem)
        places = [(0, 1), (0, 2), (1, 2)]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name(script))]
        ranks = [
            subprocess.Popen([*command, str(rank), str(world), str(folder)], env=environment, stderr=subprocess.PIPE)
            for rank, world in places
        ]
        try:
            for process in ranks:
                _, error = process.communicate(timeout=150)
                assert process.returncode == 0, error.decode()
        finally:
            for process in ranks:
                process.kill()
        one, first, second = (torch.load(folder / f"{rank}-of-{world}.pt", weights_only=True) for rank, world in places)
        return one, first, second

    return run


@pytest.fixture(name="make_objective")
def _make_objective() -> Callable[..., ContrastiveObjective]:
    return make_objective


@pytest.fixture(name="make_batch")
def _make_batch() -> Callable[..., Batch]:
    return make_batch


@pytest.fixture(name="knowledge")
def _knowledge() -> Knowledge:
    return KNOWLEDGE


@pytest.fixture(name="tiny_tokenizer")
def _tiny_tokenizer() -> TinyTokenizer:
    return TinyTokenizer()


@pytest.fixture(name="make_text_batch")
def _make_text_batch() -> Callable[..., Batch]:
    return make_text_batch


@pytest.fixture(name="gradients")
def _gradients() -> Callable[[ContrastiveObjective], dict[str, Tensor]]:
    return gradients


@pytest.fixture(name="make_network")
def _make_network() -> Callable[..., ImageModel]:
    return make_network


@pytest.fixture(name="make_two_views")
def _make_two_views() -> Callable[..., TwoViewsObjective]:
    return make_two_views


@pytest.fixture(name="make_dino")
def _make_dino() -> Callable[..., DinoObjective]:
    return make_dino


@pytest.fixture(name="make_m3ae")
def _make_m3ae() -> Callable[..., M3aeObjective]:
    return make_m3ae


@pytest.fixture(name="train")
def _train() -> Callable[..., list[float]]:
    return train
