"""Multi-crop: global and local views of a batch, made on its device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medfm.transforms.augment import BOX_NUMBERS, Intensity, blur_sigma, draw_boxes, window_changes
from medfm.transforms.boxes import cut_boxes
from medfm.transforms.config import AugmentConfig, Kinds, Pair, ViewsConfig
from medfm.transforms.draws import Draws

if TYPE_CHECKING:
    from medfm.transforms.preprocess import Preprocess

_GAP = 4  # pixels between the pictures of a contact sheet


@dataclass
class Views:
    """Views as the network takes them, view-major: all images' first view, then all images' second.

    Attributes:
        global_views: (G * B, C, *img_size).
        local_views: (L * B, C, *local_size), None without local views.
    """

    global_views: Tensor
    local_views: Tensor | None


def local_size_for(img_size: Sequence[int], patch_size: Sequence[int] | None = None) -> tuple[int, ...]:
    """3/7 of the global size in whole patches, at least one: 224 gives 96 (DINO), 96 gives 48 with patches of 16 (3DINO)."""
    patches = patch_size or (1,) * len(img_size)
    return tuple(p * max(1, math.floor(3 * n / (7 * p) + 0.5)) for n, p in zip(img_size, patches, strict=True))


class MultiCrop:
    """Cut, change and normalise views of a stored batch; 2D and 3D alike.

    Boxes are cut from the stored values, which may be larger than `img_size`, and windows are applied afterwards: so stored HU
    are interpolated and blurred as HU, and `window_jitter` chooses another window before anything is clipped. Order: box, turn
    and mirror (one resampling) -> blur -> window -> gamma -> contrast, gain, brightness -> colour -> noise -> solarise ->
    normalise. Box areas are shares of the largest box that has a view's proportions.

    Args:
        preprocess: the contract.
        augment: strengths, `rotate`, `flip`; its scale, ratio, translate and probabilities do not count here.
        views: counts, boxes and probabilities.
        img_size: of global views, (H, W) or (D, H, W).
        patch_size: to round the size of local views to, where `views` gives none.

    Raises:
        ValueError: sizes have other numbers of axes than the contract's.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        augment: AugmentConfig,
        views: ViewsConfig,
        img_size: Sequence[int],
        patch_size: Sequence[int] | None = None,
    ) -> None:
        self.preprocess, self.config, self.views = preprocess, augment, views
        self.global_size = tuple(img_size)
        self.local_size = tuple(views.local_size or local_size_for(img_size, patch_size))
        dims = len(preprocess.config.size)
        for name, size in (("img_size", self.global_size), ("views.local_size", self.local_size)):
            if len(size) != dims:
                raise ValueError(f"{name} {list(size)} must have {dims} numbers, as preprocess.size")
        self.intensity = Intensity(augment)

    def __call__(self, stored: Tensor, draws: Draws) -> Views:
        """(B, C, *preprocess.size) in storage dtype -> views, float32 and normalised. No gradient flows through them."""
        config = self.views
        with torch.no_grad(), torch.autocast(stored.device.type, enabled=False):
            values = stored.to(torch.float32)
            if stored.dtype == torch.int16 and self.preprocess.black:
                values.sub_(self.preprocess.black)  # what turned boxes see outside is 0
            first = range(config.global_count)
            made = self._make(values, stored.dtype, draws, self.global_size, config.global_scale, [min(v, 1) for v in first])
            local = None
            if config.local_count:
                local = self._make(values, stored.dtype, draws, self.local_size, config.local_scale, [2] * config.local_count)
            return Views(made, local)

    def _make(
        self, values: Tensor, dtype: torch.dtype, draws: Draws, size: tuple[int, ...], scale: Pair, kinds: list[int]
    ) -> Tensor:
        """Views of one size, (V * B, C, *size); `kinds` says which probabilities each of the V has."""
        config, views = self.config, self.views
        batch, count = len(values), len(kinds)
        inside = values.shape[2:]
        parts = (BOX_NUMBERS, 2, 1 + 2 * self.preprocess.windows, Intensity.numbers)
        # Rows are images, so that each device keeps its own. Everything is image-major until the end.
        uniform = draws.rand(batch, count, sum(parts)).to(values.device)
        boxes = draw_boxes(uniform, config, scale, views.ratio, inside, size)
        _, blur, window, change = uniform.flatten(0, 1).split(parts, dim=1)

        def chance(of: Kinds) -> Tensor:
            return torch.tensor([of[kind] for kind in kinds]).repeat(batch).to(values.device, non_blocking=True)

        sigma = None
        if config.blur[1] and any(views.blur_p[kind] for kind in kinds):
            sigma = blur_sigma(blur, config.blur, chance(views.blur_p)).view(batch, count)
        turned, largest = config.rotate > 0, _largest(scale, views.ratio, inside, size)
        images = cut_boxes(values, boxes, size, turned, largest, sigma, config.blur[1])
        if dtype == torch.int16 and self.preprocess.black:
            images += self.preprocess.black
        shift = width = None
        if config.window_jitter:
            shift, width = window_changes(window, config.window_jitter, chance(views.jitter_p))
        images = self.preprocess.unit_of(images, dtype, shift, width)
        noise = draws.noise(batch, count, *images.shape[1:]).to(values.device).flatten(0, 1) if config.noise else None
        solarizes = any(views.solarize_p[kind] for kind in kinds)
        numbers = self.intensity.draw(change, chance(views.jitter_p), chance(views.solarize_p), solarizes)
        images = self.preprocess.normalise(self.intensity(images, numbers, noise))
        return images.view(batch, count, *images.shape[1:]).transpose(0, 1).flatten(0, 1)


