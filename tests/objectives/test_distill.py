from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medfm.encoders.image import ImageModel
from medfm.errors import ConfigError, DataError
from medfm.objectives.base import Parts
from medfm.objectives.distill import DistillObjective, _on_grid
from medfm.objectives.frozen import FrozenTeacher
from medfm.objectives.ssl_config import DistillConfig
from medfm.registry import ENCODERS, OBJECTIVES
from medfm.transforms.config import AugmentConfig, PreprocessConfig
from medfm.transforms.draws import Draws
from medfm.transforms.preprocess import Preprocess
from medfm.weights.save import save_model

Make = Callable[..., Any]
CONTRACT = {"size": [8, 8], "window": "none"}
ENCODER = {"name": "vit", "img_size": [8, 8], "patch_size": [2, 2], "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture
def make(make_network: Make, tmp_path: Path) -> Make:
    """A student in float64 with a teacher of another width, which takes grey images of 8 x 8."""

    def build(**knobs: Any) -> DistillObjective:
        (tmp_path / "teacher").touch()
        config = DistillConfig(teacher=tmp_path / "teacher", **knobs)
        network = make_network(embed_dim=24, depth=1)
        for parameter in network.parameters():
            parameter.data.mul_(3.0)
        teacher = FrozenTeacher(network, PreprocessConfig.model_validate(CONTRACT), (0.4,), (0.3,), 1, (8, 8))
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return DistillObjective(config, make_network(), teacher).double()

    return build


def seen_by_teacher(objective: DistillObjective, images: torch.Tensor) -> Any:
    """The contract's mean .5 and std .25 undone, the teacher's put on."""
    return objective.teacher.network.image_encoder(((images * 0.25 + 0.5) - 0.4) / 0.3)


@pytest.mark.parametrize("target", ["cls", "pooled", "patches"])
@pytest.mark.parametrize("loss", ["cosine", "mse", "smooth_l1"])
@pytest.mark.parametrize("normalize", [False, True])
def test_features__loss_is_as_written_out(make: Make, make_batch: Make, target: str, loss: str, normalize: bool) -> None:
    objective, batch = make(target=target, loss=loss, normalize_target=normalize), make_batch(6)
    theirs, mine = seen_by_teacher(objective, batch.images), objective.network.image_encoder(batch.images)
    wanted, said = (o.patch_tokens if target == "patches" else o.cls_token for o in (theirs, mine))
    said = said @ objective.head.weight.t() + objective.head.bias
    if normalize:
        wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    if loss == "cosine":
        expected = 1 - (said * wanted).sum(-1) / (said.norm(dim=-1) * wanted.norm(dim=-1))
    elif loss == "mse":
        expected = ((said - wanted) ** 2).mean(-1)
    else:
        d = (said - wanted).abs()
        expected = torch.where(d < 1, 0.5 * d**2, d - 0.5).mean(-1)
    torch.testing.assert_close(objective(batch, Draws(0)).loss, expected.mean(), rtol=1e-6, atol=0)


def test_masked__only_hidden_patches_are_predicted_and_never_seen(make: Make, make_batch: Make) -> None:
    objective, batch = make(target="patches", mask_ratio=0.5, loss="mse", masking="block"), make_batch(6)
    masks = objective._draw_masks(batch.images, Draws(0))
    hidden = masks.map(16)
    assert masks.masked.shape == (6, 8)
    encoder = objective.network.image_encoder
    said = objective.head(encoder(batch.images, masked=hidden, mask_token=objective.mask_token).patch_tokens)
    wanted = seen_by_teacher(objective, batch.images).patch_tokens
    output = objective(batch, Draws(0))
    torch.testing.assert_close(output.loss, (said - wanted)[hidden].square().mean(), rtol=1e-6, atol=0)
    output.loss.backward()
    assert all(p.grad is not None for p in objective.parameters())
    # The student's part does not depend on pixels under the mask, but the teacher's does.
    other = batch.images + hidden.reshape(6, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    again = encoder(other, masked=hidden, mask_token=objective.mask_token).patch_tokens
    torch.testing.assert_close(objective.head(again), said)
    shifted = objective(replace(batch, images=other), Draws(0)).loss
    assert float(shifted.detach()) != pytest.approx(float(output.loss.detach()), rel=1e-5)


def test_similarity__is_seeds_with_the_batch_for_a_queue(make: Make, make_batch: Make) -> None:
    objective, batch = make(target="similarity", temperature=0.2, teacher_temperature=0.05), make_batch(6)
    teacher = F.normalize(seen_by_teacher(objective, batch.images).cls_token.float(), dim=1)  # ImageModel's own cast
    student = F.normalize(objective.head(objective.network.image_encoder(batch.images).cls_token), dim=1)
    p = (teacher @ teacher.t() / 0.05).softmax(1).double()
    q = (student @ teacher.double().t() / 0.2).softmax(1)
    torch.testing.assert_close(objective(batch, Draws(0)).loss, (p * (p / q).log()).sum(1).mean(), rtol=1e-5, atol=1e-6)


def test_labels__count_where_they_are_stated(make: Make, make_batch: Make) -> None:
    objective = make(label_weight=0.5, label_count=2)
    nan = math.nan
    labels = torch.tensor([[1, nan], [0, -1.0], [nan, 1], [1, 0], [nan, nan], [-1, -1]])
    batch = replace(make_batch(6), labels=labels)
    plain = float(make()(batch, Draws(0)).loss.detach())
    logits = objective.classifier(objective.network.image_encoder(batch.images).cls_token)
    stated = [(0, 0), (1, 0), (2, 1), (3, 0), (3, 1)]
    expected = torch.stack([F.binary_cross_entropy_with_logits(logits[i, j], labels[i, j].double()) for i, j in stated]).mean()
    output = objective(batch, Draws(0))
    assert float(output.logs["label_loss"]) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert float(output.loss.detach()) == pytest.approx(plain + 0.5 * float(expected.detach()), rel=1e-6)
    objective(replace(batch, labels=torch.full((6, 2), math.nan)), Draws(0)).loss.backward()
    assert float(objective.classifier.weight.grad.abs().max()) == 0.0  # nothing stated: a gradient of 0, not none and not NaN
    with pytest.raises(DataError, match="label_count is 2, but the manifest has 3"):
        objective(replace(batch, labels=torch.zeros(6, 3)), Draws(0))


def test_teacher__is_frozen_moves_along_and_is_saved_nowhere(make: Make, make_batch: Make, train: Make) -> None:
    objective = make(target="patches")
    before = copy.deepcopy(objective.teacher.state_dict())
    train(objective, [make_batch(6)] * 2)
    assert all(torch.equal(value, before[name]) for name, value in objective.teacher.state_dict().items())
    assert not any("teacher" in name for name in (*objective.state_dict(), *dict(objective.named_parameters())))
    assert not objective.train().teacher.training
    moved = objective.float()
    assert {p.dtype for p in moved.teacher.parameters()} == {torch.float32}
    assert objective.to("meta").teacher.mean.device.type == "meta"


def test_training__agrees_with_the_teacher(make: Make, make_batch: Make, train: Make) -> None:
    losses = train(make(), [make_batch(8)] * 25, lr=0.5)
    assert losses[-1] < 0.3 * losses[0]


@pytest.fixture
def parts() -> Parts:
    return Parts(ENCODERS.parse(ENCODER), Preprocess(PreprocessConfig.model_validate(CONTRACT)), AugmentConfig(), 4)


def save(folder: Path, encoder: dict[str, Any], contract: dict[str, Any]) -> Path:
    torch.manual_seed(3)
    network = ImageModel(ENCODERS.build(ENCODERS.parse(encoder)))
    return save_model(folder, network, {"encoder": encoder, "objective": {"name": "mae"}, "preprocess": contract}, None)


def test_build__from_a_weight_file_of_another_size_and_colour(parts: Parts, make_batch: Make, tmp_path: Path) -> None:
    encoder = {**ENCODER, "img_size": [16, 16], "patch_size": [2, 2], "in_channels": 3, "embed_dim": 8}
    file = save(tmp_path, encoder, {**CONTRACT, "size": [16, 16], "channels": 3, "mean": [0.1, 0.2, 0.3], "std": [0.5]})
    objective = OBJECTIVES.build(DistillConfig(teacher=file, target="patches"), parts=parts)
    images = make_batch(6).images.float()
    grey = F.interpolate(images * 0.25 + 0.5, (16, 16), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    colour = (grey - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / 0.5
    theirs = objective.teacher.network.image_encoder(colour).patch_tokens
    torch.testing.assert_close(objective.teacher(images).patch_tokens, theirs)
    output = objective(replace(make_batch(6), images=images), Draws(0))  # 8 x 8 teacher patches on the student's 4 x 4
    assert torch.isfinite(output.loss)


def test_build__from_public_weights(parts: Parts, make_batch: Make, tmp_path: Path) -> None:
    from timm import create_model

    model = create_model("test_vit", pretrained=False, num_classes=5)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    encoder = {"name": "timm", "model": "test_vit", "img_size": [160, 160], "in_channels": 3, "weights": tmp_path / "vit.pth"}
    mean, std = [0.481, 0.458, 0.408], [0.269, 0.261, 0.276]
    config = DistillConfig.model_validate({"teacher_encoder": encoder, "teacher_mean": mean, "teacher_std": std})
    objective = OBJECTIVES.build(config, parts=parts)
    images = make_batch(6).images.float()
    unit = F.interpolate(images * 0.25 + 0.5, (160, 160), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    colour = (unit - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    features = model.eval().forward_features(colour)[:, model.num_prefix_tokens :].mean(1)
    torch.testing.assert_close(objective.teacher.pooled(images), features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        ({"window": "minmax"}, "window minmax and none"),
        ({"size": [8, 8, 8]}, "3 axes"),
    ],
)
def test_build__refuses_a_teacher_of_other_images(parts: Parts, tmp_path: Path, contract: dict[str, Any], message: str) -> None:
    size = contract.get("size", [8, 8])
    file = save(tmp_path, {**ENCODER, "img_size": size, "patch_size": [2] * len(size)}, {**CONTRACT, **contract})
    with pytest.raises(ConfigError, match=message):
        OBJECTIVES.build(DistillConfig(teacher=file), parts=parts)


def test_patches__train_no_attention_over_slices(make: Make) -> None:
    class Slices(nn.Module):
        embed_dim, pool, patch_size, slice_pool = 16, "cls", (2, 2), nn.Identity()

    with pytest.raises(ConfigError, match=r"set encoder\.pool=mean"):
        DistillObjective(make(target="patches").config, ImageModel(Slices()), make().teacher)


def test_masking__needs_an_encoder_with_mask_tokens(make: Make) -> None:
    class Plain(nn.Module):
        embed_dim, pool, patch_size = 16, "mean", (2, 2)

    with pytest.raises(ConfigError, match="mask_ratio=0"):
        DistillObjective(make(target="patches", mask_ratio=0.4).config, ImageModel(Plain()), make().teacher)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, "either teacher"),
        ({"teacher_encoder": ENCODER}, "random weights"),
        ({"teacher": "x", "teacher_mean": [0.5]}, "knows its mean"),
        ({"teacher": "x", "mask_ratio": 0.4}, "target=patches"),
        ({"teacher": "x", "label_weight": 1.0}, "go together"),
    ],
)
def test_config__refuses_what_contradicts_itself(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig.model_validate(knobs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_patches__of_another_grid_in_half_precision(dtype: torch.dtype) -> None:
    tokens = torch.rand(2, 16, 8)
    made = _on_grid(tokens.to(dtype), (4, 4), (6, 6))
    torch.testing.assert_close(made, _on_grid(tokens, (4, 4), (6, 6)), rtol=0.01, atol=0.01, check_dtype=False)
