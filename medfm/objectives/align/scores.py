"""Contrast of images and texts whose similarity is that of their tokens, over all devices, a tile at a time.

The similarity of n images of N tokens with M texts of T tokens passes through (n, M, N, T) numbers, far too many to keep. A
tile of images and texts is scored at a time, and again when the backward comes, so that only (n, M) scores are kept.

Legend: n images of this device, M texts of all devices, N patch tokens, T text tokens, D size of the joint space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medfm.objectives.gather import Gather, mean_of_sums
from medfm.objectives.losses import Pairs, at_least_float32

Score = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""patches (r, N, D), text tokens (c, T, D), their mask (c, T) bool -> matrices (r, c)."""


@dataclass
class TokenContrast:
    """A loss over all devices (see `medfm.objectives.gather`), and how often the own partner is the most similar one."""

    loss: Tensor
    image_to_text: Tensor
    text_to_image: Tensor

    def logs(self) -> dict[str, Tensor]:
        return {"accuracy_image_to_text": self.image_to_text, "accuracy_text_to_image": self.text_to_image}


def contrast_tokens(
    score: Score,
    patches: Tensor,
    tokens: Tensor,
    mask: Tensor,
    *,
    groups: Sequence[Tensor],
    gather: Gather,
    held: int,
) -> TokenContrast:
    """Softmax contrast in both directions, `(mean_i(lse_j(S_ij) - S_ii) + mean_j(lse_i(R_ij) - R_jj)) / 2`.

    Args:
        score: gives S and R, or one matrix for both, times any temperature.
        patches: (n, N, D) tokens of this device's images.
        tokens, mask: (n, T, D) tokens of their texts, (n, T) true or 1 for real ones; T may differ between devices.
        groups: codes (n,); a pair that shares one >= 0 is no negative.
        gather: the devices.
        held: how many numbers of a tile's (r, c, N, T) are held at once.
    """
    with torch.autocast(patches.device.type, enabled=False):
        patches, tokens = at_least_float32(patches), at_least_float32(tokens)
        sizes = gather.sizes(patches.shape[0], patches.device)
        everyone, real = _of_all_devices(tokens, mask.bool(), sizes, gather)
        to_text, *rest = score_all(score, patches, everyone, real, held)
        return _contrast(to_text, rest[0] if rest else to_text, Pairs(groups, sizes, gather), sizes, gather)


def score_all(score: Score, patches: Tensor, tokens: Tensor, mask: Tensor, held: int) -> list[Tensor]:
    """`score` of all images (n, N, D) with all texts (M, T, D), in tiles: its matrices, (n, M) each."""
    n, many, dim = patches.shape
    m, length = mask.shape
    pair = max(many, dim) * length  # similarities of a pair, or what the words of a pair attend to
    columns = min(max(held // pair, 1), max(m, 1))
    rows = min(max(held // (pair * columns), 1), max(n, 1))
    matrices = []
    for part in patches.split(rows):  # of no images: one empty tile, by which gradients of zero reach all devices
        tiles = []
        for start in range(0, max(m, 1), columns):
            stop = slice(start, start + columns)
            tiles.append(checkpoint(score, part, tokens[stop], mask[stop], use_reentrant=False, preserve_rng_state=False))
        matrices.append([torch.cat(row, dim=1) for row in zip(*tiles, strict=True)])
    return [torch.cat(column) for column in zip(*matrices, strict=True)]


def _of_all_devices(tokens: Tensor, mask: Tensor, sizes: list[int], gather: Gather) -> tuple[Tensor, Tensor]:
    """Tokens and mask of all devices' texts, as wide as the longest of them."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    longest = (mask * columns).flatten().amax() if mask.numel() else columns.new_zeros(())
    width = max(int(gather.max(longest)), 1)
    short = max(width - mask.shape[1], 0)
    tokens, mask = F.pad(tokens, (0, 0, 0, short))[:, :width], F.pad(mask, (0, short))[:, :width]
    if gather.world_size == 1:
        return tokens, mask
    return gather.rows(tokens, sizes), gather.rows(mask.to(torch.uint8), sizes).bool()


def _contrast(to_text: Tensor, to_image: Tensor, pairs: Pairs, sizes: list[int], gather: Gather) -> TokenContrast:
    """Of the scores (n, M) of this device's images with all texts: softmax over texts of one, over images of the other."""
    n = to_text.shape[0]
    masked = pairs.masked(0, n)
    if masked is not None:
        to_text, to_image = to_text.masked_fill(masked, -math.inf), to_image.masked_fill(masked, -math.inf)
    mine = slice(pairs.first, pairs.first + n)
    own_text, own_image = to_text.diagonal(pairs.first), to_image.diagonal(pairs.first)
    lowest = torch.finfo(to_image.dtype).min  # not -inf: a column may be masked in all of a device's rows
    highest = to_image.new_full((pairs.total,), lowest)
    if n:
        highest = torch.maximum(highest, to_image.detach().amax(0))
    highest = gather.max(highest)
    column_sum = gather.sum_with_grad((to_image - highest).exp().sum(0))
    of_rows = to_text.logsumexp(1) - own_text if n else own_text
    of_columns = column_sum[mine].log() + highest[mine] - own_image
    count = to_text.new_tensor(float(n))
    seen = torch.stack(
        [
            (own_text >= to_text.detach().amax(1)).sum() if n else count,
            (own_image >= highest[mine]).sum(),
        ]
    )
    shares = gather.sum(seen.to(to_text.dtype)) / max(sum(sizes), 1)
    return TokenContrast(mean_of_sums((of_rows.sum() + of_columns.sum()) / 2, count, gather), *shares)
