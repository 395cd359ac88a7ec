from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from medfm.encoders.pooling import pooled
from medfm.objectives.ssl_config import SimclrConfig
from medfm.transforms.draws import Draws

Make = Callable[..., Any]


def test_step__is_lightlys(make_two_views: Make, make_batch: Make, make_network: Make, train: Make) -> None:
    """Loss and weights after a step with lightly's head and loss, and torch's batch normalisation of both views together."""
    pytest.importorskip("lightly")
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    objective = make_two_views("simclr", mask_same_patient=False, mask_same_text=False)
    network, head = make_network(), SimCLRProjectionHead(16, 12, 8).double()
    for theirs, ours in zip(head.parameters(), objective.student.projector.parameters(), strict=True):
        theirs.data.copy_(ours.data)
    batch = make_batch(8)
    views = objective.two_views(batch, Draws(0))
    (loss,) = train(objective, [batch])

    reference = nn.ModuleList([network, head])
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.1)
    expected = NTXentLoss(temperature=0.1)(*head(pooled(network.image_encoder(views), "cls")).chunk(2))
    expected.backward()
    optimiser.step()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-9)
    assert objective.model() is objective.student.network
    for ours, theirs in zip(objective.student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


def test_relatives__are_no_negatives_by_default(make_two_views: Make, make_batch: Make) -> None:
    def masked(batch: Any, **knobs: Any) -> float:
        return float(make_two_views("simclr", **knobs)(batch, Draws(0)).logs["masked_negatives"])

    batch = make_batch(8)  # rows 2 and 3 are one patient, 4 and 5 one text: each pair hides 2 x 2 views both ways
    assert masked(batch) == pytest.approx(2 * 8 / (16 * 14))
    assert masked(batch, mask_same_text=False) == masked(batch, mask_same_patient=False) == pytest.approx(8 / (16 * 14))
    assert masked(batch, mask_same_text=False, mask_same_patient=False) == pytest.approx(0.0, abs=1e-7)
    silent = replace(batch, text_group=torch.full((8,), -1))  # what a recipe without text gives
    assert masked(silent) == pytest.approx(8 / (16 * 14))


def test_training__tells_images_apart(make_two_views: Make, make_batch: Make, train: Make) -> None:
    objective = make_two_views("simclr")
    losses = train(objective, [make_batch(8)] * 40, lr=0.05)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("views", [{"local_count": 2}, {"global_count": 3}])
def test_config__wants_two_views(views: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="two views"):
        SimclrConfig.model_validate({"views": views})


def test_config__keeps_the_papers_crop_where_another_key_is_set() -> None:
    views = SimclrConfig.model_validate({"views": {"blur_p": [0.5, 0.5, 0.5]}}).views
    assert (views.global_scale, views.local_count, views.blur_p) == ((0.08, 1.0), 0, (0.5, 0.5, 0.5))
