from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from medfm.objectives.align.config import IntraModalConfig
from medfm.objectives.align.intra_modal import local_loss, pool_patches
from medfm.objectives.gather import SingleDevice
from medfm.objectives.losses import info_nce

Make = Callable[..., Any]
ONE = SingleDevice()
TCL = {"name": "intra_modal", "weight": 1.0}


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def in_batch_g2l(vectors: Tensor, local: Tensor, real: Tensor, scale: float, same: Any) -> float:
    """TCL's loss, one part at a time. `same(i, j)`: whether j is no negative of i."""
    n = len(vectors)
    each = []
    for i in range(n):
        others = [
            math.exp(scale * float(vectors[i] @ local[j, r]))
            for j in range(n)
            if j != i and not same(i, j)
            for r in range(local.shape[1])
            if real[j, r]
        ]
        own = [math.exp(scale * float(vectors[i] @ local[i, r])) for r in range(local.shape[1]) if real[i, r]]
        each.append(sum(-math.log(x / (x + sum(others))) for x in own) / len(own))
    return sum(each) / n


def test_local_loss__is_tcls() -> None:
    vectors, local = unit(4, 5), unit(4, 3, 5, seed=1)
    real = torch.ones(4, 3, dtype=torch.bool)
    expected = in_batch_g2l(vectors, local, real, 4.0, lambda i, j: False)
    log_scale = torch.tensor(4.0, dtype=torch.float64).log()
    assert float(local_loss(vectors, local, log_scale, gather=ONE)) == pytest.approx(expected, rel=1e-12)
    real[1, 2] = real[3, 1:] = False
    groups = [torch.tensor([7, 8, 7, -1]), torch.tensor([-1, -1, -1, -1])]
    expected = in_batch_g2l(vectors, local, real, 4.0, lambda i, j: {i, j} == {0, 2})
    assert float(local_loss(vectors, local, log_scale, real, groups=groups, gather=ONE)) == pytest.approx(expected, rel=1e-12)


def test_local_loss__has_the_gradient_of_its_value_and_none_for_the_parts() -> None:
    vectors, local = unit(4, 5).requires_grad_(), unit(4, 3, 5, seed=1).requires_grad_()
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    groups = [torch.tensor([7, 8, 7, 9])]
    assert torch.autograd.gradcheck(lambda v, s: local_loss(v, local, s, groups=groups, gather=ONE), [vectors, scale])
    local_loss(vectors, local, scale, gather=ONE).backward()
    assert local.grad is None


def test_local_loss__of_one_patient_alone_is_zero() -> None:
    vectors = unit(2, 5).requires_grad_()
    loss = local_loss(vectors, unit(2, 3, 5), torch.tensor(1.0).double(), groups=[torch.tensor([4, 4])], gather=ONE)
    loss.backward()
    assert float(loss.detach()) == 0
    assert vectors.grad is not None
    assert not vectors.grad.any()
    empty = local_loss(unit(0, 5), unit(0, 3, 5), torch.tensor(1.0).double(), gather=ONE)
    assert float(empty) == 0


def test_pool_patches__is_the_authors_for_sixteen_by_sixteen() -> None:
    local = unit(2, 256, 3)
    theirs = F.avg_pool2d(local.reshape(2, 16, 16, 3).permute(0, 3, 1, 2), 4, stride=4).permute(0, 2, 3, 1).reshape(2, 16, 3)
    torch.testing.assert_close(pool_patches(local, (16, 16)), theirs)
    assert pool_patches(unit(2, 4 * 9 * 6, 3), (4, 9, 6)).shape == (2, 2 * 3 * 2, 3)
    assert pool_patches(unit(0, 16, 3), (4, 4)).shape == (0, 4, 3)


def test_term__is_the_mean_of_four_losses(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(weight=0.0, terms=[TCL]), make_text_batch()
    (term,) = objective.terms
    rows = torch.tensor([r for r in range(10) if r != 1])
    view = batch.images[rows].flip(-1)
    term.views = lambda encoded: encoded.batch.images.flip(-1)
    dual, teacher = objective.dual, term.teacher
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(0.8)  # no longer the student's
        seen = teacher.image_encoder(view)
        key_image = F.normalize(teacher.image_projection(seen.cls_token), dim=-1)
        regions = F.normalize(teacher.image_projection(seen.patch_tokens), dim=-1).reshape(9, 2, 2, 2, 2, 8).mean((2, 4))
        tokens, mask = batch.tokens[rows], batch.attention_mask[rows]
        read = teacher.text_encoder(tokens, mask)
        key_text = F.normalize(teacher.text_projection(read.pooled), dim=-1)
        words = F.normalize(teacher.text_projection(read.tokens), dim=-1)
        image, text = dual.encode_image(batch.images[rows]), dual.encode_text(tokens, mask)
        scale, groups = dual.logit_scale, [batch.patient[rows], batch.text_group[rows]]

        def same(i: int, j: int) -> bool:
            return any(int(codes[i]) == int(codes[j]) for codes in groups)

        expected = [
            float(info_nce(image, key_image, scale, image_weight=1.0, groups=groups).loss),
            float(info_nce(text, key_text, scale, image_weight=1.0, groups=groups).loss),
            in_batch_g2l(image, regions.flatten(1, 2), torch.ones(9, 4), float(scale.exp()), same),
            in_batch_g2l(text, words, mask[:, : words.shape[1]], float(scale.exp()), same),
        ]
        output = objective(batch)
    assert float(output.loss) == pytest.approx(sum(expected) / 4, rel=1e-9)
    names = ("imc_image", "imc_text", "lmi_image", "lmi_text")
    assert [float(output.logs[f"intra_modal_{name}"]) for name in names] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("knobs", "names"), [({"sides": ["text"]}, ["imc_text", "lmi_text"]), ({"parts": ["imc"]}, ["imc_image", "imc_text"])]
)
def test_term__is_what_is_asked_for(make_objective: Make, make_text_batch: Make, knobs: Any, names: list[str]) -> None:
    objective = make_objective(weight=0.0, terms=[{**TCL, **knobs}])
    logs = objective(make_text_batch()).logs
    assert sorted(name.removeprefix("intra_modal_") for name in logs if name.startswith("intra_modal_")) == names


def test_teacher__follows_and_begins_as_a_copy(make_objective: Make, make_text_batch: Make) -> None:
    objective = make_objective(dropout=0.2, terms=[{**TCL, "momentum": 0.75}])
    (term,) = objective.terms
    assert not any(name.startswith("terms.0._student") for name in objective.state_dict())
    assert not term.teacher.image_encoder.training
    assert not any(p.requires_grad for p in term.teacher.parameters())
    with torch.no_grad():
        for p in objective.dual.parameters():
            p.add_(1.0)
    before = term.teacher.image_projection.weight.clone()
    objective.after_optimizer_step(1, 10)
    torch.testing.assert_close(
        term.teacher.image_projection.weight, 0.75 * before + 0.25 * objective.dual.image_projection.weight
    )
    objective.weights_loaded()
    for name, value in objective.dual.state_dict().items():
        torch.testing.assert_close(term.teacher.state_dict()[name], value, rtol=0, atol=0)


def test_config__sees_one_view() -> None:
    assert IntraModalConfig(views={"global_scale": (0.5, 1.0)}).views.global_count == 1
    with pytest.raises(ValidationError, match="one view"):
        IntraModalConfig(views={"global_count": 2})
