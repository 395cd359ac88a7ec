"""Views: the numbers of one device on any number, sides kept, values as the contract normalises them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import interpolate

from medfm.transforms.config import AugmentConfig, PreprocessConfig, ViewsConfig
from medfm.transforms.draws import Draws
from medfm.transforms.preprocess import Preprocess
from medfm.transforms.views import MultiCrop, Views, contact_sheet, local_size_for

STRONG: dict[str, Any] = {
    "rotate": 10,
    "contrast": 0.4,
    "gain": 0.2,
    "brightness": 0.1,
    "gamma": 0.5,
    "blur": (0.1, 2.0),
    "noise": 0.02,
    "window_jitter": 0.2,
}
WHOLE: dict[str, Any] = {"global_scale": (1.0, 1.0), "local_scale": (1.0, 1.0)}


def make(stored: Tensor, seed: int = 0, size: tuple[int, ...] = (24, 24), **config: Any) -> Views:
    """Views of one channel; keys of `views` are told from those of `augment` by name."""
    views = {key: config.pop(key) for key in list(config) if key in ViewsConfig.model_fields and key != "ratio"}
    preprocess = Preprocess(PreprocessConfig(size=tuple(stored.shape[2:])))
    return MultiCrop(preprocess, AugmentConfig(**config), ViewsConfig(**views), size)(stored, Draws(seed))


def unit(views: Tensor) -> Tensor:
    return views * 0.25 + 0.5


def films(count: int = 3, size: tuple[int, ...] = (40, 40)) -> Tensor:
    return torch.randint(0, 256, (count, 1, *size), dtype=torch.uint8)


@pytest.mark.parametrize("size", [(24, 24), (8, 24, 16)])
def test_call__shapes_and_range(size: tuple[int, ...]) -> None:
    stored = films(3, tuple(2 * n for n in size))
    before = stored.clone()
    views = make(stored, size=size, local_count=4, **STRONG, solarize_p=(0.0, 0.2, 0.1))
    local = local_size_for(size)
    assert views.global_views.shape == (2 * 3, 1, *size)
    assert views.local_views is not None
    assert views.local_views.shape == (4 * 3, 1, *local)
    for part in (views.global_views, views.local_views):
        assert part.dtype == torch.float32
        assert part.is_contiguous()
        assert -2 <= float(part.min()) < float(part.max()) <= 2
    torch.testing.assert_close(stored, before)
    assert make(stored, size=size, local_count=0).local_views is None


def test_call__same_seed_same_views() -> None:
    stored = films()
    first, again, other = (make(stored, seed, **STRONG).global_views for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[:3], first[3:])


@pytest.mark.parametrize("rotate", [0, 10])
@pytest.mark.parametrize("size", [(24, 24), (8, 12, 10)])
def test_call__devices_share_the_numbers_of_one(rotate: int, size: tuple[int, ...]) -> None:
    stored = films(4, tuple(n + 6 for n in size))
    preprocess = Preprocess(PreprocessConfig(size=tuple(stored.shape[2:])))
    config = AugmentConfig(**{**STRONG, "rotate": rotate})
    crop = MultiCrop(preprocess, config, ViewsConfig(local_count=3, solarize_p=(0.5, 0.5, 0.5)), size)
    whole = crop(stored, Draws(7))
    parts = [crop(stored[2 * rank : 2 * rank + 2], Draws(7, rank=rank, world=2)) for rank in range(2)]
    for name, count in (("global_views", 2), ("local_views", 3)):
        joined = torch.cat([getattr(part, name).unflatten(0, (count, 2)) for part in parts], dim=1).flatten(0, 1)
        # The numbers are the same; products and convolutions of other batch sizes sum in other orders.
        torch.testing.assert_close(joined, getattr(whole, name), rtol=0, atol=2e-5)


def test_call__whole_images_unchanged_are_the_contracts_antialiased() -> None:
    stored = films(2, (60, 60))
    views = make(stored, local_count=1, **WHOLE)
    for made, size in ((views.global_views[:2], 24), (views.global_views[2:], 24), (views.local_views, 10)):
        expected = interpolate(stored / 255, (size, size), mode="bilinear", antialias=True)
        torch.testing.assert_close(unit(made), expected, atol=1e-5, rtol=0)


def test_call__view_major() -> None:
    stored = torch.stack([torch.full((1, 16, 16), 40 * n, dtype=torch.uint8) for n in range(4)])
    views = make(stored, local_count=2)
    expected = torch.arange(4).repeat(2) * 40 / 255
    for part in (views.global_views, views.local_views):
        torch.testing.assert_close(unit(part).mean((1, 2, 3)), expected, atol=1e-5, rtol=0)


def test_call__no_side_is_flipped_unless_asked() -> None:
    ramp = torch.linspace(0, 255, 40).round().to(torch.uint8)
    sides = [ramp.view(40, 1, 1), ramp.view(1, 40, 1), ramp.view(1, 1, 40)]
    stored = torch.stack([side.expand(40, 40, 40) for side in sides])[:, None]
    for flip, falling in ((0.0, 0), (1.0, 6)):
        views = make(
            stored,
            size=(12, 12, 12),
            local_size=(12, 12, 12),
            local_count=4,
            flip=flip,
            rotate=10,
            blur=(0.1, 1.0),
            contrast=0.3,
        )
        for part in (views.global_views, views.local_views):
            by_axis = part.unflatten(0, (-1, 3))
            slopes = [by_axis[:, n].diff(dim=2 + n)[..., 3:-3, 3:-3, 3:-3].mean((1, 2, 3, 4)) for n in range(3)]
            assert (slopes[0] > 0).all()
            assert (slopes[1] > 0).all()
            assert ((slopes[2] < 0) == (falling > 0)).all()


def test_call__areas_are_those_of_the_config() -> None:
    ramp = torch.linspace(0, 1, 64)
    both = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64)])  # channels tell W and H
    preprocess = Preprocess(PreprocessConfig(size=(64, 64), channels=3, dtype="float32"))
    stored = torch.cat([both, both[:1]])[None].expand(200, -1, -1, -1)
    views = MultiCrop(preprocess, AugmentConfig(), ViewsConfig(), (32, 32))(stored, Draws(0))
    for part, low, high in ((views.global_views, 0.4, 1.0), (views.local_views, 0.05, 0.4)):
        inner = unit(part)[..., 2:-2, 2:-2]
        steps = 63 * part.shape[-1] / 64
        width, height = inner[:, 0].diff(dim=-1).mean((1, 2)) * steps, inner[:, 1].diff(dim=-2).mean((1, 2)) * steps
        area, ratio = width * height, width / height
        assert low - 0.01 < float(area.min()) < low + 0.05
        assert high - 0.05 < float(area.max()) < high + 0.01
        assert float(area.mean()) == pytest.approx((low + high) / 2, abs=0.02)
        assert 0.74 < float(ratio.min()) < 0.78
        assert 1.28 < float(ratio.max()) < 1.35
        assert float(ratio.log().mean()) == pytest.approx(0, abs=0.02)


def test_call__probabilities_by_kind_of_view() -> None:
    stored = films(200, (16, 16))
    options: dict[str, Any] = {"size": (16, 16), "local_size": (16, 16), "global_count": 3, "local_count": 1, **WHOLE}
    plain = stored / 255
    for config in (
        {"blur": (1.0, 2.0), "blur_p": (1.0, 0.1, 0.5)},
        {"solarize_p": (1.0, 0.1, 0.5)},
        {"brightness": 0.2, "jitter_p": (1.0, 0.1, 0.5)},
    ):
        views = make(stored, **options, **config)
        changed = [
            float(((unit(part) - plain).abs().amax((1, 2, 3)) > 1e-4).float().mean())
            for part in (*views.global_views.chunk(3), views.local_views)
        ]
        assert changed == pytest.approx([1.0, 0.1, 0.1, 0.5], abs=0.1)
        assert changed[0] == 1.0


@pytest.mark.parametrize("rotate", [0, 30])
def test_call__hounsfield_are_cut_and_blurred_before_they_are_windowed(rotate: float) -> None:
    windows = ((-1000.0, 400.0), (-160.0, 240.0))
    preprocess = Preprocess(PreprocessConfig(size=(10, 20, 20), window="hu", dtype="int16", windows=windows, channels=2))
    stored = torch.full((40, 1, 10, 20, 20), 40, dtype=torch.int16)
    augment = AugmentConfig(window_jitter=0.2, rotate=rotate, blur=1.0)
    views = MultiCrop(preprocess, augment, ViewsConfig(local_count=0, jitter_p=(1.0, 0.0, 0.0), **WHOLE), (10, 20, 20))
    first, second = unit(views(stored, Draws(0)).global_views).chunk(2)
    middle = second[:, :, 5, 10, 10]
    np.testing.assert_allclose(middle, [[1040 / 1400, 200 / 400]] * 40, atol=1e-5)
    assert (first[:, :, 5, 10, 10] - middle).abs().amax(1).min() > 1e-4
    # Each window moves by itself, and both by no more than was asked.
    moved = first[:, :, 5, 10, 10] - middle
    assert float(moved[:, 1].abs().max()) <= 0.2 * 1.2 + 1e-5
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.5
    # Air, not water, is outside of what turned.
    corner = second[:, :, 5, 0, 0]
    assert (corner[:, 0].min() < 0.05) if rotate else torch.allclose(corner, middle, atol=1e-5)


def test_call__mixed_precision_changes_nothing() -> None:
    stored = films()
    plain = make(stored, **STRONG).global_views
    with torch.autocast("cpu", torch.bfloat16):
        mixed = make(stored, **STRONG).global_views
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0)


def test_local_size_for() -> None:
    assert local_size_for((224, 224), (16, 16)) == (96, 96)
    assert local_size_for((96, 96, 96), (16, 16, 16)) == (48, 48, 48)
    assert local_size_for((64, 128, 128), (8, 16, 16)) == (24, 48, 48)
    assert local_size_for((224, 224), (14, 14)) == (98, 98)
    assert local_size_for((16, 16), (16, 16)) == (16, 16)


def test_contact_sheet__shows_stored_and_views_in_rows() -> None:
    for size in ((30, 40), (10, 30, 40)):
        stored = films(3, size)
        preprocess = Preprocess(PreprocessConfig(size=size))
        crop = MultiCrop(preprocess, AugmentConfig(), ViewsConfig(local_count=3, **WHOLE), (*size[:-2], 28, 28))
        sheet = contact_sheet(crop(stored, Draws(0)), stored, preprocess, images=2)
        assert sheet.dtype == np.uint8
        # A stored image at 28 rows, two views, two columns of local views of 12; 4 white pixels after each.
        assert sheet.shape == (2 * (28 + 4), (37 + 4) + 2 * (28 + 4) + 2 * (12 + 4), 3)
        shown = stored[0, 0] if len(size) == 2 else stored[0, 0, 5].flip(0, 1)  # RAS: the first voxel is left, behind
        assert sheet[0, 0].tolist() == [int(shown[0, 0])] * 3
        assert (sheet[28:32] == 255).all()


def test_init__refuses_sizes_of_other_dimensions() -> None:
    preprocess = Preprocess(PreprocessConfig(size=(16, 16)))
    with pytest.raises(ValueError, match="img_size"):
        MultiCrop(preprocess, AugmentConfig(), ViewsConfig(), (16, 16, 16))
    with pytest.raises(ValueError, match="local_size"):
        MultiCrop(preprocess, AugmentConfig(), ViewsConfig(local_size=(8, 8, 8)), (16, 16))


@pytest.mark.parametrize(
    "bad",
    [
        {"global_scale": (0.0, 1.0)},
        {"local_scale": (0.4, 0.05)},
        {"blur_p": (1.0, 2.0, 0.5)},
        {"ratio": (2.0, 0.5)},
        {"local_size": (8,)},
    ],
)
def test_config__refuses(bad: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        ViewsConfig(**bad)
