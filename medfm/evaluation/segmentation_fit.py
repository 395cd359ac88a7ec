"""One linear layer from frozen patch tokens to masks, and Dice.

The layer gives each patch a logit a structure; logits are enlarged linearly to the image. As linear interpolation and a linear
layer commute, this is the layer applied to enlarged tokens, at a fraction of the work. Structures are independent (a sigmoid
each), since they may overlap.

Source: the linear segmentation probe of Oquab et al. 2023 (DINOv2), section 7.4, for several structures that may overlap.

Legend: N images, P patches, E features, S structures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medfm.encoders.patches import enlarge
from medfm.evaluation.statistics import Floats

THRESHOLDS = tuple(round(0.05 * n, 2) for n in range(1, 20))
# How much of a pixel a structure must cover for it to count, out of 255.
_HALF = 128
# The layer is fitted on this many points along each side of a patch. Between patches logits are linear, so that more points add
# next to nothing: on volumes with patches of 8 voxels, all voxels take eight times as long.
_POINTS = 4


@dataclass(frozen=True, eq=False)
class Patches:
    """Images as a probe sees them.

    Attributes:
        tokens: positions -> (n, P, E); masks: positions -> (n, S, *size) uint8, 255 where a structure covers all of a pixel.
        count: N.
        grid: of the patches; size: of the images.
        centre: the encoder's `token_centre`; None for the middles of patches.
    """

    tokens: Callable[[Sequence[int]], NDArray]
    masks: Callable[[Sequence[int]], NDArray]
    count: int
    grid: tuple[int, ...]
    size: tuple[int, ...]
    centre: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class MaskProbe:
    """A linear layer on standardised tokens: `weight` (S, E), `bias` (S,), `mean` and `std` (E,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def logits(
        self, tokens: Tensor, grid: tuple[int, ...], size: tuple[int, ...], centre: tuple[float, ...] | None = None
    ) -> Tensor:
        """(n, P, E) -> (n, S, *size)."""
        return enlarged(self.bias + ((tokens - self.mean) / self.std) @ self.weight.T, grid, size, centre)


def enlarged(logits: Tensor, grid: tuple[int, ...], size: tuple[int, ...], centre: tuple[float, ...] | None = None) -> Tensor:
    """Patch logits (n, P, S), linearly between the tokens' centres -> (n, S, *size)."""
    return enlarge(logits.transpose(1, 2).reshape(len(logits), -1, *grid), size, centre)


def fit_masks(
    train: Patches,
    l2: Sequence[float],
    iterations: int = 60,
    batch_size: int = 16,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda n: None,
) -> list[MaskProbe]:
    """Minimise the mean binary cross-entropy with the covered share of each pixel + l2 / 2 * |weight|^2, by L-BFGS.

    The problem is convex, and nothing in it is random. Tokens are standardised by the training patches. Masks are averaged to
    at most 4 points along each side of a patch, and logits enlarged to those.

    Args:
        l2: penalties; the layers are fitted from the strongest on, each beginning where the former ended.
        iterations: of each, at most; every one passes over the training images about once.
        batch_size: images in memory at once; changes nothing.
        advance: told of every pass done, `iterations` a penalty in all.

    Returns:
        One layer a penalty, the strongest first.
    """
    size = tuple(min(n, _POINTS * g) for n, g in zip(train.size, train.grid, strict=True))
    mean, std, masks = _moments(train, size, batch_size)
    structures = masks.shape[1]
    share = masks.double().mean((0, *range(2, masks.ndim))).float() / 255
    mean, std = mean.to(device), std.to(device)
    solution = torch.zeros(structures, len(mean) + 1, device=device, requires_grad=True)
    with torch.no_grad():
        solution[:, -1] = torch.logit(share.to(device).clamp(1e-4, 1 - 1e-4))
    fitted = []
    for penalty in sorted(l2, reverse=True):
        optimizer = torch.optim.LBFGS(
            [solution],
            max_iter=iterations,
            max_eval=2 * iterations,
            history_size=10,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-7,
            tolerance_change=1e-9,
        )
        passes = 0

        def closure(optimizer: torch.optim.Optimizer = optimizer, penalty: float = penalty) -> Tensor:
            nonlocal passes
            passes += 1
            advance(int(passes <= iterations))
            optimizer.zero_grad()
            return _backward(solution, train, masks, size, mean, std, penalty, batch_size)

        optimizer.step(closure)
        advance(max(0, iterations - passes))
        found = solution.detach().clone()
        fitted.append(MaskProbe(found[:, :-1], found[:, -1], mean, std))
    return fitted


def _backward(
    solution: Tensor,
    train: Patches,
    masks: Tensor,
    size: tuple[int, ...],
    mean: Tensor,
    std: Tensor,
    penalty: float,
    batch_size: int,
) -> Tensor:
    """The loss over all training images, its gradient left in `solution`."""
    probe = MaskProbe(solution[:, :-1], solution[:, -1], mean, std)
    loss = penalty / 2 * probe.weight.square().sum()
    loss.backward()
    total = loss.detach()
    for start in range(0, train.count, batch_size):
        positions = range(start, min(train.count, start + batch_size))
        tokens = torch.from_numpy(train.tokens(positions)).to(mean.device, torch.float32)
        target = masks[start : start + len(positions)].to(mean.device, torch.float32).div_(255)
        probe = MaskProbe(solution[:, :-1], solution[:, -1], mean, std)
        part = F.binary_cross_entropy_with_logits(probe.logits(tokens, train.grid, size, train.centre), target)
        part = part * (len(positions) / train.count)
        part.backward()
        total = total + part.detach()
    return total


def _moments(train: Patches, size: tuple[int, ...], batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation (E,) of the training tokens, and the masks averaged to `size`, (N, S, *size) uint8."""
    count, total, square, masks = 0, torch.zeros(()), torch.zeros(()), []
    pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if len(size) == 2 else F.adaptive_avg_pool3d
    for start in range(0, train.count, batch_size):
        positions = range(start, min(train.count, start + batch_size))
        x = torch.from_numpy(train.tokens(positions)).double().flatten(0, 1)
        count += len(x)
        total, square = total + x.sum(0), square + x.square().sum(0)
        masks.append(pool(torch.from_numpy(train.masks(positions)).float(), size).round().to(torch.uint8))
    mean = total / count
    std = (square / count - mean.square()).clamp_min(0).sqrt()
    # A number that is the same in every patch tells nothing; its rounding must not be blown up.
    std = torch.where(std <= 1e-4 * mean.abs().clamp_min(1e-6), torch.ones_like(std), std)
    return mean.float(), std.float(), torch.cat(masks)


@torch.no_grad()
def dice_scores(
    probe: MaskProbe, images: Patches, thresholds: Sequence[float] | NDArray, batch_size: int = 16
) -> tuple[Floats, NDArray[np.int64]]:
    """Dice of every image, structure and threshold.

    Args:
        thresholds: (T,) ascending for all structures, or (S, T).

    Returns:
        (N, S, T) 2 |A and B| / (|A| + |B|), NaN where the image does not hold the structure; and (N, S, T) marked pixels.
    """
    device, structures = probe.mean.device, len(probe.weight)
    levels = torch.logit(torch.as_tensor(np.asarray(thresholds), dtype=torch.float32, device=device).clamp(1e-6, 1 - 1e-6))
    levels = levels.expand(structures, -1).contiguous()
    steps = levels.shape[1] + 1
    dice, marked = [], []
    for start in range(0, images.count, batch_size):
        positions = list(range(start, min(images.count, start + batch_size)))
        tokens = torch.from_numpy(images.tokens(positions)).to(device, torch.float32)
        truth = (torch.from_numpy(images.masks(positions)).to(device) >= _HALF).flatten(2).long()
        logits = probe.logits(tokens, images.grid, images.size, images.centre).flatten(2)
        # How many thresholds each pixel reaches, counted within and without the structure: one pass for all thresholds.
        reached = torch.stack([torch.bucketize(logits[:, s].contiguous(), levels[s], right=True) for s in range(structures)], 1)
        cell = torch.arange(len(positions) * structures, device=device).view(len(positions), structures, 1)
        index = (cell * 2 + truth) * steps + reached
        counts = torch.bincount(index.flatten(), minlength=2 * steps * cell.numel()).view(len(positions), structures, 2, steps)
        above = counts.flip(-1).cumsum(-1).flip(-1)  # pixels that reach at least so many
        called, shared, area = above[:, :, :, 1:].sum(2), above[:, :, 1, 1:], above[:, :, 1, :1]
        score = 2 * shared.double() / (called + area).clamp_min(1)
        dice.append(torch.where(area > 0, score, math.nan).cpu().numpy())
        marked.append(called.cpu().numpy())
    return np.concatenate(dice), np.concatenate(marked)


def too_small(images: Patches, batch_size: int = 16) -> NDArray[np.bool_]:
    """(N, S): the image holds the structure, but it covers half of no pixel of the grid, so that no Dice can be taken."""
    found = []
    for start in range(0, images.count, batch_size):
        masks = images.masks(list(range(start, min(images.count, start + batch_size))))
        largest = masks.reshape(*masks.shape[:2], -1).max(axis=2)
        found.append((largest > 0) & (largest < _HALF))
    return np.concatenate(found)


@dataclass(frozen=True, eq=False)
class MaskFit:
    """Attributes:
    probe: the chosen layer.
    thresholds: (S,) probability from which on a pixel is called.
    number: which candidate it is.
    """

    probe: MaskProbe
    thresholds: Floats
    number: int


def choose_probe(probes: Sequence[MaskProbe], val: Patches, batch_size: int = 16) -> MaskFit:
    """The candidate, and for each structure the threshold, with the highest mean Dice on `val`; of equal ones the first.

    A threshold of 1/2 would be no fair one for weak features: where nothing is sure, nothing would be marked.
    """
    found = []
    for number, probe in enumerate(probes):
        dice, _ = dice_scores(probe, val, THRESHOLDS, batch_size)
        held = ~np.isnan(dice[:, :, 0])
        mean = np.nansum(dice, axis=0) / np.maximum(held.sum(axis=0), 1)[:, None]  # (S, T)
        # A structure that no image of val holds keeps the middle threshold.
        best = np.where(held.any(axis=0), mean.argmax(axis=1), THRESHOLDS.index(0.5))
        thresholds = np.array(THRESHOLDS)[best]
        found.append((float(mean.max(axis=1).mean()), MaskFit(probe, thresholds, number)))
    return max(found, key=lambda pair: round(pair[0], 6))[1]
