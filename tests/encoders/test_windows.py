"""Attention within windows is full attention under a mask; 2D ViT weights start 3D ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medfm.encoders.attention import attend
from medfm.encoders.config import VitConfig
from medfm.encoders.vit import VisionTransformer
from medfm.encoders.windows import window_attend
from medfm.errors import ConfigError, WeightsError

TINY: dict[str, Any] = {"embed_dim": 24, "depth": 4, "num_heads": 2}


def seen(grid: tuple[int, ...], window: tuple[int, ...], prefix: int) -> Tensor:
    """(N, N) True where a token may be attended to, token by token."""
    places = list(torch.cartesian_prod(*(torch.arange(n) for n in grid)).tolist())
    owner = [tuple(x // w for x, w in zip(place, window, strict=True)) for place in places]
    count = prefix + len(places)
    allowed = torch.zeros(count, count, dtype=torch.bool)
    allowed[:prefix] = allowed[:, :prefix] = True
    for i, a in enumerate(owner):
        for j, b in enumerate(owner):
            allowed[prefix + i, prefix + j] = a == b
    return allowed


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize(
    ("grid", "window"), [((4, 6), (2, 3)), ((2, 4, 6), (1, 2, 3)), ((2, 4, 6), (2, 2, 2)), ((3, 3), (3, 3))]
)
def test_window_attend__is_attention_under_a_mask(grid: tuple[int, ...], window: tuple[int, ...], prefix: int) -> None:
    torch.manual_seed(0)
    count = prefix + torch.Size(grid).numel()
    q, k, v = (torch.randn(2, 3, count, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    expected = attend(q, k, v, seen(grid, window, prefix))
    made = window_attend(q, k, v, grid, window)
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(made)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (made, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_window_attend__a_smaller_grid_is_one_window_and_an_uneven_one_is_refused() -> None:
    q = torch.randn(1, 1, 6, 4)
    torch.testing.assert_close(window_attend(q, q, q, (2, 3), (4, 3)), attend(q, q, q))
    with pytest.raises(ConfigError, match=r"\[2, 2\] patches do not divide this image's \[2, 3\]"):
        window_attend(q, q, q, (2, 3), (2, 2))


@torch.no_grad()
def test_vit__one_window_of_the_whole_grid_is_the_plain_vit() -> None:
    sizes: dict[str, Any] = {"img_size": (8, 16, 24), "patch_size": (4, 8, 8), **TINY}
    plain = VisionTransformer(VitConfig(**sizes)).eval()
    windowed = VisionTransformer(VitConfig(**sizes, window=(2, 2, 3), global_blocks=())).eval()
    windowed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, 8, 16, 24)
    torch.testing.assert_close(windowed(x).patch_tokens, plain(x).patch_tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(windowed(x, class_only=True).cls_token, windowed(x).cls_token, rtol=1e-5, atol=1e-5)


def test_vit__without_global_blocks_and_class_token_windows_do_not_mix() -> None:
    sizes: dict[str, Any] = {"img_size": (16, 32), "patch_size": (8, 8), **TINY, "class_token": False, "pool": "mean"}
    x = torch.randn(1, 1, 16, 32, requires_grad=True)
    alone = VisionTransformer(VitConfig(**sizes, window=(2, 2), global_blocks=()))
    alone(x).patch_tokens.view(2, 4, -1)[:, :2].sum().backward()
    assert x.grad is not None
    assert x.grad[..., :16].abs().sum() > 0
    assert x.grad[..., 16:].abs().sum() == 0
    x.grad = None
    VisionTransformer(VitConfig(**sizes, window=(2, 2)))(x).patch_tokens.view(2, 4, -1)[:, :2].sum().backward()
    assert x.grad is not None
    assert x.grad[..., 16:].abs().sum() > 0


def test_config__global_blocks_are_each_quarters_last() -> None:
    assert VitConfig(window=(7, 7)).windowed_blocks == (0, 1, 3, 4, 6, 7, 9, 10)  # SAM's 2, 5, 8, 11 see all
    assert VitConfig(window=(7, 7), global_blocks=()).windowed_blocks == tuple(range(12))
    assert VitConfig(window=(7, 7), depth=24).windowed_blocks == tuple(n for n in range(24) if n not in (5, 11, 17, 23))
    assert VitConfig().windowed_blocks == ()
    with pytest.raises(ValueError, match="must divide the"):
        VitConfig(window=(5, 7))
    with pytest.raises(ValueError, match="global_blocks must lie in"):
        VitConfig(window=(7, 7), global_blocks=(12,))
    with pytest.raises(ValueError, match="set window"):
        VitConfig(global_blocks=(1,))


def test_vit__windows_encode_all_patches() -> None:
    model = VisionTransformer(VitConfig(img_size=(32, 32), window=(2, 2), **TINY))
    assert not model.drops_patches
    with pytest.raises(ConfigError, match="encodes all patches"):
        model(torch.randn(1, 1, 32, 32), keep=torch.zeros(1, 1, dtype=torch.long))


@pytest.fixture
def flat(tmp_path: Path) -> tuple[Any, Path]:
    """A timm ViT of 3 x 3 patches of RGB, and its file."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=48, depth=2, patch_size=8, num_classes=0
    ).eval()
    torch.save(model.state_dict(), tmp_path / "flat.pth")
    return model, tmp_path / "flat.pth"


