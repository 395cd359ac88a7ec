"""Random changes of a training batch, batched and on the batch's device.

All geometry is one affine grid and one `grid_sample`, so pixels are interpolated once; blur is a batched separable
convolution (torchvision's takes 3.3 ms an image). Every number comes from the draws that are handed in: same seed, same
result, on any number of devices.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, conv3d, grid_sample, pad

from medfm.transforms.config import AugmentConfig
from medfm.transforms.draws import Draws

if TYPE_CHECKING:
    from medfm.transforms.preprocess import Preprocess


class Augment:
    """Apply an `AugmentConfig` to float images in [0, 1], that is between `Preprocess.to_unit` and `Preprocess.normalise`.

    Order: scale, ratio, rotation, translation, flip (one resampling; outside is 0, black) -> blur -> contrast -> brightness
    -> noise -> clip to [0, 1]. Each image of the batch gets numbers of its own. In 3D rotation turns the H-W plane (axial
    slices), `ratio` is that of W to H, and `scale` is the share of the volume.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self.moves = tuple(config.scale) != (1.0, 1.0) or any((config.rotate, config.translate, config.flip))
        self.identity = not (self.moves or any((config.brightness, config.contrast, config.blur, config.noise)))

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, C, *spatial) float in [0, 1] -> the same shape. A config that changes nothing returns `images` itself.

        Random numbers are made on the draws' device; give one on the images' device to keep noise from being copied.

        Raises:
            TypeError: the images are integers.
            ValueError: the images are neither 2D nor 3D.
        """
        if self.identity:
            return images
        if not images.is_floating_point():
            raise TypeError(f"augment takes float images in [0, 1], got {images.dtype}; call Preprocess.to_unit first")
        if images.ndim not in (4, 5):
            raise ValueError(f"augment takes (B, C, H, W) or (B, C, D, H, W), got shape {tuple(images.shape)}")
        if self.moves:
            theta = self._affine(images, draws)
            grid = affine_grid(theta, list(images.shape), align_corners=False).to(images.dtype)
            images = grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        if self.config.blur:
            images = gaussian_blur(images, self._uniform(images, draws, 0.0, self.config.blur), self.config.blur)
        return self._intensity(images, draws)

    def prepare(self, preprocess: Preprocess, stored: Tensor, draws: Draws | None) -> Tensor:
        """Pixels as the contract stores them, (B, C, *size), to what the network takes; changed where `draws` are given."""
        images = preprocess.to_unit(stored)
        return preprocess.normalise(images if draws is None else self(images, draws))

    def _uniform(self, images: Tensor, draws: Draws, low: float, high: float) -> Tensor:
        """(B,) float32 on the images' device."""
        return draws.uniform(len(images), low, high).to(images.device, non_blocking=True)

    def _affine(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, d, d + 1) maps from output to input coordinates, as `affine_grid` takes them: x (W) first, each side
        spanning [-1, 1].
        """
        config = self.config
        dims = images.ndim - 2
        height, width = images.shape[-2:]
        theta = torch.zeros(len(images), dims, dims + 1, device=images.device)

        area = self._uniform(images, draws, *config.scale)
        if tuple(config.scale) == (1.0, 1.0):
            ratio = torch.ones_like(area)
        else:  # log-uniform, so that 9:10 is as likely as 10:9 (torchvision's RandomResizedCrop)
            ratio = self._uniform(images, draws, *map(math.log, config.ratio)).exp()
        side = area.pow(1 / dims)
        # Sides of the crop as shares of (W, H[, D]); a share above 1 would show what is outside.
        sides = [side * ratio.sqrt(), side / ratio.sqrt(), *[side] * (dims - 2)]
        sides = [s.clamp(max=1.0) for s in sides]

        angle = self._uniform(images, draws, -config.rotate, config.rotate) * (math.pi / 180)
        cosine, sine = angle.cos(), angle.sin()
        # Coordinates are in half-sides, so a turn of a picture that is not square carries its proportions.
        theta[:, 0, 0], theta[:, 0, 1] = cosine, -sine * (height / width)
        theta[:, 1, 0], theta[:, 1, 1] = sine * (width / height), cosine
        if dims == 3:
            theta[:, 2, 2] = 1.0
        if config.flip:
            # After the turn, in the output: mirror x, the left-right axis of a film and of a RAS or LPS volume.
            mirrored = self._uniform(images, draws, 0.0, 1.0) < config.flip
            theta[:, :, 0] *= torch.where(mirrored, -1.0, 1.0)[:, None]
        for axis, share in enumerate(sides):
            theta[:, axis, :dims] *= share[:, None]
            room = self._uniform(images, draws, -1.0, 1.0) * (1 - share)
            shift = self._uniform(images, draws, -2 * config.translate, 2 * config.translate)
            theta[:, axis, dims] = room + shift
        return theta

    def _intensity(self, images: Tensor, draws: Draws) -> Tensor:
        config = self.config
        shape = (-1, *[1] * (images.ndim - 1))
        if not (config.contrast or config.brightness or config.noise):
            return images
        if config.contrast:
            factor = self._uniform(images, draws, 1 - config.contrast, 1 + config.contrast).view(shape).to(images.dtype)
            mean = images.mean(dim=tuple(range(1, images.ndim)), keepdim=True)
            images = torch.lerp(mean, images, factor)
        if config.brightness:
            images = images + self._uniform(images, draws, -config.brightness, config.brightness).view(shape).to(images.dtype)
        if config.noise:
            noise = draws.noise(*images.shape).to(images.device, images.dtype)
            images = torch.add(images, noise, alpha=config.noise)
        return images.clamp(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Separable Gaussian blur, each image with its own sigma in pixels (voxels); edges are repeated.

    Args:
        images: (B, C, *spatial) float.
        sigma: (B,), 0 for no blur.
        largest: an upper bound of sigma, which sets the kernel's size without asking the device.
    """
    radius = max(1, math.ceil(3 * largest))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    batch, channels, *spatial = images.shape
    weight = kernel.repeat_interleave(channels, dim=0).to(images.dtype)
    x = images.reshape(1, batch * channels, *spatial)
    convolve = conv2d if len(spatial) == 2 else conv3d
    for axis in range(len(spatial)):
        ends = [0, 0] * (len(spatial) - 1 - axis) + [radius, radius] + [0, 0] * axis
        shape = [1] * len(spatial)
        shape[axis] = 2 * radius + 1
        x = convolve(pad(x, ends, mode="replicate"), weight.view(batch * channels, 1, *shape), groups=batch * channels)
    return x.view(batch, channels, *spatial)
