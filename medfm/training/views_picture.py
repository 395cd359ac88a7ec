"""A picture of what an objective that cuts views gets to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from medfm.io.files import atomic_write
from medfm.transforms.draws import Draws
from medfm.transforms.views import MultiCrop, contact_sheet
from medfm.types import Batch

_IMAGES = 4


def build_views_picture(objective: Any, run: Path, seed: int) -> ViewsPicture | None:
    """None where the objective cuts no views. Of a sum, the first term that does; by the very cutter that it trains with."""
    for term in (objective, *getattr(objective, "terms", ())):
        if isinstance(views := getattr(term, "views", None), MultiCrop):
            return ViewsPicture(run / "views.png", views, seed)
    return None


class ViewsPicture(Callback):
    """Write the views of the first images of a run's first batch: stored image, global views, local views.

    Numbers are drawn apart from those of training, which stays as it is without the picture.

    Args:
        path: of the PNG. One that exists is kept, so that a resumed run shows what it began with.
        views: what the objective makes.
        seed: of the picture.
    """

    def __init__(self, path: Path, views: MultiCrop, seed: int) -> None:
        self.path = path
        self.views = views
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if not trainer.is_global_zero or self.path.exists():
            return
        from PIL import Image as Pictures

        stored = batch.images[:_IMAGES]
        made = contact_sheet(self.views(stored, Draws(self.seed, stored.device)), stored, self.views.preprocess, _IMAGES)
        with atomic_write(self.path) as temporary:
            Pictures.fromarray(made).save(temporary, format="PNG")
