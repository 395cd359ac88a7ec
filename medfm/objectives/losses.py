"""Contrastive losses as pure functions of features, computed in tiles.

The (n, N) matrix of similarities is never kept: a tile of rows is made, used and overwritten. The gradient of both losses with
respect to the features is known in closed form, so it is computed in the forward and the backward only scales it: what is
saved is one gradient as large as the features. With A = exp(logit_scale) * image @ text.T the softmax loss costs four matrix
products (similarities twice, two gradients) where the textbook form costs six.

Legend: n rows of this device, N rows of all devices, D size of the joint space. `image` row i and `text` row i are a pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from medfm.objectives.gather import Gather, SingleDevice


@dataclass
class ContrastiveLoss:
    """A contrastive loss and what was seen on the way. All are scalars and the same on every device.

    Attributes:
        loss: to be minimised; over several devices see the convention in `medfm.objectives.gather`.
        terms: the unweighted, detached parts that the loss is the weighted sum of.
        image_to_text, text_to_image: share of rows whose own partner is the most similar one, masked pairs left out.
        masked: share of the N * (N - 1) negatives that were masked.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    image_to_text: Tensor
    text_to_image: Tensor
    masked: Tensor


def info_nce(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    *,
    image_weight: float = 0.5,
    groups: Sequence[Tensor] = (),
    within: Tensor | None = None,
    gather: Gather | None = None,
    tile: int = 1024,
) -> ContrastiveLoss:
    """Softmax contrastive loss in both directions.

    `loss = w * mean_i(lse_j(A_ij) - A_ii) + (1 - w) * mean_j(lse_i(A_ij) - A_jj)`, `A = exp(logit_scale) * image @ text.T`.
    A pair (i, j), i != j, that shares a group code >= 0 is a false negative and left out of both sums.

    Sources: CLIP (Radford et al. 2021, figure 3) is w = 0.5; ConVIRT (Zhang et al. 2020, equations 2 to 4) has w = lambda and a
    fixed temperature, logit_scale = -log(temperature).

    Args:
        image, text: (n, D) features, normalised by the caller. Half precision is computed in float32.
        logit_scale: () log of the scale.
        image_weight: w, in [0, 1].
        groups: codes (n,) int64, one tensor a kind of group (patient, text); negative codes group nothing.
        within: (n,) int64; two rows of equal numbers stay negatives of each other whatever their groups: the sentences of one
            report, where those of another report of the patient are left out.
        gather: the devices to contrast over; None is this one alone.
        tile: rows of A held at once.

    Raises:
        ValueError: shapes disagree.
    """
    _check(image, text, groups)
    gather = gather or SingleDevice()
    with torch.autocast(image.device.type, enabled=False):
        image, text, logit_scale = at_least_float32(image), at_least_float32(text), at_least_float32(logit_scale)
        sizes = gather.sizes(image.shape[0], image.device)
        everyone = gather.rows(text, sizes)
        pairs = Pairs(groups, sizes, gather, within)
        loss, *seen = _InfoNCE.apply(image, everyone, logit_scale, image_weight, pairs, gather, tile)
    return ContrastiveLoss(loss, {"image_to_text": seen[0], "text_to_image": seen[1]}, *seen[2:])


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    groups: Sequence[Tensor] = (),
    gather: Gather | None = None,
    tile: int = 1024,
) -> ContrastiveLoss:
    """Pairwise sigmoid loss: `-1/N * sum_ij log sigmoid(y_ij * A_ij)`, y = 1 for i = j and -1 elsewhere.

    `A = exp(logit_scale) * image @ text.T + logit_bias`. A pair (i, j), i != j, that shares a group code >= 0 has zero weight.

    Source: SigLIP (Zhai et al. 2023, equation 1 and algorithm 1).

    Args:
        image, text, logit_scale, groups, gather, tile: as in `info_nce`.
        logit_bias: () added to every similarity.

    Raises:
        ValueError: shapes disagree.
    """
    _check(image, text, groups)
    gather = gather or SingleDevice()
    with torch.autocast(image.device.type, enabled=False):
        image, text, logit_scale = at_least_float32(image), at_least_float32(text), at_least_float32(logit_scale)
        sizes = gather.sizes(image.shape[0], image.device)
        everyone = gather.rows(text, sizes)
        pairs = Pairs(groups, sizes, gather)
        loss, *seen = _Sigmoid.apply(image, everyone, logit_scale, at_least_float32(logit_bias), pairs, gather, tile)
    return ContrastiveLoss(loss, {"positives": seen[0], "negatives": seen[1]}, *seen[2:])


