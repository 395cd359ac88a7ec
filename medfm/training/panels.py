"""Pictures of what a masked autoencoder reconstructs, at each validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from medfm.data.batches import first_rows
from medfm.objectives.panels import draw, find, reconstruct
from medfm.training.module import step_seed
from medfm.transforms.draws import Draws
from medfm.transforms.preprocess import Preprocess
from medfm.types import Batch


def build_panels(config: Any, objective: Any, loaders: Any, run: Path, preprocess: Preprocess) -> Panels | None:
    """The pictures of a run; None where neither its objective nor a term of it reconstructs anything."""
    return None if find(objective) is None else Panels(run, preprocess, config.seed)


class Panels(Callback):
    """Writes `reconstructions/step=N.png` and the same to TensorBoard: the first images of the validation split, or some of the
    training split where there is none, with the same masks every time; rows are the input, what is masked, the reconstruction
    and the prediction alone.

    Args:
        run: the run folder.
        preprocess: the contract.
        seed: of the run.
        every: validations from one picture to the next.
        images: how many.
    """

    def __init__(self, run: Path, preprocess: Preprocess, seed: int = 0, every: int = 1, images: int = 4) -> None:
        self.folder = run / "reconstructions"
        self.preprocess = preprocess
        self.seed = seed
        self.every = every
        self.images = images
        self._validations = 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx or trainer.sanity_checking:
            return
        self._validations += 1
        if (self._validations - 1) % self.every:
            return
        module: Any = pl_module
        objective = find(module.objective)
        few = first_rows(batch, self.images)
        if module.objective.takes_stored_pixels:  # else the module has made them what the network takes
            few = replace(few, images=self.preprocess.to_float(few.images))
        # Sharded weights are gathered by all devices together.
        with module.gathered(), trainer.precision_plugin.forward_context():
            few = replace(few, images=few.images.to(next(objective.parameters()).dtype))
            draws = Draws(step_seed(self.seed, 0, "panels"), few.images.device)
            panels = reconstruct(objective, few, self.preprocess.config, draws)
        if trainer.is_global_zero:
            self._write(trainer, draw(panels, self.preprocess.config))

    def _write(self, trainer: Trainer, picture: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(self.folder / f"step={trainer.global_step}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    "reconstructions", torch.from_numpy(picture), trainer.global_step, dataformats="HWC"
                )
