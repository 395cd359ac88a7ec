from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from medfm.objectives.align.segments import by_row, once_a_row
from medfm.objectives.align.sentences import selected_patches

Make = Callable[..., Any]


def test_selected_patches__are_the_most_similar_of_the_own_image() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = F.normalize(torch.randn(3, 7, 4, generator=generator).double(), dim=-1).requires_grad_()
    sentences = F.normalize(torch.randn(4, 4, generator=generator).double(), dim=-1)
    row = torch.tensor([0, 2, 2, 2])
    found, chosen = selected_patches(patches, sentences, row, 2)
    for m, sentence in enumerate(sentences):
        best = sorted(range(7), key=lambda n: -float(patches[row[m], n].detach() @ sentence))[:2]
        assert set(chosen[m].tolist()) == set(best)
        mean = patches[row[m], best].mean(0)
        torch.testing.assert_close(found[m], mean / mean.norm())
    (gradient,) = torch.autograd.grad(found.sum(), patches)
    touched = gradient.abs().sum(2) > 0
    assert not touched[1].any()
    assert set(touched[0].nonzero().flatten().tolist()) == set(chosen[0].tolist())
    assert selected_patches(patches, sentences, row, 99)[1].shape == (4, 7)


def test_by_row__pads_what_each_row_has() -> None:
    values = torch.arange(8.0).reshape(4, 2)
    padded, mask = by_row(values, torch.tensor([1, 4, 4, 4]), torch.tensor([1, 3, 4]))
    assert mask.tolist() == [[True, False, False], [False] * 3, [True] * 3]
    assert padded[0, 0].tolist() == [0, 1]
    assert padded[2].tolist() == values[1:].tolist()
    assert not padded[1].any()


def test_once_a_row__drops_repetitions() -> None:
    row, code = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([5, 6, 5, 5, 5])
    assert once_a_row(row, code).tolist() == [0, 1, 3]


def test_term__is_info_nce_of_sentences_and_their_patches(make_objective: Make, make_text_batch: Make) -> None:
    """Negatives are the report's own other sentences, and those of other reports that are not of the patient nor the same."""
    batch = make_text_batch()
    objective = make_objective(weight=0.0, terms=[{"name": "sentences", "top": 3}])
    texts = batch.texts["sentences"]
    kept = [m for m in range(len(texts.row)) if int(texts.row[m]) != 1]
    seen: set[tuple[int, int]] = set()
    kept = [m for m in kept if (key := (int(texts.row[m]), int(texts.code[m]))) not in seen and not seen.add(key)]
    row, code = texts.row[kept], texts.code[kept]
    dual = objective.dual
    with torch.no_grad():
        patches = F.normalize(dual.image_projection(dual.image_encoder(batch.images).patch_tokens), dim=-1)
        sentences = dual.encode_text(texts.tokens[kept], texts.attention_mask[kept])
        aligned, _ = selected_patches(patches, sentences, row, 3)
        scores = dual.logit_scale.exp() * aligned @ sentences.T
        for i, a in enumerate(row.tolist()):
            for j, b in enumerate(row.tolist()):
                related = batch.patient[a] == batch.patient[b] or batch.text_group[a] == batch.text_group[b]
                if i != j and (code[i] == code[j] or (a != b and related)):
                    scores[i, j] = -torch.inf
        found = objective(batch).loss
    masked = scores == -torch.inf
    assert masked.any()
    assert any(not masked[i, j] for i in range(len(row)) for j in range(len(row)) if i != j and row[i] == row[j])
    own = torch.arange(len(row))
    torch.testing.assert_close(found, (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2)
