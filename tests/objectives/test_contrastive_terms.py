"""Alignment terms in the contrastive objective: what they are given; that caching, rows without text and weights hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from medfm.errors import DataError
from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.config import ContrastiveConfig
from medfm.transforms.draws import Draws
from medfm.types import Batch, Texts

Make = Callable[..., Any]
HARD = {"name": "hard_negatives"}


class Reader(Term):
    """Keeps what it is given; its loss reads every tensor of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Encoded] = []

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append(encoded)
        assert encoded.word_mask is not None
        read = [encoded.image, encoded.patches, encoded.words * encoded.word_mask[:, :, None], *encoded.texts.values()]
        loss = sum((x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum() for x in read)
        return torch.as_tensor(loss), {"rows": torch.tensor(float(len(encoded.image)))}


@pytest.fixture
def reading(make_objective: Make) -> Make:
    """An objective whose one term is a Reader of all there is."""

    def make(**knobs: Any) -> tuple[Any, Reader]:
        objective = make_objective(**{"terms": [HARD], **knobs})
        reader = Reader()
        objective.terms[0] = reader
        objective.reads_patches = objective.reads_words = True
        return objective, reader

    return make


def test_terms__are_given_what_the_encoders_give(reading: Make, make_text_batch: Make) -> None:
    objective, reader = reading()
    batch: Batch = make_text_batch()
    output = objective(batch, Draws(0))
    (seen,) = reader.seen
    keep = torch.tensor([0, *range(2, 10)])
    dual = objective.dual
    torch.testing.assert_close(seen.image, dual.encode_image(batch.images[keep]))
    assert torch.equal(seen.batch.index, keep)
    assert seen.grid == (4, 4)
    torch.testing.assert_close(seen.patch_tokens, dual.image_encoder(batch.images[keep]).patch_tokens)
    torch.testing.assert_close(seen.patches.norm(dim=-1), torch.ones(9, 16, dtype=torch.float64))
    assert batch.tokens is not None
    assert batch.attention_mask is not None
    words = dual.text_encoder(batch.tokens[keep], batch.attention_mask[keep]).tokens
    assert seen.word_tokens is not None
    assert seen.word_mask is not None
    torch.testing.assert_close(seen.word_tokens[:, : words.shape[1]], words)
    assert seen.word_tokens.shape[:2] == seen.word_mask.shape
    assert set(seen.texts) == {"swapped", "negated"}
    for kind, texts in batch.texts.items():
        stay = texts.row != 1
        if kind in seen.texts:
            torch.testing.assert_close(seen.texts[kind], dual.encode_text(texts.tokens[stay], texts.attention_mask[stay]))
        moved = seen.batch.texts[kind]
        assert torch.equal(seen.batch.index[moved.row], texts.row[stay])
        assert torch.equal(moved.code, texts.code[stay])
    assert torch.equal(seen.groups[0], batch.patient[keep])
    drawn = Draws(0).rand(10, 2)[keep]
    objective(batch, Draws(0))
    assert torch.equal(reader.seen[1].rand(2), drawn)
    assert float(output.logs["hard_negatives_rows"]) == 9


def test_terms__are_added_by_weight(make_objective: Make, make_text_batch: Make) -> None:
    batch = make_text_batch()
    plain = make_objective()(batch)
    both = make_objective(weight=0.5, terms=[{**HARD, "weight": 0.25}, HARD])(batch)
    term = both.logs["loss_hard_negatives_1"]
    assert torch.equal(term, both.logs["loss_hard_negatives_2"])
    torch.testing.assert_close(both.loss, 0.5 * plain.loss + 1.25 * term)
    assert torch.equal(both.logs["loss"], both.loss)
    alone = make_objective(weight=0.0, terms=[HARD])(batch)
    torch.testing.assert_close(alone.loss.detach(), term)
    assert "loss_image_to_text" not in alone.logs


@pytest.mark.parametrize("chunk", [1, 4, 9])
def test_caching__gives_the_same_gradients(reading: Make, make_text_batch: Make, gradients: Make, chunk: int) -> None:
    batch = make_text_batch()
    plain, cached = reading()[0], reading(cache_chunk=chunk)[0]
    losses = [objective(batch, Draws(0)).loss for objective in (plain, cached)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    for loss in losses:
        loss.backward()
    expected, found = gradients(plain), gradients(cached)
    assert set(expected) == set(found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_further_texts__equal_ones_are_encoded_once(make_objective: Make, make_text_batch: Make) -> None:
    batch: Batch = make_text_batch()
    objective = make_objective(terms=[HARD])
    seen: list[int] = []
    objective.dual.text_encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    objective(batch)
    codes = torch.cat([batch.texts[k].code[batch.texts[k].row != 1] for k in ("swapped", "negated")])
    assert seen == [9, len(codes.unique())]
    assert len(codes.unique()) < len(codes)


def test_batch_without_any_text__gives_every_parameter_a_zero_gradient(
    make_objective: Make, make_text_batch: Make, gradients: Make
) -> None:
    for weight in (0.0, 1.0):
        objective = make_objective(weight=weight, terms=[HARD])
        output = objective(replace(make_text_batch(), text_group=torch.full((10,), -1)))
        output.loss.backward()
        found = gradients(objective)
        assert set(found) >= {"dual.logit_scale", "dual.image_projection.weight", "dual.text_projection.weight"}
        assert all(float(g.abs().max()) == 0.0 for g in found.values())
        assert float(output.loss.detach()) == 0.0


def test_texts__a_kind_that_is_missing_is_an_error(make_objective: Make, make_batch: Make) -> None:
    with pytest.raises(DataError, match="'swapped'"):
        make_objective(terms=[HARD])(make_batch())


def test_after_optimizer_step__reaches_the_terms(reading: Make) -> None:
    objective, reader = reading()
    calls: list[tuple[int, int]] = []
    reader.after_optimizer_step = lambda step, total: calls.append((step, total))  # type: ignore[method-assign]
    objective.after_optimizer_step(3, 10)
    assert calls == [(3, 10)]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"weight": 0.0}, "nothing would be learned"),
        ({"terms": ["filip"], "patch_dropout": 0.5}, "'filip' reads all patches"),
        ({"terms": ["filup"]}, "did you mean 'filip'"),
    ],
)
def test_config__refuses(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ContrastiveConfig(**knobs)


def test_config__asks_for_the_texts_of_its_terms() -> None:
    config = ContrastiveConfig(terms=[HARD])
    assert config.further_texts.kinds == ("swapped", "negated")
    assert config.dense == "values"
    assert ContrastiveConfig().further_texts.kinds == ()


def test_texts__are_of_the_type_that_batches_hold(make_text_batch: Make) -> None:
    for texts in make_text_batch().texts.values():
        assert isinstance(texts, Texts)
        assert bool((texts.row.diff() >= 0).all())
