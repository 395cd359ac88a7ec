"""What SimCLR, MoCo, BYOL and Barlow Twins share: from a recipe's parts to a step on stored pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medfm.encoders.image import ImageModel
from medfm.objectives.base import Parts
from medfm.registry import ENCODERS, OBJECTIVES
from medfm.transforms.config import AugmentConfig, PreprocessConfig
from medfm.transforms.draws import Draws
from medfm.transforms.preprocess import Preprocess
from medfm.types import Batch

SMALL = {"simclr": {"hidden_dim": 8}, "moco": {"hidden_dim": 8}, "byol": {"hidden_dim": 8}, "barlow": {"out_dim": 8}}


def parts(axes: int, encoder: dict[str, Any]) -> Parts:
    contract = PreprocessConfig.model_validate({"size": [12] * axes, "window": "none"})
    size = {"img_size": [8] * axes, "patch_size": [4] * axes, "embed_dim": 12, "depth": 1, "num_heads": 2}
    return Parts(ENCODERS.parse({"name": "vit", **size, **encoder}), Preprocess(contract), AugmentConfig(noise=0.1), 4)


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize(("axes", "encoder"), [(2, {}), (3, {"pool": "mean"})], ids=["2D", "3D"])
def test_build__steps_on_stored_pixels(name: str, axes: int, encoder: dict[str, Any]) -> None:
    """Views of the encoder's 8 pixels are cut from stored 12; every trainable parameter gets a gradient."""
    made = parts(axes, encoder)
    objective = OBJECTIVES.build(OBJECTIVES.parse({"name": name, "out_dim": 6, **SMALL[name]}), parts=made)
    assert objective.takes_stored_pixels
    assert objective.config.makes_views
    assert isinstance(objective.model(), ImageModel)
    assert objective.model().image_encoder is made.image_encoder
    stored = torch.randint(0, 255, (4, 1, *[12] * axes), dtype=torch.uint8)
    rows = torch.arange(4)
    batch = Batch(stored, None, None, rows, torch.full((4,), -1), torch.zeros(4, 0), rows)
    assert objective.two_views(batch, Draws(0)).shape == (8, 1, *[8] * axes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = objective(batch, Draws(0))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss)
    without = {n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None}
    assert not without
    objective.eval()
    assert float(objective(batch, Draws(1)).loss.detach()) == float(objective(batch, Draws(1)).loss.detach())


def test_heads__are_left_out_of_the_model() -> None:
    made = parts(2, {})
    objective = OBJECTIVES.build(OBJECTIVES.parse({"name": "byol", "hidden_dim": 8}), parts=made)
    assert all(name.startswith("image_encoder.") for name in objective.model().state_dict())
