"""Images or volumes as rows of non-overlapping patches, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medfm.errors import ConfigError


def patch_grid(spatial: tuple[int, ...], patch_size: tuple[int, ...]) -> tuple[int, ...]:
    """Patches along each axis.

    Raises:
        ConfigError: the size is not a multiple of the patch size.
    """
    if any(n % p for n, p in zip(spatial, patch_size, strict=True)):
        raise ConfigError(f"image size {tuple(spatial)} is not a multiple of the patch size {patch_size}")
    return tuple(n // p for n, p in zip(spatial, patch_size, strict=True))


def split_patches(x: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """x (B, C, *spatial) -> (B, *grid, C, *patch_size), a view where x is contiguous."""
    axes = len(patch_size)
    grid = patch_grid(tuple(x.shape[2:]), patch_size)
    sizes = [m for n, p in zip(grid, patch_size, strict=True) for m in (n, p)]
    return x.reshape(*x.shape[:2], *sizes).permute(0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))


def take_patches(patches: Tensor, grid: tuple[int, ...], chosen: Tensor | None) -> Tensor:
    """(B, *grid, ...) -> (B, N or K, prod(...)), contiguous; `chosen` (B, K) are flat grid indices. The rest is not touched."""
    batch = patches.shape[0]
    if chosen is None:
        return patches.reshape(batch, math.prod(grid), -1)
    rows = torch.arange(batch, device=patches.device)[:, None]
    return patches[(rows, *unravel(chosen, grid))].flatten(2)


def unravel(index: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """`torch.unravel_index`, which brings the shape to the device as a tensor and waits for that."""
    places = []
    for n in reversed(shape):
        places.append(index % n)
        index = index // n
    return tuple(reversed(places))


def patchify(x: Tensor, patch_size: tuple[int, ...], chosen: Tensor | None = None) -> Tensor:
    """x (B, C, *spatial) -> (B, N or K, P * C), the pixels of a patch in rows and channels last: MAE's layout.

    Source: He et al. 2022, models_mae.py, `patchify`.
    """
    patches = split_patches(x, patch_size)
    return take_patches(patches.movedim(1 + len(patch_size), -1), tuple(patches.shape[1 : 1 + len(patch_size)]), chosen)


def unpatchify(patches: Tensor, grid: tuple[int, ...], patch_size: tuple[int, ...]) -> Tensor:
    """The inverse of `patchify` for all N = prod(grid) patches: (B, N, P * C) -> (B, C, *spatial)."""
    axes = len(grid)
    x = patches.reshape(patches.shape[0], *grid, *patch_size, -1).movedim(-1, 1)
    order = [axis for n in range(axes) for axis in (2 + n, 2 + axes + n)]
    return x.permute(0, 1, *order).reshape(*x.shape[:2], *(n * p for n, p in zip(grid, patch_size, strict=True)))


def strided_centre(stride: Sequence[int]) -> tuple[float, ...]:
    """Where in its patch a token of a CNN is centred, as a share of the patch, if all its strided layers have odd kernels
    padded by half: token n sees what lies around pixel n * stride, the first of its patch, not the middle one."""
    return tuple(0.5 / s for s in stride)


def enlarge(maps: Tensor, size: Sequence[int], centre: Sequence[float] | None = None) -> Tensor:
    """Maps of tokens (B, C, *grid) on the pixels that they stand for, (B, C, *size): linear between the tokens' centres, beyond
    the outermost their value.

    Args:
        centre: an encoder's `token_centre`; None for the middles of patches.
    """
    mode = "bilinear" if len(size) == 2 else "trilinear"
    if centre is None or all(share == 0.5 for share in centre):
        return F.interpolate(maps, size=tuple(size), mode=mode, align_corners=False)
    for axis, (pixels, share) in enumerate(zip(size, centre, strict=True), start=2):
        count = maps.shape[axis]
        at = ((torch.arange(pixels, dtype=torch.float64) + 0.5) * count / pixels - share).clamp(0, count - 1)
        weight = (1 - (at[:, None] - torch.arange(count)).abs()).clamp(min=0).to(maps)  # (pixels, count)
        maps = (maps.movedim(axis, -1) @ weight.T).movedim(-1, axis)
    return maps
