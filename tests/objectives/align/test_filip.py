from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medfm.objectives.align.filip import filip_scores
from medfm.objectives.align.scores import contrast_tokens, score_all
from medfm.objectives.gather import SingleDevice

Make = Callable[..., Any]


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def lengths(*counts: int) -> Tensor:
    return torch.arange(max(counts)) < torch.tensor(counts)[:, None]


def papers(patches: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 3 to 5 of FILIP, an element at a time."""
    to_text, to_image = torch.zeros(len(patches), len(words)).double(), torch.zeros(len(patches), len(words)).double()
    for i, x in enumerate(patches):
        for j, y in enumerate(words):
            real = y[mask[j].bool()]
            to_text[i, j] = sum(max(float(p @ w) for w in real) for p in x) / len(x)
            to_image[i, j] = sum(max(float(p @ w) for p in x) for w in real) / len(real)
    return to_text, to_image


def test_filip_scores__are_the_papers_equations_without_padding() -> None:
    patches, words, mask = tokens(3, 7, 4), tokens(5, 6, 4, seed=1), lengths(6, 2, 4, 1, 6)
    expected = papers(patches, words, mask)
    for found, theirs in zip(filip_scores(patches, words, mask, torch.tensor(3.0)), expected, strict=True):
        torch.testing.assert_close(found, 3 * theirs)
    noise = words + ~mask[:, :, None] * 100.0
    for found, theirs in zip(filip_scores(patches, noise, mask, torch.tensor(1.0)), expected, strict=True):
        torch.testing.assert_close(found, theirs)


def test_filip_scores__gradients() -> None:
    patches, words, scale = tokens(2, 3, 4), tokens(2, 4, 4, seed=1), torch.tensor(2.0).double()
    mask = lengths(4, 2)
    inputs = [x.clone().requires_grad_() for x in (patches, words, scale)]
    assert torch.autograd.gradcheck(lambda p, w, s: filip_scores(p, w, mask, s), inputs)


def test_score_all__is_the_same_in_tiles_of_any_size_and_holds_no_more() -> None:
    patches, words, mask = tokens(5, 7, 4).requires_grad_(), tokens(6, 8, 4, seed=1).requires_grad_(), lengths(8, 2, 4, 1, 6, 3)
    most = 0

    def score(p: Tensor, w: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal most
        most = max(most, len(p) * len(w) * p.shape[1] * w.shape[1])
        return filip_scores(p, w, m, torch.tensor(1.0))

    def gradients(held: int) -> tuple[Tensor, ...]:
        one, two = score_all(score, patches, words, mask, held)
        assert one.shape == two.shape == (5, 6)
        return one, two, *torch.autograd.grad((one.square() + two).sum(), [patches, words])

    whole = gradients(10**6)
    assert most == 5 * 6 * 7 * 8
    for held in (1, 60, 170, 400):
        most = 0
        for found, expected in zip(gradients(held), whole, strict=True):
            torch.testing.assert_close(found, expected)
        assert most <= max(held, 7 * 8)


def test_contrast_tokens__is_the_papers_loss_without_masked_pairs() -> None:
    patches, words, mask = tokens(4, 7, 4), tokens(4, 6, 4, seed=1), lengths(6, 2, 4, 5)
    groups = [torch.tensor([3, -1, 3, -1])]
    found = contrast_tokens(
        lambda p, w, m: filip_scores(p, w, m, torch.tensor(5.0)),
        patches,
        words,
        mask,
        groups=groups,
        gather=SingleDevice(),
        held=90,
    )
    to_text, to_image = (5 * x for x in papers(patches, words, mask))
    for scores in (to_text, to_image):
        scores[0, 2] = scores[2, 0] = -torch.inf
    own = torch.arange(4)
    expected = (F.cross_entropy(to_text, own) + F.cross_entropy(to_image.T, own)) / 2
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.image_to_text, (to_text.argmax(1) == own).double().mean())
    torch.testing.assert_close(found.text_to_image, (to_image.argmax(0) == own).double().mean())


def test_term__in_the_objective_learns_which_patch_is_which_word(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(weight=0.0, terms=[{"name": "filip", "held": 2000}]), make_text_batch()
    optimiser = torch.optim.Adam(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        output = objective(batch)
        output.loss.backward()
        optimiser.step()
        losses.append(float(output.loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert objective.dual.dense == "patches"