def _check(image: Tensor, text: Tensor, groups: Sequence[Tensor]) -> None:
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"image and text features must both be (n, D), got {tuple(image.shape)} and {tuple(text.shape)}")
    for codes in groups:
        if codes.shape != image.shape[:1]:
            raise ValueError(f"group codes must be ({image.shape[0]},), got {tuple(codes.shape)}")


def at_least_float32(x: Tensor) -> Tensor:
    # At a scale of 100 a bfloat16 similarity is off by 0.4: the sum of exponentials would be noise.
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Pairs:
    """Which pairs of (local image row, global text row) are partners and which are false negatives."""

    def __init__(self, groups: Sequence[Tensor], sizes: list[int], gather: Gather, within: Tensor | None = None) -> None:
        self.first = sum(sizes[: gather.rank])  # the partner of local image row i is text row first + i
        self.total = sum(sizes)
        self.codes = [gather.rows(codes, sizes) for codes in groups]
        self.local = [codes[self.first : self.first + sizes[gather.rank]] for codes in self.codes]
        self.within = None if within is None else (within, gather.rows(within, sizes))

    def masked(self, start: int, stop: int) -> Tensor | None:
        """(stop - start, N) bool, true for false negatives; None where nothing can be masked."""
        mask: Tensor | None = None
        for local, codes in zip(self.local, self.codes, strict=True):
            rows = local[start:stop, None]
            # A code below 0 groups nothing: turn it into one that no column has.
            same = torch.where(rows < 0, torch.iinfo(rows.dtype).min, rows) == codes
            mask = same if mask is None else mask.logical_or_(same)
        if mask is not None and self.within is not None:
            mask &= self.within[0][start:stop, None] != self.within[1]
        if mask is not None:
            mask.diagonal(self.first + start).fill_(False)
        return mask


class _Tiles:
    """Tiles of the similarity matrix in a reused buffer."""

    def __init__(self, rows: Tensor, columns: Tensor, bias: Tensor | None, pairs: Pairs, tile: int) -> None:
        """`rows` (n, D) already scaled, `columns` (N, D)."""
        n = rows.shape[0]
        tile = min(tile, max(n, 1))
        self.rows, self.columns, self.bias, self.pairs = rows, columns.t(), bias, pairs
        self.starts = list(range(0, n, tile))
        self.logits = rows.new_empty(tile, columns.shape[0])
        self.work = torch.empty_like(self.logits)
        self.filled = -1  # first row of the tile that the buffer holds
        self.masked = torch.zeros((), dtype=torch.int64, device=rows.device)  # pairs masked, counted when a tile is first made

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, logits (t, N) with -inf for false negatives, a free buffer of the same shape), in order."""
        for start in self.starts:
            yield self._make(start, count=True)

    def __reversed__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Last tile first: it is still in the buffer when this follows a pass in order. The caller may overwrite the logits."""
        for start in reversed(self.starts):
            yield self._make(start, count=False)

    def _make(self, start: int, count: bool) -> tuple[slice, Tensor, Tensor]:
        stop = min(start + self.logits.shape[0], self.rows.shape[0])
        logits, work = self.logits[: stop - start], self.work[: stop - start]
        if self.filled != start:
            torch.mm(self.rows[start:stop], self.columns, out=logits)
            if self.bias is not None:
                logits.add_(self.bias)
            mask = self.pairs.masked(start, stop)
            if mask is not None:
                logits.masked_fill_(mask, -math.inf)
                if count:
                    self.masked += mask.count_nonzero()
            self.filled = start
        return slice(start, stop), logits, work


