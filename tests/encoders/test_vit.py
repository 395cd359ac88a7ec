"""Our Vision Transformer is timm's on timm's weights, and does what timm's does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medfm.encoders.config import VitConfig
from medfm.encoders.pooling import pooled
from medfm.encoders.positions import sincos_positions
from medfm.encoders.vit import DropPath, VisionTransformer
from medfm.errors import ConfigError, WeightsError

SMALL: dict[str, Any] = {"img_size": (32, 48), "patch_size": (8, 8), "embed_dim": 48, "depth": 3, "num_heads": 4}


def small(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(VitConfig(**{**SMALL, **options})).eval()


def randomise(model: nn.Module) -> dict[str, torch.Tensor]:
    """Random values for every tensor: freshly drawn LayerScales, biases and tokens would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    state = {k: torch.randn(v.shape, generator=generator) * 0.2 for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    return state


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"reg_tokens": 4},
    "registers, no_embed_class, layerscale": {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
    "no class token": {"class_token": False, "pool": "mean"},
    "registers alone": {"class_token": False, "reg_tokens": 2, "pool": "mean"},
    "no qkv bias, drop path, wide": {"qkv_bias": False, "drop_path": 0.3, "mlp_ratio": 2.5},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_vit__equals_timm_in_features_and_gradients(variant: str) -> None:
    from timm.models import VisionTransformer as Timm

    options = dict(VARIANTS[variant])
    mine = small(**options)
    options.pop("pool", None)
    theirs = Timm(
        **{**SMALL, "patch_size": 8},
        in_chans=1,
        num_classes=0,
        global_pool="",
        drop_path_rate=options.pop("drop_path", 0.0),
        **options,
    ).eval()
    mine.load_state_dict(randomise(theirs))  # strict: the names are timm's
    x = torch.randn(2, 1, 32, 48, generator=torch.Generator().manual_seed(2))
    output, reference = mine(x), theirs.forward_features(x)
    prefix = theirs.num_prefix_tokens
    torch.testing.assert_close(output.patch_tokens, reference[:, prefix:], rtol=1e-5, atol=1e-5)
    if mine.cls_token is not None:
        torch.testing.assert_close(output.cls_token, reference[:, 0], rtol=1e-5, atol=1e-5)

    weight = torch.randn(reference[:, prefix:].shape, generator=torch.Generator().manual_seed(3))
    (output.patch_tokens * weight).sum().backward()
    (reference[:, prefix:] * weight).sum().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        expected = gradients[name].grad
        assert parameter.grad is not None
        assert expected is not None
        scale = float(expected.abs().max()) + 1e-6
        torch.testing.assert_close(parameter.grad / scale, expected / scale, rtol=0, atol=1e-5, msg=name)


def test_vit__other_input_size_resamples_as_timms_dynamic_size() -> None:
    from timm.models import VisionTransformer as Timm

    mine = small(reg_tokens=2)
    theirs = Timm(
        **{**SMALL, "patch_size": 8}, in_chans=1, num_classes=0, global_pool="", reg_tokens=2, dynamic_img_size=True
    ).eval()
    mine.load_state_dict(randomise(theirs))
    x = torch.randn(1, 1, 56, 40)
    output = mine(x)
    assert output.grid_size == (7, 5)
    torch.testing.assert_close(output.patch_tokens, theirs.forward_features(x)[:, 3:], rtol=1e-5, atol=1e-5)


def test_vit__keep_of_all_patches_in_order_changes_nothing() -> None:
    model = small()
    x = torch.randn(2, 1, 32, 48)
    keep = torch.arange(24).expand(2, -1)
    torch.testing.assert_close(model(x, keep).cls_token, model(x).cls_token, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"pos_embed": "sincos"}, {"reg_tokens": 3, "no_embed_class": True}])
