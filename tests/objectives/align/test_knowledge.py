from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from medfm.objectives.align.knowledge import concept_contrast

Make = Callable[..., Any]


def unicl(image: Any, concepts: Any, scale: float, positive: Any, out: Any) -> float:
    """The two sums of UniCL, pair by pair."""
    a = [[math.exp(scale) * float(u @ v) for v in concepts] for u in image]
    sides = []
    for columns_first in (False, True):
        losses = []
        for i in range(len(concepts) if columns_first else len(image)):
            pairs = [(j, i) if columns_first else (i, j) for j in range(len(image) if columns_first else len(concepts))]
            own = [a[p][q] for p, q in pairs if positive[p][q]]
            if own:
                total = sum(math.exp(a[p][q]) for p, q in pairs if positive[p][q] or not out[p][q])
                losses.append(-sum(math.log(math.exp(x) / total) for x in own) / len(own))
        sides.append(sum(losses) / len(losses))
    return sum(sides) / 2


@pytest.fixture
def case() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(5, 3, generator=generator).double(), dim=1)
    concepts = F.normalize(torch.randn(4, 3, generator=generator).double(), dim=1)
    positive = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]) == 1
    out = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]) == 1
    return image, concepts, torch.tensor(1.3).double(), positive, out


def test_concept_contrast__is_unicls(case: tuple[Any, ...]) -> None:
    image, concepts, scale, positive, out = case
    expected = unicl(image, concepts, float(scale), positive.tolist(), out.tolist())
    assert float(concept_contrast(*case)) == pytest.approx(expected, rel=1e-12)


def test_concept_contrast__has_the_gradient_of_its_value(case: tuple[Any, ...]) -> None:
    image, concepts, scale, positive, out = case
    arguments = [x.clone().requires_grad_() for x in (image, concepts, scale)]
    assert torch.autograd.gradcheck(lambda *x: concept_contrast(*x, positive, out), arguments)
    (gradient,) = torch.autograd.grad(concept_contrast(*arguments, positive, out), arguments[1])
    assert not gradient[2].any()  # left out of every image that has a positive
    assert gradient.isfinite().all()


def test_concept_contrast__of_one_concept_an_image_is_info_nce(case: tuple[Any, ...]) -> None:
    from medfm.objectives.losses import info_nce

    image, _, scale, _, _ = case
    none = torch.zeros(5, 5, dtype=torch.bool)
    found = concept_contrast(image, image.flip(0), scale, torch.eye(5) == 1, none)
    torch.testing.assert_close(found, info_nce(image, image.flip(0), scale).loss)


def test_term__is_the_contrast_with_what_reports_state(
    make_objective: Make, make_text_batch: Make, knowledge: Any, tiny_tokenizer: Any
) -> None:
    batch = make_text_batch()
    objective = make_objective(weight=0.0, knowledge="chest", terms=[{"name": "knowledge"}])
    rows = [r for r in range(10) if r != 1]
    said = batch.concepts[rows][:, [0, 2, 4]].tolist()
    dual = objective.dual
    texts = [knowledge.describe(name) for name in ("Opacity", "Nodule", "Effusion")]
    positive = [[x == 1 for x in row] for row in said]
    out = [[False] * 3 for _ in rows]
    patient, text = batch.patient[rows].tolist(), batch.text_group[rows].tolist()
    for i, row in enumerate(said):
        for k in range(3):
            relative = {0: 1, 1: 0}.get(k)
            near = relative is not None and row[relative] == 1
            shared = any(positive[j][k] and (patient[j] == patient[i] or text[j] == text[i]) for j in range(len(rows)))
            out[i][k] = math.isnan(row[k]) and (near or shared)
    assert any(map(any, out))
    with torch.no_grad():
        image, concepts = dual.encode_image(batch.images[rows]), dual.encode_text(*tiny_tokenizer(texts))
        output = objective(batch)
    expected = unicl(image, concepts, float(dual.logit_scale.detach()), positive, out)
    assert float(output.loss) == pytest.approx(expected, rel=1e-9)
    assert float(output.logs["knowledge_stated"]) == pytest.approx(sum(map(sum, positive)) / 9)


def test_term__without_anything_stated_is_zero_and_finite(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(weight=0.0, knowledge="chest", terms=[{"name": "knowledge"}]), make_text_batch()
    for value in (torch.nan, 0.0):
        batch.concepts = torch.full_like(batch.concepts, value)
        output = objective(batch)
        output.loss.backward()
        assert float(output.loss.detach()) == 0
    batch.text_group[:] = -1
    assert float(objective(batch).loss.detach()) == 0


def test_term__learns_what_images_show(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(weight=0.0, knowledge="chest", terms=[{"name": "knowledge"}]), make_text_batch()
    optimiser = torch.optim.Adam(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = objective(batch).loss
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
