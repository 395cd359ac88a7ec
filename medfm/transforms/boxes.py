"""Boxes of images, turned and mirrored, resampled to one size: all views of a batch at once, with numbers for each.

Axes are x (W) first, then H, then D. Places are those of `affine_grid` with align_corners=False: each side of an image runs
from -1 to 1.

Boxes that are not turned are resampled axis by axis, antialiased exactly as `torch.nn.functional.interpolate(antialias=True)`.
Turned boxes are sampled on a grid, in the H-W plane alone, and antialiased by several samples a pixel: less thoroughly (stripes
of 2.2 pixels made 3 times smaller keep 0.3 of their contrast, not 0.1), and at about four times the cost in 2D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from medfm.transforms.photometric import gaussian_blur
from medfm.transforms.rows import Taps, blur_taps, resample_taps, sum_rows

# Source pixels an output pixel, above which a turned box takes more than one sample a pixel: bilinear sampling skips source
# pixels from 2 on, and weighs them unevenly before.
_PLAIN = 1.5


@dataclass
class Boxes:
    """V boxes of each of B images.

    Attributes:
        share: (B, V, d) sides as shares of the image's, x first.
        centre: (B, V, d) from -1 to 1.
        angle: (B, V) radians by which the box turns about its centre, from W towards H (the picture turns the other way).
        mirrored: (B, V, d) bool, output axes to mirror.
    """

    share: Tensor
    centre: Tensor
    angle: Tensor
    mirrored: Tensor


def box_shares(area: Tensor, ratios: Tensor, inside: Sequence[int], size: Sequence[int]) -> Tensor:
    """Sides of crops as shares of the image's sides; no box is larger than the image.

    A box has the proportions of the output, changed by `ratios`, so that nothing is stretched where output and image differ in
    shape. `area` is the share of the largest such box. A ratio that does not fit is drawn towards 1, and the area kept;
    torchvision's RandomResizedCrop draws anew instead.

    Args:
        area: (...) share of the area or volume, in (0, 1].
        ratios: (..., d - 1) of W to H, and in 3D of D to the mean of the two.
        inside: (H, W) or (D, H, W) of the images.
        size: of the output.

    Returns:
        (..., d), x first.
    """
    first = ratios[..., 0].log() / 2
    uneven = torch.stack((first, -first), dim=-1)
    if len(inside) == 3:
        second = ratios[..., 1:].log()
        uneven = torch.cat((uneven - second / 3, 2 * second / 3), dim=-1)
    side = area.log()[..., None] / len(inside)
    room = -side / uneven.amax(dim=-1, keepdim=True).clamp(min=1e-6)
    shape = [out / source for out, source in zip(reversed(size), reversed(inside), strict=True)]
    return (side + uneven * room.clamp(max=1)).exp() * area.new_tensor([s / max(shape) for s in shape])


def cut_boxes(
    images: Tensor,
    boxes: Boxes,
    size: Sequence[int],
    turned: bool,
    largest: float,
    sigma: Tensor | None = None,
    largest_sigma: float = 0.0,
) -> Tensor:
    """Boxes at `size`, antialiased, then blurred.

    Args:
        images: (B, C, *spatial) float. Outside of them is 0 for turned boxes; those not turned must lie inside.
        boxes: V of each.
        size: (H, W) or (D, H, W) of the result.
        turned: whether any angle differs from 0.
        largest: upper bound of source pixels an output pixel along an axis, known without asking the device.
        sigma: (B, V) of a Gaussian blur in output pixels, 0 for none; None blurs nothing.
        largest_sigma: upper bound of sigma.

    Returns:
        (B * V, C, *size), image-major.
    """
    if turned:
        return _cut_turned(images, boxes, size, largest, sigma, largest_sigma)
    views = boxes.share.shape[1]
    for place, n in enumerate(size):
        steps = [_taps(images.shape[2 + place], n, boxes, len(size) - 1 - place, largest)]
        if sigma is not None:
            steps.append(blur_taps(n, sigma.flatten(), largest_sigma))
        images = sum_rows(images, 2 + place, steps, views)
        views = 1
    return images


def _taps(length: int, size: int, boxes: Boxes, x: int, largest: float) -> Taps:
    share, centre, mirrored = (v[..., x].flatten() for v in (boxes.share, boxes.centre, boxes.mirrored))
    return resample_taps(length, size, share, centre, mirrored, largest)


def _cut_turned(
    images: Tensor, boxes: Boxes, size: Sequence[int], largest: float, sigma: Tensor | None, largest_sigma: float
) -> Tensor:
    batch, channels, *spatial = images.shape
    views = boxes.share.shape[1]
    if len(size) == 3:
        # Turns are in the H-W plane: D is resampled by itself, and its slices become channels of single images.
        taps = _taps(spatial[0], size[0], boxes, 2, largest)
        taps = taps._replace(weights=taps.weights * _inside(spatial[0], boxes, size[0]))
        images = sum_rows(images, 2, [taps], views).flatten(1, 2)
        boxes = Boxes(*(v.flatten(0, 1)[:, None] for v in (boxes.share, boxes.centre, boxes.angle, boxes.mirrored)))
    theta = plane_theta(boxes, images.shape[-2:])
    made = sample_plane(images, theta, size[-2:], largest).flatten(0, 1)
    if len(size) == 3:
        made = made.view(batch * views, channels, *size)
    return made if sigma is None else gaussian_blur(made, sigma.flatten(), largest_sigma)


def _inside(length: int, boxes: Boxes, size: int) -> Tensor:
    """(B * V, size, 1): 1 within the image's slices, fading to 0 within one slice beyond, as `grid_sample` does."""
    share, centre = boxes.share[..., 2], boxes.centre[..., 2]
    outputs = (torch.arange(size, device=share.device) - (size - 1) / 2) * (2 / size)
    places = centre[..., None] + torch.where(boxes.mirrored[..., 2], -share, share)[..., None] * outputs
    return ((1 - places.abs()) * (length / 2) + 0.5).clamp(0, 1).flatten(0, 1)[..., None]


