"""Which patches an objective shows to the encoder and which it asks for, drawn on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medfm.encoders.patches import split_patches, unravel
from medfm.errors import ConfigError
from medfm.transforms.draws import Draws


@dataclass
class Masks:
    """Patches by flat grid index, each row ascending and without repeats; counts are the same for all images.

    Attributes:
        keep: (B, K) int64, seen by the encoder.
        masked: (B, M) int64, to be predicted. K + M may be less than N: the rest is left out altogether.
    """

    keep: Tensor
    masked: Tensor

    def map(self, patches: int) -> Tensor:
        """(B, N) bool, True where masked."""
        empty = torch.zeros(len(self.masked), patches, dtype=torch.bool, device=self.masked.device)
        return empty.scatter(1, self.masked, True)


def draw_keep(
    batch: int, tokens: int, drop: float, *, device: torch.device | str | None = None, draws: Draws | None = None
) -> Tensor:
    """Indices of the patches that stay when a share `drop` is dropped, uniformly and separately for every image.

    Source: FLIP (Li et al. 2023, section 3).

    Args:
        batch, tokens: B images of N patches.
        drop: share dropped, in [0, 1); at least one patch stays.
        draws: must live on `device`; None draws from the device's global generator.

    Returns:
        (B, K) int64, each row ascending and without repeats, K = round((1 - drop) * N).

    Raises:
        ValueError: `drop` lies outside [0, 1).
    """
    if not 0.0 <= drop < 1.0:
        raise ValueError(f"the share of dropped patches must lie in [0, 1), got {drop}")
    kept = max(1, round((1.0 - drop) * tokens))
    order = draw_noise(batch, tokens, device=device, draws=draws).argsort(dim=1)
    return order[:, :kept].sort(dim=1).values


def draw_noise(batch: int, *shape: int, device: torch.device | str | None = None, draws: Draws | None = None) -> Tensor:
    """(B, *shape) float32 in [0, 1): from the draws, or from the device's global generator."""
    return torch.rand(batch, *shape, device=device) if draws is None else draws.rand(batch, *shape)


