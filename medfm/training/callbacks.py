"""What happens beside the loop: checkpoints, weights, curves, and a stop that loses nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from medfm.training.checkpoint import checkpoint_name, checkpoints
from medfm.training.logs import draw_curves


class Checkpoints(Callback):
    """A resumable checkpoint every `every` optimiser steps and at the end; the newest `keep` stay.

    The first Ctrl-C or SIGTERM (a cluster's time limit) ends the run after the step under way, with a checkpoint.
    """

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.stopped_by: str | None = None
        self._saved = -1
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._stop)

    def _stop(self, number: int, frame: Any) -> None:
        if self.stopped_by is not None:  # asked twice: at once
            raise KeyboardInterrupt
        self.stopped_by = signal.Signals(number).name

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if self.stopped_by is not None:
            trainer.should_stop = True
        if step != self._saved and (step % self.every == 0 or self.stopped_by is not None):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved:
            self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _save(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        trainer.save_checkpoint(self.folder / checkpoint_name(self._saved))
        if trainer.is_global_zero:
            for _, path in checkpoints(self.folder)[: -self.keep]:
                path.unlink(missing_ok=True)


class Weights(Callback):
    """Writes `model.safetensors` and the learning curves at each validation and at the end."""

    def __init__(self, run: Path, save: Callable[[], None], select: str) -> None:
        self.run = run
        self.save = save
        self.select = select
        self.best = float("inf")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = float(state_dict["best"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        loss = float(trainer.callback_metrics.get("val/loss", torch.tensor(float("nan"))))
        better = loss < self.best
        self.best = min(self.best, loss) if loss == loss else self.best
        if self.select == "last" or better:
            self.save()
        draw_curves(self.run / "metrics.csv", self.run / "curves.png")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            if self.select == "last" or not (self.run / "model.safetensors").is_file():
                self.save()
            draw_curves(self.run / "metrics.csv", self.run / "curves.png")
