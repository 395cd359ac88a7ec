"""Golden numbers: what the code gave when it was last judged right. A refactor must not change them.

    python tests/golden/recapture.py [NAME ...]     writes tests/golden/NAME.json, all of them without a name

Run it only when a change of numbers is meant, and say why in the commit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parent
Numbers = dict[str, list[float]]


def contrastive() -> Numbers:
    """Losses, gradient norms and a short training run, on features made by a formula: no random generator is involved."""
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from medfm.objectives.losses import ContrastiveLoss, info_nce, sigmoid_loss

    def wave(rows: int, columns: int, phase: float) -> Tensor:
        return torch.sin(torch.arange(rows * columns, dtype=torch.float64) ** 1.1 + phase).reshape(rows, columns)

    raw_image, raw_text = wave(24, 8, 0.0), wave(24, 8, 0.7) + 0.5 * wave(24, 8, 0.0)
    groups = [torch.arange(24) // 2 * (torch.arange(24) % 3 != 0) - 1, torch.arange(24) % 11 - 1]
    scale, bias = torch.tensor(2.5, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    losses: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], ContrastiveLoss]] = {
        "clip": lambda i, t, s, b: info_nce(i, t, s),
        "convirt": lambda i, t, s, b: info_nce(i, t, s, image_weight=0.75),
        "clip, masked": lambda i, t, s, b: info_nce(i, t, s, groups=groups, tile=7),
        "siglip": lambda i, t, s, b: sigmoid_loss(i, t, s, b),
        "siglip, masked": lambda i, t, s, b: sigmoid_loss(i, t, s, b, groups=groups, tile=7),
    }
    numbers: Numbers = {}
    for name, loss in losses.items():
        leaves = [F.normalize(raw_image, dim=1), F.normalize(raw_text, dim=1), scale.clone(), bias.clone()]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        result = loss(*leaves)
        result.loss.backward()
        norms = [0.0 if leaf.grad is None else leaf.grad.norm().item() for leaf in leaves]
        numbers[f"{name}: loss, gradient norms of image, text, logit_scale, logit_bias"] = [result.loss.item(), *norms]
        numbers[f"{name}: accuracies, share masked"] = [
            result.image_to_text.item(),
            result.text_to_image.item(),
            result.masked.item(),
        ]
        weight = torch.eye(8, dtype=torch.float64).requires_grad_()
        curve = []
        for _ in range(5):
            loss_now = loss(F.normalize(raw_image @ weight, dim=1), F.normalize(raw_text, dim=1), scale, bias).loss
            (gradient,) = torch.autograd.grad(loss_now, [weight])
            weight = (weight - 0.1 * gradient).detach().requires_grad_()
            curve.append(loss_now.item())
        numbers[f"{name}: losses of five steps of gradient descent"] = curve
    return numbers


def mae() -> Numbers:
    """Losses, gradient norms and five steps of masked autoencoding in 2D and 3D, on weights, images and masks of a formula."""
    import torch
    from torch import Tensor

    from medfm.encoders.config import VitConfig
    from medfm.encoders.vit import VisionTransformer
    from medfm.objectives.config import MaeConfig
    from medfm.objectives.mae import MaeObjective
    from medfm.objectives.masking import Masks
    from medfm.types import Batch

    def wave(*shape: int, phase: float = 0.0) -> Tensor:
        count = torch.Size(shape).numel()
        return torch.sin(torch.arange(count, dtype=torch.float64) ** 1.1 + phase).reshape(shape)

    cases = {
        "2d": ((16, 12), (4, 4), {}),
        "2d, smooth L1 of pixels": ((16, 12), (4, 4), {"loss": "smooth_l1", "norm_pix": False}),
        "3d": ((4, 8, 8), (1, 4, 2), {}),
        "3d, simmim": ((4, 8, 8), (2, 4, 2), {"encode_all": True, "head": "linear", "loss": "l1"}),
    }
    numbers: Numbers = {}
    for name, (size, patch, knobs) in cases.items():
        vit = VitConfig(img_size=size, patch_size=patch, in_channels=2, embed_dim=12, depth=2, num_heads=2, pos_embed="sincos")
        config = MaeConfig(decoder_dim=12, decoder_depth=2, decoder_heads=2, **knobs)
        objective = MaeObjective(config, VisionTransformer(vit)).double()
        with torch.no_grad():
            for number, parameter in enumerate(objective.parameters()):
                parameter.copy_(0.2 * wave(*parameter.shape, phase=number))
        count = torch.Size(objective.image_model.image_encoder.grid_size).numel()  # type: ignore[arg-type]
        order = wave(3, count, phase=0.3).argsort(dim=1)
        masks = Masks(order[:, : count // 4].sort(dim=1).values, order[:, count // 4 :].sort(dim=1).values)
        objective.draw_masks = lambda images, draws, masks=masks: (masks, None)  # type: ignore[method-assign]
        rows = torch.arange(3)
        batch = Batch(wave(3, 2, *size), None, None, rows, rows, torch.zeros(3, 0), rows)
        curve, norms = [], []
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.05)
        for _ in range(5):
            output = objective(batch)
            optimizer.zero_grad()
            output.loss.backward()
            grads = [p.grad for p in objective.parameters() if p.grad is not None]
            norms.append(torch.stack([grad.norm() for grad in grads]).norm().item())
            curve.append(output.loss.item())
            optimizer.step()
        numbers[f"{name}: losses of five steps"] = curve
        numbers[f"{name}: gradient norms"] = norms
        numbers[f"{name}: relative error"] = [output.logs["relative_error"].item()]
    return numbers


def dino() -> Numbers:
    """Losses, centres and five steps of self-distillation in 2D and 3D, on weights, views and masks of a formula."""
    import torch
    from torch import Tensor

    from medfm.encoders.config import VitConfig
    from medfm.encoders.image import ImageModel
    from medfm.encoders.vit import VisionTransformer
    from medfm.objectives.dino import DinoObjective, MaskedPatches
    from medfm.objectives.ssl_config import DinoConfig
    from medfm.transforms.draws import Draws
    from medfm.transforms.views import Views

    def wave(*shape: int, phase: float = 0.0) -> Tensor:
        count = torch.Size(shape).numel()
        return torch.sin(torch.arange(count, dtype=torch.float64) ** 1.1 + phase).reshape(shape)

    v2 = {"ibot_weight": 1.0, "koleo_weight": 0.1, "separate_head": True, "ibot_out_dim": 10}
    cases = {
        "dino, 2d": ((12, 12), (4, 4), {"teacher_temp": 0.07, "teacher_temp_warmup": 0.5}),
        "ibot, 2d": ((12, 12), (4, 4), {"ibot_weight": 0.5, "norm_last_layer": False}),
        "dinov2, 3d": ((4, 8, 8), (2, 4, 4), {"centring": "sinkhorn", **v2}),
    }
    numbers: Numbers = {}
    for name, (size, patch, knobs) in cases.items():
        vit = VitConfig(img_size=size, patch_size=patch, embed_dim=12, depth=2, num_heads=2)
        config = DinoConfig(hidden_dim=8, bottleneck_dim=6, momentum=0.9, views={"local_count": 2}, **knobs)
        objective = DinoObjective(config, ImageModel(VisionTransformer(vit)), lambda *_: None, 14).double()  # type: ignore[arg-type,return-value]
        with torch.no_grad():
            for number, parameter in enumerate(objective.student.parameters()):
                parameter.copy_(0.3 * wave(*parameter.shape, phase=number) + 0.01)
        objective.weights_loaded()
        small = tuple(p * max(1, n // (2 * p)) for n, p in zip(size, patch, strict=True))
        views = Views(wave(6, 1, *size), wave(6, 1, *small, phase=0.4))
        grid = torch.Size(objective.student.network.image_encoder.grid_size).numel()  # type: ignore[arg-type]
        where = wave(6, grid, phase=0.2) > 0.4
        places = where.flatten().nonzero().squeeze(1)
        weights = (1 / where.sum(dim=1).clamp(min=1))[:, None].expand_as(where).flatten()[places]
        masks = MaskedPatches(where, places, weights)
        objective._masks = lambda *_, masks=masks: masks  # type: ignore[method-assign]
        curve, norms = [], []
        optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.05)
        for step in range(5):
            objective.before_step(step, 5)
            output = objective.distil(views, 3, Draws(0))
            optimizer.zero_grad()
            output.loss.backward()
            grads = [p.grad for p in objective.parameters() if p.grad is not None]
            norms.append(torch.stack([grad.norm() for grad in grads]).norm().item())
            curve.append(output.loss.item())
            objective.after_backward(step, 5)
            optimizer.step()
            objective.after_optimizer_step(step + 1, 5)
        numbers[f"{name}: losses of five steps"] = curve
        numbers[f"{name}: gradient norms"] = norms
        numbers[f"{name}: logs of the last"] = [value.item() for _, value in sorted(output.logs.items())]
    return numbers


CASES: dict[str, Callable[[], Numbers]] = {"contrastive": contrastive, "mae": mae, "dino": dino}


def main(names: list[str]) -> None:
    for name in names or list(CASES):
        (FOLDER / f"{name}.json").write_text(json.dumps(CASES[name](), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
