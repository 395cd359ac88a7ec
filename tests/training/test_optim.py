from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import BertConfig

from medfm.encoders.config import ClipTextConfig, HuggingFaceTextConfig, TimmConfig, VitConfig
from medfm.encoders.image import ImageModel
from medfm.encoders.text import ClipTextEncoder, HuggingFaceTextEncoder
from medfm.encoders.timm2d import TimmEncoder
from medfm.encoders.vit import VisionTransformer
from medfm.objectives.config import MaeConfig
from medfm.objectives.dino import DinoObjective
from medfm.objectives.mae import MaeObjective
from medfm.objectives.ssl_config import DinoConfig
from medfm.training.config import OptimizerConfig, ScheduleConfig
from medfm.training.depth import layer_ids
from medfm.training.gradients import clip_gradients
from medfm.training.optim import (
    build_optimizer,
    build_schedule,
    lr_factor,
    parameter_groups,
    scaled_lr,
    set_weight_decay,
)


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.text_encoder = nn.Linear(4, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 3, 4))
        self.logit_scale = nn.Parameter(torch.zeros(()))


def test_parameter_groups__no_decay_on_norms_biases_positions_and_scale() -> None:
    model = _Tiny()
    groups = parameter_groups(model, OptimizerConfig(lr=1e-3, text_lr=1e-4, weight_decay=0.2))
    decay = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}  # type: ignore[attr-defined]
    assert decay[id(model.image_encoder[0].weight)] == (1e-3, 0.2)
    assert decay[id(model.text_encoder.weight)] == (1e-4, 0.2)
    for p in (model.image_encoder[0].bias, model.image_encoder[1].weight, model.pos_embed, model.logit_scale):
        assert decay[id(p)] == (1e-3, 0.0)
    assert len(decay) == len(list(model.parameters()))


def test_parameter_groups__frozen_parameters_are_left_out() -> None:
    model = _Tiny()
    model.text_encoder.requires_grad_(False)
    held = {id(p) for g in parameter_groups(model, OptimizerConfig()) for p in g["params"]}  # type: ignore[attr-defined]
    assert id(model.text_encoder.weight) not in held


def test_lr_factor__warmup_then_half_cosine() -> None:
    config = ScheduleConfig(warmup=0.1, min_lr=1e-5)
    assert lr_factor(0, 100, config, 1e-3) == pytest.approx(0.1)
    assert lr_factor(9, 100, config, 1e-3) == pytest.approx(1.0)
    assert lr_factor(10, 100, config, 1e-3) == pytest.approx(1.0)
    middle = 0.01 + 0.99 * (1 + math.cos(math.pi * 0.5)) / 2
    assert lr_factor(55, 100, config, 1e-3) == pytest.approx(middle)
    assert lr_factor(100, 100, config, 1e-3) == pytest.approx(0.01)


def test_build_schedule__each_group_ends_at_its_own_floor() -> None:
    optimizer = build_optimizer(_Tiny(), OptimizerConfig(lr=1e-3, text_lr=1e-4))
    schedule = build_schedule(optimizer, 4, ScheduleConfig(warmup=0.0, min_lr=1e-5))
    for _ in range(4):
        optimizer.step()
        schedule.step()
    assert all(group["lr"] == pytest.approx(1e-5) for group in optimizer.param_groups)


def _vit(**knobs: object) -> VisionTransformer:
    sizes = {"img_size": [8, 8], "patch_size": [4, 4], "embed_dim": 8, "depth": 3, "num_heads": 2, "reg_tokens": 1}
    return VisionTransformer(VitConfig.model_validate({**sizes, **knobs}))


class _TwoNetworks(nn.Module):
    """The layout of an objective with a student, a frozen teacher and heads."""

    def __init__(self) -> None:
        super().__init__()
        self.student = ImageModel(_vit())
        self.teacher = ImageModel(_vit()).requires_grad_(False)
        self.decoder = nn.Module()
        self.decoder.blocks = nn.ModuleList([nn.Linear(8, 8)])
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.head = weight_norm(nn.Linear(8, 16, bias=False))


