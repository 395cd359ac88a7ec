"""Augmentation: repeatable, aligned, and nothing where nothing is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter

from medfm.transforms.augment import Augment, gaussian_blur
from medfm.transforms.config import AugmentConfig
from medfm.transforms.draws import Draws

EVERYTHING: dict[str, Any] = {
    "scale": (0.6, 1.0),
    "rotate": 15.0,
    "translate": 0.1,
    "flip": 0.5,
    "brightness": 0.1,
    "contrast": 0.2,
    "blur": 1.0,
    "noise": 0.05,
}


def augment(images: torch.Tensor, seed: int = 0, **config: Any) -> torch.Tensor:
    return Augment(AugmentConfig(**config))(images, Draws(seed))


def disc(height: int, width: int, radius: float, row: float = 0.0, column: float = 0.0) -> torch.Tensor:
    """(1, 1, H, W) with a disc that lies (row, column) pixels off the middle."""
    y = torch.arange(height)[:, None] - (height - 1) / 2 - row
    x = torch.arange(width) - (width - 1) / 2 - column
    return ((x**2 + y**2) < radius**2).float()[None, None]


def centre(image: torch.Tensor) -> tuple[float, float]:
    """(row, column) of the centre of mass, from the middle."""
    height, width = image.shape
    rows = (torch.arange(height) - (height - 1) / 2) @ image.sum(1) / image.sum()
    columns = (torch.arange(width) - (width - 1) / 2) @ image.sum(0) / image.sum()
    return float(rows), float(columns)


def test_call__default_config_returns_its_input() -> None:
    images = torch.rand(2, 1, 8, 8)
    assert augment(images) is images


@pytest.mark.parametrize("spatial", [(24, 32), (8, 24, 32)])
def test_call__same_seed_same_result(spatial: tuple[int, ...]) -> None:
    images = torch.rand(4, 2, *spatial)
    before = images.clone()
    first = augment(images, 1, **EVERYTHING)
    torch.testing.assert_close(first, augment(images, 1, **EVERYTHING), rtol=0, atol=0)
    assert not torch.equal(first, augment(images, 2, **EVERYTHING))
    assert first.shape == images.shape
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    torch.testing.assert_close(images, before)


def test_call__each_image_its_own_numbers() -> None:
    out = augment(torch.rand(1, 1, 32, 32).expand(3, -1, -1, -1), **EVERYTHING)
    assert not torch.allclose(out[0], out[1])
    assert not torch.allclose(out[1], out[2])


def test_flip__mirrors_left_and_right_exactly() -> None:
    images = torch.rand(3, 1, 7, 10)
    torch.testing.assert_close(augment(images, flip=1.0), images.flip(-1), atol=1e-5, rtol=0)
    volumes = torch.rand(2, 1, 4, 7, 10)
    torch.testing.assert_close(augment(volumes, flip=1.0), volumes.flip(-1), atol=1e-5, rtol=0)
    mixed = augment(torch.arange(10.0).expand(200, 1, 1, 10) / 10, flip=0.5)
    assert 60 < int((mixed[:, 0, 0, 0] > 0.5).sum()) < 140


def test_rotate__keeps_circles_round_and_at_their_distance() -> None:
    # Not square: without the proportions in the matrix a disc would become an ellipse and drift.
    images = disc(60, 120, 9.0, column=15.0).expand(16, -1, -1, -1)
    out = augment(images, rotate=180.0)
    angles = []
    for image in out[:, 0]:
        row, column = centre(image)
        angles.append(np.arctan2(row, column))
        assert np.hypot(row, column) == pytest.approx(15, abs=0.2)
        assert float(image.sum()) == pytest.approx(float(images[0].sum()), rel=0.03)
        height, width = int((image > 0.5).any(1).sum()), int((image > 0.5).any(0).sum())
        assert abs(height - width) <= 2
    assert np.ptp(angles) > 2


def test_rotate__turns_axial_slices_alone_in_3d() -> None:
    volume = torch.zeros(1, 1, 5, 31, 31)
    volume[0, 0, 1] = disc(31, 31, 4.0, column=8.0)[0, 0]
    out = augment(volume, rotate=90.0)[0, 0]
    assert float(out[[0, 2, 3, 4]].abs().max()) < 1e-4
    row, column = centre(out[1])
    assert np.hypot(row, column) == pytest.approx(8, abs=0.3)
    assert abs(row) > 0.5


def test_translate__is_bounded_by_its_share() -> None:
    images = disc(64, 64, 5.0).expand(100, -1, -1, -1)
    shifts = np.array([centre(image) for image in augment(images, translate=0.2)[:, 0]])
    assert np.abs(shifts).max() <= 0.2 * 64 + 0.1
    assert np.abs(shifts).max() > 0.15 * 64


def test_scale__a_quarter_of_the_area_doubles_lengths() -> None:
    out = augment(torch.ones(8, 1, 32, 32), scale=(0.25, 0.25), ratio=(1.0, 1.0))
    torch.testing.assert_close(out, torch.ones_like(out))  # the crop lies inside: no black comes in
    ramp = torch.linspace(0, 1, 64).expand(8, 1, 64, 64)
    slope = augment(ramp, scale=(0.25, 0.25), ratio=(1.0, 1.0)).diff(dim=-1)[..., 2:-2].mean()
    assert float(slope) == pytest.approx(0.5 / 63, rel=0.02)


def test_scale__share_of_a_volume() -> None:
    ramp = torch.linspace(0, 1, 32)[:, None, None].expand(4, 1, 32, 32, 32)
    slope = augment(ramp, scale=(0.125, 0.125), ratio=(1.0, 1.0)).diff(dim=2)[:, :, 2:-2].mean()
    assert float(slope) == pytest.approx(0.5 / 31, rel=0.02)


def test_brightness_and_contrast__by_hand() -> None:
    images = torch.rand(64, 1, 8, 8) * 0.2 + 0.4
    shift = (augment(images, brightness=0.3) - images).flatten(1)
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), atol=1e-6, rtol=0)
    assert 0.2 < float(shift.abs().max()) <= 0.3
    out = augment(images, contrast=0.5)
    torch.testing.assert_close(out.mean((1, 2, 3)), images.mean((1, 2, 3)))
    factor = out.flatten(1).std(1) / images.flatten(1).std(1)
    assert 0.5 <= float(factor.min()) < 0.7
    assert 1.3 < float(factor.max()) <= 1.5


def test_noise__has_the_asked_spread() -> None:
    out = augment(torch.full((4, 1, 64, 64), 0.5), noise=0.05)
    assert float(out.std()) == pytest.approx(0.05, rel=0.05)
    assert float(out.mean()) == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("spatial", [(30, 40), (12, 20, 16)])
def test_gaussian_blur__equals_scipy(spatial: tuple[int, ...]) -> None:
    images = torch.rand(3, 2, *spatial, dtype=torch.float64)
    sigma = torch.tensor([0.0, 0.7, 1.5])
    out = gaussian_blur(images, sigma, largest=1.5)
    np.testing.assert_allclose(out[0], images[0], atol=1e-12)
    for n in (1, 2):
        for channel in range(2):
            expected = gaussian_filter(images[n, channel].numpy(), float(sigma[n]), mode="nearest", radius=5)
            np.testing.assert_allclose(out[n, channel], expected, atol=1e-6)


def test_call__bfloat16() -> None:
    out = augment(torch.rand(2, 1, 16, 16).bfloat16(), **EVERYTHING)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


def test_call__refuses() -> None:
    with pytest.raises(TypeError, match="to_unit"):
        augment(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), noise=0.1)
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        augment(torch.zeros(4, 4), noise=0.1)


@pytest.mark.parametrize("bad", [{"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}, {"scale": (0.5, 1.5)}, {"ratio": (0.0, 1.0)}])
def test_config__refuses(bad: dict) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig(**bad)
