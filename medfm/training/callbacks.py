"""What happens beside the loop: checkpoints, weights, curves, and a stop that loses nothing."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from medfm.errors import WeightsError
from medfm.training.checkpoint import checkpoint_name, checkpoints
from medfm.training.logs import draw_curves

log = logging.getLogger(__name__)


# A cluster sends SIGUSR2 (medfm's launcher and template ask for it) or SIGUSR1 some time before it ends a job.
_TIME_IS_UP = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class Checkpoints(Callback):
    """A resumable checkpoint every `every` optimiser steps and at the end; the newest `keep` stay.

    The first Ctrl-C, SIGTERM or SIGUSR1/2 (a cluster's time limit) on any device ends the run on all of them after the
    optimiser step under way, with a checkpoint. In a Slurm job SIGUSR1/2 then puts the job into the queue again.
    """

    def __init__(self, folder: Path, every: int, keep: int, accumulate: int = 1) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.accumulate = accumulate
        self.stopped_by: str | None = None
        self._heard: int | None = None
        self._saved = -1
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, *_TIME_IS_UP):
                self._handlers[number] = signal.signal(number, self._stop)

    def _stop(self, number: int, frame: Any) -> None:
        # Asked twice by a person: at once. A cluster's warning is followed by its SIGTERM in any case.
        if self._heard is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._heard = self._heard or number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.accumulate:
            return  # gradients of half a step are in no checkpoint
        step = trainer.global_step
        # Devices hear a signal at different times, or one of them alone; they must stop at the same step.
        if trainer.strategy.reduce_boolean_decision(self._heard is not None, all=False):
            self.stopped_by = "another device" if self._heard is None else signal.Signals(self._heard).name
            trainer.should_stop = True
            if (batch_idx + 1) % (trainer.val_check_batch or 1):
                trainer.limit_val_batches = 0  # Lightning validates before it stops; there may be seconds left
        if step != self._saved and (step % self.every == 0 or self.stopped_by is not None):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved:
            self.save(trainer)
        if self.stopped_by is not None and trainer.global_step < trainer.max_steps:
            if trainer.strategy.reduce_boolean_decision(self._heard in _TIME_IS_UP, all=False) and trainer.is_global_zero:
                requeue()
            trainer.strategy.barrier()  # the first process to leave takes the others with it under srun

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of the step that is done, on every device, and let the oldest go."""
        self._saved = trainer.global_step
        trainer.save_checkpoint(self.folder / checkpoint_name(self._saved), weights_only=False)  # all that resuming needs
        if trainer.is_global_zero:
            # Later ones are of a course that was left when the run went on from an earlier checkpoint.
            found = checkpoints(self.folder)
            later = [path for step, path in found if step > self._saved]
            for path in [*later, *(path for _, path in found[: len(found) - len(later)][: -self.keep])]:
                path.unlink(missing_ok=True)


def requeue() -> None:
    """Put the Slurm job that this is into the queue again; it goes on from its last checkpoint. Elsewhere: nothing."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the job could not be queued again (%s); submit it anew: it goes on from its checkpoint", error)


class Weights(Callback):
    """Writes `model.safetensors` and the learning curves at each validation and at the end.

    Args:
        save: writes the weights, told the step that they are of and their validation loss (None where there is none); called on
            all devices, which may each hold a part of them.
        select: "last", or "best": the lowest validation loss, where there is a validation split.
    """

    def __init__(self, run: Path, save: Callable[[int, float | None], None], select: str) -> None:
        self.run = run
        self.save = save
        self.select = select
        self.best = float("inf")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = float(state_dict["best"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The checkpoint of a step is written before its validation, so that the file may be of a better one than it knows."""
        if self.select == "best":
            self.best = min(self.best, trainer.strategy.broadcast(self._written(trainer.global_step)))

    def _written(self, step: int) -> float:
        """The validation loss of the weights in the run folder; infinite where they are of a course that was left."""
        from medfm.weights.load import read_card

        try:
            card = read_card(self.run)
        except WeightsError:
            return float("inf")
        loss = card.get("val_loss")
        return float("inf") if loss is None or card.get("step", step + 1) > step else float(loss)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        judged = "val/loss" in trainer.callback_metrics  # not without a validation split
        loss = float(trainer.callback_metrics.get("val/loss", torch.tensor(float("nan"))))
        if self.select == "last" or not judged or trainer.strategy.broadcast(loss < self.best):
            self.save(trainer.global_step, loss if loss == loss else None)
        self.best = min(self.best, loss) if loss == loss else self.best
        self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Without a validation there is no best one; a file may be there all the same, of a time when the run was interrupted.
        unjudged = self.best == float("inf") or not (self.run / "model.safetensors").is_file()
        if self.select == "last" or trainer.strategy.broadcast(unjudged):
            self.save(trainer.global_step, None)
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            draw_curves(self.run / "metrics.csv", self.run / "curves.png")
