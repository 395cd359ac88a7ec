from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from medfm.encoders.config import TimmConfig, VitConfig
from medfm.encoders.image import ImageModel
from medfm.encoders.timm2d import TimmEncoder
from medfm.encoders.vit import VisionTransformer
from medfm.errors import ConfigError
from medfm.objectives import dino as module
from medfm.objectives.base import Parts
from medfm.objectives.dino import DinoObjective, build
from medfm.objectives.scaling import auto_momentum, auto_out_dim
from medfm.objectives.ssl_config import DinoConfig
from medfm.training.config import OptimizerConfig
from medfm.training.gradients import clip_gradients
from medfm.training.optim import build_optimizer, set_weight_decay
from medfm.transforms.config import AugmentConfig, PreprocessConfig
from medfm.transforms.draws import Draws
from medfm.transforms.preprocess import Preprocess
from medfm.transforms.views import Views
from medfm.types import Batch

Make = Callable[..., DinoObjective]


class PaperNetwork(nn.Module):
    """timm's ViT and DINO's head as its code writes it, one view at a time."""

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.vit = timm.models.VisionTransformer(
            img_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True
        )
        self.mlp = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 8))
        self.last_layer = nn.utils.weight_norm(nn.Linear(8, out_dim, bias=False))
        self.last_layer.weight_g.data.fill_(1)
        self.last_layer.weight_g.requires_grad = False
        self.double()

    def copy(self, other: DinoObjective) -> None:
        self.vit.load_state_dict(other.student.network.image_encoder.state_dict())
        head = other.student.head.state_dict()
        self.mlp.load_state_dict({k.removeprefix("mlp."): v for k, v in head.items() if k.startswith("mlp")})
        self.last_layer.load_state_dict({k.removeprefix("last_layer."): v for k, v in head.items() if "last" in k})

    def tokens(self, view: Tensor, masked: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        x = self.vit.patch_embed(view).flatten(1, 2)
        if masked is not None:
            x = torch.where(masked[..., None], mask_token, x)
        side = view.shape[-1] // 2
        grid = self.vit.pos_embed[:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
        if side != 4:  # timm's resampling, which is float32, in float64
            grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
        positions = torch.cat([self.vit.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
        x = torch.cat([self.vit.cls_token.expand(len(x), -1, -1), x], dim=1) + positions
        return self.vit.norm(self.vit.blocks(x))

    def head(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1, p=2))

    def forward(self, view: Tensor) -> Tensor:
        return self.head(self.tokens(view)[:, 0])


def cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    return -(target * F.log_softmax(logits / 0.1, dim=-1)).sum(dim=-1)


def paper_pairs(targets: list[Tensor], answers: list[Tensor]) -> Tensor:
    terms = [cross_entropy(q, v).mean() for i, q in enumerate(targets) for j, v in enumerate(answers) if i != j]
    return torch.stack(terms).mean()


def adamw(parameter: Tensor, state: dict[str, Any], lr: float, decay: float) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, with PyTorch's defaults."""
    state["t"] += 1
    state["m"] = 0.9 * state["m"] + 0.1 * parameter.grad
    state["v"] = 0.999 * state["v"] + 0.001 * parameter.grad**2
    parameter.data -= lr * decay * parameter.data
    m, v = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
    parameter.data -= lr * m / (v.sqrt() + 1e-8)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_steps__are_the_papers_arithmetic(make_dino: Make, make_batch: Callable[..., Batch]) -> None:
    """Loss, per-parameter clipping, frozen last layer, AdamW with its decay's schedule, centre and moving average over five of
    twenty steps, against main_dino.py's lines written out, on timm's ViT."""
    total, lr, clip, out_dim = 20, 1e-3, 0.05, 24
    objective = make_dino(
        momentum=0.9, teacher_temp=0.07, warmup_teacher_temp=0.04, teacher_temp_warmup=0.2, freeze_last_layer=0.1
    )
    student, teacher = PaperNetwork(out_dim), PaperNetwork(out_dim)
    student.copy(objective)
    teacher.copy(objective)
    centre = torch.zeros(out_dim, dtype=torch.float64)
    moments = {n: {"t": 0, "m": 0.0, "v": 0.0} for n, p in student.named_parameters() if p.requires_grad}
    rule = OptimizerConfig(
        lr=lr, weight_decay=0.04, weight_decay_end=0.4, decay_tokens=True, betas=(0.9, 0.999), eps=1e-8, lr_scale="none"
    )
    optimizer = build_optimizer(objective, rule)
    for step in range(5):
        batch = make_batch(6, step)
        views = objective.views(batch.images, Draws(step))
        # The paper's step.
        cosine = (1 + math.cos(math.pi * step / total)) / 2
        global_views, local_views = views.global_views.chunk(2), views.local_views.chunk(3)
        temperature = 0.04 + 0.03 * min(step / 4, 1)
        with torch.no_grad():
            logits = [teacher(view) for view in global_views]
            targets = [F.softmax((x - centre) / temperature, dim=-1) for x in logits]
        loss = paper_pairs(targets, [student(view) for view in (*global_views, *local_views)])
        centre = 0.9 * centre + 0.1 * torch.cat(logits).mean(dim=0)
        student.zero_grad()
        loss.backward()
        for name, p in student.named_parameters():
            if not p.requires_grad:
                continue
            p.grad *= min(1.0, clip / (p.grad.norm().item() + 1e-6))
            if step < 2 and "last_layer" in name:
                continue
            adamw(p, moments[name], lr, 0.0 if p.ndim == 1 or name.endswith("bias") else 0.4 - 0.36 * cosine)
        momentum = 1 - 0.1 * cosine
        for p, q in zip(student.parameters(), teacher.parameters(), strict=True):
            q.data = momentum * q.data + (1 - momentum) * p.data
        # Ours.
        objective.before_step(step, total)
        set_weight_decay(optimizer, rule, step, total)
        optimizer.zero_grad()
        output = objective(batch, Draws(step))
        output.loss.backward()
        clip_gradients([p for group in optimizer.param_groups for p in group["params"]], clip, "parameter")
        objective.after_backward(step, total)
        optimizer.step()
        objective.after_optimizer_step(step + 1, total)

        assert output.loss.item() == pytest.approx(loss.item(), rel=1e-9)
        torch.testing.assert_close(objective.centre, centre, rtol=1e-9, atol=1e-12)
        for mine, theirs in ((objective.student, student), (objective.teacher, teacher)):
            expected = {f"network.image_encoder.{n}": p for n, p in theirs.vit.named_parameters()}
            expected |= {f"head.{n}": p for n, p in theirs.named_parameters() if not n.startswith("vit.")}
            found = dict(mine.named_parameters())
            assert set(found) == set(expected)
            for name, p in found.items():
                torch.testing.assert_close(p, expected[name], rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    assert output.logs["ema_momentum"].item() == pytest.approx(momentum)
    assert output.logs["teacher_temp"].item() == pytest.approx(0.07)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("centring", ["centre", "sinkhorn"])
def test_ibot_and_koleo__are_the_papers_arithmetic(
    make_dino: Make, make_batch: Callable[..., Batch], separate: bool, centring: str
) -> None:
    """DINOv2's three losses from all tokens of timm's ViT, picked by loops."""
    objective = make_dino(ibot_weight=0.7, koleo_weight=0.1, separate_head=separate, centring=centring, mask_probability=0.8)
    with torch.no_grad():
        objective.mask_token.normal_(generator=torch.Generator().manual_seed(0))
        for name, p in objective.teacher.named_parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
        if centring == "centre":
            objective.centre.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
            objective.patch_centre.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    centres = [getattr(objective, name, torch.zeros(())).clone() for name in ("centre", "patch_centre")]
    batch = make_batch(6)
    views = objective.views(batch.images, Draws(5))
    masks = objective._masks(views.global_views, 6, Draws(6))
    objective._masks = lambda *_: masks  # type: ignore[method-assign]
    output = objective.distil(views, 6, Draws(6))
    output.loss.backward()

    student, teacher = PaperNetwork(24), PaperNetwork(24)
    student.copy(objective)
    teacher.copy(SimpleNamespace(student=objective.teacher))  # type: ignore[arg-type]
    patch_heads = [student.head, teacher.head]
    if separate:
        other = [PaperNetwork(24), PaperNetwork(24)]
        for net, mine in zip(other, (objective.student, objective.teacher), strict=True):
            net.copy(SimpleNamespace(student=SimpleNamespace(network=mine.network, head=mine.patch_head)))  # type: ignore[arg-type]
        patch_heads = [net.head for net in other]

    def distributions(logits: Tensor, centre: Tensor) -> Tensor:
        if centring == "centre":
            return F.softmax((logits - centre) / 0.04, dim=-1)
        q = (logits / 0.04).exp().T / (logits / 0.04).exp().sum()
        for _ in range(3):
            q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
            q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
        return (q * q.shape[1]).T

    token = objective.mask_token.detach().clone().requires_grad_()
    with torch.no_grad():
        tokens = teacher.tokens(views.global_views)
        targets = distributions(teacher.head(tokens[:, 0]), centres[0])
        patch_targets = distributions(patch_heads[1](tokens[:, 1:][masks.where]), centres[1])
    answers = student.tokens(views.global_views, masks.where, token)
    local = student(views.local_views)
    dino = paper_pairs(list(targets.chunk(2)), [*student.head(answers[:, 0]).chunk(2), *local.chunk(3)])
    ibot, start = torch.zeros((), dtype=torch.float64), 0
    for view in range(12):
        here = masks.where[view]
        n = int(here.sum())
        if n:
            terms = cross_entropy(patch_targets[start : start + n], patch_heads[0](answers[view, 1:][here]))
            ibot = ibot + terms.mean() / 12
            start += n
    koleo = torch.zeros((), dtype=torch.float64)
    for part in answers[:, 0].chunk(2):
        unit = F.normalize(part, dim=-1)
        near = [min((unit[i] - unit[j] + 1e-8).norm() for j in range(6) if j != i) for i in range(6)]
        koleo = koleo - (torch.stack(near) + 1e-8).log().mean()
    (dino + 0.7 * ibot + 0.1 * koleo).backward()
    for name, expected in (("loss_dino", dino), ("loss_ibot", ibot), ("loss_koleo", koleo)):
        assert output.logs[name].item() == pytest.approx(expected.item(), rel=1e-6), name
    torch.testing.assert_close(objective.mask_token.grad, token.grad, rtol=1e-6, atol=1e-10)
    theirs = dict(student.vit.named_parameters())
    for name, p in objective.student.network.image_encoder.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name].grad, rtol=1e-5, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    if centring == "centre":
        patches = patch_heads[1](tokens[:, 1:][masks.where]).mean(dim=0)
        torch.testing.assert_close(objective.patch_centre, 0.9 * centres[1] + 0.1 * patches)


@pytest.mark.parametrize("knobs", [{}, {"ibot_weight": 1.0}, {"ibot_weight": 1.0, "separate_head": True}])
def test_every_trainable_parameter__gets_a_gradient(
    make_dino: Make, make_batch: Callable[..., Batch], knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a device's share of the masks is empty: data-parallel training would wait for it."""
    objective = make_dino(**knobs)
    if knobs:
        monkeypatch.setattr(module, "draw_patch_masks", lambda rows, views, *_: torch.zeros(rows * views, 16, dtype=torch.bool))
    objective(make_batch(6), Draws(0)).loss.backward()
    missing = [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert not any(p.requires_grad for p in objective.teacher.parameters())


def test_validation__moves_nothing_and_repeats(make_dino: Make, make_batch: Callable[..., Batch]) -> None:
    objective = make_dino(ibot_weight=1.0)
    objective(make_batch(6), Draws(0))
    assert bool((objective.centre != 0).all())
    assert bool((objective.patch_centre != 0).all())
    objective.eval()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    values = [objective(make_batch(6), Draws(1)).loss.item() for _ in range(2)]
    assert values[0] == values[1]
    for name, value in objective.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_resume__goes_on_as_if_never_stopped(make_dino: Make, make_batch: Callable[..., Batch], train: Any) -> None:
    knobs = {"ibot_weight": 0.5, "koleo_weight": 0.1, "momentum": 0.9}
    batches = [make_batch(6, seed) for seed in range(6)]
    whole = make_dino(**knobs)
    losses = train(whole, batches)
    first = make_dino(**knobs)
    train(first, batches[:3], total=6)
    second = make_dino(**knobs)
    second.load_state_dict(first.state_dict())
    assert train(second, batches[3:], start=3, total=6) == losses[3:]
    assert torch.equal(second.centre, whole.centre)


def test_weights__learner_is_the_student_and_model_the_teacher(make_dino: Make, make_batch: Callable[..., Batch]) -> None:
    objective = make_dino()
    assert objective.learner() is objective.student.network
    assert objective.model() is objective.teacher.network
    with torch.no_grad():
        for p in objective.learner().parameters():
            p.normal_()
    objective.weights_loaded()
    for mine, theirs in zip(objective.teacher.parameters(), objective.student.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
    assert "mask_token" not in objective.state_dict()


def test_before_step__schedules(make_dino: Make) -> None:
    objective = make_dino(momentum=0.8, momentum_end=0.9, teacher_temp=0.08, warmup_teacher_temp=0.02, teacher_temp_warmup=0.5)
    found = []
    for step in (0, 10, 20, 40):
        objective.before_step(step, 40)
        found.append((objective.momentum, objective.teacher_temp))
    middle = 0.85 - 0.05 * math.cos(math.pi / 4)
    expected = [(0.8, 0.02), (middle, 0.05), (0.85, 0.08), (0.9, 0.08)]
    assert [x for pair in found for x in pair] == pytest.approx([x for pair in expected for x in pair])


def test_momentum_auto__is_scaled_to_the_batch(make_network: Callable[..., ImageModel]) -> None:
    config = DinoConfig(hidden_dim=4, bottleneck_dim=4)
    objective = DinoObjective(config, make_network(), lambda *_: None, 8, batch_size=64)  # type: ignore[arg-type,return-value]
    objective.before_step(0, 100_000)
    assert objective.momentum == auto_momentum(0.996, 1024, 64, 100_000) > 0.999


def test_after_backward__freezes_the_last_layers_first(make_dino: Make, make_batch: Callable[..., Batch]) -> None:
    objective = make_dino(ibot_weight=1.0, separate_head=True, freeze_last_layer=0.2)
    for step, frozen in ((0, True), (1, True), (2, False)):
        objective.zero_grad()
        objective(make_batch(6), Draws(0)).loss.backward()
        objective.after_backward(step, 10)
        for head in (objective.student.head, objective.student.patch_head):
            assert (head.last_layer.weight_v.grad is None) == frozen
            assert head.mlp[0].weight.grad is not None


def test_train__leaves_the_teacher_in_eval_mode(make_network: Callable[..., ImageModel], make_dino: Make) -> None:
    objective = make_dino(make_network(drop_path=0.5)).train()
    assert objective.student.network.image_encoder.training
    assert not any(part.training for part in objective.teacher.modules())


def contract(*size: int, channels: int = 1) -> Preprocess:
    return Preprocess(PreprocessConfig.model_validate({"size": list(size), "window": "none", "channels": channels}))


def parts(encoder: Any, *size: int, images: int = 1000, batch: int = 4) -> Parts:
    return Parts(encoder, contract(*size), AugmentConfig(), batch, train_images=images)


def stored(count: int, *size: int) -> Batch:
    rows = torch.arange(count)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, *size), dtype=torch.uint8, generator=generator)
    return Batch(images, None, None, rows, rows, torch.zeros(count, 0), rows)


HEAD: dict[str, Any] = {"hidden_dim": 16, "bottleneck_dim": 8}


@pytest.mark.parametrize("knobs", [{}, {"ibot_weight": 1.0, "koleo_weight": 0.1, "centring": "sinkhorn", "masking": "random"}])
@pytest.mark.parametrize("axes", [2, 3])
def test_build__makes_its_own_views_of_stored_pixels_in_2d_and_3d(axes: int, knobs: dict[str, Any]) -> None:
    vit = VitConfig(img_size=(28,) * axes, patch_size=(4,) * axes, embed_dim=24, depth=2, num_heads=2, reg_tokens=2)
    objective = build(DinoConfig(**HEAD, **knobs), parts(vit, *(32,) * axes))
    assert objective.out_dim == auto_out_dim(4, 1000)
    seen = []
    objective.student.network.image_encoder.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    output = objective(stored(4, *(32,) * axes), Draws(0))
    output.loss.backward()
    assert seen == [(8, 1, *(28,) * axes), (32, 1, *(12,) * axes)]
    assert math.isfinite(output.loss.item())
    entropy, marginal = (output.logs[f"teacher_{name}"].item() for name in ("entropy", "marginal_entropy"))
    assert 0 <= entropy <= marginal + 1e-5 <= math.log(objective.out_dim) + 2e-5


def test_build__encoder_without_class_token_is_pooled_by_mean() -> None:
    vit = VitConfig(img_size=(16, 16), patch_size=(4, 4), embed_dim=24, depth=2, num_heads=2, class_token=False, pool="mean")
    objective = build(DinoConfig(**HEAD, ibot_weight=1.0), parts(vit, 16, 16))
    objective(stored(4, 16, 16), Draws(0)).loss.backward()
    assert objective.student.network.image_encoder.pos_embed.grad is not None


def test_build__convolutional_encoder_with_its_teachers_own_batch_statistics() -> None:
    objective = build(DinoConfig(**HEAD, out_dim=32), parts(TimmConfig(model="resnet10t", img_size=(64, 64)), 64, 64))
    assert objective.views.local_size == (32, 32)  # type: ignore[attr-defined]
    norms = [m for m in objective.teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.training for m in norms)
    before = norms[0].running_mean.clone()
    objective(stored(4, 64, 64), Draws(0)).loss.backward()
    assert not torch.equal(norms[0].running_mean, before)
    objective.eval()
    assert not any(m.training for m in norms)


@pytest.mark.parametrize(
    ("knobs", "encoder", "images", "message"),
    [
        ({"views": {"local_size": (10, 10)}}, "vit", 9, r"local_size \[10, 10\] is not a multiple of the patch size \[4, 4\]"),
        ({"views": {"local_size": (8, 8, 8)}}, "vit", 9, r"local_size \[8, 8, 8\] must have 2 numbers"),
        ({}, "vit", 0, r"out_dim: auto needs the number of training images"),
        ({"ibot_weight": 1.0, "out_dim": 8, "views": {"local_count": 0}}, "one patch", 9, r"grid has a single patch"),
        ({"ibot_weight": 1.0, "out_dim": 8}, "resnet", 9, r"ibot_weight: masked patches need the encoder 'vit'"),
        ({"out_dim": 8}, "swin", 9, r"local_size: this encoder does not take images of"),
    ],
)
def test_build__refuses(knobs: dict[str, Any], encoder: str, images: int, message: str) -> None:
    configs: dict[str, Any] = {
        "vit": VitConfig(img_size=(16, 16), patch_size=(4, 4), embed_dim=24, depth=1, num_heads=2),
        "one patch": VitConfig(img_size=(16, 16), patch_size=(16, 16), embed_dim=24, depth=1, num_heads=2),
        "resnet": TimmConfig(model="resnet10t", img_size=(64, 64)),
        "swin": TimmConfig(model="vit_tiny_patch16_224", img_size=(224, 224), pool="cls"),
    }
    size = configs[encoder].img_size
    with pytest.raises(ConfigError, match=message):
        build(DinoConfig(**HEAD, **knobs), parts(configs[encoder], *size, images=images))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"out_dim": 1}, "two prototypes"),
        ({"momentum": 1.2}, "momentum 1.2"),
        ({"mask_ratio": (0.5, 0.1)}, "mask_ratio"),
        ({"ibot_out_dim": 64}, "separate_head=true"),
        ({"ibot_bottleneck_dim": 64}, "separate_head=true"),
        ({"separate_head": True}, "set ibot_weight"),
        ({"views": {"global_count": 1, "local_count": 0}}, "two views at least"),
    ],
)
def test_config__refuses(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DinoConfig(**knobs)


def test_koleo__of_each_device_alone_is_the_same_on_one(make_dino: Make, make_batch: Callable[..., Batch]) -> None:
    objectives = [make_dino(koleo_weight=0.1, koleo_all_devices=both) for both in (True, False)]
    first, second = (objective(make_batch(6), Draws(0)).loss.item() for objective in objectives)
    assert first == second


def test_koleo__of_the_one_image_left_over_in_validation_is_0(make_dino: Make, make_batch: Callable[..., Batch]) -> None:
    objective = make_dino(koleo_weight=0.1)
    batch = Batch(**{k: v[:1] if isinstance(v, Tensor) else v for k, v in vars(make_batch(6)).items()})
    with pytest.raises(ConfigError, match="no neighbours"):
        objective(batch, Draws(0))
    output = objective.eval()(batch, Draws(0))
    assert output.logs["loss_koleo"] == 0
    assert torch.isfinite(output.loss)


def test_separate_head__has_a_bottleneck_of_its_own(make_dino: Make) -> None:
    head = make_dino(ibot_weight=1.0, separate_head=True, ibot_bottleneck_dim=5).teacher.patch_head
    assert head is not None
    assert head.last_layer.weight_v.shape[1] == 5


def test_timm_encoder__gives_the_pooled_feature() -> None:
    """The head sees the mean of the last map, what the weight file's model gives before its normalisation."""
    network = ImageModel(TimmEncoder(TimmConfig(model="resnet10t", img_size=(32, 32))))
    objective = DinoObjective(DinoConfig(**HEAD), network, lambda *_: None, 8)  # type: ignore[arg-type,return-value]
    objective.eval()
    x = torch.randn(2, 1, 32, 32)
    features, _ = objective.teacher.features(x)
    torch.testing.assert_close(F.normalize(features, dim=1), objective.model().encode_image(x))


def test_views__without_local_ones(make_dino: Make, make_batch: Callable[..., Batch]) -> None:
    objective = make_dino(views={"local_count": 0})
    views = objective.views(make_batch(6).images, Draws(0))
    output = objective.distil(Views(views.global_views, None), 6, Draws(0))
    output.loss.backward()
    assert math.isfinite(output.loss.item())
    assert isinstance(objective.student.network.image_encoder, VisionTransformer)
