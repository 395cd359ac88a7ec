"""Augmentation: repeatable, aligned, and nothing where nothing is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medfm.transforms.augment import Augment
from medfm.transforms.config import AugmentConfig, PreprocessConfig
from medfm.transforms.draws import Draws
from medfm.transforms.preprocess import Preprocess

EVERYTHING: dict[str, Any] = {
    "scale": (0.6, 1.0),
    "rotate": 15.0,
    "translate": 0.1,
    "flip": 0.5,
    "jitter_p": 0.8,
    "gamma": 0.5,
    "contrast": 0.2,
    "gain": 0.2,
    "brightness": 0.1,
    "blur": 1.0,
    "blur_p": 0.5,
    "noise": 0.05,
    "solarize_p": 0.2,
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
    out = augment(volume, 3, rotate=90.0)[0, 0]
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


def test_probabilities__are_met_and_leave_the_others_alone() -> None:
    images = torch.rand(400, 1, 6, 6) * 0.4 + 0.3
    for config in ({"jitter_p": 0.3, "brightness": 0.2}, {"blur_p": 0.3, "blur": (0.5, 1.0)}, {"solarize_p": 0.3}):
        out = augment(images, **config)
        changed = (out != images).flatten(1).any(1)
        assert 80 < int(changed.sum()) < 160
        torch.testing.assert_close(out[~changed], images[~changed], rtol=0, atol=0)


def test_gamma__is_log_uniform_about_one() -> None:
    images = torch.full((500, 1, 2, 2), 0.5)
    exponent = augment(images, gamma=1.0)[:, 0, 0, 0].log() / np.log(0.5)
    assert 0.5 <= float(exponent.min()) < 0.52
    assert 1.95 < float(exponent.max()) <= 2.0
    assert float(exponent.log().mean()) == pytest.approx(0, abs=0.06)


def test_flip_axes__each_by_itself() -> None:
    volumes = torch.rand(1, 1, 4, 5, 6).expand(300, -1, -1, -1, -1)
    out = augment(volumes, flip=0.5, flip_axes=("D", "W"))
    seen = [out.sub(volumes.flip(dims) if dims else volumes).abs().flatten(1).amax(1) < 1e-5 for dims in ([], [2], [4], [2, 4])]
    assert all(45 < int(s.sum()) < 110 for s in seen)
    assert int(torch.stack(seen).sum()) == 300


def test_scale__area_is_kept_where_the_ratio_does_not_fit() -> None:
    # A ramp's slope in the crop is the share of that side; the product is the area.
    image = torch.stack([torch.linspace(0, 1, 64).expand(64, 64), torch.linspace(0, 1, 64)[:, None].expand(64, 64)])
    out = augment(image.expand(50, -1, -1, -1), scale=(0.8, 0.8), ratio=(0.5, 2.0))[..., 8:-8, 8:-8]
    width, height = out[:, 0].diff(dim=-1).mean((1, 2)) * 63, out[:, 1].diff(dim=-2).mean((1, 2)) * 63
    np.testing.assert_allclose(width * height, 0.8, atol=0.01)
    assert float(width.max()) < 1.01
    assert float(width.min()) < 0.85


def test_call__devices_share_the_numbers_of_one() -> None:
    images = torch.rand(6, 1, 16, 16)
    whole = augment(images, 5, **EVERYTHING)
    for rank in range(3):
        own = slice(2 * rank, 2 * rank + 2)
        part = Augment(AugmentConfig(**EVERYTHING))(images[own], Draws(5, rank=rank, world=3))
        torch.testing.assert_close(part, whole[own], rtol=0, atol=1e-6)  # convolutions sum in an order of their own


def test_colour__changes_colours_and_keeps_greys() -> None:
    images = torch.rand(8, 3, 8, 8) * 0.4 + 0.3
    out = augment(images, saturation=0.5, hue=0.2)
    assert not torch.allclose(out, images, atol=0.02)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(augment(grey, saturation=0.5, hue=0.2), grey, atol=1e-3, rtol=0)
    dropped = augment(images, greyscale_p=1.0)
    torch.testing.assert_close(dropped[:, 0], dropped[:, 2], atol=1e-5, rtol=0)


def test_prepare__window_jitter_moves_the_window_before_values_are_clipped() -> None:
    windows = ((-1000.0, 400.0), (-160.0, 240.0))
    preprocess = Preprocess(PreprocessConfig(size=(4, 8), window="hu", dtype="int16", windows=windows, channels=2))
    stored = torch.arange(-1024, 1024, 64, dtype=torch.int16).view(1, 1, 4, 8).expand(20, -1, -1, -1)
    unit = Augment(AugmentConfig(window_jitter=0.3)).prepare(preprocess, stored, Draws(0)) * 0.25 + 0.5
    for channel, (low, high) in enumerate(windows):
        for image in unit[:, channel].flatten(1):
            inside = (image > 0) & (image < 1)
            # Inside, still a line through HU, with the slope and the middle of another window.
            slope, offset = np.polyfit(stored[0].flatten()[inside], image[inside], 1)
            assert 1 / 1.3 - 1e-3 <= 1 / (slope * (high - low)) <= 1.3 + 1e-3
            assert abs((0.5 - offset) / slope - (low + high) / 2) <= 0.3 * (high - low) + 1
            torch.testing.assert_close(image, (stored[0].flatten() * slope + offset).clamp(0, 1).float(), atol=1e-4, rtol=0)
    plain = Augment(AugmentConfig()).prepare(preprocess, stored, Draws(0))
    torch.testing.assert_close(plain, preprocess.to_float(stored), rtol=0, atol=0)
    torch.testing.assert_close(Augment(AugmentConfig(window_jitter=0.3)).prepare(preprocess, stored, None), plain)


def test_prepare__window_jitter_of_films_acts_on_what_is_stored() -> None:
    preprocess = Preprocess(PreprocessConfig(size=(1, 256)))
    stored = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256).expand(40, -1, -1, -1)
    unit = Augment(AugmentConfig(window_jitter=0.2, jitter_p=0.5)).prepare(preprocess, stored, Draws(0)) * 0.25 + 0.5
    ramp = torch.linspace(0, 1, 256)
    same = (unit[:, 0, 0] - ramp).abs().amax(1) < 1e-6
    assert 8 < int(same.sum()) < 32
    assert (unit.diff(dim=-1) >= 0).all()
    middles = (unit[~same, 0, 0, 127] - 0.5).abs()
    assert 0.02 < float(middles.max()) <= 0.2 * 1.2 + 0.01


def test_call__bfloat16() -> None:
    out = augment(torch.rand(2, 1, 16, 16).bfloat16(), **EVERYTHING)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


def test_call__refuses() -> None:
    with pytest.raises(TypeError, match="to_unit"):
        augment(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), noise=0.1)
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        augment(torch.zeros(4, 4), noise=0.1)
    with pytest.raises(ValueError, match="3 channels, not 1"):
        augment(torch.zeros(1, 1, 4, 4), hue=0.1)


def test_config__one_number_is_a_range_from_zero() -> None:
    assert AugmentConfig(blur=2).blur == (0.0, 2.0)
    assert AugmentConfig.model_validate(AugmentConfig(blur=(0.1, 2)).model_dump(mode="json")).blur == (0.1, 2.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"blur": (2.0, 1.0)},
        {"flip": 0.5, "flip_axes": ()},
        {"flip_axes": ("W", "W")},
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.5)},
        {"scale": (0.5, 1.5)},
        {"ratio": (0.0, 1.0)},
    ],
)
def test_config__refuses(bad: dict) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig(**bad)
