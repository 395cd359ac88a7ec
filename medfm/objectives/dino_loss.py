"""Losses of self-distillation (DINO, iBOT, DINOv2): pure functions of logits and features, over the rows of all devices.

V views of each of B images, view-major; the first G are global, the other L local. K prototypes. Whatever the logits' dtype,
softmaxes are float32 (or float64). Losses follow the convention of `medfm.objectives.gather`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from medfm.errors import ConfigError
from medfm.objectives.gather import Gather, SingleDevice, mean_of_rows

# Logits worked on at once: what lies between the softmax and its use then takes at most 64 MB.
_CHUNK = 1 << 24


class Distillation(NamedTuple):
    """A loss, and the mean entropy of the student's distributions of the global views, in nats."""

    loss: Tensor
    student_entropy: Tensor


def dino_loss(student: Tensor, targets: Tensor, temperature: float, gather: Gather | None = None) -> Distillation:
    """Cross-entropy between the teacher's distribution of each global view and the student's of every *other* view, the mean
    over pairs and images.

    A cross-entropy is linear in its target: the G terms of a student view are one, against the sum of the targets of the other
    views. So V softmaxes and V cross-entropies stand for G * (V - 1).

    Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", equation 3; main_dino.py, DINOLoss.

    Args:
        student: logits (V * B, K), global views first.
        targets: the teacher's distributions (G, B, K), no gradient flows to them.
        temperature: of the student.
    """
    count, batch, prototypes = targets.shape
    views = student.view(-1, batch, prototypes)
    everything = targets.sum(dim=0)
    sums = [everything - target for target in targets] + [everything]
    of_view = [min(view, count) for view in range(len(views))]
    loss, entropy = cross_entropies(views, sums, of_view, [count - 1.0] * count + [float(count)], temperature, count)
    gather = gather or SingleDevice()
    return Distillation(mean_of_rows(loss / (count * (len(views) - 1)), gather), mean_of_rows(entropy, gather))


def masked_patch_loss(
    student: Tensor, targets: Tensor, weights: Tensor, images: int, temperature: float, gather: Gather | None = None
) -> Tensor:
    """iBOT: cross-entropy between teacher and student at masked patches, the mean over a view's masked patches, then over views
    (those without masked patches count as 0).

    Source: Zhou et al. 2022, "iBOT", equation 2; Oquab et al. 2023 (DINOv2), ibot_patch_loss.py, forward_masked.

    Args:
        student: logits (M, K) of the masked patches of all global views.
        targets: the teacher's distributions (M, K).
        weights: (M,) 1 / masked patches of the same view.
        images: global views on this device, with masked patches or without.
    """
    gather = gather or SingleDevice()
    loss, _ = cross_entropies(student[None], [targets], [0], [1.0], temperature)
    mine = (loss * weights).sum() / gather.sum(weights.new_full((), images))
    return mine * gather.world_size + (gather.sum(mine.detach()) - mine.detach() * gather.world_size)


def koleo_loss(features: Tensor, gather: Gather | None = None, eps: float = 1e-8) -> Tensor:
    """Minus the mean log distance of each feature to its nearest neighbour: spreads features over the sphere.

    Neighbours are sought among the rows of all devices, so that a run's loss does not depend on how many it has; DINOv2's code
    seeks them on each device alone.

    Source: Sablayrolles et al. 2019, "Spreading vectors for similarity search", equation 2; DINOv2, koleo_loss.py.

    Args:
        features: (n, E), one view of each image: views of an image are meant to be near.

    Raises:
        ConfigError: there is a single image, which has no neighbour.
    """
    gather = gather or SingleDevice()
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(_wide(features), dim=-1, eps=eps)
        everyone = gather.rows(x, gather.sizes(len(x), x.device))
        if len(everyone) < 2:
            raise ConfigError("objective.koleo_weight: one image has no neighbours; raise data.batch_size or set it to 0")
        with torch.no_grad():
            likeness = everyone @ everyone.T
            nearest = likeness.fill_diagonal_(-2).argmax(dim=1)
        return -(F.pairwise_distance(everyone, everyone[nearest], eps=eps) + eps).log().mean()


@torch.no_grad()
def centred(teacher: Tensor, centre: Tensor | None, temperature: float) -> Tensor:
    """The teacher's distributions `softmax((logits - centre) / temperature)`, (..., K).

    Source: DINO, section 3.1: centring keeps one prototype from winning everywhere, sharpening keeps all from being alike.
    """
    logits = _wide(teacher)
    return ((logits if centre is None else logits - centre) / temperature).softmax(dim=-1)


@torch.no_grad()
def sinkhorn(teacher: Tensor, temperature: float, gather: Gather | None = None, iterations: int = 3) -> Tensor:
    """The teacher's distributions (n, K), scaled so that over all devices every prototype is used about as often.

    Source: Caron et al. 2020, "SwAV", appendix A; DINOv2, `sinkhorn_knopp_teacher`. The first step makes each prototype's sum
    equal, so a prototype's largest logit may be taken off before the exponential: the same result, without overflow.
    """
    gather = gather or SingleDevice()
    logits = _wide(teacher) / temperature
    prototypes = logits.shape[1]
    low = torch.finfo(logits.dtype).min
    largest = gather.max(logits.amax(dim=0) if len(logits) else logits.new_full((prototypes,), low))
    q = (logits - largest).exp_()
    rows = gather.sum(q.new_full((), len(q)))
    tiny = torch.finfo(q.dtype).tiny
    for _ in range(iterations):
        q /= (gather.sum(q.sum(dim=0)) * prototypes).clamp_(min=tiny)
        q /= (q.sum(dim=1, keepdim=True) * rows).clamp_(min=tiny)
    return q.mul_(rows)


