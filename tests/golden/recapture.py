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


CASES: dict[str, Callable[[], Numbers]] = {"contrastive": contrastive}


def main(names: list[str]) -> None:
    for name in names or list(CASES):
        (FOLDER / f"{name}.json").write_text(json.dumps(CASES[name](), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
