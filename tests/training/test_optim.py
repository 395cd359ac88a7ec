from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medfm.training.config import OptimizerConfig, ScheduleConfig
from medfm.training.optim import build_optimizer, build_schedule, lr_factor, parameter_groups


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.text_encoder = nn.Linear(4, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 3, 4))
        self.logit_scale = nn.Parameter(torch.zeros(()))


def test_parameter_groups__no_decay_on_norms_biases_positions_and_scale() -> None:
    model = _Tiny()
    groups = parameter_groups(model, OptimizerConfig(lr=1e-3, text_lr=1e-4, weight_decay=0.2))
    decay = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}  # type: ignore[attr-defined]
    assert decay[id(model.image_encoder[0].weight)] == (1e-3, 0.2)
    assert decay[id(model.text_encoder.weight)] == (1e-4, 0.2)
    for p in (model.image_encoder[0].bias, model.image_encoder[1].weight, model.pos_embed, model.logit_scale):
        assert decay[id(p)] == (1e-3, 0.0)
    assert len(decay) == len(list(model.parameters()))


def test_parameter_groups__frozen_parameters_are_left_out() -> None:
    model = _Tiny()
    model.text_encoder.requires_grad_(False)
    held = {id(p) for g in parameter_groups(model, OptimizerConfig()) for p in g["params"]}  # type: ignore[attr-defined]
    assert id(model.text_encoder.weight) not in held


def test_lr_factor__warmup_then_half_cosine() -> None:
    config = ScheduleConfig(warmup=0.1, min_lr=1e-5)
    assert lr_factor(0, 100, config, 1e-3) == pytest.approx(0.1)
    assert lr_factor(9, 100, config, 1e-3) == pytest.approx(1.0)
    assert lr_factor(10, 100, config, 1e-3) == pytest.approx(1.0)
    middle = 0.01 + 0.99 * (1 + math.cos(math.pi * 0.5)) / 2
    assert lr_factor(55, 100, config, 1e-3) == pytest.approx(middle)
    assert lr_factor(100, 100, config, 1e-3) == pytest.approx(0.01)


def test_build_schedule__each_group_ends_at_its_own_floor() -> None:
    optimizer = build_optimizer(_Tiny(), OptimizerConfig(lr=1e-3, text_lr=1e-4))
    schedule = build_schedule(optimizer, 4, ScheduleConfig(warmup=0.0, min_lr=1e-5))
    for _ in range(4):
        optimizer.step()
        schedule.step()
    assert all(group["lr"] == pytest.approx(1e-5) for group in optimizer.param_groups)
