from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from medfm.encoders.pooling import pooled
from medfm.objectives.scaling import auto_momentum
from medfm.transforms.draws import Draws

Make = Callable[..., Any]


def test_two_steps__are_lightlys(make_two_views: Make, make_batch: Make, make_network: Make, train: Make) -> None:
    """Two steps with lightly's heads, loss and momentum update: losses, student, teacher and running statistics."""
    pytest.importorskip("lightly")
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import ProjectionHead
    from lightly.models.utils import update_momentum

    def mlp(sizes: tuple[int, int, int]) -> nn.Module:
        a, b, c = sizes
        return ProjectionHead([(a, b, nn.BatchNorm1d(b), nn.ReLU()), (b, c, None, None, False)]).double()

    objective = make_two_views("byol", momentum=0.9)
    student, predictor = nn.ModuleList([make_network(), mlp((16, 12, 8))]), mlp((8, 12, 8))
    for theirs, ours in ((student, objective.student), (predictor, objective.predictor)):
        for a, b in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True):
            a.copy_(b)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimiser = torch.optim.SGD([*student.parameters(), *predictor.parameters()], lr=0.1)
    batches = [make_batch(8), make_batch(8, seed=1)]
    views = [objective.two_views(batch, Draws(step)) for step, batch in enumerate(batches)]
    losses = train(objective, batches)

    def project(branch: Any, part: torch.Tensor) -> torch.Tensor:
        return branch[1](pooled(branch[0].image_encoder(part), "cls"))

    cosine, expected = NegativeCosineSimilarity(), []
    for step, pair in enumerate(views, start=1):
        first, second = pair.chunk(2)
        p1, p2 = predictor(project(student, first)), predictor(project(student, second))
        with torch.no_grad():
            z1, z2 = project(teacher, first), project(teacher, second)
        loss = 4 + 2 * cosine(p1, z2) + 2 * cosine(p2, z1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        update_momentum(student, teacher, m=[0.95, 1.0][step - 1])  # half a cosine from .9 at step 0 to 1 at step 2
        expected.append(float(loss.detach()))
    assert losses == pytest.approx(expected, rel=1e-9)
    for ours, theirs in ((objective.student, student), (objective.predictor, predictor), (objective.teacher, teacher)):
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)


def test_teacher__has_no_dropout_and_its_batch_norm_follows_the_mode(make_two_views: Make) -> None:
    objective = make_two_views("byol").train()
    modes = {name: module.training for name, module in objective.teacher.named_modules()}
    assert {name for name, training in modes.items() if training} == {"projector.1"}
    assert not any(module.training for module in objective.eval().teacher.modules())
    assert not any(parameter.requires_grad for parameter in objective.teacher.parameters())


def test_weights_loaded__gives_the_teacher_what_the_student_has(make_two_views: Make) -> None:
    objective = make_two_views("byol")
    objective.learner().image_encoder.cls_token.data.fill_(3.0)
    objective.weights_loaded()
    assert bool((objective.teacher.network.image_encoder.cls_token == 3.0).all())


def test_momentum__auto_is_scaled_to_batch_and_run(make_two_views: Make) -> None:
    objective = make_two_views("byol", batch_size=64, momentum="auto")
    objective.before_step(0, 100_000)
    assert objective.momentum == pytest.approx(auto_momentum(0.996, 4096, 64, 100_000))
    objective.before_step(100_000, 100_000)
    assert objective.momentum == pytest.approx(1.0)


def test_training__predicts_the_teacher(make_two_views: Make, make_batch: Make, train: Make) -> None:
    losses = train(make_two_views("byol"), [make_batch(8)] * 30)
    assert losses[-1] < 0.6 * losses[0]