class _InfoNCE(torch.autograd.Function):
    """Forward: loss and gradients in two passes over the tiles. Backward: scale the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        image_weight: float,
        pairs: Pairs,
        gather: Gather,
        tile: int,
    ) -> tuple[Tensor, ...]:
        n, total = image.shape[0], max(pairs.total, 1)
        scale = logit_scale.exp()
        tiles = _Tiles(image * scale, text, None, pairs, tile)
        lowest = torch.finfo(image.dtype).min  # not -inf, which a column masked in a whole tile has: -inf - -inf is NaN
        row_max, row_sum, own = image.new_empty(n), image.new_empty(n), image.new_empty(n)
        column_max, column_sum = image.new_full((text.shape[0],), lowest), image.new_zeros(text.shape[0])
        for rows, logits, work in tiles:
            own[rows] = logits.diagonal(pairs.first + rows.start)
            row_max[rows] = logits.amax(1)
            torch.sub(logits, row_max[rows, None], out=work).exp_()
            row_sum[rows] = work.sum(1)
            highest = torch.maximum(column_max, logits.amax(0))
            torch.sub(logits, highest, out=work).exp_()
            column_sum.mul_((column_max - highest).exp_()).add_(work.sum(0))
            column_max = highest
        highest = gather.max(column_max)
        column_sum = gather.sum(column_sum.mul_((column_max - highest).exp_()))
        mine = slice(pairs.first, pairs.first + n)
        sums = gather.sum(
            torch.stack(
                [
                    (row_sum.log() + (row_max - own)).sum() / total,
                    (column_sum[mine].log() + (highest[mine] - own)).sum() / total,
                    (own >= row_max).sum() / total,
                    (own >= highest[mine]).sum() / total,
                    tiles.masked.to(image.dtype) / max(total * (total - 1), 1),
                ]
            )
        )
        loss = image_weight * sums[0] + (1 - image_weight) * sums[1]

        if any(ctx.needs_input_grad):
            grad_image, grad_text = torch.empty_like(image), torch.zeros_like(text)
            # d loss / d A = w/N softmax over rows + (1-w)/N softmax over columns - 1/N on the diagonal.
            row_factor = image_weight * gather.world_size / total / row_sum
            column_factor = (1 - image_weight) * gather.world_size / total / column_sum
            for rows, logits, work in reversed(tiles):
                torch.sub(logits, row_max[rows, None], out=work).exp_().mul_(row_factor[rows, None])
                work.addcmul_(logits.sub_(highest).exp_(), column_factor)
                work.diagonal(pairs.first + rows.start).sub_(gather.world_size / total)
                torch.mm(work, text, out=grad_image[rows])
                grad_text.addmm_(work.t(), tiles.rows[rows])
            ctx.save_for_backward(*_finish(grad_image, grad_text, image, scale))
        outputs = (loss, *sums)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        image, text, logit_scale = ctx.saved_tensors
        return grad * image, grad * text, grad * logit_scale, None, None, None, None


class _Sigmoid(torch.autograd.Function):
    """Forward: loss and gradients in one pass over the tiles. Backward: scale the gradients."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, logit_scale: Tensor, bias: Tensor, pairs: Pairs, gather: Gather, tile: int
    ) -> tuple[Tensor, ...]:
        n, total = image.shape[0], max(pairs.total, 1)
        scale = logit_scale.exp()
        tiles = _Tiles(image * scale, text, bias, pairs, tile)
        wanted = any(ctx.needs_input_grad)
        grad_image, grad_text, grad_bias = torch.empty_like(image), torch.zeros_like(text), torch.zeros_like(bias)
        own, row_max, column_max = image.new_empty(n), image.new_empty(n), image.new_full((text.shape[0],), -math.inf)
        negatives = image.new_zeros(())
        for rows, logits, work in tiles:
            diagonal = logits.diagonal(pairs.first + rows.start)
            own[rows] = diagonal
            row_max[rows] = logits.amax(1)
            column_max = torch.maximum(column_max, logits.amax(0))
            # -log sigmoid(-a) = max(a, 0) + log(1 + exp(-|a|)). The diagonal is no negative: -inf makes it an exact zero.
            diagonal.fill_(-math.inf)
            torch.abs(logits, out=work).neg_().exp_().log1p_()
            negatives += work.sum()
            if wanted:
                torch.sigmoid(logits, out=work).mul_(gather.world_size / total)
                work.diagonal(pairs.first + rows.start).copy_(torch.sigmoid(-own[rows]).mul_(-gather.world_size / total))
                torch.mm(work, text, out=grad_image[rows])
                grad_text.addmm_(work.t(), tiles.rows[rows])
                grad_bias += work.sum()
            negatives += logits.clamp_min_(0).sum()
        mine = slice(pairs.first, pairs.first + n)
        highest = gather.max(column_max)
        sums = gather.sum(
            torch.stack(
                [
                    -F.logsigmoid(own).sum() / total,
                    negatives / total,
                    (own >= row_max).sum() / total,
                    (own >= highest[mine]).sum() / total,
                    tiles.masked.to(image.dtype) / max(total * (total - 1), 1),
                ]
            )
        )
        if wanted:
            ctx.save_for_backward(*_finish(grad_image, grad_text, image, scale), grad_bias)
        outputs = (sums[0] + sums[1], *sums)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        image, text, logit_scale, bias = ctx.saved_tensors
        return grad * image, grad * text, grad * logit_scale, grad * bias, None, None, None


def _finish(grad_image: Tensor, grad_text: Tensor, image: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale the image gradient; d loss / d log scale = sum_ij dA_ij A_ij = sum_i <image_i, d image_i>."""
    grad_image.mul_(scale)
    return grad_image, grad_text, torch.sum(grad_image * image)