def _settings(model: nn.Module, config: OptimizerConfig, batch: int = 256) -> dict[str, tuple[float, float]]:
    """Name -> (peak learning rate, weight decay); every trainable parameter is in one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, config, batch)
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(found)
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    return found


def test_parameter_groups__decay_follows_the_authors_rule_with_decay_tokens() -> None:
    model = _TwoNetworks()
    config = OptimizerConfig(weight_decay=0.04, decay_tokens=True)
    # facebookresearch/dino, utils.get_params_groups, and timm's param_groups_weight_decay, which MAE uses.
    dino = {n: 0.0 if n.endswith(".bias") or p.ndim == 1 else 0.04 for n, p in model.named_parameters() if p.requires_grad}
    timm_groups = timm.optim.param_groups_weight_decay(model, 0.04)
    names = {id(p): n for n, p in model.named_parameters()}
    mae = {names[id(p)]: g["weight_decay"] for g in timm_groups for p in g["params"]}
    ours = {name: decay for name, (_, decay) in _settings(model, config).items()}
    assert ours == dino == mae
    kept = {n for n, (_, decay) in _settings(model, OptimizerConfig(weight_decay=0.04)).items() if decay == 0}
    added = {n for n, decay in ours.items() if decay} & kept
    encoder = "student.image_encoder"
    gain = "head.parametrizations.weight.original0"
    assert added == {f"{encoder}.cls_token", f"{encoder}.reg_token", f"{encoder}.pos_embed", "mask_token", gain}


def test_parameter_groups__layer_decay_is_dinov2s() -> None:
    """utils/param_groups.py of DINOv2: 0.9^(depth + 1 - layer), layer 0 what embeds, i + 1 block i, depth + 1 all else."""
    config = OptimizerConfig(lr=1.0, layer_decay=0.9, patch_embed_lr=0.2)
    rates = {name: lr for name, (lr, _) in _settings(_TwoNetworks(), config).items()}
    encoder = "student.image_encoder."
    for name, lr in rates.items():
        layer = 4
        if name.startswith(encoder):
            inner = name.removeprefix(encoder)
            if inner.startswith("blocks."):
                layer = int(inner.split(".")[1]) + 1
            elif not inner.startswith("norm."):
                layer = 0
        assert lr == pytest.approx(0.9 ** (4 - layer) * (0.2 if "patch_embed" in name else 1)), name
    assert rates["decoder.blocks.0.weight"] == rates["mask_token"] == 1.0


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "resnet10t", "swin_tiny_patch4_window7_224"])
def test_parameter_groups__layer_decay_is_timms(model: str) -> None:
    """A timm encoder below a head has the rates that timm's own grouping gives the model with its classifier."""
    encoder = TimmEncoder(TimmConfig(model=model, in_channels=3))
    ours = {n.removeprefix("model."): lr for n, (lr, _) in _settings(encoder, OptimizerConfig(lr=1.0, layer_decay=0.8)).items()}
    whole = timm.create_model(model)
    names = {id(p): n for n, p in whole.named_parameters()}
    groups = timm.optim.param_groups_layer_decay(whole, layer_decay=0.8)
    theirs = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    assert set(ours) < set(theirs)
    for name, lr in ours.items():
        assert lr == pytest.approx(theirs[name]), name


@pytest.mark.parametrize("decay_tokens", [True, False])
def test_parameter_groups__of_an_objectives_mask_token(decay_tokens: bool) -> None:
    """As DINOv2's utils/param_groups.py, where it is the encoder's: decayed, in layer 0. A decoder's own lies in no layer."""
    encoder = ImageModel(VisionTransformer(VitConfig(img_size=(8, 8), patch_size=(4, 4), embed_dim=8, depth=3, num_heads=2)))
    config = DinoConfig(hidden_dim=8, bottleneck_dim=8, ibot_weight=1.0)
    views: Any = None
    dino = DinoObjective(config, encoder, views, 8)
    settings = _settings(dino, OptimizerConfig(lr=1.0, weight_decay=0.2, layer_decay=0.5, decay_tokens=decay_tokens))
    assert settings["mask_token"] == (0.5**4, 0.2 if decay_tokens else 0.0)
    assert settings["mask_token"][0] == settings["student.network.image_encoder.cls_token"][0]
    mae = MaeObjective(MaeConfig(decoder_dim=8, decoder_heads=2, decoder_depth=1), encoder.image_encoder)
    settings = _settings(mae, OptimizerConfig(lr=1.0, weight_decay=0.2, layer_decay=0.5, decay_tokens=decay_tokens))
    assert settings["decoder.mask_token"] == (1.0, 0.2 if decay_tokens else 0.0)


