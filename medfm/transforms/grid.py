"""Where the network's grid lies on the image it was made of: the way back for heat maps, masks and points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medfm.io.geometry import reorient
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Boxes
from medfm.transforms.resample import spaced_grid
from medfm.types import Image


def to_source(config: PreprocessConfig, image: Image, boxes: Boxes, start: Sequence[int] | None = None) -> np.ndarray:
    """(4, 4): index on the network's grid -> voxel index (i, j, k) of the image; every step of the contract undone.

    The index on the network's grid is (x, y, z), for a volume of `size` (D, H, W) = (z, y, x), and (x, y, 0) for a single
    image. Hence `image.affine @ to_source(...)` is the affine of the network's grid. Axes are turned and scaled, never sheared:
    in each row one of the first three numbers is not 0.

    Args:
        image: as it was preprocessed.
        boxes: as `Preprocess.whole_and_boxes` gave them for it.
        start: as it was given to `Preprocess.fit`.
    """
    flat = len(config.size) == 2
    matrix, shape, affine = _kept(config, image, boxes)
    scale, offset, shape = _scaled(config, shape, affine)
    matrix = matrix @ _axes(scale, offset)
    wanted = np.array([*config.size[::-1], *([1] if flat else [])])
    # As `crop.fit`: the middle, or `start`, where an axis is cut; the image in the middle where it is padded.
    first = (shape - wanted) // 2 if start is None else np.array([*start[::-1], *([0] if flat else [])])
    shift = np.where(shape >= wanted, first, -np.maximum(0, (wanted - shape) // 2))
    return matrix @ _axes(np.ones(3), shift)


def kept_extent(config: PreprocessConfig, image: Image, boxes: Boxes) -> np.ndarray:
    """(3, 2): where the part of the image that the contract kept begins and ends along (i, j, k), in voxels; `extent` of the
    whole image where nothing is cut off. What lies outside of it the network sees as padding, or not at all."""
    matrix, shape, _ = _kept(config, image, boxes)
    return np.sort(matrix[:3, :3] @ extent(shape.tolist()) + matrix[:3, 3:], axis=1)


def extent(shape: Sequence[int]) -> np.ndarray:
    """(3, 2): where an image of (i, j, k) voxels begins and ends, from the centre of its first."""
    return np.array([[-0.5, n - 0.5] for n in shape[:3]])


def _kept(config: PreprocessConfig, image: Image, boxes: Boxes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """After axes are turned and borders cut off: (4, 4) index (x, y, z) -> voxel index, the shape, the turned affine."""
    shape = np.array(image.shape[:3])
    matrix, affine = np.eye(4), image.affine
    flat = len(config.size) == 2
    if not flat:
        # Voxels keep their place in space, so that the two affines say how the axes were turned.
        turned, affine = reorient(np.broadcast_to(np.False_, tuple(shape)), image.affine, config.orientation)
        matrix, shape = np.rint(np.linalg.solve(image.affine, affine)), np.array(turned.shape)
    if boxes.foreground is not None:
        matrix, shape = _cut(matrix, boxes.foreground)
    if boxes.border is not None:
        border = (*boxes.border[::-1], *([slice(0, int(shape[2]))] if flat else []))
        matrix, shape = _cut(matrix, border)
    return matrix, shape, affine


def _axes(scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    made = np.diag([*scale, 1.0])
    made[:3, 3] = offset
    return made


def _cut(matrix: np.ndarray, box: Sequence[slice]) -> tuple[np.ndarray, np.ndarray]:
    offset = np.array([part.start for part in box], np.float64)
    return matrix @ _axes(np.ones(3), offset), np.array([part.stop - part.start for part in box])


def _scaled(config: PreprocessConfig, shape: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scale, offset, shape) of `Preprocess.resample` along (x, y, z): new index n lies at offset + n * scale."""
    flat = len(config.size) == 2
    same = np.ones(3), np.zeros(3), shape
    if config.spacing is not None:
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        first, steps, new = spaced_grid(shape.tolist(), affine, (*config.spacing[::-1], *([float(edges[2])] if flat else [])))
        return steps, first, new.astype(int)
    if config.resize == "none":
        return same
    axes = 2 if flat else 3
    have, size = shape[:axes].astype(np.float64), np.array(config.size[::-1])
    keep, begin, made = have, np.zeros(axes), size
    ratios = size / have
    if config.resize == "pad":
        made = np.clip(np.rint(have * ratios.min()), 1, size)
    elif config.resize == "crop":
        keep = np.minimum(np.rint(size / ratios.max()), have)
        begin = (have - keep) // 2
    # Areas of pixels are aligned (align_corners=False).
    scale = keep / made
    offset = begin + 0.5 * scale - 0.5
    if flat:
        scale, offset, made = np.append(scale, 1.0), np.append(offset, 0.0), np.append(made, 1)
    return scale, offset, made.astype(int)


