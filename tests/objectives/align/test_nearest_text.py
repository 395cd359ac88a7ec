from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from medfm.objectives.align.nearest_text import nearest
from medfm.objectives.losses import info_nce

Make = Callable[..., Any]


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def test_nearest__is_the_most_similar_of_other_patients() -> None:
    text, bank = unit(4, 3), unit(6, 3, seed=1)
    patient, owners = torch.tensor([0, 1, 2, -1]), torch.tensor([0, 0, 1, 2, -2, 9])
    found, place, similarity = nearest(text, bank, torch.tensor(5), patient, owners)
    for i in range(4):
        allowed = [s for s in range(5) if int(owners[s]) != int(patient[i])]
        best = max(allowed, key=lambda s: float(text[i] @ bank[s]))
        assert int(place[i]) == best
        torch.testing.assert_close(found[i], bank[best])
        torch.testing.assert_close(similarity[i], text[i] @ bank[best])


def test_nearest__of_an_empty_bank_is_the_text_itself() -> None:
    text = unit(3, 3)
    found, place, similarity = nearest(text, torch.zeros(4, 3), torch.tensor(0), torch.arange(3), torch.full((4,), -2))
    torch.testing.assert_close(found, text)
    assert place.tolist() == [-1, -1, -1]
    torch.testing.assert_close(similarity, torch.ones(3).double())


def test_term__contrasts_with_neighbours_then_keeps_the_reports(make_objective: Make, make_text_batch: Make) -> None:
    objective = make_objective(weight=0.0, terms=[{"name": "nearest_text", "bank": 14}])
    (term,) = objective.terms
    dual, batches = objective.dual, [make_text_batch(seed=seed) for seed in range(2)]
    rows = [r for r in range(10) if r != 1]
    batches[1].patient += 100
    bank = torch.zeros(14, 8).double()
    owners = torch.full((14,), -2)
    for number, batch in enumerate(batches):
        with torch.no_grad():
            image = dual.encode_image(batch.images[rows])
            text = dual.encode_text(batch.tokens[rows], batch.attention_mask[rows])
            found, place, _ = nearest(text, bank, torch.tensor(9 * number), batch.patient[rows], owners)
            groups = [batch.patient[rows], batch.text_group[rows], place]
            expected = info_nce(image, found, dual.logit_scale, image_weight=1.0, groups=groups).loss
        output = objective(batch)
        torch.testing.assert_close(output.loss.detach(), expected, rtol=1e-9, atol=0)
        places = [(9 * number + i) % 14 for i in range(9)]
        bank[places], owners[places] = text, batch.patient[rows]
        torch.testing.assert_close(term.bank, bank)
        assert torch.equal(term.bank_patient, owners)
    assert len(place.unique()) < 9 or (place >= 0).all()
    assert int(term.filled) == 18
    output.loss.backward()
    assert objective.dual.image_projection.weight.grad.any()
    assert not objective.dual.text_projection.weight.grad.any()


def test_term__leaves_the_bank_alone_in_validation(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(weight=0.0, terms=[{"name": "nearest_text", "bank": 4}]), make_text_batch()
    objective.eval()
    objective(batch)
    assert int(objective.terms[0].filled) == 0
    objective.train()
    objective(batch)
    assert int(objective.terms[0].filled) == 9
    last = objective.dual.encode_text(batch.tokens[6:], batch.attention_mask[6:]).detach()
    torch.testing.assert_close(objective.terms[0].bank[[(i % 4) for i in range(5, 9)]], last)


@pytest.mark.parametrize("rows", [0, 1])
def test_nearest__takes_few_rows(rows: int) -> None:
    found, place, _ = nearest(unit(rows, 3), unit(4, 3), torch.tensor(4), torch.arange(rows), torch.full((4,), -2))
    assert found.shape == (rows, 3)
    assert place.shape == (rows,)
