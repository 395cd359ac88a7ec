"""Optimisers: which parameter moves at which rate, and how rate and decay change over a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from medfm.errors import ConfigError
from medfm.objectives.base import Objective
from medfm.objectives.schedules import cosine
from medfm.training.config import OptimizerConfig, ScheduleConfig
from medfm.training.depth import encoders, layer_ids
from medfm.training.lars import LARS

# Positions, tokens, gains and the logit scale are not weights of a linear map: decay pulls them to zero for no reason.
_NO_DECAY = ("pos_embed", "cls_token", "reg_token", "mask_token", "positional_embedding", "logit_scale", "logit_bias",
             "weight_g", "original0")  # fmt: skip


def scaled_lr(lr: float, config: OptimizerConfig, batch: int) -> float:
    """A recipe's learning rate for `batch` images an optimiser step.

    Source: linear256: Goyal et al. 2017, as MAE and DINO; sqrt1024: DINOv2, utils/config.py (`lr * sqrt(batch / 1024)`).
    """
    factors = {"none": 1.0, "linear256": batch / 256, "sqrt1024": math.sqrt(batch / 1024)}
    return lr * factors[config.lr_scale]


def _decays(name: str, parameter: nn.Parameter, config: OptimizerConfig) -> bool:
    """Whether a parameter is pulled to zero. With `decay_tokens` by DINO's rule (utils.py, get_params_groups) and MAE's (timm's
    param_groups_weight_decay): everything but biases and what has one axis, which a mask token has here, and not there."""
    if name.rpartition(".")[2] == "mask_token":
        return config.decay_tokens
    if parameter.ndim <= 1 or name.endswith(".bias"):
        return False
    return config.decay_tokens or name.rpartition(".")[2] not in _NO_DECAY


def _multipliers(model: nn.Module, config: OptimizerConfig) -> dict[int, float]:
    """id of each encoder parameter whose learning rate is multiplied -> by what. Source: DINOv2, utils/param_groups.py."""
    multipliers: dict[int, float] = {}
    if config.layer_decay == 1 and config.patch_embed_lr == 1:
        return multipliers
    for encoder in encoders(model).values():
        layers, count = layer_ids(encoder)
        if config.layer_decay < 1 and count <= 1:
            raise ConfigError("optimizer.layer_decay: the encoder has no layers that could be told apart; set it to 1")
        for name, parameter in encoder.named_parameters():
            value = config.layer_decay ** (count - layers[name])
            value *= config.patch_embed_lr if "patch_embed." in name else 1.0
            if value != 1:
                multipliers[id(parameter)] = value
    for objective in (module for module in model.modules() if isinstance(module, Objective)):
        token = getattr(objective, "mask_token", None)
        if token is not None:  # it stands in the encoder's input, though objectives keep it
            multipliers[id(token)] = config.layer_decay ** layer_ids(objective.learner().image_encoder)[1]
    return multipliers


def parameter_groups(model: nn.Module, config: OptimizerConfig, batch: int = 256) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate (image or text, depth in the encoder) and by weight decay.

    Encoders are found by what they are, wherever an objective keeps them (`dual.image_encoder`, `student.image_encoder`, ...);
    all else is a head at the full learning rate.

    Args:
        batch: images an optimiser step sees, for `lr_scale`.

    Returns:
        Groups with `params`, `lr` (the peak), `lr_multiplier` (its share of the recipe's) and `weight_decay`.
    """
    base, text_base = (scaled_lr(lr, config, batch) for lr in (config.lr, config.text_lr or config.lr))
    multipliers = _multipliers(model, config)
    groups: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = text_base if "text_encoder." in name else base
        decay = config.weight_decay if _decays(name, parameter, config) else 0.0
        groups.setdefault((lr, multipliers.get(id(parameter), 1.0), decay), []).append(parameter)
    return [
        {"params": params, "lr": lr * multiplier, "lr_multiplier": multiplier, "weight_decay": decay}
        for (lr, multiplier, decay), params in groups.items()
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig, batch: int = 256) -> torch.optim.Optimizer:
    """The recipe's optimiser of a model; `batch` as in `parameter_groups`."""
    return optimizer_of(parameter_groups(model, config, batch), config)


def optimizer_of(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The recipe's optimiser of these groups. Fused AdamW has 5.5 times the update speed of the plain loop on CPU."""
    lr = max(group["lr"] for group in groups)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=True)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, foreach=True)
    return LARS(groups, lr=lr, momentum=config.momentum, trust=config.trust)


def lr_factor(step: int, total: int, config: ScheduleConfig, lr: float) -> float:
    """What the learning rate `lr` is multiplied by at `step` of `total`: linear warm-up, then half a cosine to min_lr, or 1.

    Warm-up over n steps rises from lr / n at step 0, or from `warmup_start` as MAE's util/lr_sched.py: step / n of the way.
    """
    warmup = round(config.warmup * total)
    if step < warmup:
        if config.warmup_start is None:
            return (step + 1) / warmup
        start = config.warmup_start / lr
        return start + (1.0 - start) * step / warmup
    if config.name == "constant":
        return 1.0
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    floor = config.min_lr / lr
    return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * progress)) / 2.0


def build_schedule(optimizer: torch.optim.Optimizer, total: int, config: ScheduleConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of each group from its own peak. `total` comes from the recipe: asking Lightning for the number of steps
    drops the loader's state on resume."""
    # A group at a share of the recipe's rate follows the recipe's schedule at that share, floor included.
    peaks = [float(group["lr"]) / float(group["lr_multiplier"]) for group in optimizer.param_groups]
    factors: list[Callable[[int], float]] = [partial(lr_factor, total=total, config=config, lr=lr) for lr in peaks]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)


def set_weight_decay(optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, total: int) -> None:
    """The weight decay of `step`, in the groups that decay at all: half a cosine to `weight_decay_end` (DINO, main_dino.py)."""
    if config.weight_decay_end is None:
        return
    for group in optimizer.param_groups:
        if group["weight_decay"]:
            group["weight_decay"] = cosine(config.weight_decay, config.weight_decay_end, step, total)
