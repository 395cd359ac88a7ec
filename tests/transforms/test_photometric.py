"""Changes of intensity are those of torchvision, MONAI and scipy, at given numbers.

Tolerance: 1e-6 of [0, 1] where the arithmetic is the same; said where it is not.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchvision.transforms.v2 import functional as tv

from medfm.transforms.photometric import adjust_colour, adjust_gamma, adjust_linear, gaussian_blur, solarize

NUMBERS = (0.6, 1.0, 1.7)
ONES, ZEROS = torch.ones(3), torch.zeros(3)


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 20, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spatial", [(30, 40), (12, 20, 16)])
def test_gaussian_blur__equals_scipy(spatial: tuple[int, ...]) -> None:
    images = torch.rand(3, 2, *spatial, dtype=torch.float64)
    out = gaussian_blur(images, torch.tensor([0.0, 0.7, 1.5]), largest=1.5)
    np.testing.assert_allclose(out[0], images[0], atol=1e-12)
    for n, sigma in ((1, 0.7), (2, 1.5)):
        for channel in range(2):
            expected = gaussian_filter(images[n, channel].numpy(), sigma, mode="nearest", radius=5)
            np.testing.assert_allclose(out[n, channel], expected, atol=1e-6)


def test_gaussian_blur__equals_torchvision_away_from_edges(images: torch.Tensor) -> None:
    sigma = torch.tensor([0.5, 1.0, 2.0])
    out = gaussian_blur(images, sigma, largest=2.0)
    for n in range(3):
        expected = tv.gaussian_blur(images[n], [13, 13], [float(sigma[n])] * 2)  # reflects at edges, where ours repeats
        close(out[n, :, 6:-6, 6:-6], expected[:, 6:-6, 6:-6])


def test_gaussian_blur__equals_monai_in_3d_away_from_edges() -> None:
    from monai.networks.layers import GaussianFilter, gaussian_1d
    from monai.transforms import GaussianSmooth

    volume = torch.rand(1, 2, 14, 15, 16)
    out = gaussian_blur(volume, torch.tensor([1.0]), largest=1.0)
    expected = GaussianFilter(3, 1.0, truncated=3.0, approx="sampled")(volume)  # 0 beyond the edges, weights sum to 0.9998
    expected /= gaussian_1d(torch.tensor(1.0), 3.0, "sampled").sum() ** 3
    inner = (..., slice(3, -3), slice(3, -3), slice(3, -3))
    close(out[inner], expected[inner])
    # The transform's default integrates the Gaussian over each voxel: a little wider, 1.2e-2 at most here.
    close(out[0][inner], GaussianSmooth(1.0)(volume[0])[inner], atol=0.03)


def test_adjust_linear__contrast_and_gain_equal_torchvision(images: torch.Tensor) -> None:
    contrast = adjust_linear(images, torch.tensor(NUMBERS), ONES, ZEROS)
    gain = adjust_linear(images, ONES, torch.tensor(NUMBERS), ZEROS)
    for n, factor in enumerate(NUMBERS):
        close(contrast[n], tv.adjust_contrast(images[n], factor))
        close(gain[n], tv.adjust_brightness(images[n], factor))


def test_adjust_linear__shift_equals_monai_but_for_clipping(images: torch.Tensor) -> None:
    from monai.transforms import ShiftIntensity

    out = adjust_linear(images, ONES, ONES, torch.tensor([-0.2, 0.1, 0.3]))
    for n, offset in enumerate((-0.2, 0.1, 0.3)):
        close(out[n], torch.as_tensor(ShiftIntensity(offset)(images[n])).clamp(0, 1))


def test_adjust_linear__in_one_pass_what_is_contrast_then_gain_then_shift() -> None:
    images = torch.rand(3, 1, 8, 8) * 0.2 + 0.4  # nothing is clipped on the way
    contrast, gain, shift = torch.tensor([0.5, 1.5, 1.0]), torch.tensor([1.1, 0.9, 1.2]), torch.tensor([0.0, 0.1, -0.1])
    steps = adjust_linear(adjust_linear(adjust_linear(images, contrast, ONES, ZEROS), ONES, gain, ZEROS), ONES, ONES, shift)
    close(adjust_linear(images, contrast, gain, shift), steps)


@pytest.mark.parametrize("gamma", NUMBERS)
def test_adjust_gamma__equals_torchvision_and_monai(images: torch.Tensor, gamma: float) -> None:
    from monai.transforms import AdjustContrast

    images[:, 0, 0, 0], images[:, 0, 0, 1] = 0, 1  # MONAI scales by each image's range
    out = adjust_gamma(images, torch.full((3,), gamma))
    close(out, tv.adjust_gamma(images, gamma))
    for n in range(3):
        close(out[n], torch.as_tensor(AdjustContrast(gamma)(images[n])), atol=2e-6)


def test_solarize__equals_torchvision_of_the_chosen(images: torch.Tensor) -> None:
    out = solarize(images, torch.tensor([True, False, True]), threshold=0.3)
    close(out[0], tv.solarize(images[0], 0.3))
    close(out[1], images[1], atol=0)
    close(out[2], tv.solarize(images[2], 0.3))


def test_adjust_colour__saturation_equals_torchvision() -> None:
    images = torch.rand(3, 3, 8, 8)
    out = adjust_colour(images, torch.tensor([0.0, 0.6, 1.0]), ZEROS)
    for n, factor in enumerate((0.0, 0.6, 1.0)):
        close(out[n], tv.adjust_saturation(images[n], factor), atol=2e-4)  # its luma weights sum to 0.9999


def test_adjust_colour__hue_turns_back_and_keeps_luma() -> None:
    images = torch.rand(4, 3, 8, 8) * 0.1 + 0.45
    hue = torch.tensor([0.1, -0.3, 0.5, 0.0])
    out = adjust_colour(images, torch.ones(4), hue)
    assert float((out - images)[:3].abs().amax((1, 2, 3)).min()) > 0.02
    close(adjust_colour(out, torch.ones(4), -hue), images, atol=1e-5)
    luma = torch.tensor([0.299, 0.587, 0.114])
    close(torch.einsum("nchw,c->nhw", out, luma), torch.einsum("nchw,c->nhw", images, luma), atol=1e-3)
    # Red becomes green or blue, as a third of the circle should have it.
    red = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1)
    thirds = adjust_colour(red.expand(2, -1, -1, -1), torch.ones(2), torch.tensor([1 / 3, -1 / 3])).argmax(1).flatten()
    assert sorted(thirds.tolist()) == [1, 2]
