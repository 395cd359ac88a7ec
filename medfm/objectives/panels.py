"""What a masked autoencoder saw, what it was asked for and what it answered, as pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medfm.encoders.patches import patchify, unpatchify
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.draws import Draws
from medfm.types import Batch

ROWS = ("input", "masked", "reconstruction", "prediction")
_GREY = 0.5
_SIDE, _GAP, _STRIP = 224, 4, 116  # pixels: a tile's longer side, between tiles, for the rows' names


@dataclass
class Reconstruction:
    """What an objective answers, by patches.

    Attributes:
        pixels: (B, N, P * C) predicted pixels of the normalised images, laid out as `medfm.encoders.patches.patchify`.
        predicted: (B, N) bool, which patches have a prediction.
        masked: (B, N) bool, which of them the encoder did not see.
    """

    pixels: Tensor
    predicted: Tensor
    masked: Tensor


class Reconstructs(Protocol):
    """An objective that can be asked for pictures."""

    patch_size: tuple[int, ...]

    def reconstruct(self, batch: Batch, draws: Draws | None = None) -> Reconstruction: ...


@dataclass
class Panels:
    """Pictures (B, C, *spatial), float32 in [0, 1] on the CPU: the input; the input with masked patches in grey; the visible
    patches with what was predicted in place of the others; the prediction alone, grey where there is none."""

    input: Tensor
    masked: Tensor
    reconstruction: Tensor
    prediction: Tensor


@torch.no_grad()
def reconstruct(objective: Reconstructs, batch: Batch, contract: PreprocessConfig, draws: Draws | None = None) -> Panels:
    """Pictures of a batch of normalised images.

    norm_pix is undone with the mean and deviation of the true patch (which the network was not asked for), then the contract's
    mean and deviation, so that grey values are those of the input.
    """
    found = objective.reconstruct(batch, draws)
    images, size = batch.images, objective.patch_size
    grid = tuple(n // p for n, p in zip(images.shape[2:], size, strict=True))

    def picture(patches: Tensor) -> Tensor:
        return _unit(unpatchify(patches, grid, size).float().cpu(), contract)

    true = patchify(images, size).to(found.pixels.dtype)
    grey = patchify(_normalised_grey(images, contract), size).to(true.dtype)
    hidden, known = found.masked[..., None], found.predicted[..., None]
    return Panels(
        input=_unit(images.float().cpu(), contract),
        masked=picture(torch.where(hidden, grey, true)),
        reconstruction=picture(torch.where(hidden, found.pixels, true)),
        prediction=picture(torch.where(known, found.pixels, grey)),
    )


def _stretched(values: tuple[float, ...], images: Tensor) -> Tensor:
    return images.new_tensor(values).view(-1, *[1] * (images.ndim - 2))


def _unit(images: Tensor, contract: PreprocessConfig) -> Tensor:
    return (images * _stretched(contract.std, images) + _stretched(contract.mean, images)).clamp(0, 1)


def _normalised_grey(images: Tensor, contract: PreprocessConfig) -> Tensor:
    grey = (_GREY - _stretched(contract.mean, images)) / _stretched(contract.std, images)
    return grey.expand(1, images.shape[1], *images.shape[2:])


def draw(panels: Panels, contract: PreprocessConfig) -> np.ndarray:
    """(H, W, 3) uint8: a row of each kind, a column of each image.

    A volume gives its middle axial, coronal and sagittal slices as radiologists look at them (front, head, and the patient's
    right at the left of the axial and coronal slice; front at the left of the sagittal one) in the proportions of the
    contract's spacing, where it has one. Three channels of a picture are its colours; otherwise each channel has a column.
    """
    rows = []
    for name in ROWS:
        tiles = [tile for image in getattr(panels, name) for tile in _tiles(image.numpy(), contract)]
        height = max(tile.shape[0] for tile in tiles)
        padded = [np.pad(tile, ((0, height + _GAP - tile.shape[0]), (0, _GAP), (0, 0))) for tile in tiles]
        rows.append(np.concatenate([_label(name, height + _GAP), *padded], axis=1))
    return np.concatenate(rows, axis=0)


def _label(text: str, height: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (_STRIP, height))
    ImageDraw.Draw(strip).text((6, height // 2 - 8), text, fill=(255, 255, 255), font=ImageFont.load_default(14))
    return np.asarray(strip)


def _tiles(image: np.ndarray, contract: PreprocessConfig) -> Iterator[np.ndarray]:
    """Of one picture (C, *spatial): (h, w, 3) uint8."""
    from PIL import Image

    colour = len(image) == 3 and image.ndim == 3
    for channel in [image.transpose(1, 2, 0)] if colour else image:
        for slice_, heights, widths in _slices(channel, contract):
            scale = _SIDE / max(slice_.shape[0] * heights, slice_.shape[1] * widths)
            size = (max(1, round(slice_.shape[1] * widths * scale)), max(1, round(slice_.shape[0] * heights * scale)))
            made = Image.fromarray((slice_ * 255 + 0.5).astype(np.uint8)).convert("RGB").resize(size, Image.Resampling.BILINEAR)
            yield np.asarray(made)


def _slices(channel: np.ndarray, contract: PreprocessConfig) -> Iterator[tuple[np.ndarray, float, float]]:
    """Slices to look at, with the size of a pixel down and across."""
    if len(contract.size) == 2:
        spacing = contract.spacing or (1.0, 1.0)
        yield channel, spacing[0], spacing[1]
        return
    letters = contract.orientation  # of the axes (i, j, k) = (W, H, D): where each grows to
    depth, height, width = contract.spacing or (1.0, 1.0, 1.0)
    if letters[0] in "LR" and letters[1] in "AP":
        channel = channel[
            :: -1 if letters[2] == "S" else 1, :: -1 if letters[1] == "A" else 1, :: -1 if letters[0] == "R" else 1
        ]
    d, h, w = (n // 2 for n in channel.shape)
    yield channel[d], height, width
    yield channel[:, h], depth, width
    yield channel[:, :, w], depth, height


def find(objective: Any) -> Any:
    """The objective itself or the first term of a sum that reconstructs; None where there is none."""
    for term in (objective, *getattr(objective, "terms", ())):
        if hasattr(term, "reconstruct"):
            return term
    return None
