"""From a recipe to Lightning's trainer: devices, strategy, plugins, and what passes through `trainer.extra`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import HalfPrecision
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from medfm.errors import ConfigError
from medfm.registry import suggest
from medfm.training.checkpoint import AtomicCheckpointIO, Checkpoint
from medfm.training.config import TrainerConfig

# Options of lightning.Trainer that have a key of their own, or that exact resuming rests on.
_KEYS = {
    "strategy": "trainer.strategy",
    "accelerator": "trainer.accelerator",
    "devices": "trainer.devices",
    "num_nodes": "trainer.num_nodes",
    "precision": "trainer.precision",
    "accumulate_grad_batches": "trainer.accumulate",
    "gradient_clip_val": "trainer.clip_grad",
    "gradient_clip_algorithm": "trainer.clip_grad_by",
    "max_steps": "trainer.max_steps",
    "max_epochs": "trainer.max_epochs",
    "val_check_interval": "trainer.val_every",
    "enable_progress_bar": "",
    "check_val_every_n_epoch": "trainer.val_every",
    "num_sanity_val_steps": "",
    "use_distributed_sampler": "",
    "enable_checkpointing": "trainer.checkpoint_every",
    "enable_model_summary": "",
    "plugins": "",
    "logger": "",
    "callbacks": "",
}


class Bf16Weights(HalfPrecision):
    """Weights, gradients and optimiser state in bfloat16, under autocast: Lightning's own hands on float32 images as they are,
    which bfloat16 weights refuse, and draws random numbers in bfloat16."""

    def __init__(self, device: str) -> None:
        super().__init__("bf16-true")
        self.device = device

    def convert_input(self, data: Any) -> Any:
        return data

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        with torch.autocast(self.device, torch.bfloat16):
            yield


def check_extra(config: TrainerConfig) -> None:
    """Raises ConfigError for an option in `trainer.extra` that medfm sets itself, or that Lightning does not have."""
    known = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    for name in config.extra:
        if name == "strategy" and config.strategy == "auto":
            continue
        if name in _KEYS:
            instead = f"use {_KEYS[name]}" if _KEYS[name] else "medfm's loop rests on its own"
            raise ConfigError(f"trainer.extra.{name}: medfm sets this option itself; {instead}")
        if name not in known:
            raise ConfigError(f"trainer.extra.{name}: lightning.Trainer has no such option{suggest(name, known - set(_KEYS))}")


def device_count(config: TrainerConfig) -> int:
    """Devices of the whole run."""
    if isinstance(config.devices, list):
        here = len(config.devices)
    elif isinstance(config.devices, int) and config.devices >= 0:
        here = config.devices
    else:
        here = max(torch.cuda.device_count(), 1) if config.accelerator != "cpu" else 1
    return here * config.num_nodes


def build_strategy(config: TrainerConfig) -> Strategy | str:
    """What shares a batch out over devices."""
    if config.strategy == "fsdp2":
        from medfm.training.sharding import ShardedStrategy, check_precision

        check_precision(config.precision)
        return ShardedStrategy()
    if "strategy" in config.extra:
        return config.extra["strategy"]
    if config.strategy == "auto" and device_count(config) == 1:
        return "auto"
    # Every parameter of an objective has a gradient in every step. Buffers (centres, queues) are the same on all devices, or
    # each device's own (running averages of batch norms, of which the file keeps the first's): nothing is to be sent.
    return DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True, broadcast_buffers=False)


def build_trainer(
    config: TrainerConfig,
    *,
    steps: int,
    batches: int,
    per_epoch: int,
    loggers: list[Any],
    callbacks: list[Callback],
    progress: bool,
    checkpoint: Checkpoint | None = None,
) -> Trainer:
    """The trainer of a recipe.

    Args:
        steps: optimiser steps of the whole run.
        batches: batches of the whole run.
        per_epoch: batches that make one pass over the training split.
        checkpoint: the one that the run goes on from, so that its file is not read again.

    Raises:
        ConfigError: options that do not go together.
    """
    check_extra(config)
    plugins: list[Any] = [AtomicCheckpointIO(checkpoint)]
    if SLURMEnvironment.detect():
        # Lightning's own requeueing saves in the middle of a step; `Checkpoints` does it between two.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    precision: dict[str, Any] = {"precision": config.precision}
    if config.precision == "bf16-true":
        on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
        plugins.append(Bf16Weights("cuda" if on_gpu else "cpu"))
        precision = {}
    options: dict[str, Any] = dict(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=build_strategy(config),
        **precision,
        accumulate_grad_batches=config.accumulate,
        max_steps=steps,
        max_epochs=1,  # one pass of a sampler that knows the epochs: no worker restarts, and an exact place to resume at
        val_check_interval=min(max(1, round(config.val_every * per_epoch)), batches),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        plugins=plugins,
        logger=loggers,
        callbacks=callbacks,
        **{name: value for name, value in config.extra.items() if name != "strategy"},
    )
    try:
        return Trainer(**options)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ConfigError(f"trainer: Lightning refuses these options: {error}") from error