def test_layer_ids__of_text_encoders() -> None:
    config = ClipTextConfig(vocab_size=9, context_length=4, embed_dim=8, depth=2, num_heads=2)
    ids, layers = layer_ids(ClipTextEncoder(config))
    assert layers == 3
    assert ids["token_embedding.weight"] == ids["positional_embedding"] == 0
    assert ids["transformer.resblocks.1.mlp.c_fc.bias"] == 2
    assert ids["ln_final.weight"] == 3
    bert = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=12, num_attention_heads=2, intermediate_size=8)
    hugging = HuggingFaceTextEncoder(HuggingFaceTextConfig(path="unused"), json.loads(bert.to_json_string(use_diff=False)))
    ids, layers = layer_ids(hugging)
    assert layers == 13
    assert ids["model.embeddings.LayerNorm.weight"] == 0
    assert ids["model.encoder.layer.1.output.dense.weight"] == 2
    assert ids["model.encoder.layer.11.output.dense.weight"] == 12


def test_scaled_lr__is_the_papers() -> None:
    # MAE: blr 1.5e-4 at batch 4096 is 2.4e-3; DINOv2: base 4e-3 at batch 2048 is 5.66e-3.
    assert scaled_lr(1.5e-4, OptimizerConfig(lr_scale="linear256"), 4096) == pytest.approx(2.4e-3)
    assert scaled_lr(4e-3, OptimizerConfig(lr_scale="sqrt1024"), 2048) == pytest.approx(4e-3 * math.sqrt(2))
    config = OptimizerConfig(lr=1e-3, text_lr=1e-4, lr_scale="linear256")
    assert {lr for lr, _ in _settings(_Tiny(), config, batch=512).values()} == {2e-3, 2e-4}


