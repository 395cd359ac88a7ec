from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from medfm.objectives.align.segments import segment_logsumexp, segment_mean

Make = Callable[..., Any]


def test_segment_logsumexp__of_rows_with_any_number_of_values() -> None:
    values = torch.tensor([800.0, 1.0, 802.0, -900.0, 2.0], dtype=torch.float64, requires_grad=True)
    row = torch.tensor([0, 1, 0, 2, 1])
    found = segment_logsumexp(values, row, 3)
    expected = torch.stack([values[row == r].logsumexp(0) for r in range(3)])
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([1.0, 2.0, 3.0]).double()
    theirs = torch.autograd.grad(expected @ weights, values)
    torch.testing.assert_close(torch.autograd.grad(found @ weights, values), theirs)


def test_segment_mean__of_no_values_is_zero() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 7.0]])
    assert segment_mean(values, torch.tensor([2, 2, 0]), 3).tolist() == [[7, 7], [0, 0], [2, 3.5]]


def test_term__sets_the_image_against_its_own_counterfactuals(make_objective: Make, make_text_batch: Make) -> None:
    batch = make_text_batch()
    objective = make_objective(weight=0.0, terms=["hard_negatives"])
    output = objective(batch)
    dual = objective.dual
    losses, right = [], []
    with torch.no_grad():
        scale = dual.logit_scale.exp()
        image, text = dual.encode_image(batch.images), dual.encode_text(batch.tokens, batch.attention_mask)
        for r in range(10):
            cosines = [image[r] @ text[r]]
            for kind in ("swapped", "negated"):
                texts = batch.texts[kind]
                cosines += [image[r] @ x for x in dual.encode_text(texts.tokens, texts.attention_mask)[texts.row == r]]
            if r != 1 and len(cosines) > 1:
                losses.append(torch.stack(cosines).mul(scale).log_softmax(0)[0].neg())
                right.append(bool(cosines[0] > cosines[1]))
    assert len(losses) == 7  # row 1 has no text; 3 and 6 have no counterfactuals
    torch.testing.assert_close(output.loss.detach(), torch.stack(losses).mean())
    assert float(output.logs["hard_negatives_accuracy_swapped"]) == sum(right) / 7


def test_term__of_one_kind_alone_asks_for_that_kind(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(weight=0.0, terms=[{"name": "hard_negatives", "kinds": ["swapped"]}]), make_text_batch()
    assert objective.config.further_texts.kinds == ("swapped",)
    both = make_objective(weight=0.0, terms=["hard_negatives"])
    both.load_state_dict(objective.state_dict())
    empty = batch.texts["negated"]
    none = replace(empty, **{name: getattr(empty, name)[:0] for name in vars(empty)})
    expected = both(replace(batch, texts={**batch.texts, "negated": none}))
    found = objective(replace(batch, texts={"swapped": batch.texts["swapped"]}))
    torch.testing.assert_close(found.loss, expected.loss)
    assert "hard_negatives_accuracy_negated" not in found.logs


def test_term__learns_to_tell_a_text_from_its_counterfactuals(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(terms=["hard_negatives"]), make_text_batch()
    optimiser = torch.optim.Adam(objective.parameters(), lr=3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        output = objective(batch)
        output.loss.backward()
        optimiser.step()
    assert float(output.logs["hard_negatives_accuracy_swapped"]) == float(output.logs["hard_negatives_accuracy_negated"]) == 1.0


def test_term__a_change_behind_the_end_of_the_context_is_none(make_objective: Make, make_text_batch: Make) -> None:
    batch, objective = make_text_batch(), make_objective(weight=0.0, terms=["hard_negatives"])
    texts = batch.texts["swapped"]
    # Of one row the text encoder is given the same twice; what it has of "negated" stays.
    row = int(texts.row[-1])
    cut, width = texts.row == row, min(texts.tokens.shape[1], batch.tokens.shape[1])
    texts.tokens[cut], texts.attention_mask[cut] = 0, 0
    texts.tokens[cut, :width] = batch.tokens[row, :width]
    texts.attention_mask[cut, :width] = batch.attention_mask[row, :width]
    kept = {
        kind: replace(some, **{k: getattr(some, k)[~cut] for k in vars(some)}) if kind == "swapped" else some
        for kind, some in batch.texts.items()
    }
    cut_off, without = objective(batch), objective(replace(batch, texts=kept))
    torch.testing.assert_close(cut_off.loss, without.loss)
    torch.testing.assert_close(cut_off.logs, without.logs)
    scale = objective.dual.logit_scale
    torch.testing.assert_close(*(torch.autograd.grad(output.loss, scale) for output in (cut_off, without)))
