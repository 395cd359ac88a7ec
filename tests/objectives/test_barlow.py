from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from medfm.encoders.pooling import pooled
from medfm.transforms.draws import Draws

Make = Callable[..., Any]


def test_step__is_lightlys(make_two_views: Make, make_batch: Make, make_network: Make, train: Make) -> None:
    """Loss, weights and running statistics after a step with lightly's head and loss, one view after the other."""
    pytest.importorskip("lightly")
    from lightly.loss import BarlowTwinsLoss
    from lightly.models.modules.heads import ProjectionHead

    objective = make_two_views("barlow")
    blocks: list[Any] = [(16, 8, nn.BatchNorm1d(8), nn.ReLU()), (8, 8, nn.BatchNorm1d(8), nn.ReLU()), (8, 8, None, None, False)]
    network, head = make_network(), ProjectionHead(blocks).double()
    for theirs, ours in zip(head.state_dict().values(), objective.student.projector.state_dict().values(), strict=True):
        theirs.copy_(ours)
    batch = make_batch(8)
    views = objective.two_views(batch, Draws(0))
    (loss,) = train(objective, [batch], lr=0.01)

    reference = nn.ModuleList([network, head])
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.01)
    first, second = (head(pooled(network.image_encoder(part), "cls")) for part in views.chunk(2))
    expected = BarlowTwinsLoss(lambda_param=0.0051)(first, second)
    expected.backward()
    optimiser.step()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-9)
    for ours, theirs in zip(objective.student.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-10)


def test_training__makes_the_views_agree(make_two_views: Make, make_batch: Make, train: Make) -> None:
    objective, batch = make_two_views("barlow", layers=2), make_batch(10)
    before = objective(batch, Draws(0)).logs
    losses = train(objective, [batch] * 30, lr=0.02)
    after = objective(batch, Draws(0)).logs
    assert losses[-1] < losses[0]
    assert float(after["on_diagonal"]) < 0.5 * float(before["on_diagonal"])