def _run(config: ScheduleConfig, optimizer_config: OptimizerConfig, total: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Learning rate and weight decay of each step, as the training loop sets them."""
    optimizer = build_optimizer(nn.Linear(2, 2), optimizer_config, batch)
    schedule = build_schedule(optimizer, total, config)
    rates, decays = [], []
    for step in range(total):
        set_weight_decay(optimizer, optimizer_config, step, total)
        rates.append(optimizer.param_groups[0]["lr"])
        decays.append(optimizer.param_groups[0]["weight_decay"])
        assert optimizer.param_groups[1]["weight_decay"] == 0.0  # the bias
        optimizer.step()
        schedule.step()
    return np.array(rates), np.array(decays)


def test_schedule__is_maes() -> None:
    """util/lr_sched.py, with the epoch as a fraction: `epoch = step / steps an epoch + epoch`."""
    epochs, warmup, steps, blr, least = 20, 4, 5, 1.5e-4, 1e-6
    lr = blr * 512 / 256
    expected = []
    for step in range(epochs * steps):
        epoch = step / steps
        half = least + (lr - least) * 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
        expected.append(lr * epoch / warmup if epoch < warmup else half)
    config = ScheduleConfig(warmup=warmup / epochs, warmup_start=0.0, min_lr=least)
    rates, _ = _run(config, OptimizerConfig(lr=blr, lr_scale="linear256"), epochs * steps, 512)
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-18)


def test_schedule__is_dinos_but_for_one_step_of_warmup() -> None:
    """utils.cosine_scheduler. Its warm-up of n steps reaches the peak at step n - 1 and stays there for step n."""
    total, warmup, lr, least = 200, 20, 5e-4 * 64 / 256, 1e-6

    def cosine_scheduler(base: float, final: float, warmup_steps: int = 0) -> np.ndarray:
        ramp = np.linspace(0.0, base, warmup_steps)
        steps = np.arange(total - warmup_steps)
        return np.concatenate([ramp, final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))])

    config = ScheduleConfig(warmup=warmup / total, warmup_start=0.0, min_lr=least)
    rates, decays = _run(
        config, OptimizerConfig(lr=5e-4, lr_scale="linear256", weight_decay=0.04, weight_decay_end=0.4), total, 64
    )
    theirs = cosine_scheduler(lr, least, warmup)
    np.testing.assert_allclose(rates[warmup:], theirs[warmup:], rtol=1e-12)
    np.testing.assert_allclose(rates[:warmup], theirs[:warmup] * (warmup - 1) / warmup, rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(decays, cosine_scheduler(0.04, 0.4), rtol=1e-12)


def test_schedule__constant_stays_at_the_peak() -> None:
    rates, _ = _run(ScheduleConfig(name="constant", warmup=0.5, min_lr=1e-9), OptimizerConfig(lr=1.0), 4, 1)
    assert rates.tolist() == [0.5, 1.0, 1.0, 1.0]


def test_build_schedule__a_share_of_the_rate_has_that_share_of_the_floor() -> None:
    """DINOv2 multiplies the whole schedule of a layer; a text encoder's own rate ends at the recipe's floor."""
    model = _TwoNetworks()
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-3, layer_decay=0.5))
    schedule = build_schedule(optimizer, 2, ScheduleConfig(warmup=0.0, min_lr=1e-5))
    for _ in range(2):
        optimizer.step()
        schedule.step()
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(1e-5 * group["lr_multiplier"])


def test_optimizer_config__refuses_a_decay_that_starts_at_nothing() -> None:
    with pytest.raises(ValueError, match="weight_decay_end needs a weight_decay above 0"):
        OptimizerConfig(weight_decay=0.0, weight_decay_end=0.4)


def test_lars__is_the_papers_arithmetic() -> None:
    """Three steps against Algorithm 1 in float64, with biases excluded as SimCLR, BYOL and Barlow Twins do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    nn.init.zeros_(model[2].weight)  # a weight of zero takes the plain gradient
    config = OptimizerConfig(name="lars", lr=0.3, weight_decay=1e-2, momentum=0.9, trust=0.02)
    optimizer = build_optimizer(model, config)
    expected = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    momenta = {name: np.zeros_like(value) for name, value in expected.items()}
    for _ in range(3):
        optimizer.zero_grad()
        (model(torch.randn(5, 3, dtype=torch.float64)) - 1.0).square().sum().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            step = p.grad.numpy().copy()
            if p.ndim > 1:
                step = step + 1e-2 * expected[name]
                size, change = np.linalg.norm(expected[name]), np.linalg.norm(step)
                step = step * (0.02 * size / change if size > 0 and change > 0 else 1.0)
            momenta[name] = 0.9 * momenta[name] + step
            expected[name] = expected[name] - 0.3 * momenta[name]
        optimizer.step()
        for name, p in model.named_parameters():
            np.testing.assert_allclose(p.detach().numpy(), expected[name], rtol=1e-12, atol=1e-14)


def test_clip_gradients__by_parameter_is_dinos() -> None:
    """utils.clip_gradients: every parameter by its own norm."""
    parameters = [nn.Parameter(torch.zeros(4)) for _ in range(3)]
    gradients = [torch.full((4,), value, dtype=torch.float32) for value in (0.1, 5.0, 50.0)]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    total = clip_gradients(parameters, 3.0, "parameter")
    assert float(total) == pytest.approx(math.sqrt(sum(float(g.norm()) ** 2 for g in gradients)))
    for p, g in zip(parameters, gradients, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, g * min(1.0, 3.0 / (float(g.norm()) + 1e-6)))


@pytest.mark.parametrize("by", ["global", "parameter"])
def test_clip_gradients__0_clips_nothing(by: str) -> None:
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([30.0, 40.0])
    assert float(clip_gradients([p], 0.0, by)) == 50.0  # type: ignore[arg-type]
    assert p.grad.tolist() == [30.0, 40.0]
