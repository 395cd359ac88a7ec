"""A 2D encoder over slices: its own features a slice, RadCLIP's pooling over slices, tokens on the volume's grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medfm.encoders.config import SlicesConfig, VitConfig
from medfm.encoders.positions import sincos_positions
from medfm.encoders.slices import SlicePool, SlicesEncoder
from medfm.encoders.vit import VisionTransformer
from medfm.errors import ConfigError
from medfm.registry import ENCODERS

VIT = {"name": "vit", "patch_size": [16, 16], "embed_dim": 24, "depth": 2, "num_heads": 2}
SIZE = (5, 32, 48)


def encoder(**options: Any) -> SlicesEncoder:
    torch.manual_seed(0)
    config = ENCODERS.parse({"name": "slices", "img_size": SIZE, "encoder": VIT, "pool_heads": 2, **options})
    return SlicesEncoder(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_slices__tokens_are_the_2d_encoders_of_each_slice(chunk: int) -> None:
    model = encoder(slice_chunk=chunk)
    x = torch.randn(2, 1, *SIZE)
    output = model(x)
    assert output.grid_size == (5, 2, 3)
    tokens = output.patch_tokens.view(2, 5, 6, 24)
    for d in range(5):
        torch.testing.assert_close(tokens[:, d], model.encoder(x[:, :, d]).patch_tokens, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("residual", [True, False])
def test_slice_pool__is_the_papers_attention(residual: bool) -> None:
    torch.manual_seed(0)
    pool = SlicePool(8, 2, residual).double()
    slices = torch.randn(2, 5, 8, dtype=torch.float64)
    x = slices + sincos_positions((5,), 8).double()
    qkv = x @ pool.attn.qkv.weight.t() + pool.attn.qkv.bias
    heads = []
    for head in range(2):
        q, k, v = (qkv[..., 8 * part + 4 * head : 8 * part + 4 * head + 4] for part in range(3))
        heads.append((q @ k.transpose(1, 2) / 2).softmax(dim=-1) @ v)
    mhsa = torch.cat(heads, dim=-1) @ pool.attn.proj.weight.t() + pool.attn.proj.bias
    expected = mhsa.mean(dim=1) + (slices.mean(dim=1) if residual else 0)
    torch.testing.assert_close(pool(slices), expected, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(pool, (slices.requires_grad_(),))


def test_slice_pool__order_of_slices_counts() -> None:
    model = encoder()
    x = torch.randn(1, 1, *SIZE)
    a, b = model(x).cls_token, model(x.flip(2)).cls_token
    assert a is not None
    assert b is not None
    assert (a - b).abs().max() > 1e-5


@torch.no_grad()
def test_slices__starts_near_the_mean_of_its_slices() -> None:
    model = encoder()
    x = torch.randn(2, 1, *SIZE)
    mean = torch.stack([model.encoder(x[:, :, d]).cls_token for d in range(5)]).mean(dim=0)
    pooled = model(x).cls_token
    assert pooled is not None
    assert torch.nn.functional.cosine_similarity(pooled, mean).min() > 0.95


@torch.no_grad()
def test_forward_dense__one_slice_of_one_patch_is_the_volumes_vector() -> None:
    """Where a slice is one token whose value alone is read, the token must lie where the volume's vector does."""
    vit = {**VIT, "class_token": False, "pool": "mean"}
    model = encoder(img_size=(1, 16, 16), encoder=vit)
    x = torch.randn(2, 1, 1, 16, 16)
    dense = model.forward_dense(x)
    torch.testing.assert_close(dense.patch_tokens[:, 0], model(x).cls_token, rtol=1e-5, atol=1e-6)


def test_forward_dense__of_a_class_token_reads_values() -> None:
    model = encoder()
    x = torch.randn(1, 1, *SIZE)
    dense = model.forward_dense(x)
    assert dense.patch_tokens.shape == (1, 30, 24)
    own = model.encoder.forward_dense(x[:, :, 2]).patch_tokens
    position = sincos_positions((5,), 24)[:, 2]
    expected = own + model.slice_pool.attn.values(own + position)  # type: ignore[union-attr]
    torch.testing.assert_close(dense.patch_tokens.view(1, 5, 6, 24)[:, 2], expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("inner", ["resnet10t", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_slices__of_timm_models(inner: str) -> None:
    model = encoder(img_size=(2, 64, 96), encoder={"name": "timm", "model": inner}, pool_heads=8)
    output = model(torch.randn(1, 1, 2, 64, 96))
    assert output.grid_size == model.grid_size == (2, 2, 3)
    assert model.patch_size == (1, 32, 32)
    assert output.patch_tokens.shape == (1, 12, model.embed_dim)


@torch.no_grad()
def test_slices__2d_weights_serve_volumes(tmp_path: Path) -> None:
    import timm

    flat = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=(32, 48), num_classes=0).eval()
    torch.save(flat.state_dict(), tmp_path / "flat.pth")
    vit = {"name": "vit", "embed_dim": 192, "num_heads": 3, "weights": str(tmp_path / "flat.pth")}
    model = encoder(encoder=vit)
    x = torch.randn(1, 1, *SIZE)
    expected = flat.forward_features(x[:, :, 3].expand(-1, 3, -1, -1))[:, 1:]
    torch.testing.assert_close(model(x).patch_tokens.view(1, 5, 6, 192)[:, 3], expected, rtol=1e-4, atol=1e-4)


def test_config__the_slices_size_is_handed_on() -> None:
    config = ENCODERS.parse({"name": "slices", "img_size": [4, 32, 48], "encoder": "vit", "in_channels": 3})
    assert isinstance(config, SlicesConfig)
    assert isinstance(config.encoder, VitConfig)
    assert (config.encoder.img_size, config.encoder.in_channels) == ((32, 48), 3)
    turned = ENCODERS.parse({"name": "slices", "img_size": [4, 32, 48], "encoder": "vit", "axes": "DWH"})
    assert turned.encoder.img_size == (48, 32)
    again = ENCODERS.parse(config.model_dump(mode="json"))
    assert again == config


def test_config__what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="is not that of a slice"):
        SlicesConfig(img_size=(4, 32, 32), encoder={"name": "vit", "img_size": (64, 64)})
    with pytest.raises(ValueError, match="encodes volumes"):
        SlicesConfig(img_size=(4, 32, 32), encoder={"name": "monai"})
    with pytest.raises(ValueError, match=r"encoder\.encoder\.weights"):
        SlicesConfig(img_size=(4, 32, 32), weights="x.pth")
    with pytest.raises(ConfigError, match="pool_heads 5 does not divide"):
        encoder(pool_heads=5)


def test_encoder__of_slices_is_a_vit() -> None:
    assert isinstance(encoder().encoder, VisionTransformer)