@torch.no_grad()
@pytest.mark.parametrize("how", ["average", "center"])
def test_inflate__a_volume_of_one_patch_in_depth_is_the_2d_image(how: Any, flat: tuple[Any, Path]) -> None:
    theirs, path = flat
    sizes: dict[str, Any] = {"embed_dim": 192, "depth": 2, "num_heads": 3, "patch_size": (5, 8, 8)}
    model = VisionTransformer(VitConfig(img_size=(5, 48, 48), **sizes, weights=path, inflate=how)).eval()
    image = torch.randn(2, 1, 48, 48)
    output = model(image[:, :, None].expand(-1, -1, 5, -1, -1))
    expected = theirs.forward_features(image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(output.cls_token, expected[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.patch_tokens, expected[:, 1:], rtol=1e-4, atol=1e-4)


def test_inflate__positions_repeat_along_depth_and_are_resampled_in_plane(flat: tuple[Any, Path]) -> None:
    theirs, path = flat
    sizes: dict[str, Any] = {"embed_dim": 192, "depth": 2, "num_heads": 3, "patch_size": (2, 8, 8)}
    deep = VisionTransformer(VitConfig(img_size=(8, 48, 48), **sizes, weights=path, inflate="average"))
    body = deep.pos_embed.detach()[:, 1:].view(4, 36, 192)
    for plane in body:
        torch.testing.assert_close(plane, theirs.pos_embed[0, 1:].detach())
    torch.testing.assert_close(deep.pos_embed[:, 0].detach(), theirs.pos_embed[:, 0].detach())
    from timm.layers import resample_abs_pos_embed

    wide = VisionTransformer(VitConfig(img_size=(4, 32, 64), **sizes, weights=path, inflate="average"))
    expected = resample_abs_pos_embed(theirs.pos_embed.detach(), (4, 8), (6, 6))
    torch.testing.assert_close(wide.pos_embed.detach()[:, 1:33], expected[:, 1:], rtol=1e-4, atol=1e-5)


def test_inflate__only_on_request(flat: tuple[Any, Path]) -> None:
    sizes: dict[str, Any] = {"embed_dim": 192, "depth": 2, "num_heads": 3, "patch_size": (2, 8, 8)}
    with pytest.raises(WeightsError, match=r"set encoder\.inflate=average"):
        VisionTransformer(VitConfig(img_size=(8, 48, 48), **sizes, weights=flat[1]))
    with pytest.raises(ValueError, match="img_size has 2 numbers"):
        VitConfig(inflate="average")
