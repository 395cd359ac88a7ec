from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from medfm.objectives.align.concepts import best_patch, patch_concept_loss
from medfm.objectives.config import ContrastiveConfig

Make = Callable[..., Any]


def conceptclip(patches: Any, mentions: Any, owner: list[int], scale: float, bias: float) -> float:
    """`_concept_token_level_loss`, pair by pair: images (B, N, D) against mentions (M, D), each of one image's caption."""
    total = 0.0
    for b, image in enumerate(patches):
        for m, mention in enumerate(mentions):
            logit = max(math.exp(scale) * float(p @ mention) + bias for p in image)
            sign = 1 if owner[m] == b else -1
            total += math.log1p(math.exp(-sign * logit))
    return total / len(mentions)


def test_patch_concept_loss__is_conceptclips_where_no_concept_is_mentioned_twice() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = F.normalize(torch.randn(3, 5, 4, generator=generator).double(), dim=-1)
    mentions = F.normalize(torch.randn(6, 4, generator=generator).double(), dim=-1)
    owner = [0, 0, 2, 1, 2, 2]
    positive = torch.tensor([[o == b for o in owner] for b in range(3)])
    scale, bias = torch.tensor(1.1, dtype=torch.float64), torch.tensor(-0.7, dtype=torch.float64)
    none = torch.zeros_like(positive)
    loss = patch_concept_loss(best_patch(patches, mentions), scale, bias, positive, none) / positive.sum()
    assert float(loss) == pytest.approx(conceptclip(patches, mentions, owner, 1.1, -0.7), rel=1e-12)


def test_patch_concept_loss__has_the_gradient_of_its_value() -> None:
    generator = torch.Generator().manual_seed(1)
    arguments = [torch.randn(shape, generator=generator).double().requires_grad_() for shape in ((2, 3, 4), (3, 4), (), ())]
    positive = torch.tensor([[True, False, False], [False, True, False]])
    out = torch.tensor([[True, False, True], [False, False, True]])

    def loss(patches: Any, concepts: Any, scale: Any, bias: Any) -> Any:
        return patch_concept_loss(best_patch(patches, concepts), scale, bias, positive, out)

    assert torch.autograd.gradcheck(loss, arguments)
    gradients = torch.autograd.grad(loss(*arguments), arguments)
    assert not gradients[1][2].any()  # left out of both images
    assert gradients[1][0].any()  # positive, though left out


@pytest.mark.parametrize("heads", ["joint", "own"])
def test_term__is_the_loss_over_stated_concepts(
    make_objective: Make, make_text_batch: Make, tiny_tokenizer: Any, heads: str
) -> None:
    batch = make_text_batch()
    terms = [{"name": "concepts", "heads": heads, "weight": 1.0, "scale": 5.0, "bias": -1.0}]
    objective = make_objective(weight=0.0, knowledge="chest", terms=terms)
    rows = [r for r in range(10) if r != 1]
    said = batch.concepts[rows][:, [0, 2, 4]].tolist()
    patient, text = batch.patient[rows].tolist(), batch.text_group[rows].tolist()
    dual, term = objective.dual, objective.terms[0]
    tokens, mask = tiny_tokenizer(["Opacity", "Nodule", "Effusion"])
    with torch.no_grad():
        raw = dual.image_encoder(batch.images[rows]).patch_tokens
        if heads == "joint":
            patches, names = F.normalize(dual.image_projection(raw), dim=-1), dual.encode_text(tokens, mask)
        else:
            patches = F.normalize(term.heads["image"](raw), dim=-1)
            # The first token of each is its name, the second the end.
            names = F.normalize(term.heads["text"](dual.text_encoder(tokens, mask).tokens[:, 0]), dim=-1)
        output = objective(batch)
    total, positives = 0.0, 0
    for i, row in enumerate(said):
        for k in range(3):
            relative = {0: 1, 1: 0}.get(k)
            near = relative is not None and row[relative] == 1
            shared = any(said[j][k] == 1 and (patient[j] == patient[i] or text[j] == text[i]) for j in range(len(rows)))
            if row[k] != 1 and math.isnan(row[k]) and (near or shared):
                continue
            logit = 5.0 * max(float(p @ names[k]) for p in patches[i]) - 1.0
            total += math.log1p(math.exp(-logit if row[k] == 1 else logit))
            positives += row[k] == 1
    assert float(output.loss) == pytest.approx(total / positives, rel=1e-6)  # the start of the scale is a float32


def test_term__touches_its_parameters_where_nothing_is_stated(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = (
        make_objective(weight=0.0, knowledge="chest", terms=[{"name": "concepts", "heads": "own"}]),
        make_text_batch(),
    )
    batch.concepts[:] = torch.nan
    output = objective(batch)
    output.loss.backward()
    assert float(output.loss.detach()) == 0
    assert all(p.grad is not None for p in objective.terms.parameters())


def test_after_optimizer_step__bounds_the_scale(make_objective: Make) -> None:
    objective = make_objective(knowledge="chest", terms=[{"name": "concepts"}])
    with torch.no_grad():
        objective.terms[0].logit_scale.fill_(9.0)
    objective.after_optimizer_step(1, 2)
    assert float(objective.terms[0].logit_scale.detach().exp()) == pytest.approx(100.0)


def test_config__aligns_patches_only_in_the_joint_space() -> None:
    terms = [{"name": "concepts"}, {"name": "concepts", "heads": "own"}]
    joint, own = ContrastiveConfig(knowledge="chest", terms=terms).terms  # type: ignore[arg-type]
    assert joint.aligns_patches
    assert not own.aligns_patches
