"""Changes of intensity with explicit numbers for each image, batched. Images are (N, C, *spatial) float in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medfm.transforms.rows import blur_taps, sum_rows

LUMA = (0.2989, 0.587, 0.114)  # torchvision's, of ITU-R BT.601
# YIQ from RGB: the I-Q plane holds what is not grey, and hue is its angle.
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def per_image(numbers: Tensor, images: Tensor) -> Tensor:
    """(N,) -> (N, 1, ...), to multiply images with, in their dtype."""
    return numbers.to(images.dtype).view(-1, *[1] * (images.ndim - 1))


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Separable Gaussian blur, each image with its own sigma in pixels (voxels); edges are repeated.

    Args:
        images: (N, C, *spatial) float.
        sigma: (N,), 0 for no blur.
        largest: an upper bound of sigma, which sets the kernel's size without asking the device.
    """
    for axis in range(2, images.ndim):
        images = sum_rows(images, axis, [blur_taps(images.shape[axis], sigma, largest)])
    return images


def adjust_gamma(images: Tensor, gamma: Tensor) -> Tensor:
    """x ** gamma."""
    return images.clamp(0, 1).pow(per_image(gamma, images))


def adjust_linear(images: Tensor, contrast: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """((x - mean) * contrast + mean) * gain + shift in one pass, clipped to [0, 1] at the end alone; mean is each image's, over
    all channels.

    With gain 1 and shift 0 it is torchvision's adjust_contrast of grey images, with contrast 1 its adjust_brightness (gain) or
    MONAI's ShiftIntensity (shift).
    """
    mean = images.mean(dim=tuple(range(1, images.ndim)), dtype=torch.float32)
    offset = mean * (1 - contrast) * gain + shift
    return torch.addcmul(per_image(offset, images), images, per_image(contrast * gain, images)).clamp_(0, 1)


def solarize(images: Tensor, which: Tensor, threshold: float = 0.5) -> Tensor:
    """1 - x where x is `threshold` or more, of the images marked in (N,) bool `which`."""
    return torch.where(per_image(which, images).bool() & (images >= threshold), 1 - images, images)


def adjust_colour(images: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Distance from grey times `saturation`, and colours turned by `hue` (share of the circle), as one 3 x 3 matrix an image.

    Saturation is torchvision's. Hue turns the I-Q plane of YIQ, which keeps luma and greys, where torchvision turns HSV's.

    Args:
        images: (N, 3, *spatial).
        saturation, hue: (N,).

    Raises:
        ValueError: the images have no three channels.
    """
    if images.shape[1] != 3:
        raise ValueError(f"colour is changed of images with 3 channels, not {images.shape[1]}")
    yiq = torch.tensor(_YIQ, device=images.device)
    angle = hue * (2 * math.pi)
    turn = torch.eye(3, device=images.device).repeat(len(images), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    grey = torch.tensor(LUMA, device=images.device).expand(3, 3)
    keep = saturation[:, None, None]
    matrix = (torch.linalg.inv(yiq) @ turn @ yiq) @ (keep * torch.eye(3, device=images.device) + (1 - keep) * grey)
    return (matrix.to(images.dtype) @ images.flatten(2)).view(images.shape).clamp_(0, 1)
