"""Images with masks and patch positions: what a heat map of patches is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfm.evaluation.heatmap import in_image, patch_places
from medfm.evaluation.masked_images import MaskedFiles
from medfm.transforms.grid import extent, kept_extent, to_source
from medfm.transforms.mask import with_mask
from medfm.transforms.preprocess import Boxes, Preprocess
from medfm.types import Image


class GroundedFiles(MaskedFiles):
    """position -> (image, masks, distance, inside, voxels, box), see `__call__`; G groups of structures, P patches.

    Args:
        groups: names of the structures that a finding may lie in, a group a finding.
        grid: of patches. tolerance: mm that distances are looked for. centre: of a token in its patch, see `patch_matrix`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        masks: Sequence[Path],
        modalities: Sequence[str],
        preprocess: Preprocess,
        groups: Sequence[tuple[str, ...]],
        labels: Mapping[int, str],
        grid: Sequence[int],
        tolerance: float,
        centre: tuple[float, ...] | None = None,
    ) -> None:
        structures = tuple(dict.fromkeys(name for group in groups for name in group))
        super().__init__(paths, masks, modalities, preprocess, structures, labels)
        self.groups, self.grid, self.tolerance = tuple(groups), tuple(grid), tolerance
        self.centre = centre

    def __call__(self, position: int) -> tuple[Tensor, ...]:
        """One image and its masks.

        Returns:
            image: (C, *size) in storage dtype.
            masks: (G, *size) bool, on the network's grid, where a group's structures cover half a pixel or more (a structure
                too thin for that: where it covers most).
            distance: (G, P) mm from the centre of every patch to the nearest voxel of the group, 0 within it, infinite where it
                is farther than `tolerance`, or there is none.
            inside: (P,) bool, whether the centre of a patch lies in what the network sees of the image, not in the padding.
            voxels: (G, 2) voxels of the image that the group fills, and what pixels of the network's grid would hold the part
                of them that the network does not see.
            box: (axes, 2) what part of the network's grid is image and not padding.
        """
        image, mask = self.read(position)
        config = self.preprocess.config
        layers = np.zeros((len(self.groups), *image.shape[:3]), bool)
        for layer, group in zip(layers, self.groups, strict=True):
            for name in group:
                if name in mask.names:
                    layer |= mask.array[mask.names.index(name)]
        stored, covered = with_mask(self.preprocess, image, layers)
        cropped = config.crop_foreground or config.foreground_threshold is not None
        boxes = self.preprocess.whole_and_boxes(image)[1] if cropped else Boxes(None, None)
        matrix, kept = to_source(config, image, boxes), kept_extent(config, image, boxes)
        least = np.minimum(0.5, covered.reshape(len(covered), -1).max(axis=1)).reshape(-1, *[1] * (covered.ndim - 1))
        masks = (covered >= least) & (covered > 0)
        places = patch_places(matrix, config.size, self.grid, self.centre)
        distance = np.stack([_distances(layer, places, image, self.tolerance) for layer in layers])
        pixel = abs(float(np.linalg.det(matrix[:3, :3])))  # voxels that one pixel of the network's grid holds
        seen = source_box(matrix, kept, config.size)
        voxels = [(layer.sum(), (layer.sum() - layer[seen].sum()) / pixel) for layer in layers]
        return (
            torch.from_numpy(stored),
            torch.from_numpy(masks),
            torch.from_numpy(distance.astype(np.float32)),
            torch.from_numpy(in_image(places, kept)),
            torch.tensor(voxels, dtype=torch.float64),
            torch.from_numpy(image_box(matrix, kept, config.size)),
        )


def _distances(layer: NDArray[np.bool_], places: NDArray[np.float64], image: Image, tolerance: float) -> NDArray[np.float64]:
    """(P,) mm from places (P, 3), in voxels, to the nearest marked voxel."""
    out = np.full(len(places), np.inf)
    if not layer.any():
        return out
    voxel = np.rint(places).astype(int)
    known = ((voxel >= 0) & (voxel < layer.shape)).all(axis=1)
    i, j, k = voxel[known].T
    out[np.flatnonzero(known)[layer[i, j, k]]] = 0.0
    if tolerance > 0:
        from scipy.spatial import cKDTree

        linear = image.affine[:3, :3].T
        tree = cKDTree(np.argwhere(layer) @ linear)
        near, _ = tree.query(places @ linear, distance_upper_bound=tolerance * (1 + 1e-9) + 1e-6)
        out = np.minimum(out, near)
    return out


def image_box(matrix: NDArray[np.float64], kept: NDArray[np.float64], size: Sequence[int]) -> NDArray[np.int64]:
    """(axes, 2): first and last + 1 index along each axis of `size` at which the network's grid lies on what the contract kept
    of the image, `kept_extent`."""
    inverse = np.linalg.inv(matrix)
    # (x, y, z) -> (z, y, x); of a single image z is no axis of the network's grid.
    ends = np.sort(inverse[:3, :3] @ kept + inverse[:3, 3:], axis=1)[: len(size)][::-1]
    box = np.stack([np.ceil(ends[:, 0] - 1e-6), np.floor(ends[:, 1] + 1e-6) + 1], axis=1)
    return np.clip(box, 0, np.array(size)[:, None]).astype(np.int64)


def source_box(matrix: NDArray[np.float64], kept: NDArray[np.float64], size: Sequence[int]) -> tuple[slice, ...]:
    """The voxels (i, j, k) that the network sees, of what the contract kept of the image."""
    corners = extent((*size[::-1], 1))
    ends = np.sort(matrix[:3, :3] @ corners + matrix[:3, 3:], axis=1)
    first = np.ceil(np.maximum(ends[:, 0], kept[:, 0]) - 1e-6).astype(int)
    last = np.floor(np.minimum(ends[:, 1], kept[:, 1]) + 1e-6).astype(int) + 1
    return tuple(slice(a, max(a, b)) for a, b in zip(first.tolist(), last.tolist(), strict=True))


@dataclass(eq=False)
class Packed:
    """A bool array kept as the bits of the box around what is true: thousands of masks fit into memory."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Packed:
        where = np.argwhere(mask)
        if not len(where):
            return cls((0,) * mask.ndim, (0,) * mask.ndim, np.empty(0, np.uint8))
        low, high = where.min(axis=0), where.max(axis=0) + 1
        part = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        return cls(tuple(low.tolist()), part.shape, np.packbits(part))

    def box(self) -> tuple[slice, ...]:
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.shape, strict=True))

    def inside(self) -> NDArray[np.bool_]:
        """What is true within `box`."""
        return np.unpackbits(self.bits, count=int(np.prod(self.shape))).astype(bool).reshape(self.shape)

    def full(self, shape: Sequence[int]) -> NDArray[np.bool_]:
        out = np.zeros(tuple(shape), bool)
        out[self.box()] = self.inside()
        return out