def _largest(scale: Pair, ratio: Pair, inside: Sequence[int], size: Sequence[int]) -> float:
    """Upper bound of source pixels a view's pixel, along any axis."""
    stretch = max(ratio[1], 1 / ratio[0]) ** (1 / 2 if len(size) == 2 else 5 / 6)
    side = min(1.0, scale[1] ** (1 / len(size)) * stretch)
    return side * max(min(source / out for source, out in zip(inside, size, strict=True)), 1e-6)


def contact_sheet(views: Views, stored: Tensor, preprocess: Preprocess, images: int = 4) -> np.ndarray:
    """A picture of the views of the first images, one row an image: the stored image, global views, local views.

    Volumes show their middle axial slice (of D), colour where there are three channels without windows, else the first channel.

    Args:
        views: of `stored`.
        stored: (B, C, *size) in storage dtype, drawn at a view's height by leaving out pixels.
        preprocess: the contract.
        images: rows.

    Returns:
        (rows, columns, 3) uint8.
    """
    config = preprocess.config
    colour = config.channels == 3 and not config.windows

    def shown(pixels: Tensor) -> np.ndarray:
        """(..., C, *size) in [0, 1] -> (..., H, W, 3)."""
        if len(config.size) == 3:
            pixels = pixels[..., pixels.shape[-3] // 2, :, :]
            # Front up and the patient's right at the left, as films are hung; of (R, A, S) axes are (W, H, D).
            across, down = config.orientation[0], config.orientation[1]
            if across in "LR" and down in "AP":
                pixels = pixels.flip([axis for axis, turned in ((-1, across == "R"), (-2, down == "A")) if turned])
        pixels = pixels if colour else pixels[..., :1, :, :].expand(*pixels.shape[:-3], 3, *pixels.shape[-2:])
        made: np.ndarray = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()
        return made

    def unit(normalised: Tensor) -> np.ndarray:
        """(V * B, C, *size) -> (B, V, H, W, 3)."""
        shape = (-1, *[1] * (normalised.ndim - 2))
        mean, std = (normalised.new_tensor(v).view(shape) for v in (config.mean, config.std))
        pixels = normalised * std + mean
        return shown(pixels.view(-1, len(stored), *pixels.shape[1:])[:, :images].transpose(0, 1))

    large = unit(views.global_views)
    height = large.shape[2]
    small = None if views.local_views is None else unit(views.local_views)
    originals = shown(preprocess.to_unit(stored[:images]))
    scale = originals.shape[1] / height
    kept = [(np.arange(round(n / scale)) * scale).astype(int) for n in originals.shape[1:3]]
    lines = []
    for row in range(len(large)):
        tiles = [originals[row][np.ix_(*kept)], *large[row]]
        if small is not None:
            tiles += _stacked(list(small[row]), max(1, height // small.shape[2]))
        tallest = max(len(tile) for tile in tiles)
        lines.append(np.concatenate([_framed(tile, tallest) for tile in tiles], axis=1))
    return np.concatenate(lines)


def _stacked(tiles: list[np.ndarray], rows: int) -> list[np.ndarray]:
    """Columns of `rows` local views below one another."""
    columns = [tiles[n : n + rows] for n in range(0, len(tiles), rows)]
    return [np.concatenate([np.pad(t, ((0, _GAP), (0, 0), (0, 0)), constant_values=255) for t in c])[:-_GAP] for c in columns]


def _framed(tile: np.ndarray, height: int) -> np.ndarray:
    """White below and to the right, to one height."""
    return np.pad(tile, ((0, height - len(tile) + _GAP), (0, _GAP), (0, 0)), constant_values=255)
