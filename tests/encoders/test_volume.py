"""What all encoders of volumes promise: tokens on the grid (D, H, W), gradients, exact checkpointing, clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfm.encoders.image import ImageModel
from medfm.encoders.pooling import pooled
from medfm.errors import ConfigError
from medfm.registry import ENCODERS
from medfm.training.depth import encoders, layer_ids

VIT = {"name": "vit", "patch_size": (16, 16), "embed_dim": 24, "depth": 2, "num_heads": 2}
CASES: dict[str, dict[str, Any]] = {
    "swin": {"name": "monai", "model": "swin_unetr", "feature_size": 12, "depths": (1, 1, 2, 1), "img_size": (32, 32, 64)},
    "segresnet": {"name": "monai", "model": "segresnet", "init_filters": 8, "blocks_down": (1, 1, 2), "img_size": (8, 12, 16)},
    "segresnet_ds": {"name": "monai", "model": "segresnet_ds", "init_filters": 8, "blocks_down": (1, 2), "img_size": (4, 6, 8)},
    "resnet10": {"name": "monai", "model": "resnet10", "img_size": (32, 32, 64)},
    "resnet3d": {"name": "resnet3d", "depth": 18, "img_size": (16, 32, 64)},
    "small cnn": {
        "name": "resnet3d", "depth": 18, "img_size": (16, 16, 32), "layers": (1, 1, 1, 1), "widths": (4, 8, 8, 12),
        "stem_kernel": (3, 3, 3), "stem_stride": (2, 2, 2), "stem_pool": False, "strides": (1, 2, 2, 1),
    },
    "ctvit": {
        "name": "ctvit", "img_size": (12, 16, 24), "patch_size": (4, 8, 8), "embed_dim": 24, "spatial_depth": 2,
        "temporal_depth": 2, "num_heads": 2, "head_dim": 8,
    },
    "ctvit scrambled": {
        "name": "ctvit", "img_size": (12, 16, 24), "patch_size": (4, 8, 8), "embed_dim": 24, "spatial_depth": 1,
        "temporal_depth": 2, "num_heads": 2, "head_dim": 8, "peg": "ctclip",
    },
    "slices": {"name": "slices", "img_size": (3, 32, 48), "encoder": VIT, "pool_heads": 2, "slice_chunk": 2},
    "slices, mean": {"name": "slices", "img_size": (3, 32, 48), "encoder": VIT, "pool": "mean"},
    "windows": {
        "name": "vit", "img_size": (8, 16, 24), "patch_size": (2, 4, 4), "embed_dim": 24, "depth": 4, "num_heads": 2,
        "window": (2, 2, 3), "reg_tokens": 1, "global_blocks": (3,),
    },
}  # fmt: skip


def build(case: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return ENCODERS.build(ENCODERS.parse({**CASES[case], **changes}))


def volume(case: str, rows: int = 2) -> Tensor:
    return torch.randn(rows, 1, *CASES[case]["img_size"], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
def test_encoder__shapes_and_gradients(case: str) -> None:
    encoder = build(case)
    x = volume(case).requires_grad_()
    output = encoder(x)
    size = CASES[case]["img_size"]
    assert tuple(output.grid_size) == tuple(encoder.grid_size)
    assert tuple(g * p for g, p in zip(output.grid_size, encoder.patch_size, strict=True)) == size
    assert output.patch_tokens.shape == (2, torch.Size(output.grid_size).numel(), encoder.embed_dim)
    feature = pooled(output, encoder.pool)
    assert feature.shape == (2, encoder.embed_dim)
    # Every weight is reached; what stands for the volume alone need not reach the last block's other tokens.
    (feature.sin().sum() + output.patch_tokens.square().sum()).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert x.grad is not None
    assert (x.grad.flatten(1).abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("case", CASES)
def test_encoder__one_volume_does_not_change_another(case: str) -> None:
    encoder = build(case).eval()
    x = volume(case)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x).patch_tokens[:1], encoder(x[:1]).patch_tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_encoder__checkpointing_changes_neither_gradients_nor_statistics(case: str) -> None:
    kept, again = build(case).train(), build(case, gradient_checkpointing=True).train()
    again.load_state_dict(kept.state_dict())
    x = volume(case)
    for encoder in (kept, again):
        pooled(encoder(x), encoder.pool).sin().sum().backward()
    for (name, a), (_, b) in zip(kept.named_parameters(), again.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=name)
    for (name, a), (_, b) in zip(kept.named_buffers(), again.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("case", ["swin", "segresnet", "resnet3d", "ctvit", "slices"])
def test_encoder__axes_of_the_weights_turn_the_network_not_the_tokens(case: str) -> None:
    axes, order = ("DWH", (0, 2, 1)) if case in ("ctvit", "slices", "resnet3d") else ("WHD", (2, 1, 0))
    plain = build(case).eval()
    size = CASES[case]["img_size"]
    # img_size and patch_size are of our axes; `order` is its own inverse.
    changed: dict[str, Any] = {"axes": axes, "img_size": tuple(size[n] for n in order)}
    turned = build(case, **changed).eval()
    turned.load_state_dict(plain.state_dict())
    x = volume(case)
    with torch.no_grad():
        a = plain(x).patch_tokens.reshape(2, *plain.grid_size, -1)
        b = turned(x.permute(0, 1, *(2 + n for n in order))).patch_tokens.reshape(2, *turned.grid_size, -1)
    torch.testing.assert_close(b.permute(0, *(1 + n for n in order), 4), a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [name for name in CASES if name != "windows"])
def test_encoder__refuses_what_it_cannot_encode(case: str) -> None:
    encoder = build(case)
    x = volume(case)
    with pytest.raises(ConfigError, match="patch dropout"):
        encoder(x, torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ConfigError, match="takes volumes of 1 channels"):
        encoder(x.expand(-1, 2, -1, -1, -1))
    with pytest.raises(ConfigError, match="is not a multiple of"):
        encoder(x[..., :-1])


@pytest.mark.parametrize("case", CASES)
def test_layer_ids__rise_from_input_to_output(case: str) -> None:
    model = ImageModel(build(case))
    found = encoders(model)
    inner = "image_encoder.encoder" if case.startswith("slices") else "image_encoder"
    assert list(found) == [inner]
    ids, layers = layer_ids(found[inner])
    names = [name for name, _ in found[inner].named_parameters()]
    assert list(ids) == names
    assert ids[names[0]] == 0
    assert set(ids.values()) <= set(range(layers + 1))
    assert set(range(1, layers)) <= set(ids.values())
    blocks = {"swin": 5, "segresnet": 6, "segresnet_ds": 3, "resnet10": 4, "resnet3d": 8, "ctvit": 4, "ctvit scrambled": 3}
    assert layers == 1 + (blocks | {"windows": 4, "small cnn": 4, "slices": 2, "slices, mean": 2})[case]


@pytest.mark.parametrize("case", CASES)
def test_weight_file__round_trip_is_exact_and_needs_no_other_file(case: str, tmp_path: Path) -> None:
    from medfm.transforms.config import PreprocessConfig
    from medfm.weights.load import load_model
    from medfm.weights.save import save_model

    config = ENCODERS.parse(CASES[case])
    network = ImageModel(build(case))
    size = CASES[case]["img_size"]
    preprocess = PreprocessConfig(size=size, window="hu", hu_window=(-1000, 1000))
    encoder = config.model_dump(mode="json")
    target = encoder.get("encoder", encoder)
    target["weights"] = "gone.pth"  # training started from a file that is not here
    save_model(tmp_path, network, {"encoder": encoder, "objective": {}, "preprocess": preprocess.model_dump(mode="json")}, None)
    loaded = load_model(tmp_path)
    for (name, a), (_, b) in zip(network.state_dict().items(), loaded.network.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_batch_norms__learn_while_they_are_not_recomputed() -> None:
    encoder = build("resnet3d", gradient_checkpointing=True).train()
    norm: nn.BatchNorm3d = encoder.layer4[1].bn2
    before = norm.running_mean.clone()
    encoder(volume("resnet3d")).patch_tokens.sum().backward()
    assert not torch.equal(norm.running_mean, before)
    assert norm.momentum == 0.1
    assert int(norm.num_batches_tracked) == 1


CENTRED: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "resnet3d": ({**CASES["small cnn"], "img_size": (48, 48, 64), "axes": "DWH"}, (48, 48, 64)),
    "large stem": (
        {
            "name": "resnet3d", "depth": 18, "img_size": (48, 48, 48), "layers": (1, 1), "widths": (4, 8),
            "strides": (1, 1), "stem_kernel": (5, 5, 5), "stem_stride": (4, 2, 4), "stem_pool": False,
        },
        (48, 48, 48),
    ),
    "segresnet": ({**CASES["segresnet"], "img_size": (48, 48, 48)}, (48, 48, 48)),
    "segresnet_ds": ({**CASES["segresnet_ds"], "blocks_down": (1, 1, 1), "img_size": (48, 48, 48)}, (48, 48, 48)),
    "slices": (
        {**CASES["slices"], "img_size": (3, 256, 256), "encoder": {"name": "timm", "model": "resnet10t"}, "pool": "mean"},
        (3, 256, 256),
    ),
    "timm resnet": ({"name": "timm", "model": "resnet10t", "img_size": (256, 256)}, (256, 256)),
    "timm convnext": ({"name": "timm", "model": "test_convnext", "img_size": (256, 256)}, (256, 256)),
}  # fmt: skip


@pytest.mark.parametrize("case", CENTRED)
def test_token_centre__is_the_middle_of_what_a_token_sees(case: str) -> None:
    """The centroid of a token's gradient: a CNN of odd kernels looks at the first voxel of its patch, not at the middle one,
    and a heat map drawn on the middles lies half a patch beside the finding."""
    config, size = CENTRED[case]
    torch.manual_seed(0)
    encoder = ENCODERS.build(ENCODERS.parse(config)).eval()
    for name, parameter in encoder.named_parameters():
        if parameter.ndim > 2 or name.endswith("weight"):
            parameter.data = parameter.data.abs() + 0.01
    x = (1 + 0.01 * torch.rand(1, 1, *size)).requires_grad_()
    output = encoder(x)
    place = [n // 2 for n in output.grid_size]
    output.patch_tokens.view(*output.grid_size, -1)[tuple(place)].sum().backward()
    assert x.grad is not None
    weight = x.grad[0, 0].abs().double()
    stride = [n / g for n, g in zip(size, output.grid_size, strict=True)]
    for axis, (n, s) in enumerate(zip(place, stride, strict=True)):
        line = weight.sum([a for a in range(len(size)) if a != axis])
        seen = float((line * torch.arange(len(line))).sum() / line.sum())
        assert abs(seen - ((n + encoder.token_centre[axis]) * s - 0.5)) < max(0.2 * s, 0.1)
