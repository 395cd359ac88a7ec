"""timm models behind our interface give timm's own features."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from medfm.encoders.config import TimmConfig, VitConfig
from medfm.encoders.timm2d import TimmEncoder
from medfm.encoders.vit import VisionTransformer
from medfm.errors import ConfigError, WeightsError


def encoder(model: str, size: int = 64, **options: Any) -> TimmEncoder:
    torch.manual_seed(0)
    return TimmEncoder(TimmConfig(model=model, img_size=(size, size), **options)).eval()


@pytest.mark.parametrize(
    ("name", "width", "size"),
    [("resnet50", 2048, 64), ("resnet10t", 512, 64), ("convnext_atto", 320, 64), ("swin_tiny_patch4_window7_224", 768, 64)],
)
def test_timm__feature_map_becomes_patch_tokens(name: str, width: int, size: int) -> None:
    model = encoder(name, size)
    x = torch.randn(2, 1, size, size)
    with torch.no_grad():
        output = model(x)
        features = model.model(x)
    side = size // 32
    assert model.embed_dim == width
    assert model.grid_size == output.grid_size == (side, side)
    assert output.cls_token is None
    assert output.patch_tokens.shape == (2, side * side, width)
    swin = name.startswith("swin")
    expected = features[:, 1, 0] if swin else features[:, :, 1, 0]
    torch.testing.assert_close(output.patch_tokens[:, side], expected)  # row 1, column 0


@pytest.mark.parametrize("size", [100, 300])
def test_timm__tokens_that_stand_for_less_than_the_others_are_refused(size: int) -> None:
    """At 300 pixels the grid is 10 x 10 and divides the image, but tokens lie 32 pixels apart."""
    with pytest.raises(ConfigError, match=rf"stands for 32 pixels, of which \[{size}, {size}\] is no multiple; set .* to"):
        encoder("resnet10t", size)


def test_timm__mean_of_tokens_is_timms_pooled_feature() -> None:
    import timm

    model = encoder("resnet10t")
    reference = timm.create_model("resnet10t", pretrained=False, in_chans=1, num_classes=0).eval()
    reference.load_state_dict(model.model.state_dict())
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x).patch_tokens.mean(dim=1), reference(x), rtol=1e-5, atol=1e-5)


def test_timm__every_parameter_is_trained_by_the_mean() -> None:
    model = encoder("convnext_atto")
    model(torch.randn(1, 1, 64, 64)).patch_tokens.mean().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []


def test_timm__vit_equals_our_vit() -> None:
    model = encoder("vit_tiny_patch16_224", 64, pool="cls")
    mine = VisionTransformer(VitConfig(img_size=(64, 64), embed_dim=192, depth=12, num_heads=3)).eval()
    mine.load_state_dict(model.model.state_dict())
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        theirs, ours = model(x), mine(x)
    torch.testing.assert_close(theirs.patch_tokens, ours.patch_tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.cls_token, ours.cls_token, rtol=1e-5, atol=1e-5)
    assert theirs.grid_size == ours.grid_size == (4, 4)


def test_timm__registers_are_no_patches() -> None:
    model = TimmEncoder(TimmConfig(model="vit_small_patch14_reg4_dinov2", img_size=(28, 42), pool="cls")).eval()
    output = model(torch.randn(1, 1, 28, 42))
    assert output.patch_tokens.shape[1] == 6
    assert output.grid_size == (2, 3)
    assert output.cls_token is not None


def test_timm__unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no model 'resnet5O'; did you mean 'resnet50'"):
        encoder("resnet5O")


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet10t.c3_in1k", "hf_hub:timm/resnet10t", "local-dir:/tmp"])
def test_timm__names_that_would_fetch_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ConfigError, match="timm has no model"):
        encoder(name)


def test_timm__what_a_model_cannot_do_is_said() -> None:
    with pytest.raises(ConfigError, match="resnet10t has no class token; use pool=mean"):
        encoder("resnet10t", pool="cls")
    with pytest.raises(ConfigError, match="patch dropout"):
        encoder("resnet10t")(torch.randn(1, 1, 64, 64), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ConfigError, match="does not take"):
        encoder("convnext_atto", size=2)


@pytest.mark.parametrize(("channels", "suffix"), [(1, ".pth"), (1, ".safetensors"), (3, ".pth"), (4, ".safetensors")])
def test_timm__rgb_file_is_adapted_as_timm_does(channels: int, suffix: str, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file
    from timm.models import adapt_input_conv

    torch.manual_seed(1)
    source = timm.create_model("resnet10t", pretrained=False).eval()
    path = tmp_path / f"weights{suffix}"
    state = {k: v.clone() for k, v in source.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = encoder("resnet10t", in_channels=channels, weights=path)
    expected = adapt_input_conv(channels, state["conv1.0.weight"])
    torch.testing.assert_close(model.model.conv1[0].weight.detach(), expected)
    torch.testing.assert_close(model.model.layer4[0].conv1.weight.detach(), state["layer4.0.conv1.weight"])


def test_timm__vit_file_of_another_size_resamples_positions(tmp_path: Path) -> None:
    import timm

    source = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64).eval()
    torch.save({"model": source.state_dict()}, tmp_path / "vit.pth")
    model = encoder("vit_tiny_patch16_224", 96, in_channels=3, weights=tmp_path / "vit.pth", pool="cls")
    source.set_input_size((96, 96))
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(x).cls_token, source.forward_features(x)[:, 0], rtol=1e-5, atol=1e-5)


def test_timm__drop_path_and_checkpointing_reach_the_model() -> None:
    from timm.layers import DropPath

    model = encoder("convnext_atto", drop_path=0.3, gradient_checkpointing=True)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.3)
    assert any(getattr(m, "grad_checkpointing", False) for m in model.modules())


def test_timm__checkpointing_moves_running_statistics_once() -> None:
    x = torch.randn(4, 1, 64, 64)
    buffers, gradients = [], []
    for recomputing in (False, True):
        model = encoder("resnet10t", gradient_checkpointing=recomputing).train()
        model(x).patch_tokens.square().mean().backward()
        buffers.append(dict(model.named_buffers()))
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(buffers[1], buffers[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    assert all(int(value) == 1 for name, value in buffers[1].items() if name.endswith("num_batches_tracked"))


def test_timm__files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    import timm

    state = timm.create_model("resnet18", pretrained=False).state_dict()
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth does not fit the model"):
        encoder("resnet10t", weights=tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="no such weight file"):
        encoder("resnet10t", weights=tmp_path / "none.pth")


def test_timm__code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    torch.save({"weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="medfm never runs"):
        encoder("resnet10t", weights=tmp_path / "evil.pth")
    assert not marker.exists()
