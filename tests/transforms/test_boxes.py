"""Boxes hold the area asked for, and are resampled as torch, torchvision and MONAI resample them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from medfm.transforms.boxes import Boxes, box_shares, cut_boxes
from medfm.transforms.photometric import gaussian_blur


def boxes(
    share: list[float],
    centre: list[float] | None = None,
    angle: float = 0.0,
    mirrored: list[bool] | None = None,
    images: int = 1,
) -> Boxes:
    """One box of each image; numbers are x first."""
    dims = len(share)
    return Boxes(
        torch.tensor(share).expand(images, 1, dims),
        torch.tensor(centre or [0.0] * dims).expand(images, 1, dims),
        torch.full((images, 1), angle),
        torch.tensor(mirrored or [False] * dims).expand(images, 1, dims),
    )


def cut(images: torch.Tensor, boxes: Boxes, size: tuple[int, ...], turned: bool, **options: Any) -> torch.Tensor:
    """`cut_boxes` with the bound that these boxes and sizes have."""
    steps = [
        float(boxes.share[..., -1 - place].max()) * length / n
        for place, (length, n) in enumerate(zip(images.shape[2:], size, strict=True))
    ]
    return cut_boxes(images, boxes, size, turned, max(steps), **options)


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("size", [(24, 30), (13, 17), (60, 80), (48, 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_cut_boxes__whole_image_equals_antialiased_resize(size: tuple[int, int], channels: int) -> None:
    images = torch.rand(2, channels, 48, 60)
    close(cut(images, boxes([1.0, 1.0], images=2), size, False), interpolate(images, size, mode="bilinear", antialias=True))


@pytest.mark.parametrize("size", [(24, 20), (12, 12), (50, 60)])
def test_cut_boxes__equals_torchvisions_resized_crop_inside(size: tuple[int, int]) -> None:
    images = torch.rand(2, 1, 64, 80)
    top, left, height, width = 10, 20, 36, 40
    box = boxes([width / 80, height / 64], [(2 * left + width) / 80 - 1, (2 * top + height) / 64 - 1], images=2)
    out = cut(images, box, size, False)
    expected = tv.resized_crop(images, top, left, height, width, list(size), InterpolationMode.BILINEAR, antialias=True)
    # torchvision cuts first, and does not see beyond the box: the outermost pixels differ.
    edge = 1 + math.ceil(max(size[0] / height, size[1] / width))
    inner = (..., slice(edge, -edge), slice(edge, -edge))
    close(out[inner], expected[inner])
    assert float((out - expected).abs().max()) > 1e-3


def test_cut_boxes__three_axes_equal_resizing_one_after_the_other() -> None:
    volume = torch.rand(2, 2, 20, 24, 28)
    made = cut(volume, boxes([1.0, 1.0, 1.0], images=2), (8, 30, 14), False)
    flat = interpolate(volume.flatten(1, 2), (30, 14), mode="bilinear", antialias=True).view(2, 2, 20, 30 * 14)
    close(made, interpolate(flat, (8, 30 * 14), mode="bilinear", antialias=True).view(2, 2, 8, 30, 14))


def test_cut_boxes__zoom_and_flip_equal_monai() -> None:
    from monai.transforms import Flip, Zoom

    volume = torch.rand(1, 12, 16, 20)
    zoomed = torch.as_tensor(Zoom((2.0, 2.0, 2.0), mode="trilinear", align_corners=False, keep_size=True)(volume))
    made = cut(volume[None], boxes([0.5, 0.5, 0.5]), (12, 16, 20), False)[0]
    inner = (..., slice(1, -1), slice(1, -1), slice(1, -1))
    close(made[inner], zoomed[inner])
    for x in range(3):
        mirrored = [axis == x for axis in range(3)]
        flipped = torch.as_tensor(Flip(spatial_axis=2 - x)(volume))
        for turned in (False, True):
            close(cut(volume[None], boxes([1.0] * 3, mirrored=mirrored), (12, 16, 20), turned)[0], flipped)


@pytest.mark.parametrize("size", [(20, 24), (13, 30)])
def test_cut_boxes__turned_by_nothing_equals_not_turned(size: tuple[int, int]) -> None:
    images = torch.rand(2, 1, 32, 40)
    box = boxes([0.5, 0.4], [0.2, -0.3], mirrored=[True, False], images=2)
    sigma = torch.tensor([[0.0], [1.0]])
    close(
        cut(images, box, size, False, sigma=sigma, largest_sigma=1.0),
        cut(images, box, size, True, sigma=sigma, largest_sigma=1.0),
    )
    volumes = torch.rand(2, 2, 12, 32, 40)
    box = boxes([0.5, 0.4, 0.6], [0.2, -0.3, 0.1], mirrored=[True, False, True], images=2)
    plain, turned = (cut(volumes, box, (9, *size), turned, sigma=sigma, largest_sigma=1.0) for turned in (False, True))
    close(plain, turned)
    close(plain, gaussian_blur(cut(volumes, box, (9, *size), False), sigma.flatten(), 1.0))


@pytest.mark.parametrize("degrees", [10.0, -35.0, 90.0])
def test_cut_boxes__turn_equals_torchvision_and_monai(degrees: float) -> None:
    from monai.transforms import Affine

    images = torch.rand(1, 1, 30, 44)
    box = boxes([1.0, 1.0], angle=math.radians(degrees))
    out = cut(images, box, (30, 44), True)
    close(out, tv.rotate(images, degrees, InterpolationMode.BILINEAR), atol=1e-4)
    close(out, tv.affine(images, -degrees, [0, 0], 1.0, [0.0, 0.0], InterpolationMode.BILINEAR), atol=1e-4)
    volume = torch.rand(1, 6, 30, 44)
    made = cut(volume[None], boxes([1.0] * 3, angle=math.radians(degrees)), (6, 30, 44), True)[0]
    # MONAI turns about the slice axis the other way, and the grid's ends by default lie on the outer voxels' middles.
    affine = Affine((-math.radians(degrees), 0, 0), padding_mode="zeros", image_only=True, align_corners=False)
    close(made, torch.as_tensor(affine(volume)), atol=1e-4)


def test_cut_boxes__outside_is_black_also_along_slices() -> None:
    ones = torch.ones(1, 1, 8, 8, 8)
    made = cut(ones, boxes([1.0, 1.0, 1.0], [0.0, 0.0, 1.0]), (8, 8, 8), True)[0, 0]
    close(made[:4], torch.ones(4, 8, 8))
    close(made[4:], torch.zeros(4, 8, 8))


@pytest.mark.parametrize(("turned", "left"), [(False, 0.07), (True, 0.25)])
def test_cut_boxes__fine_stripes_do_not_alias(turned: bool, left: float) -> None:
    # Stripes of 2.2 pixels, made 3 times smaller, are finer than the new pixels: grey should come out, not coarse stripes.
    stripes = (torch.arange(192) * (2 * math.pi / 2.2)).sin().expand(1, 1, 192, -1)
    made = cut(stripes, boxes([1.0, 1.0]), (64, 64), turned)[..., 4:-4, 4:-4]
    assert float(made.std()) < left
    assert float(interpolate(stripes, (64, 64), mode="bilinear").std()) > 0.5


def test_cut_boxes__several_views_are_those_made_one_by_one() -> None:
    images = torch.rand(2, 3, 24, 20)
    share, centre = torch.rand(2, 4, 2) * 0.5 + 0.3, torch.zeros(2, 4, 2)
    angle, mirrored = torch.rand(2, 4), torch.rand(2, 4, 2) < 0.5
    for turned in (False, True):
        many = cut_boxes(images, Boxes(share, centre, angle, mirrored), (9, 11), turned, 2.5).view(2, 4, 3, 9, 11)
        for b in range(2):
            for v in range(4):
                own = (slice(b, b + 1), slice(v, v + 1))
                one = Boxes(share[own], centre[own], angle[own], mirrored[own])
                close(cut_boxes(images[b : b + 1], one, (9, 11), turned, 2.5)[0], many[b, v])


def test_box_shares__area_is_exact_and_boxes_fit() -> None:
    uniform = torch.rand(500, 4)
    area, ratios = 0.05 + 0.95 * uniform[:, 0], (4 / 3) ** (2 * uniform[:, 1:3] - 1)
    for dims in (2, 3):
        share = box_shares(area, ratios[:, : dims - 1], (64,) * dims, (32,) * dims)
        np.testing.assert_allclose(share.prod(1), area, rtol=1e-5)
        assert float(share.max()) <= 1 + 1e-6
        small = area < 0.4
        np.testing.assert_allclose((share[:, 0] / share[:, 1])[small], ratios[small, 0], rtol=1e-4)
        if dims == 3:
            mean = (share[:, 0] * share[:, 1]).sqrt()
            np.testing.assert_allclose((share[:, 2] / mean)[small], ratios[small, 1], rtol=1e-4)


def test_box_shares__nothing_is_stretched_where_shapes_differ() -> None:
    share = box_shares(torch.tensor([1.0, 0.25]), torch.ones(2, 1), (100, 200), (32, 32))
    np.testing.assert_allclose(share, [[0.5, 1.0], [0.25, 0.5]], rtol=1e-5)