def plane_theta(boxes: Boxes, inside: Sequence[int]) -> Tensor:
    """(B, V, 2, 3) maps from output to input coordinates in the H-W plane, as `affine_grid` takes them.

    Args:
        boxes: V of each image.
        inside: (H, W) of the images; a turn keeps distances in pixels.
    """
    height, width = inside
    cosine, sine = boxes.angle.cos(), boxes.angle.sin()
    rows = torch.stack((cosine, -sine * (height / width), sine * (width / height), cosine), dim=-1).unflatten(-1, (2, 2))
    share = torch.where(boxes.mirrored, -boxes.share, boxes.share)[..., None, :2]
    return torch.cat((rows * share, boxes.centre[..., :2, None]), dim=-1)


def sample_plane(images: Tensor, theta: Tensor, size: Sequence[int], largest: float = 1.0) -> Tensor:
    """Bilinear samples of all views in one call, 0 outside.

    Where boxes may have more than 1.5 source pixels an output pixel, each is the mean of a grid of samples (2 x 2 up to 2
    source pixels, 3 x 3 up to 3, and so on), which keeps fine patterns from aliasing.

    Args:
        images: (B, C, H, W) float.
        theta: (B, V, 2, 3).
        size: (H, W) of the views.
        largest: upper bound of source pixels an output pixel, along an axis.

    Returns:
        (B, V, C, *size).
    """
    batch, views = theta.shape[:2]
    times = math.ceil(largest - 1e-6) if largest > _PLAIN else 1
    height, width = (times * n for n in size)
    grid = affine_grid(theta.flatten(0, 1), [batch * views, 1, height, width], align_corners=False)
    # Views of an image lie below one another in the grid: the image itself is not repeated.
    grid = grid.view(batch, views * height, width, 2).to(images.dtype)
    made = grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if times > 1:
        made = avg_pool2d(made, times)
    return made.view(batch, images.shape[1], views, *size).transpose(1, 2)
