from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from medfm.errors import ConfigError
from medfm.objectives.align.config import ImageViewsConfig
from medfm.objectives.align.image_views import ImageViewsTerm
from medfm.transforms.draws import Draws

Make = Callable[..., Any]
SMALL = {"name": "image_views", "hidden_dim": 12, "out_dim": 8, "predictor_dim": 4}


def batch_norm(x: Tensor, norm: Any) -> Tensor:
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    return x if norm.weight is None else x * norm.weight + norm.bias


def mlp(head: Any, x: Tensor) -> Tensor:
    for layer in head:
        if isinstance(layer, torch.nn.Linear):
            x = x @ layer.weight.t() + (0.0 if layer.bias is None else layer.bias)
        elif isinstance(layer, torch.nn.ReLU):
            x = x.clamp(min=0)
        else:
            x = batch_norm(x, layer)
    return x


@pytest.fixture
def projected(make_objective: Make, make_text_batch: Make) -> Callable[..., Any]:
    """An objective whose views are the image and its mirror image, and what its heads make of them."""

    def make(**knobs: Any) -> tuple[Any, ...]:
        objective, batch = make_objective(weight=0.0, terms=[{**SMALL, **knobs}]), make_text_batch()
        (term,) = objective.terms
        term.views = lambda encoded: torch.cat([encoded.batch.images, encoded.batch.images.flip(-1)])
        rows = [r for r in range(10) if r != 1]
        images = torch.cat([batch.images[rows], batch.images[rows].flip(-1)])
        z = mlp(term.projector, objective.dual.image_encoder(images).cls_token)
        return objective, batch, term, z, rows

    return make


def test_term__is_simsiams(projected: Make) -> None:
    objective, batch, term, z, _ = projected()
    p = mlp(term.predictor, z)
    target = z.detach()
    expected = -0.5 * (F.cosine_similarity(p[:9], target[9:]).mean() + F.cosine_similarity(p[9:], target[:9]).mean())
    output = objective(batch)
    torch.testing.assert_close(output.loss, expected, rtol=1e-9, atol=0)
    output.loss.backward()
    found = term.projector[0].weight.grad.clone()
    objective.zero_grad()
    expected.backward()
    torch.testing.assert_close(found, term.projector[0].weight.grad, rtol=1e-7, atol=1e-12)
    assert found.any()


def test_term__is_nt_xent_with_loss_simclr(projected: Make) -> None:
    objective, batch, _, z, rows = projected(loss="simclr", temperature=0.5)
    patient, text = batch.patient[rows].tolist() * 2, batch.text_group[rows].tolist() * 2
    z = F.normalize(z, dim=1)
    losses = []
    for i in range(18):
        pair = (i + 9) % 18
        keep = [k for k in range(18) if k == pair or (k % 9 != i % 9 and patient[k] != patient[i] and text[k] != text[i])]
        scores = torch.stack([z[i] @ z[k] / 0.5 for k in keep])
        losses.append(scores.logsumexp(0) - z[i] @ z[pair] / 0.5)
    torch.testing.assert_close(objective(batch).loss, torch.stack(losses).mean(), rtol=1e-9, atol=0)


def test_term__cuts_its_own_views(make_objective: Make, make_text_batch: Make) -> None:
    objective, batch = make_objective(weight=0.0, terms=[SMALL]), make_text_batch()
    first, again, other = (float(objective(batch, Draws(seed)).loss.detach()) for seed in (1, 1, 2))
    assert first == again != other
    batch.text_group[:] = -1
    objective.zero_grad()
    loss = objective(batch, Draws(1)).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None for p in objective.terms.parameters())


def test_term__needs_a_contract(make_objective: Make) -> None:
    with pytest.raises(ConfigError, match="preprocessing contract"):
        ImageViewsTerm(ImageViewsConfig(), dual=make_objective().dual)


def test_config__compares_two_views() -> None:
    assert ImageViewsConfig(views={"blur_p": (0.5, 0.5, 0.5)}).views.global_scale == (0.2, 1.0)
    with pytest.raises(ValidationError, match="two views"):
        ImageViewsConfig(views={"local_count": 2})
