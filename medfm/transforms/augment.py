"""Random changes of a training batch, batched and on the batch's device.

All geometry is one resampling, so pixels are interpolated once. Every number comes from the draws that are handed in: same
seed, same result, on any number of devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medfm.transforms import photometric
from medfm.transforms.boxes import Boxes, box_shares, cut_boxes
from medfm.transforms.config import AugmentConfig, Pair
from medfm.transforms.draws import Draws

if TYPE_CHECKING:
    from medfm.transforms.preprocess import Preprocess


class Augment:
    """Apply an `AugmentConfig` to float images in [0, 1], that is between `Preprocess.to_unit` and `Preprocess.normalise`.

    Order: window jitter (in `prepare`, before values are clipped) -> scale, ratio, rotation, translation, flip (one resampling;
    outside is 0, black) -> blur -> gamma -> contrast, gain, brightness -> colour -> noise -> clip to [0, 1] -> solarise. Each
    image of the batch gets numbers of its own. In 3D rotation turns the H-W plane (axial slices), and `scale` is the share of
    the volume.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self.moves = config.scale != (1.0, 1.0) or any((config.rotate, config.translate, config.flip))
        self.blurs = bool(config.blur[1] and config.blur_p)
        self.intensity = Intensity(config)
        self.identity = not (self.moves or self.blurs or self.intensity.acts(config.jitter_p, config.solarize_p))

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, C, *spatial) float in [0, 1] -> the same shape, without window jitter. A config that changes nothing returns
        `images` itself.

        Random numbers are made on the draws' device; give one on the images' device to keep noise from being copied.

        Raises:
            TypeError: the images are integers.
            ValueError: the images are neither 2D nor 3D, or colour is to be changed where there is none.
        """
        if self.identity:
            return images
        if not images.is_floating_point():
            raise TypeError(f"augment takes float images in [0, 1], got {images.dtype}; call Preprocess.to_unit first")
        if images.ndim not in (4, 5):
            raise ValueError(f"augment takes (B, C, H, W) or (B, C, D, H, W), got shape {tuple(images.shape)}")
        config, count = self.config, len(images)
        if self.moves:
            images = self._move(images, draws)
        if self.blurs:
            sigma = blur_sigma(draws.rand(count, 2).to(images.device), config.blur, config.blur_p)
            images = photometric.gaussian_blur(images, sigma, config.blur[1])
        if self.intensity.acts(config.jitter_p, config.solarize_p):
            numbers = self.intensity.draw(
                draws.rand(count, Intensity.numbers).to(images.device), config.jitter_p, config.solarize_p
            )
            noise = draws.noise(*images.shape).to(images.device) if config.noise else None
            images = self.intensity(images, numbers, noise)
        return images

    def prepare(self, preprocess: Preprocess, stored: Tensor, draws: Draws | None) -> Tensor:
        """Pixels as the contract stores them, (B, C, *size), to what the network takes; changed where `draws` are given."""
        if draws is None:
            return preprocess.to_float(stored)
        shift = width = None
        if self.config.window_jitter and self.config.jitter_p:
            uniform = draws.rand(len(stored), 1 + 2 * preprocess.windows).to(stored.device)
            shift, width = window_changes(uniform, self.config.window_jitter, self.config.jitter_p)
        return preprocess.normalise(self(preprocess.to_unit(stored, shift, width), draws))

    def _move(self, images: Tensor, draws: Draws) -> Tensor:
        config, (batch, _, *spatial) = self.config, images.shape
        uniform = draws.rand(batch, 1, BOX_NUMBERS + len(spatial)).to(images.device)
        ratio = config.ratio if config.scale != (1.0, 1.0) else (1.0, 1.0)
        boxes = draw_boxes(uniform, config, config.scale, ratio, spatial, spatial)
        boxes.centre = boxes.centre + (uniform[..., BOX_NUMBERS:] * 4 - 2) * config.translate
        # Only the grid of turned boxes knows an outside.
        return cut_boxes(images, boxes, spatial, turned=bool(config.rotate or config.translate), largest=1.0)


BOX_NUMBERS = 10


def draw_boxes(
    uniform: Tensor, config: AugmentConfig, scale: Pair, ratio: Pair, inside: Sequence[int], size: Sequence[int]
) -> Boxes:
    """Random boxes for (B, V, BOX_NUMBERS or more) numbers in [0, 1)."""
    dims = len(inside)
    area = scale[0] + (scale[1] - scale[0]) * uniform[..., 0]
    share = box_shares(area, between_logs(uniform[..., 1:dims], *ratio), inside, size)
    centre = (2 * uniform[..., 3 : 3 + dims] - 1) * (1 - share)
    angle = (2 * uniform[..., 6] - 1) * math.radians(config.rotate)
    chance = share.new_tensor([config.flip if axis in config.flip_axes else 0.0 for axis in "WHD"[:dims]])
    return Boxes(share, centre, angle, uniform[..., 7 : 7 + dims] < chance)


def between_logs(uniform: Tensor, low: float, high: float) -> Tensor:
    """Log-uniform from `low` to `high`: 9:10 is as likely as 10:9."""
    return low * (high / low) ** uniform


def blur_sigma(uniform: Tensor, blur: Pair, p: float | Tensor) -> Tensor:
    """(N, 2) numbers in [0, 1) -> (N,) sigma, 0 where an image is not blurred."""
    return torch.where(uniform[:, 0] < p, blur[0] + (blur[1] - blur[0]) * uniform[:, 1], 0.0)


def window_changes(uniform: Tensor, strength: float, p: float | Tensor) -> tuple[Tensor, Tensor]:
    """(N, 1 + 2K) numbers in [0, 1) -> shift and width factor (N, K) of K windows, as `Preprocess.to_unit` takes them."""
    changed = (uniform[:, 0] < p)[:, None]
    windows = (uniform.shape[1] - 1) // 2
    shift = (2 * uniform[:, 1 : 1 + windows] - 1) * strength
    width = between_logs(uniform[:, 1 + windows :], 1 / (1 + strength), 1 + strength)
    return torch.where(changed, shift, 0.0), torch.where(changed, width, 1.0)


@dataclass
class IntensityNumbers:
    """What `Intensity` does to each image; all (N,)."""

    gamma: Tensor
    contrast: Tensor
    gain: Tensor
    shift: Tensor
    saturation: Tensor
    hue: Tensor
    inverted: Tensor | None


class Intensity:
    """Gamma, contrast, gain, brightness, colour, noise and solarising, of whole images or of views."""

    numbers = 9

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self.linear = bool(config.contrast or config.gain or config.brightness)

    def acts(self, jitter_p: float, solarize_p: float) -> bool:
        """Whether anything can change."""
        config = self.config
        jitters = self.linear or config.gamma or config.saturation or config.hue
        return bool((jitter_p and jitters) or config.greyscale_p or config.noise or solarize_p)

    def draw(
        self, uniform: Tensor, jitter_p: float | Tensor, solarize_p: float | Tensor, solarizes: bool = True
    ) -> IntensityNumbers:
        """(N, numbers) in [0, 1), and probabilities, (N,) where they differ between views.

        `solarizes` says whether any is above 0 of the last, without asking the device.
        """
        config = self.config
        jitter = uniform[:, 0] < jitter_p
        signed = 2 * uniform - 1

        def around(column: int, strength: float, middle: float) -> Tensor:
            return torch.where(jitter, middle + strength * signed[:, column], middle)

        gamma = torch.where(jitter, between_logs(uniform[:, 1], 1 / (1 + config.gamma), 1 + config.gamma), 1.0)
        saturation = torch.where(uniform[:, 7] < config.greyscale_p, 0.0, around(5, config.saturation, 1.0))
        return IntensityNumbers(
            gamma=gamma,
            contrast=around(2, config.contrast, 1.0),
            gain=around(3, config.gain, 1.0),
            shift=around(4, config.brightness, 0.0),
            saturation=saturation,
            hue=around(6, config.hue, 0.0),
            inverted=uniform[:, 8] < solarize_p if solarizes else None,
        )

    def __call__(self, images: Tensor, numbers: IntensityNumbers, noise: Tensor | None = None) -> Tensor:
        """(N, C, *spatial) in [0, 1] -> the same, a new tensor or `images` itself; `noise` is standard normal."""
        config = self.config
        if config.gamma:
            images = photometric.adjust_gamma(images, numbers.gamma)
        if self.linear:
            images = photometric.adjust_linear(images, numbers.contrast, numbers.gain, numbers.shift)
        if config.colours:
            images = photometric.adjust_colour(images, numbers.saturation, numbers.hue)
        if noise is not None:
            images = torch.add(images, noise.to(images.dtype), alpha=config.noise).clamp_(0, 1)
        return images if numbers.inverted is None else photometric.solarize(images, numbers.inverted)
