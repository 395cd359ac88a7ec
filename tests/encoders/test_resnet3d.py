"""An inflated ResNet gives its 2D model's features on a volume that is constant along depth, and loads Merlin's layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medfm.encoders.config import Resnet3dConfig
from medfm.encoders.inflate import inflate_kernel, inflate_positions
from medfm.encoders.resnet3d import InflatedResNet, _coordinates
from medfm.errors import WeightsError

MERLIN = ["encode_image.i3_resnet.", "i3_resnet.", ""]


def timm_resnet(name: str) -> nn.Module:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0, global_pool="").eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):  # statistics and gains that would show a tensor in the wrong place
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.weight.data.uniform_(0.2, 0.6)
            norm.bias.data.normal_(0, 0.1)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("name", "depth"), [("resnet18", 18), ("resnet50", 50)])
def test_inflated__is_the_2d_model_on_a_constant_volume(name: str, depth: Any, tmp_path: Path) -> None:
    flat = timm_resnet(name)
    torch.save({**flat.state_dict(), "fc.weight": torch.zeros(10, 4)}, tmp_path / "flat.pth")
    model = InflatedResNet(Resnet3dConfig(depth=depth, img_size=(32, 32, 64), weights=tmp_path / "flat.pth")).eval()
    image = torch.randn(1, 1, 32, 64)
    output = model(image[:, :, None].expand(-1, -1, 32, -1, -1))
    expected = flat(image.expand(-1, 3, -1, -1)).flatten(2).transpose(1, 2)
    assert output.grid_size == (2, 1, 2)
    for plane in output.patch_tokens.view(1, 2, 2, -1).unbind(1):
        torch.testing.assert_close(plane, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["average", "center"])
def test_inflate_kernel__sums_to_the_2d_kernel(how: Any) -> None:
    kernel = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    made = inflate_kernel(kernel, 3, how)
    assert made.shape == (3, 2, 3, 5, 4)
    torch.testing.assert_close(made.sum(dim=2), kernel)
    if how == "center":
        torch.testing.assert_close(made[:, :, 1], kernel, rtol=0, atol=0)
    else:
        torch.testing.assert_close(made[:, :, 0], made[:, :, 2], rtol=0, atol=0)


def test_inflate_positions__repeats_along_depth() -> None:
    positions = torch.randn(1, 1 + 4, 6)
    made = inflate_positions(positions, (2, 2), (3, 2, 2), prefix=1)
    assert made.shape == (1, 1 + 12, 6)
    torch.testing.assert_close(made[:, :1], positions[:, :1])
    for d in range(3):
        torch.testing.assert_close(made[:, 1 + 4 * d : 5 + 4 * d], positions[:, 1:])


def merlin_state() -> dict[str, Tensor]:
    """Names and shapes as merlin/models/i3res.py has them, here of a ResNet-18 with three input channels."""
    model = InflatedResNet(Resnet3dConfig(depth=18, in_channels=3, img_size=(16, 32, 32)))
    heads = {"classifier.weight": torch.zeros(6, 512, 1, 1, 1), "contrastive_head.bias": torch.zeros(512)}
    return {**model.state_dict(), **heads}


@pytest.mark.parametrize("prefix", MERLIN)
def test_merlin__each_of_its_layouts_loads(prefix: str, tmp_path: Path) -> None:
    inner = merlin_state()
    state = {f"{prefix}{name}": tensor for name, tensor in inner.items()}
    if prefix.startswith("encode_image"):
        state |= {"encode_text.linear_layer.weight": torch.zeros(2, 2), "logit_scale": torch.ones(())}
    torch.save(state, tmp_path / "merlin.pt")
    model = InflatedResNet(Resnet3dConfig(depth=18, img_size=(16, 32, 32), weights=tmp_path / "merlin.pt")).eval()
    torch.testing.assert_close(model.conv1.weight.detach(), inner["conv1.weight"].sum(dim=1, keepdim=True))
    torch.testing.assert_close(model.state_dict()["layer3.1.bn2.running_var"], inner["layer3.1.bn2.running_var"])
    # Merlin repeats its volume three times; so the sum over RGB is exact.
    colour = InflatedResNet(Resnet3dConfig(depth=18, in_channels=3, img_size=(16, 32, 32))).eval()
    colour.load_state_dict({k: v for k, v in inner.items() if k in colour.state_dict()})
    x = torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        a, b = model(x).patch_tokens, colour(x.expand(-1, 3, -1, -1, -1)).patch_tokens
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_merlin__what_is_not_known_is_refused(tmp_path: Path) -> None:
    state = {f"i3_resnet.{name}": tensor for name, tensor in merlin_state().items()}
    torch.save({**state, "decode_text.weight": torch.zeros(1)}, tmp_path / "merlin.pt")
    with pytest.raises(WeightsError, match=r"no known use: decode_text\.weight"):
        InflatedResNet(Resnet3dConfig(depth=18, img_size=(16, 32, 32), weights=tmp_path / "merlin.pt"))
    torch.save(state, tmp_path / "merlin.pt")
    with pytest.raises(WeightsError, match="does not fit the model"):
        InflatedResNet(Resnet3dConfig(depth=34, img_size=(16, 32, 32), weights=tmp_path / "merlin.pt"))


def test_config__token_sizes_follow_the_axes() -> None:
    assert InflatedResNet(Resnet3dConfig(depth=18, img_size=(16, 32, 64))).patch_size == (16, 32, 32)
    assert InflatedResNet(Resnet3dConfig(depth=18, img_size=(32, 64, 16), axes="WHD")).patch_size == (32, 32, 16)
    with pytest.raises(ValueError, match="not a multiple of the \\[16, 32, 32\\] voxels"):
        Resnet3dConfig(img_size=(16, 32, 48))


def test_small__grid_and_gradients() -> None:
    """A net of three narrow stages with a fine grid, as chest_ct_tiny has it; every parameter learns."""
    config = Resnet3dConfig(
        depth=18, img_size=(16, 24, 32), layers=(1, 1, 2), widths=(4, 6, 8), strides=(1, 2, 1), stem_kernel=(3, 5, 5),
        stem_stride=(1, 2, 4), stem_pool=False,
    )  # fmt: skip
    encoder = InflatedResNet(config)
    output = encoder(torch.randn(2, 1, 16, 24, 32))
    assert (output.grid_size, output.patch_tokens.shape) == ((8, 6, 4), (2, 192, 8))
    assert config.stride == encoder.patch_size == (2, 4, 8)
    output.patch_tokens.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


@torch.no_grad()
def test_coordinates__tell_cells_apart_in_an_empty_volume() -> None:
    sizes = {"depth": 18, "layers": (1,), "widths": (8,), "strides": (1,), "stem_stride": (4, 4, 4), "stem_pool": False}
    blank = torch.zeros(1, 1, 32, 32, 48)
    inside = (slice(None), slice(None), slice(3, 5), slice(3, 5), slice(3, 9))  # beyond the reach of what pads the border
    maps = {}
    for told in (False, True):
        torch.manual_seed(0)
        model = InflatedResNet(Resnet3dConfig(img_size=(32, 32, 48), coordinates=told, **sizes)).eval()  # type: ignore[arg-type]
        maps[told] = model.feature_map(blank)[inside]
    assert maps[False].std(dim=(2, 3, 4)).max() == 0
    assert maps[True].std(dim=4).max() > 0.01
    torch.testing.assert_close(
        _coordinates(torch.zeros(1, 1, 1, 2, 4), torch.float32)[0, 2, 0, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75])
    )


@torch.no_grad()
def test_coordinates__leave_loaded_weights_as_they_were(tmp_path: Path) -> None:
    torch.save(timm_resnet("resnet18").state_dict(), tmp_path / "flat.pth")
    x = torch.randn(1, 1, 32, 32, 32)
    sizes: dict[str, Any] = {"depth": 18, "img_size": (32, 32, 32), "weights": tmp_path / "flat.pth"}
    plain, told = (InflatedResNet(Resnet3dConfig(coordinates=c, **sizes)).eval() for c in (False, True))
    torch.testing.assert_close(told(x).patch_tokens, plain(x).patch_tokens, rtol=0, atol=0)


def test_config__stages_must_agree() -> None:
    with pytest.raises(ValidationError, match="layers, widths and strides differ: 4, 3, 4"):
        Resnet3dConfig(widths=(8, 8, 8))
    with pytest.raises(ValidationError, match="not a multiple"):
        Resnet3dConfig(img_size=(16, 16, 16), stem_stride=(3, 1, 1), stem_pool=False)