def test_vit__keep_encodes_the_named_patches_alone(options: dict[str, Any]) -> None:
    model = small(**options)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 32, 48, generator=generator)
    keep = torch.stack([torch.randperm(24, generator=generator)[:9] for _ in range(2)])
    # The reference drops tokens after embedding all, as MAE's and FLIP's code does.
    everything, _ = model.embed(x)
    prefix = model.num_prefix_tokens
    picked = everything[:, prefix:].gather(1, keep[:, :, None].expand(-1, -1, 48))
    torch.testing.assert_close(model.embed(x, keep)[0][:, prefix:], picked, rtol=1e-5, atol=1e-6)
    output = model(x, keep)
    assert output.patch_tokens.shape == (2, 9, 48)
    assert output.grid_size == (4, 6)
    changed = x.clone()
    dropped = next(i for i in range(24) if i not in keep[0])
    changed[0, :, dropped // 6 * 8 : dropped // 6 * 8 + 8, dropped % 6 * 8 : dropped % 6 * 8 + 8] += 5
    torch.testing.assert_close(model(changed, keep).patch_tokens, output.patch_tokens)


@pytest.mark.parametrize("pos_embed", ["learn", "sincos"])
def test_vit__three_axes_are_the_convolution_they_stand_for(pos_embed: str) -> None:
    model = small(img_size=(8, 16, 24), patch_size=(4, 8, 8), in_channels=2, pos_embed=pos_embed)
    x = torch.randn(2, 2, 8, 16, 24)
    tokens, grid = model.patch_embed(x)
    assert grid == model.grid_size == (2, 2, 3)
    torch.testing.assert_close(tokens, model.patch_embed.proj(x).flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    output = model(x)
    assert output.patch_tokens.shape == (2, 12, 48)
    assert model(torch.randn(1, 2, 12, 16, 24)).grid_size == (3, 2, 3)


def test_vit__sincos_positions_are_fixed_and_not_saved() -> None:
    model = small(pos_embed="sincos")
    assert "pos_embed" not in model.state_dict()
    assert "pos_embed" not in dict(model.named_parameters())
    torch.testing.assert_close(model.pos_embed, sincos_positions((4, 6), 48))
    torch.testing.assert_close(model.positions((2, 3)), sincos_positions((2, 3), 48))


def test_vit__gradient_checkpointing_changes_no_gradient() -> None:
    x = torch.randn(2, 1, 32, 48)
    gradients = []
    for checkpointing in (False, True):
        model = small(gradient_checkpointing=checkpointing).train()
        model(x).cls_token.square().sum().backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_drop_path__drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    out = layer(torch.ones(4000, 3, 2))
    assert sorted(out.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    assert (out.flatten(1).std(dim=1) == 0).all()
    assert abs(float(out.mean()) - 1) < 0.03
    x = torch.randn(3, 4)
    assert layer.eval()(x) is x


def test_vit__drop_path_rises_linearly() -> None:
    model = small(depth=5, drop_path=0.4)
    rates = [getattr(block.drop_path1, "rate", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_vit__dropout_acts_in_training_alone() -> None:
    model = small(dropout=0.5)
    x = torch.randn(2, 1, 32, 48)
    torch.testing.assert_close(model(x).cls_token, model(x).cls_token)
    model.train()
    assert not torch.allclose(model(x).cls_token, model(x).cls_token)


def test_vit__initial_values() -> None:
    model = small(embed_dim=192, depth=2).requires_grad_(False)
    linear = model.blocks[0].mlp.fc1
    assert float(linear.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(linear.weight.abs().max()) < 2.0
    assert float(linear.bias.abs().max()) == 0
    assert float(model.pos_embed.std()) == pytest.approx(0.02, rel=0.1)
    bound = (6 / (64 + 192)) ** 0.5  # Xavier of a 64 -> 192 linear layer
    assert 0.95 * bound < float(model.patch_embed.proj.weight.abs().max()) <= bound


def test_vit__initial_values_of_maes_code() -> None:
    """models_mae.py, initialize_weights: Xavier bounds, sqrt(6 / (in + out)), for linear layers (qkv as one); tokens 0.02."""
    model = small(embed_dim=192, depth=2, reg_tokens=4, init="mae").requires_grad_(False)
    block = model.blocks[1]
    layers = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    for linear in layers:
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.98 * bound < float(linear.weight.abs().max()) <= bound
        assert float(linear.weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert float(linear.bias.abs().max()) == 0
    bound = (6 / (64 + 192)) ** 0.5
    assert 0.95 * bound < float(model.patch_embed.proj.weight.abs().max()) <= bound
    assert 0 < float(model.patch_embed.proj.bias.abs().max()) <= 64**-0.5
    for token in (model.cls_token, model.reg_token):
        assert float(token.std()) == pytest.approx(0.02, rel=0.2)


def test_vit__forward_dense_is_the_value_path_of_the_last_block() -> None:
    model = small()
    randomise(model)
    x = torch.randn(1, 1, 32, 48)
    # One token that attends to itself alone: what attention gives on a sequence of length one.
    tokens, _ = model.embed(x)
    for block in model.blocks[:-1]:
        tokens = block(tokens)
    alone = torch.cat([model.blocks[-1](tokens[:, i : i + 1]) for i in range(tokens.shape[1])], dim=1)
    torch.testing.assert_close(model.forward_dense(x).patch_tokens, model.norm(alone)[:, 1:], rtol=1e-5, atol=1e-5)


def test_vit__unfit_images_are_refused_with_the_reason() -> None:
    model = small()
    with pytest.raises(ConfigError, match=r"\(30, 48\) is not a multiple of the patch size"):
        model(torch.randn(1, 1, 30, 48))
    with pytest.raises(ConfigError, match="1 channels and 2 axes"):
        model(torch.randn(1, 3, 32, 48))
    with pytest.raises(ConfigError, match="pool=mean"):
        pooled(small(class_token=False, pool="mean")(torch.randn(1, 1, 32, 48)), "cls")


def timm_file(folder: Path, size: tuple[int, int] = (32, 32), channels: int = 3, **options: Any) -> Path:
    from timm.models import VisionTransformer as Timm

    model = Timm(img_size=size, patch_size=8, in_chans=channels, embed_dim=48, depth=3, num_heads=4, num_classes=7, **options)
    path = folder / "timm.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in randomise(model).items()}}, path)
    return path


def test_vit__loads_a_timm_file_of_another_size_and_colour(tmp_path: Path) -> None:
    from timm.models import VisionTransformer as Timm

    path = timm_file(tmp_path)
    model = small(weights=path)
    reference = Timm(img_size=32, patch_size=8, in_chans=3, embed_dim=48, depth=3, num_heads=4, num_classes=7).eval()
    randomise(reference)
    reference.set_input_size((32, 48))
    grey = torch.randn(2, 1, 32, 48)
    expected = reference.forward_features(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model(grey).patch_tokens, expected[:, 1:], rtol=1e-5, atol=2e-5)


def test_vit__a_file_that_does_not_fit_names_the_tensors(tmp_path: Path) -> None:
    path = timm_file(tmp_path, size=(32, 48), init_values=0.1)
    with pytest.raises(WeightsError, match=r"no place in the model: blocks\.0\.ls1\.gamma"):
        small(weights=path)
    with pytest.raises(WeightsError, match=r"other shapes: .*blocks\.0\.mlp\.fc1"):
        small(weights=path, mlp_ratio=2.0, init_values=0.1)


def test_vit__mae_file_with_its_fixed_table_loads_where_it_is_the_same(tmp_path: Path) -> None:
    model = small(pos_embed="sincos")
    table = torch.cat([torch.zeros(1, 1, 48), sincos_positions((4, 6), 48)], dim=1)
    torch.save({"model": {**model.state_dict(), "pos_embed": table}}, tmp_path / "mae.pth")
    again = small(pos_embed="sincos", weights=tmp_path / "mae.pth")
    torch.testing.assert_close(again.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)
    torch.save({**model.state_dict(), "pos_embed": table + 0.1}, tmp_path / "learned.pth")
    with pytest.raises(WeightsError, match="no place in the model: pos_embed"):
        small(pos_embed="sincos", weights=tmp_path / "learned.pth")


def test_swiglu__equals_timm() -> None:
    """DINOv2's gated MLP, in timm's names."""
    from functools import partial

    import timm
    from timm.layers import SwiGLUPacked

    ours = VisionTransformer(
        VitConfig(img_size=(32, 32), patch_size=(8, 8), in_channels=3, embed_dim=48, depth=2, num_heads=3, mlp="swiglu")
    )
    width = ours.blocks[0].mlp.fc2.in_features
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0, global_pool="token",
        mlp_ratio=2 * width / 48, mlp_layer=partial(SwiGLUPacked), act_layer=torch.nn.SiLU,
    )  # fmt: skip
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x).cls_token, theirs.eval()(x), rtol=1e-5, atol=1e-5)
    assert width == 128  # two thirds of 192, in whole eights


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"reg_tokens": 3, "no_embed_class": True},
        {"qkv_bias": False, "init_values": 0.3},
        {"drop_path": 0.5},
        {"depth": 1},
        {"gradient_checkpointing": True},
        {"img_size": (8, 8, 8), "patch_size": (4, 4, 4)},
    ],
)
def test_vit__class_only_is_exact_forward_and_backward(knobs: dict[str, Any]) -> None:
    """The class token and every gradient of it are those of the full forward, under the same random numbers."""
    torch.manual_seed(0)
    config = {"img_size": (16, 16), "patch_size": (4, 4), "embed_dim": 24, "depth": 3, "num_heads": 4, **knobs}
    model = VisionTransformer(VitConfig(**config)).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = torch.randn(5, 1, *config["img_size"], dtype=torch.float64)
    upstream = torch.randn(5, 24, dtype=torch.float64)
    results = []
    for class_only in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        output = model(leaf, class_only=class_only)
        assert output.cls_token is not None
        output.cls_token.backward(upstream)
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([output.cls_token.detach(), leaf.grad, *gradients])
    assert output.patch_tokens.shape == (5, 0, 24)
    assert len(results[0]) == len(results[1]) == 2 + len(list(model.parameters()))
    for full, alone in zip(*results, strict=True):
        torch.testing.assert_close(alone, full, rtol=1e-10, atol=1e-12)


def test_vit__class_only_in_bfloat16_is_as_near_to_float32() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(VitConfig(img_size=(32, 32), patch_size=(8, 8), embed_dim=48, depth=2, num_heads=4))
    x = torch.randn(4, 1, 32, 32)
    exact = model(x).cls_token
    errors = []
    for class_only in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            errors.append((model(x, class_only=class_only).cls_token - exact).norm().item())
    assert errors[1] < 1.5 * errors[0]