@torch.no_grad()
def batch_centre(teacher: Tensor, gather: Gather | None = None) -> Tensor:
    """The mean logit of each prototype over the rows (n, K) of all devices, (K,); zeros where no device has rows."""
    gather = gather or SingleDevice()
    logits = _wide(teacher)
    # The count travels with the sums: one message.
    total = gather.sum(torch.cat([logits.sum(dim=0), logits.new_full((1,), len(logits))]))
    return total[:-1] / total[-1].clamp(min=1)


@torch.no_grad()
def target_entropies(targets: Tensor, gather: Gather | None = None) -> tuple[Tensor, Tensor]:
    """Nats: the mean entropy of the distributions (n, K) of all devices, and the entropy of their mean.

    Their difference is the mutual information of image and prototype; it is 0 where training has collapsed, be it to one
    prototype for all images or to all prototypes alike.
    """
    mean = batch_centre(torch.cat([targets, torch.special.entr(targets).sum(dim=-1, keepdim=True)], dim=1), gather)
    return mean[-1], torch.special.entr(mean[:-1]).sum()


def cross_entropies(
    logits: Tensor,
    targets: Sequence[Tensor],
    of_view: Sequence[int],
    mass: Sequence[float],
    temperature: float,
    entropies_of: int = 0,
) -> tuple[Tensor, Tensor]:
    """Soft cross-entropies summed over views.

    Args:
        logits: (V, n, K).
        targets: each (n, K), a sum of distributions whose rows add to its `mass`.
        of_view: which target each of the V views has.
        entropies_of: the first views whose entropies are averaged.

    Returns:
        losses (n,) with gradients to the logits, and entropies (n,) of the student's distributions, in nats, without.
    """
    device = logits.device.type
    with torch.autocast(device, enabled=False):
        made: tuple[Tensor, Tensor] = _CrossEntropies.apply(
            logits, temperature, tuple(of_view), tuple(mass), entropies_of, *targets
        )
    return made


class _CrossEntropies(torch.autograd.Function):
    """`sum_v mass * logsumexp(x_v) - target . x_v` with `x = logits / temperature`, and its gradient
    `(mass * softmax(x_v) - target) / temperature` made along with it. Autograd keeps one tensor of the logits' size and dtype
    instead of a float32 log-softmax of each pair of views; what lies between is a chunk's size."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        temperature: float,
        of_view: tuple[int, ...],
        mass: tuple[float, ...],
        entropies_of: int,
        *targets: Tensor,
    ) -> tuple[Tensor, Tensor]:
        views, rows, prototypes = logits.shape
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        wide = torch.promote_types(logits.dtype, torch.float32)
        pulls = [target.to(wide) * (-1 / temperature) for target in targets]
        pushes = logits.new_empty(views, dtype=wide)
        for view, chosen in enumerate(of_view):
            pushes[view].fill_(mass[chosen])  # a tensor of them all would wait for the device
        top, top_p, along, expected = logits.new_zeros(4, views, rows, dtype=wide)
        step = max(1, min(rows, _CHUNK // prototypes))
        # Fresh memory costs more than the arithmetic on it, on a CPU: what the gradient will hold serves before it does.
        at_hand = gradient is not None and gradient.dtype == wide
        room = logits.new_empty(1 if at_hand else 2, step, prototypes, dtype=wide)
        for view, chosen in enumerate(of_view):
            for start in range(0, rows, step):
                part = slice(start, min(start + step, rows))
                p, pull = room[0, : part.stop - start], pulls[chosen][part]
                x = gradient[view, part] if gradient is not None and at_hand else room[-1, : part.stop - start]
                given = logits[view, part]
                torch.mul(given if given.dtype == wide else x.copy_(given), 1 / temperature, out=x)
                torch.sum(torch.mul(pull, x, out=p), dim=-1, out=along[view, part])
                torch.softmax(x, dim=-1, out=p)
                torch.amax(x, dim=-1, out=top[view, part])
                torch.amax(p, dim=-1, out=top_p[view, part])
                if view < entropies_of:
                    torch.sum(x.mul_(p), dim=-1, out=expected[view, part])
                if gradient is not None:
                    torch.add(pull, p, alpha=mass[chosen] / temperature, out=gradient[view, part])
        # The largest logit and its probability give the normaliser without a second exponential.
        log_sum = top - top_p.log()
        losses = pushes @ log_sum + temperature * along.sum(dim=0)
        entropies = (log_sum - expected)[:entropies_of].sum(dim=0) / max(entropies_of, 1)
        ctx.gradient = gradient
        ctx.mark_non_differentiable(entropies)
        return losses, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        assert gradient is not None, "a loss has one backward pass"
        return gradient.mul_(grad[:, None]), *[None] * (len(ctx.needs_input_grad) - 1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