def unit_grid(grid: Sequence[int], unit: int) -> tuple[int, ...]:
    """The grid of squares or cubes of `unit` patches a side, which are masked together.

    Raises:
        ConfigError: they do not tile the grid, or there are fewer than two.
    """
    if any(n % unit for n in grid):
        raise ConfigError(
            f"objective.mask_unit: a grid of {' x '.join(map(str, grid))} patches is not made of units of {unit} a side"
        )
    made = tuple(n // unit for n in grid)
    if math.prod(made) < 2:
        raise ConfigError(f"objective: {math.prod(made)} patch cannot be split into seen and masked; use smaller patches")
    return made


def split_counts(patches: int, ratio: float, share: float = 1.0) -> tuple[int, int]:
    """(K seen, M masked) of the `share` of patches that take part: MAE's `K = int(L * (1 - ratio))`, at least one of each."""
    part = min(patches, max(2, round(share * patches)))
    # 10 * (1 - 0.9) is a little less than 1 in floating point.
    keep = min(max(1, math.floor(part * (1 - ratio) + 1e-9)), part - 1)
    return keep, part - keep


def check_split(patches: int, ratio: float, key: str, share: float = 1.0) -> None:
    """Refuses at the start what no batch could do as asked; see `split_counts`.

    Raises:
        ConfigError: `key` masks all patches, or there is a single one.
    """
    part = min(patches, max(2, round(share * patches)))
    if part < 2 or part * (1 - ratio) + 1e-9 < 1:
        raise ConfigError(
            f"{key}={ratio:g} leaves no patch to be seen of {part}; use smaller patches" + (" or a lower ratio" * (part > 1))
        )


def masks_by_score(score: Tensor, keep: int, masked: int) -> Masks:
    """The `keep` patches of lowest score (B, N) are seen, the `masked` after them masked, the rest left out.

    With uniform noise as score it is MAE's random masking: the same noise gives the same patches as models_mae.py,
    `random_masking`, here in grid order.
    """
    order = score.argsort(dim=1)
    return Masks(order[:, :keep].sort(dim=1).values, order[:, keep : keep + masked].sort(dim=1).values)


def block_score(
    batch: int,
    grid: Sequence[int],
    ratio: float,
    scale: tuple[float, float],
    aspect: float,
    *,
    device: torch.device | str | None = None,
    draws: Draws | None = None,
) -> Tensor:
    """Scores (B, N) by which contiguous blocks of patches are masked, in any number of dimensions.

    Boxes of random size, shape and place are laid down one after the other, as in BEiT, until the masked share is covered; the
    last one is filled at random, so that counts are exact. All are drawn at once: a patch's score says by which box it
    was covered first. Unlike BEiT's they may reach over the border, so that corners are masked as often as the middle.

    Source: Bao et al. 2022 (BEiT), algorithm 1, for a batch and N dimensions.

    Args:
        ratio: the share that will be masked.
        scale: least and largest share of the grid that a box covers.
        aspect: in (0, 1]; each side is longer or shorter than the grid's proportions by up to this factor.
    """
    axes = len(grid)
    side = (sum(scale) / 2) ** (1 / axes)  # of a middling box, as a share
    inside_share = math.prod(side / (1 + side - 1 / n) for n in grid)  # of the grid, that it covers within
    boxes = 2 * math.ceil(math.log(max(1 - ratio, 0.01)) / math.log(1 - min(inside_share, 0.9)))
    noise = draw_noise(batch, boxes, 2 * axes + 1, device=device, draws=draws)
    volume = scale[0] + (scale[1] - scale[0]) * noise[..., 0]
    stretch = (1 - 2 * noise[..., 1 : 1 + axes]) * math.log(aspect)
    sides = volume[..., None] ** (1 / axes) * (stretch - stretch.mean(dim=-1, keepdim=True)).exp()  # (B, boxes, axes), shares
    covered: Tensor | None = None
    for axis, n in enumerate(grid):
        length = (sides[..., axis] * n).round().clamp(1, n)
        start = (noise[..., 1 + axes + axis] * (n + length - 1)).floor() - length + 1
        at = torch.arange(n, device=noise.device)
        inside = (at >= start[..., None]) & (at < (start + length)[..., None])
        covered = inside if covered is None else (covered[..., None] & inside.unsqueeze(2)).flatten(2)
    assert covered is not None
    number = torch.arange(boxes, device=noise.device)[:, None]
    first = torch.where(covered, number, boxes).amin(dim=1)
    return boxes - first + draw_noise(batch, math.prod(grid), device=device, draws=draws)


def is_foreground(images: Tensor, patch_size: tuple[int, ...], threshold: float, scale: Tensor | float = 1.0) -> Tensor:
    """(B, N) bool: patches whose grey values spread, in at least one channel, by a standard deviation above `threshold`.

    Args:
        images: (B, C, *spatial).
        scale: what brings the values' spread to the unit range: the contract's `std`, one number or (C,).
    """
    axes = len(patch_size)
    spread = split_patches(images, patch_size).flatten(2 + axes).float().std(dim=-1, correction=0)  # (B, *grid, C)
    return (spread * scale).amax(dim=-1).flatten(1) > threshold


def foreground_score(foreground: Tensor, part: int, noise: Tensor) -> Tensor:
    """Scores (B, N) that mask the same share of foreground and of background, and leave out background first.

    Of each image `part` patches get a score below 1: all its foreground patches where they are no more than that, else a
    random choice of them, filled up with random background. A score is the patch's random rank within its kind, as a share:
    whichever number K of lowest scores is taken holds foreground and background in the proportion that the image has, to within
    one patch.

    Args:
        foreground: (B, N) bool.
        part: patches that take part.
        noise: (B, N) uniform in [0, 1).
    """
    order = torch.where(foreground, noise, 1 + noise).argsort(dim=1)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    front = foreground.sum(dim=1, keepdim=True).clamp(max=part)
    rank = torch.where(place < front, (place + 0.5) / front.clamp(min=1), (place - front + 0.5) / (part - front).clamp(min=1))
    return torch.where(place < part, rank, 2.0)


def units_to_patches(units: Tensor, grid: Sequence[int], unit: int) -> Tensor:
    """Flat indices (B, K) of units to those of their patches, (B, K * unit^axes), ascending; `grid` is the patches'."""
    if unit == 1:
        return units
    corner = unravel(units, [n // unit for n in grid])
    index = torch.zeros_like(units)[..., None]
    for place, n in zip(corner, grid, strict=True):
        along = place[..., None] * unit + torch.arange(unit, device=units.device)  # (B, K, unit)
        index = (index[..., None] * n + along[:, :, None]).flatten(2)
    return index.flatten(1).sort(dim=1).values


@dataclass
class TextMasks:
    """Words by their place in the text, in ascending order, padded behind the real ones; counts are bounds for every row.

    Attributes:
        seen: (B, V) int64, seen by the encoder.
        masked: (B, M) int64, to be predicted.
        seen_real, masked_real: (B, V) and (B, M) bool, False for padding.
    """

    seen: Tensor
    seen_real: Tensor
    masked: Tensor
    masked_real: Tensor


def split_text(words: Tensor, special: Tensor, noise: Tensor, ratio: float, specials: int) -> TextMasks:
    """Of a row's n words `n - int(n * (1 - ratio))` are masked at random; special tokens are always seen.

    V and M follow from the width of the batch alone, so that no number has to come back from the device.

    Args:
        words, special: (B, T) bool, what may be masked and what may not; padding is neither.
        noise: (B, T) uniform in [0, 1).
        specials: special tokens that a text has.
    """
    width = max(words.shape[1] - specials, 1)
    kept = math.floor(width * (1 - ratio) + 1e-9)
    count = words.sum(dim=1, keepdim=True)
    hidden = count - (count * (1 - ratio) + 1e-9).floor().long()
    rank = torch.where(words, noise, 2.0).argsort(dim=1).argsort(dim=1)
    masked = words & (rank < hidden)

    def places(of: Tensor, most: int) -> tuple[Tensor, Tensor]:
        order = (~of).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        return order, of.gather(1, order)

    return TextMasks(*places((words | special) & ~masked, specials + kept), *places(masked, width - kept))
