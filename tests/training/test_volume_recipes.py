"""Recipes with encoders of volumes: they resolve, build, take a step as the planner says, and fit a card."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medfm.config.resolve import resolve
from medfm.errors import ConfigError
from medfm.registry import ENCODERS, OBJECTIVES
from medfm.training.config import PretrainConfig
from medfm.training.module import kernels_channels_last
from medfm.training.plan.estimate import memory_of
from medfm.training.plan.measure import measure_step
from medfm.training.plan.settings import Setting, overrides
from medfm.training.plan.trace import build_on_meta, parts_of, trace_step

SIZE = [12, 32, 48]
VIT = {"encoder.patch_size": [4, 16, 16], "encoder.embed_dim": 24, "encoder.depth": 2, "encoder.num_heads": 2}
CASES: dict[str, dict[str, Any]] = {
    "segresnet": {
        "encoder": "monai", "encoder.model": "segresnet", "encoder.init_filters": 8, "encoder.blocks_down": [1, 1, 1],
    },
    "ctvit": {
        "encoder": "ctvit", "encoder.patch_size": [4, 8, 8], "encoder.embed_dim": 24, "encoder.spatial_depth": 1,
        "encoder.temporal_depth": 1, "encoder.num_heads": 2, "encoder.head_dim": 8,
    },
    "slices": {
        "encoder": "slices", "encoder.pool_heads": 2, "encoder.slice_chunk": 4,
        "encoder.encoder": {"name": "vit", "img_size": [32, 48], "embed_dim": 24, "depth": 2, "num_heads": 2},
    },
    "windows": {"encoder": "vit", **VIT, "encoder.window": [1, 2, 3], "encoder.global_blocks": []},
}  # fmt: skip


def recipe(size: list[int] = SIZE, **changes: Any) -> PretrainConfig:
    tiny = {
        "data.manifest": "none.parquet", "data.batch_size": 4, "preprocess.size": size, "encoder.img_size": size,
        "preprocess.window": "hu", "objective": "contrastive", "objective.text_encoder.depth": 1,
        "objective.text_encoder.embed_dim": 64, "objective.text_encoder.num_heads": 2,
    }  # fmt: skip
    return resolve(PretrainConfig, "pretrain", None, {**tiny, **changes}, files=False).config


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_plan__follows_a_step_of_volumes(name: str, checkpointing: bool) -> None:
    config = recipe(**CASES[name], **{"encoder.gradient_checkpointing": checkpointing})
    foot, weights = trace_step(config, 4, cuda=False)
    real = measure_step(config, 4, "cpu", steps=1)
    assert real.kept is not None
    assert foot.kept == pytest.approx(real.kept, rel=0.05)
    memory = memory_of(foot, weights, Setting("32-true", checkpointing, 4), 1)
    # A CPU's convolutions take working memory that no tensor shows.
    assert memory.total - memory.margin == pytest.approx(real.peak, rel=0.1 if name == "segresnet" else 0.06)
    assert foot.guesses == 0


@pytest.mark.parametrize(("model", "size"), [("swin_unetr", [32, 32, 64]), ("resnet10", [32, 32, 64])])
def test_pretrain__objective_with_monai_builds(model: str, size: list[int]) -> None:
    config = recipe(size, encoder="monai", **{"encoder.model": model})
    objective = OBJECTIVES.build(config.objective, parts=parts_of(config))
    assert objective.dual.image_encoder.grid_size == (1, 1, 2)
    assert objective.dual.image_projection.weight.shape[1] == objective.dual.image_encoder.embed_dim


def test_resolve__sizes_that_differ_are_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"encoder.img_size \[12, 32, 48\] differs from preprocess.size \[12, 32, 32\]"):
        recipe(**CASES["slices"], **{"preprocess.size": [12, 32, 32]})
    with pytest.raises(ConfigError, match="not a multiple of the"):
        recipe([12, 32, 36], **CASES["ctvit"])
    with pytest.raises(ConfigError, match=r"encoder\.encoder\.dpth.*did you mean"):
        recipe(**CASES["slices"], **{"encoder.encoder.dpth": 3})


CT_CLIP: dict[str, dict[str, Any]] = {
    "ctvit": {"encoder": "ctvit"},
    "windows": {"encoder": "vit", "encoder.patch_size": [10, 20, 20], "encoder.window": [6, 6, 6]},
}


@pytest.mark.parametrize("name", CT_CLIP)
def test_plan__ct_clips_volumes_fit_a_small_card(name: str) -> None:
    """480 x 480 x 240, batch 2, bfloat16, checkpointing: far below 24 GB."""
    changes = {"encoder.gradient_checkpointing": True, "trainer.precision": "bf16-mixed", "data.batch_size": 2}
    config = recipe([240, 480, 480], **CT_CLIP[name], **changes)
    foot, weights = trace_step(config, 2)
    assert memory_of(foot, weights, Setting("bf16-mixed", True, 2), 1).total < 8e9


def test_build_on_meta__2d_weights_inside_slices_need_not_be_here() -> None:
    config = recipe(**CASES["slices"], **{"encoder.encoder.weights": "gone.pth"})
    objective, _ = build_on_meta(config)
    assert next(objective.parameters()).device == torch.device("meta")


def test_channels_last__kernels_of_slices_are_of_2d() -> None:
    model = ENCODERS.build(recipe(**CASES["slices"]).encoder)
    kernels_channels_last(model)
    kernel = model.encoder.patch_embed.proj.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(model(torch.randn(1, 1, *SIZE)).patch_tokens).all()


def test_plan__as_it_is_keeps_the_text_encoders_own_checkpointing() -> None:
    config = recipe(**CASES["slices"], **{"encoder.gradient_checkpointing": True})
    setting = Setting(config.trainer.precision, True, 4)
    assert "objective.text_encoder.gradient_checkpointing" not in overrides(config, setting, 1)
    assert overrides(config, Setting(config.trainer.precision, False, 4), 1)["encoder.gradient_checkpointing"] is False
