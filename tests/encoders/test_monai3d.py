"""MONAI's networks behind our interface give MONAI's features, and take the files that MONAI's users have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medfm.encoders.config import MonaiConfig
from medfm.encoders.monai3d import MonaiEncoder
from medfm.errors import WeightsError

SWIN = {"feature_size": 12, "depths": (1, 1, 1, 1), "img_size": (32, 32, 64)}


def encoder(model: str, **options: Any) -> MonaiEncoder:
    torch.manual_seed(0)
    return MonaiEncoder(MonaiConfig(**{"model": model, "img_size": (32, 32, 64), **options})).eval()


def compare(model: MonaiEncoder, theirs: Tensor, x: Tensor) -> None:
    output = model(x)
    grid = output.patch_tokens.transpose(1, 2).reshape(theirs.shape)
    torch.testing.assert_close(grid, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def swin_unetr() -> Any:
    from monai.networks.nets.swin_unetr import SwinUNETR

    torch.manual_seed(1)
    return SwinUNETR(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1)).eval()


@torch.no_grad()
def test_swin__a_swin_unetr_file_gives_its_encoders_features(swin_unetr: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": swin_unetr.state_dict()}, tmp_path / "unetr.pt")
    model = encoder("swin_unetr", weights=tmp_path / "unetr.pt", **SWIN)
    x = torch.randn(2, 1, 32, 32, 64)
    compare(model, swin_unetr.swinViT(x, True)[4], x)


def test_swin__the_self_supervised_file_has_other_names_and_more_heads(swin_unetr: Any, tmp_path: Path) -> None:
    own = swin_unetr.swinViT.state_dict()
    state = {f"module.{k.replace('mlp.linear', 'mlp.fc')}": v for k, v in own.items()}
    heads = ("norm.weight", "rotation_head.weight", "contrastive_head.bias", "conv.0.weight")
    state |= {f"module.{name}": torch.zeros(3) for name in heads}
    torch.save({"state_dict": state, "epoch": 5}, tmp_path / "model_swinvit.pt")
    model = encoder("swin_unetr", weights=tmp_path / "model_swinvit.pt", **SWIN)
    for name, tensor in model.model.swinViT.state_dict().items():
        torch.testing.assert_close(tensor, own[name], rtol=0, atol=0)


def test_swin__disruptive_autoencoders_names_are_those_of_monais_filter(swin_unetr: Any, tmp_path: Path) -> None:
    from monai.networks.nets.swin_unetr import filter_swinunetr

    state: dict[str, Tensor] = {}
    for name, tensor in swin_unetr.swinViT.state_dict().items():
        parts = name.split(".")
        state["encoder." + (name if parts[0] == "patch_embed" else ".".join([*parts[:2], "0", *parts[2:]]))] = tensor
    for name, tensor in state.items():  # MONAI's own filter finds the same places
        assert torch.equal(swin_unetr.state_dict()[filter_swinunetr(name, tensor)[0]], tensor)
    state["encoder.mask_token"] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "dae.pt")
    model = encoder("swin_unetr", weights=tmp_path / "dae.pt", **SWIN)
    for name, tensor in model.model.swinViT.state_dict().items():
        torch.testing.assert_close(tensor, swin_unetr.swinViT.state_dict()[name], rtol=0, atol=0)


def test_swin__a_missing_or_unknown_tensor_is_named(swin_unetr: Any, tmp_path: Path) -> None:
    state = swin_unetr.state_dict()
    torch.save({k: v for k, v in state.items() if "layers3.0.blocks.0.attn.qkv.weight" not in k}, tmp_path / "missing.pt")
    torch.save({**state, "swinViT.layers9.weight": torch.zeros(1)}, tmp_path / "extra.pt")
    with pytest.raises(WeightsError, match=r"layers3\.0\.blocks\.0\.attn\.qkv\.weight"):
        encoder("swin_unetr", weights=tmp_path / "missing.pt", **SWIN)
    with pytest.raises(WeightsError, match=r"layers9\.weight"):
        encoder("swin_unetr", weights=tmp_path / "extra.pt", **SWIN)
    with pytest.raises(WeightsError, match="other shapes"):
        encoder("swin_unetr", weights=tmp_path / "missing.pt", **{**SWIN, "feature_size": 24})


@torch.no_grad()
def test_segresnet__a_whole_segresnets_file_gives_its_way_down(tmp_path: Path) -> None:
    from monai.networks.nets.segresnet import SegResNet

    theirs = SegResNet(init_filters=8, blocks_down=(1, 1, 2), blocks_up=(1, 1)).eval()
    torch.save(theirs.state_dict(), tmp_path / "segresnet.pt")
    model = encoder("segresnet", init_filters=8, blocks_down=(1, 1, 2), img_size=(8, 8, 12), weights=tmp_path / "segresnet.pt")
    x = torch.randn(2, 1, 8, 8, 12)
    compare(model, theirs.encode(x)[0], x)


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False])
def test_segresnet_ds__of_a_segmenter_or_alone_as_ct_fm(whole: bool, tmp_path: Path) -> None:
    from monai.networks.nets.segresnet_ds import SegResNetDS

    theirs = SegResNetDS(init_filters=8, blocks_down=(1, 1, 2), blocks_up=(1, 1)).eval()
    torch.save((theirs if whole else theirs.encoder).state_dict(), tmp_path / "file.pt")
    model = encoder("segresnet_ds", init_filters=8, blocks_down=(1, 1, 2), img_size=(8, 8, 12), weights=tmp_path / "file.pt")
    x = torch.randn(2, 1, 8, 8, 12)
    compare(model, theirs.encoder(x)[-1], x)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet__medicalnets_layout_gives_monais_features(name: Any, tmp_path: Path) -> None:
    from monai.networks.nets.resnet import ResNetFeatures

    theirs = ResNetFeatures(name, pretrained=False).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "medicalnet.pth")
    model = encoder(name, img_size=(32, 32, 32), weights=tmp_path / "medicalnet.pth")
    x = torch.randn(1, 1, 32, 32, 32)
    torch.testing.assert_close(model(x).patch_tokens[:, 0], theirs(x)[-1].flatten(1), rtol=1e-4, atol=1e-4)


def test_resnet18__gradients_flow_through_shortcuts_where_monais_are_cut() -> None:
    """A shortcut alone: with the residual branch of the second stage's first block at zero, its input still gets a gradient."""
    model = encoder("resnet18", img_size=(32, 32, 32))
    block = model.model.layer2[0]
    block.bn2.weight.data.zero_()
    x = torch.randn(1, 64, 8, 8, 8, requires_grad=True)
    block(x).sum().backward()
    assert x.grad is not None
    assert x.grad[:, :, ::2, ::2, ::2].abs().sum() > 0
    assert x.grad[:, :, 1::2].abs().sum() == 0


def test_config__what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="not a multiple of the \\[32, 32, 32\\] voxels"):
        MonaiConfig(img_size=(48, 64, 64))
    with pytest.raises(ValueError, match="multiple of num_heads"):
        MonaiConfig(feature_size=20)
    with pytest.raises(ValueError, match="no class token"):
        MonaiConfig(pool="cls")
    with pytest.raises(ValueError, match="drop_path: segresnet has none"):
        MonaiConfig(model="segresnet", drop_path=0.1)
