"""Losses of two views of the same images, as pure functions of features.

Legend: n rows of this device, N rows of all devices, D features, Q keys of a queue. Row i of two arguments is one image. All
return the loss of the whole batch on every device, see `medfm.objectives.gather`. Half precision is computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medfm.encoders.dual import unit
from medfm.objectives.batch_norm import standardise
from medfm.objectives.gather import Gather, SingleDevice, mean_of_rows
from medfm.objectives.losses import ContrastiveLoss, at_least_float32, info_nce


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float,
    *,
    groups: Sequence[Tensor] = (),
    gather: Gather | None = None,
    tile: int = 1024,
) -> ContrastiveLoss:
    """Normalised temperature-scaled cross entropy: each of the 2N views finds its image's other view among 2N - 1.

    `loss = mean_i(log sum_{k != i} exp(z_i . z_k / t) - z_i . z_pair(i) / t)`. Views of images that share a group code >= 0
    (one patient, one report) are no negatives of each other.

    It is `info_nce` of all views against all views in swapped order, where a view meets its partner on the diagonal; that a
    view is no negative of itself is one more group: the image's number.

    Source: SimCLR (Chen et al. 2020, equation 1).

    Args:
        first, second: (n, D) projections, normalised here.
        groups: codes (n,) int64, one tensor a kind of group; negative codes group nothing.
        gather, tile: as in `info_nce`.
    """
    gather = gather or SingleDevice()
    first, second = unit(first), unit(second)
    sizes = gather.sizes(first.shape[0], first.device)
    start = sum(sizes[: gather.rank])
    number = torch.arange(start, start + first.shape[0], device=first.device)
    result = info_nce(
        torch.cat([first, second]),
        torch.cat([second, first]),
        _log_scale(first, temperature),
        image_weight=1.0,  # the matrix is symmetric but for the order of rows: both directions are the same loss
        groups=[torch.cat([codes, codes]) for codes in (number, *groups)],
        gather=gather,
        tile=tile,
    )
    views = 2 * sum(sizes)
    # Each view's mask of itself is not counted: it is no negative to begin with.
    return replace(result, masked=(result.masked * (views - 1) - 1) / max(views - 2, 1))


def key_loss(
    query: Tensor,
    key: Tensor,
    temperature: float,
    *,
    groups: Sequence[Tensor] = (),
    gather: Gather | None = None,
    tile: int = 1024,
) -> ContrastiveLoss:
    """Each query finds its own key among those of the batch: cross entropy of `query @ key.T / t`.

    Source: MoCo v3 (Chen et al. 2021, equation 1 and algorithm 1, `ctr`), whose factor 2t is the caller's.

    Args:
        query, key: (n, D) of one image's two views, normalised here. No gradient reaches the keys.
        groups, gather, tile: as in `nt_xent`.
    """
    query = unit(query)
    return info_nce(
        query, unit(key.detach()), _log_scale(query, temperature), image_weight=1.0, groups=groups, gather=gather, tile=tile
    )


@dataclass
class QueueLoss:
    """`loss` () to minimise; `accuracy` () share of queries nearer to their own key than to any other; `masked` () share of
    the negatives left out."""

    loss: Tensor
    accuracy: Tensor
    masked: Tensor


def queue_loss(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: float,
    *,
    groups: Sequence[tuple[Tensor, Tensor]] = (),
    gather: Gather | None = None,
) -> QueueLoss:
    """Each query tells its own key from the keys of former batches.

    Source: MoCo (He et al. 2020, equation 1 and algorithm 1).

    Args:
        query, key: (n, D), normalised here. No gradient reaches the keys.
        queue: (Q, D) keys of unit norm, the same on every device; not kept for the backward, so that it may change after.
        groups: pairs of codes (n,) and (Q,), one pair a kind of group; a key that shares a code >= 0 with the query is none of
            its negatives.
    """
    gather = gather or SingleDevice()
    query, key = unit(query), unit(key.detach())
    with torch.autocast(query.device.type, enabled=False):
        own = (query * key).sum(1, keepdim=True) / temperature
        others = query @ queue.to(query.dtype, copy=True).t() / temperature
        mask = torch.zeros_like(others, dtype=torch.bool)
        for mine, theirs in groups:
            mask |= (mine[:, None] == theirs) & (mine[:, None] >= 0)
        others = others.masked_fill(mask, -math.inf)
        losses = torch.cat([own, others], dim=1).logsumexp(1) - own[:, 0]
        nearest = (own >= others.amax(1, keepdim=True)).to(losses.dtype)[:, 0]
    return QueueLoss(
        mean_of_rows(losses, gather),
        mean_of_rows(nearest.detach(), gather),
        mean_of_rows(mask.to(losses.dtype).mean(1), gather),
    )


def byol_loss(prediction: Tensor, target: Tensor, gather: Gather | None = None) -> Tensor:
    """Squared distance of unit vectors, `mean_i |p_i - z_i|^2 = 2 - 2 mean_i cos(p_i, z_i)`.

    Source: BYOL (Grill et al. 2020, equation 2).

    Args:
        prediction, target: (n, D), normalised here. No gradient reaches the targets.
    """
    distance = (unit(prediction) - unit(target.detach())).square().sum(1)
    return mean_of_rows(distance, gather or SingleDevice())


@dataclass
class BarlowLoss:
    """`loss` () to minimise, and its detached parts: `on_diagonal`, and `off_diagonal` before its weight."""

    loss: Tensor
    on_diagonal: Tensor
    off_diagonal: Tensor


def barlow_loss(first: Tensor, second: Tensor, weight: float, gather: Gather | None = None) -> BarlowLoss:
    """The views' features shall agree, and each feature tell something else.

    `loss = sum_i (1 - C_ii)^2 + weight * sum_{i != j} C_ij^2`, C (D, D) the cross-correlation of the two views' features over
    the batch of all devices.

    Source: Barlow Twins (Zbontar et al. 2021, equations 1 and 2); features are standardised by the biased variance plus 1e-5,
    as in the authors' main.py.

    Args:
        first, second: (n, D) projections.
        weight: lambda, of the redundancy term.
    """
    gather = gather or SingleDevice()
    with torch.autocast(first.device.type, enabled=False):
        first, second = at_least_float32(first), at_least_float32(second)
        total = gather.sum(first.new_full((), first.shape[0]))
        correlation = standardise(first, gather).t() @ standardise(second, gather)
        correlation = gather.sum_with_grad(correlation / total)
        correlation.diagonal().sub_(1)
        # All entries at the weight, the diagonal's rest added: no subtraction of large sums, no copy of the matrix.
        everything, diagonal = correlation.square().sum(), correlation.diagonal().square().sum()
        loss = weight * everything + (1 - weight) * diagonal
    # Every device has made the same loss; by the convention each of them passes back the gradient of all.
    return BarlowLoss(loss, diagonal.detach(), (everything - diagonal).detach())


def _log_scale(like: Tensor, temperature: float) -> Tensor:
    return like.new_full((), -math.log(temperature))
