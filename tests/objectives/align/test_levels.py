from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medfm.objectives.align.config import LevelsConfig
from medfm.objectives.align.gloria import attended_scores
from medfm.types import Batch

Make = Callable[..., Any]


def mean_of_directions(scores: Tensor, masked: Tensor) -> Tensor:
    own = torch.arange(len(scores))
    scores = scores.masked_fill(masked.fill_diagonal_(False), -torch.inf)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def related(batch: Batch, rows: Tensor) -> Tensor:
    return (batch.patient[rows, None] == batch.patient[rows]) | (batch.text_group[rows, None] == batch.text_group[rows])


def test_term__is_the_contrast_of_each_level(make_objective: Make, make_text_batch: Make) -> None:
    batch = make_text_batch()
    objective = make_objective(weight=0.0, terms=[{"name": "levels", "sections": 0.5, "sentences": 2.0}])
    dual = objective.dual
    with torch.no_grad():
        logs = objective(batch).logs
        expected = {}
        for kind in ("findings", "impression"):
            texts = batch.texts[kind]
            stay = texts.row != 1
            row, code = texts.row[stay], texts.code[stay]
            text = dual.encode_text(texts.tokens[stay], texts.attention_mask[stay])
            scores = dual.logit_scale.exp() * dual.encode_image(batch.images[row]) @ text.T
            expected[kind] = mean_of_directions(scores, related(batch, row) | (code[:, None] == code))
        texts = batch.texts["sentences"]
        rows = torch.tensor([r for r in texts.row.unique().tolist() if r != 1])
        patches = F.normalize(dual.image_projection(dual.image_encoder(batch.images[rows]).patch_tokens), dim=-1)
        reports = [texts.row == r for r in rows]
        columns = []
        for own in reports:
            sentences = dual.encode_text(texts.tokens[own], texts.attention_mask[own])[None]
            columns.append(attended_scores(patches, sentences, torch.ones(sentences.shape[:2], dtype=torch.bool))[0])
        expected["sentences"] = mean_of_directions(torch.cat(columns, dim=1), related(batch, rows))
    for name, value in expected.items():
        torch.testing.assert_close(logs[f"levels_loss_{name}"], value)
    whole = 0.25 * (expected["findings"] + expected["impression"]) + 2 * expected["sentences"]
    torch.testing.assert_close(logs["loss_levels"], whole)


def test_config__refuses_to_learn_nothing() -> None:
    with pytest.raises(ValueError, match="nothing would be learned"):
        LevelsConfig(sections=0, sentences=0)
