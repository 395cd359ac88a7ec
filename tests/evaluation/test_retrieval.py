"""Ranks, duplicates, chance: against brute force and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medfm.evaluation.retrieval import chance_recall, image_ranks, recall_curve, summarise, text_ranks
from medfm.evaluation.statistics import PatientResamples


def world(n: int = 30, texts: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(n, 8, generator=generator), dim=-1)
    vectors = F.normalize(torch.randn(texts, 8, generator=generator), dim=-1)
    return images, vectors, np.random.default_rng(seed).permutation(np.arange(n) % texts)


def test_image_ranks__against_sorting() -> None:
    images, texts, text_of = world()
    similarity = (images.double() @ texts.double().T).numpy()
    expected = [int(np.flatnonzero(np.argsort(-row) == own)[0]) + 1 for row, own in zip(similarity, text_of, strict=True)]
    np.testing.assert_array_equal(image_ranks(images, texts, text_of), expected)


def test_text_ranks__the_best_image_with_the_text_counts() -> None:
    images, texts, text_of = world()
    similarity = (texts.double() @ images.double().T).numpy()
    ranks = text_ranks(texts, images, text_of)
    for number, row in enumerate(similarity):
        found = text_of[np.argsort(-row)]
        # Other images of the same text do not stand in the way; the first hit is what counts.
        assert ranks[number] == int(np.flatnonzero(found == number)[0]) + 1


def test_ranks__chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts, text_of = world()
    before = image_ranks(images, texts, text_of), text_ranks(texts, images, text_of)
    monkeypatch.setattr("medfm.evaluation.retrieval._CHUNK", 7)
    np.testing.assert_array_equal(image_ranks(images, texts, text_of), before[0])
    np.testing.assert_array_equal(text_ranks(texts, images, text_of), before[1])


def test_ranks__a_collapsed_model_ranks_in_the_middle_not_first() -> None:
    same = F.normalize(torch.ones(9, 4), dim=-1)
    np.testing.assert_array_equal(image_ranks(same, same, np.arange(9)), 5.0)
    np.testing.assert_array_equal(text_ranks(same, same, np.arange(9)), 5.0)


def test_chance_recall__by_simulation() -> None:
    relevant = np.array([1, 3])
    rng = np.random.default_rng(0)
    hits = np.zeros(10)
    for _ in range(4000):
        for m in relevant:
            hits[rng.permutation(10)[:m].min() :] += 1
    np.testing.assert_allclose(chance_recall(10, relevant), hits / 8000, atol=0.02)
    np.testing.assert_allclose(chance_recall(5, np.ones(7, dtype=int)), np.arange(1, 6) / 5)


def test_recall_curve_and_summary__by_hand() -> None:
    ranks = np.array([1.0, 2.0, 2.0, 6.0])
    np.testing.assert_allclose(recall_curve(ranks, 6), [0.25, 0.75, 0.75, 0.75, 0.75, 1.0])
    result = summarise(ranks, PatientResamples(["a", "a", "b", "c"], 100), (1, 5), 0.95)
    assert result["recall"]["1"]["value"] == 0.25
    assert result["recall"]["5"]["value"] == 0.75
    assert result["median_rank"]["value"] == 2.0
    assert result["recall"]["5"]["low"] <= 0.75 <= result["recall"]["5"]["high"]
