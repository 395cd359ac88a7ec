"""Further views of a batch's images, for terms that compare an image with itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medfm.objectives.align.base import Encoded
from medfm.transforms.config import AugmentConfig, ViewsConfig
from medfm.transforms.draws import Draws
from medfm.transforms.views import MultiCrop

if TYPE_CHECKING:
    from medfm.transforms.preprocess import Preprocess


class SecondViews:
    """Cuts views out of images as the encoder took them: of the same size, with the intensity changes of `augment`.

    The images are brought back to [0, 1] first. They have been through the recipe's augmentation already, windows are applied
    and nothing lies outside of them: `window_jitter` cannot act, and a box is stretched to the whole size.

    Args:
        preprocess: the contract.
        augment: strengths, `rotate` and `flip` (which breaks sides where reports are read).
        views: boxes and probabilities.
    """

    def __init__(self, preprocess: Preprocess, augment: AugmentConfig, views: ViewsConfig) -> None:
        self.preprocess, self.views = preprocess, views
        self.augment = augment.model_copy(update={"window_jitter": 0.0})

    def __call__(self, encoded: Encoded) -> Tensor:
        """(V * B, C, *spatial), normalised, all images' first view first. Devices with other numbers of rows draw alike."""
        images = encoded.batch.images
        if not len(images):
            return images.new_zeros(0, *images.shape[1:], dtype=torch.float32)
        crop = MultiCrop(self.preprocess, self.augment, self.views, images.shape[2:])
        draws = encoded.draws or Draws(int(torch.randint(2**62, ())), images.device)
        shape = (-1, *[1] * (images.ndim - 2))
        mean, std = (
            torch.tensor(v, device=images.device).view(shape) for v in (self.preprocess.config.mean, self.preprocess.config.std)
        )
        unit = images.float() * std + mean
        return crop(unit, RowDraws(draws, encoded.size or len(images), encoded.rows)).global_views


class RowDraws(Draws):
    """Draws for the rows that have text, drawn for all rows of the batch, of which every device has as many.

    Args:
        draws: of the batch.
        size: rows of the batch.
        rows: those that are kept; None: all.
    """

    def __init__(self, draws: Draws, size: int, rows: Tensor | None) -> None:
        self.generator, self.device = draws.generator, draws.device
        self.rank, self.world = draws.rank, draws.world
        self._draws, self._size, self._rows = draws, size, rows

    def _kept(self, everyone: Tensor) -> Tensor:
        return everyone if self._rows is None else everyone[self._rows.to(everyone.device)]

    def rand(self, rows: int, *shape: int) -> Tensor:
        return self._kept(self._draws.rand(self._size, *shape))

    def randint(self, high: int, rows: int, *shape: int) -> Tensor:
        return self._kept(self._draws.randint(high, self._size, *shape))
