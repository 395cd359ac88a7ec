from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medfm.objectives.align.gloria import attended_scores

Make = Callable[..., Any]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def papers(x: Tensor, real: Tensor, aggregate: str) -> float:
    """GLoRIA's score of one image's patches with one text's words, an element at a time."""
    products = [[math.fsum((p * w).tolist()) for w in real] for p in x]
    over_words = [[math.exp(v) / sum(math.exp(u) for u in row) for v in row] for row in products]
    met = []
    for t, w in enumerate(real):
        column = [math.exp(4.0 * row[t]) for row in over_words]
        attended = sum(value / sum(column) * p for value, p in zip(column, x, strict=True))
        met.append(math.exp(5.0 * float(F.cosine_similarity(attended, w, dim=0))))
    return 10.0 * math.log(sum(met) / (len(met) if aggregate == "mean" else 1))


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_attended_scores__are_the_papers(aggregate: Any) -> None:
    patches, words = draw(3, 5, 4), draw(2, 6, 4, seed=1)
    mask = torch.tensor([[True] * 6, [True, True, False, False, False, False]])
    (found,) = attended_scores(patches, words, mask, aggregate=aggregate)
    expected = [[papers(x, words[j][mask[j]], aggregate) for j in range(2)] for x in patches]
    torch.testing.assert_close(found, torch.tensor(expected).double())
    (again,) = attended_scores(patches, words + ~mask[:, :, None] * 7.0, mask, aggregate=aggregate)
    torch.testing.assert_close(again, found)


def test_attended_scores__gradients() -> None:
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    inputs = [draw(2, 3, 4).requires_grad_(), draw(2, 4, 4, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda p, w: attended_scores(p, w, mask), inputs)


def test_term__contrasts_the_scores_of_all_pairs(make_objective: Make, make_text_batch: Make) -> None:
    batch = make_text_batch()
    objective = make_objective(weight=0.0, terms=["gloria"], mask_same_patient=False, mask_same_text=False)
    rows = batch.text_group >= 0
    dual = objective.dual
    patches = dual.image_projection(dual.image_encoder(batch.images[rows]).patch_tokens)
    words = dual.text_projection(dual.text_encoder(batch.tokens[rows], batch.attention_mask[rows]).tokens)
    real = [w[: int(n)] for w, n in zip(words, batch.attention_mask[rows].sum(1), strict=True)]
    with torch.no_grad():
        scores = torch.tensor([[papers(x, w, "sum") for w in real] for x in patches]).double()
        loss = objective(batch).loss
    own = torch.arange(9)
    torch.testing.assert_close(loss, (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2)
