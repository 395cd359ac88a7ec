"""The progress of a run in one line: real epochs, loss, speed, time left."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RunProgress(ProgressBar):
    """A rich bar over the steps of the whole run. Lightning's own counts the sampler's single pass as "Epoch 0/0"."""

    def __init__(self, name: str, steps_per_epoch: float) -> None:
        super().__init__()
        self.run = name
        self.steps_per_epoch = steps_per_epoch
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress.start()
        self._task = self._progress.add_task(self.run, total=trainer.max_steps, completed=trainer.global_step, numbers="")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self._progress is None:
            return
        known = trainer.callback_metrics
        numbers = [f"epoch {trainer.global_step / self.steps_per_epoch:.1f}"]
        numbers += [f"{name} {float(known[key]):.3f}" for name, key in (("loss", "loss"), ("val", "val/loss")) if key in known]
        self._progress.update(self._task, completed=trainer.global_step, numbers="  ".join(numbers))

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()