def patch_matrix(size: Sequence[int], grid: Sequence[int], centre: Sequence[float] | None = None) -> np.ndarray:
    """(4, 4): index of a patch -> where it is centred on the network's grid, both as (x, y, z); patches share `size` evenly.

    `centre`: an encoder's `token_centre`, shares of a patch along the axes of `size`; None for the middle.
    """
    shares = [0.5] * len(size) if centre is None else centre
    scale, offset = np.ones(3), np.zeros(3)
    for axis, (pixels, patches, share) in enumerate(zip(size[::-1], grid[::-1], shares[::-1], strict=True)):
        scale[axis] = pixels / patches
        offset[axis] = share * scale[axis] - 0.5
    return _axes(scale, offset)


def on_source(
    values: np.ndarray,
    matrix: np.ndarray,
    shape: Sequence[int],
    centre: Sequence[float] | None = None,
    seen: np.ndarray | None = None,
) -> np.ndarray:
    """Values on a coarse grid brought onto the image's: linear between the coarse points, NaN outside of their field of view.

    Args:
        values: (D, H, W) or (H, W).
        matrix: (4, 4), index on the grid of `values` as (x, y, z) -> voxel index, axes turned and scaled only.
        shape: (i, j, k) of the image.
        centre: as `patch_matrix` took it: the field of view reaches so many steps of the coarse grid beyond its first point,
            and what is left of a step beyond its last; in between the end value is taken.
        seen: as `kept_extent` gives it: NaN outside of it too.

    Returns:
        (i, j, k) float32.
    """
    values = np.asarray(values, np.float32)
    volume = values if values.ndim == 3 else values[None]
    out = volume.transpose(2, 1, 0)  # (x, y, z)
    linear = matrix[:3, :3]
    shares = [*([0.5] * values.ndim if centre is None else centre)[::-1], 0.5][:3]  # along (x, y, z)
    source = [int(np.argmax(np.abs(linear[:, axis]))) for axis in range(3)]  # image axis that x, y, z run along
    outside = []
    for axis, voxel in enumerate(source):
        n = out.shape[axis]
        at = (np.arange(shape[voxel]) - matrix[voxel, 3]) / linear[voxel, axis]
        beyond = (at < -shares[axis] - 1e-6) | (at > n - shares[axis] + 1e-6)
        if seen is not None:
            number = np.arange(shape[voxel])
            beyond |= (number < seen[voxel, 0]) | (number > seen[voxel, 1])
        outside.append(beyond)
        at = np.clip(at, 0, n - 1)
        low = np.minimum(np.floor(at).astype(np.intp), max(n - 2, 0))
        share = np.expand_dims((at - low).astype(np.float32), (1, 2))
        moved = np.moveaxis(out, axis, 0)
        moved = moved[low] * (1 - share) + moved[np.minimum(low + 1, n - 1)] * share
        out = np.moveaxis(moved, 0, axis)
    for axis, mask in enumerate(outside):
        np.moveaxis(out, axis, 0)[mask] = np.nan
    return np.ascontiguousarray(out.transpose([source.index(voxel) for voxel in range(3)]))
