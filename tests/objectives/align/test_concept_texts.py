from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from medfm.errors import ConfigError, DataError
from medfm.objectives.align.concept_texts import ConceptTexts, false_negatives, left_out
from medfm.objectives.gather import SingleDevice

Make = Callable[..., Any]
NAN = torch.nan


def test_concept_texts__has_columns_texts_and_hierarchy(knowledge: Any, tiny_tokenizer: Any, make_objective: Make) -> None:
    texts = ConceptTexts(knowledge, tiny_tokenizer, ("pathology",), "description", "knowledge")
    assert texts.columns.tolist() == [0, 2, 4]
    assert texts.related.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    names = ConceptTexts(knowledge, tiny_tokenizer, ("anatomy", "pathology"), "name", "knowledge")
    assert names.tokens.shape == (6, 2)  # a word and the end, nothing more
    assert names.related.sum() == 4
    dual = make_objective().dual
    which = torch.tensor([2, 0])
    said = tiny_tokenizer([knowledge.describe("Effusion"), knowledge.describe("Opacity")])
    torch.testing.assert_close(texts.vectors(dual, which, SingleDevice()), dual.encode_text(*said))


def test_concept_texts__says_what_is_missing(knowledge: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="knowledge"):
        ConceptTexts(None, tiny_tokenizer, ("pathology",), "name", "knowledge")
    with pytest.raises(ConfigError, match="no concept of kind device"):
        ConceptTexts(knowledge, tiny_tokenizer, ("device",), "name", "knowledge")


def test_stated__refuses_batches_of_another_file(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(knowledge="chest", terms=[{"name": "knowledge"}]), make_text_batch()
    objective(batch)
    batch.concepts = batch.concepts[:, :5]
    with pytest.raises(DataError, match="5 concepts, the knowledge file 6"):
        objective(batch)
    batch.concepts = None
    with pytest.raises(DataError, match="no concepts"):
        objective(batch)


def test_left_out__is_silence_on_relatives_of_what_is_stated() -> None:
    related = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    stated = torch.tensor([[1, NAN, NAN], [NAN, 1, 0], [1, 0, NAN], [NAN, NAN, 1], [0, NAN, NAN]])
    assert left_out(stated, related, "negative").tolist() == [
        [False, True, False],
        [True, False, False],
        [False, False, False],
        [False, False, False],
        [False, False, False],
    ]
    assert torch.equal(left_out(stated, related, "ignored"), stated.isnan())


def test_false_negatives__are_silent_rows_of_a_group_that_states_it() -> None:
    stated = torch.tensor([[1, NAN], [NAN, NAN], [0, NAN], [NAN, NAN]])
    found = false_negatives(stated == 1, stated, [torch.tensor([5, 5, 5, -1])])
    assert found.tolist() == [[False, False], [True, False], [False, False], [False, False]]
