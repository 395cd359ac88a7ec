"""Moving layers from one voxel grid to another: exactly where the grids share a lattice, else by the nearest voxel.

An affine maps a voxel index to RAS+ millimetres. Two grids share a lattice where one's axes are the other's, permuted or
flipped, and their voxels coincide to within half a voxel: laying voxel on voxel is then what nearest-neighbour resampling would
give, without its arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medfm.errors import DataError

# A mask on a large CT has 10^8 voxels a layer; beyond this size a machine swaps.
MAX_BYTES = 2**33
# Headers round to about 1e-4 of a voxel; what lies further off is worth a note.
ROUNDING = 0.02


@dataclass(frozen=True)
class Lattice:
    """How the indices of a target grid read those of a source grid that shares its lattice.

    Attributes:
        axes: for each target axis the source axis that runs along it.
        signs: 1, or -1 where that source axis runs the other way.
        offset: source index of target voxel (0, 0, 0), by source axis.
        stray: how far voxels lie apart at most, in voxels.
    """

    axes: tuple[int, int, int]
    signs: tuple[int, int, int]
    offset: tuple[int, int, int]
    stray: float

    @property
    def turned(self) -> bool:
        return self.axes != (0, 1, 2) or min(self.signs) < 0


def check_bytes(segments: int, shape: tuple[int, ...], path: str) -> None:
    """Refuse layers that would not fit in memory, before they are allocated.

    Raises:
        DataError: more than `MAX_BYTES` of one byte a voxel.
    """
    claimed = segments * int(np.prod([int(n) for n in shape], dtype=object))
    if claimed > MAX_BYTES:
        size = " x ".join(str(n) for n in shape)
        raise DataError(
            f"'{path}': {segments} segments on a grid of {size} voxels take {claimed / 2**30:.1f} GiB; "
            "name those that are needed with only="
        )


def apart(shape: tuple[int, ...], affine: np.ndarray, other: np.ndarray) -> float:
    """How far two affines place the voxels of one grid from each other at most, in voxels."""
    linear = np.linalg.inv(affine) @ other
    return float(np.abs(_corners(shape) @ (linear[:3, :3] - np.eye(3)).T + linear[:3, 3]).max())


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    """(8, 3) indices."""
    return np.stack(np.meshgrid(*[(0, n - 1) for n in shape[:3]], indexing="ij"), -1).reshape(-1, 3)


def shared_lattice(
    shape: tuple[int, ...], affine: np.ndarray, to_shape: tuple[int, ...], to_affine: np.ndarray
) -> Lattice | None:
    """The lattice that two grids share, None where voxels of one lie half a voxel or more off those of the other.

    Args:
        shape, affine: the source grid.
        to_shape, to_affine: the target grid; its corners are where the distance is judged.
    """
    matrix = np.linalg.inv(affine) @ to_affine
    linear = matrix[:3, :3].copy()
    for axis in range(3):
        if to_shape[axis] == 1:  # one slice has a direction, but no distance to a next one
            linear[:, axis] /= np.linalg.norm(linear[:, axis])
    turn = np.rint(linear)
    if not np.array_equal(np.abs(turn).sum(0), np.ones(3)) or not np.array_equal(np.abs(turn).sum(1), np.ones(3)):
        return None
    corners = _corners(to_shape)
    there = corners @ matrix[:3, :3].T + matrix[:3, 3]
    offset = np.rint((there - corners @ turn.T).mean(0))
    stray = float(np.abs(there - corners @ turn.T - offset).max())
    if stray >= 0.5 or not np.abs(offset).max() < 2**31:
        return None
    axes = tuple(int(np.argmax(np.abs(turn[:, axis]))) for axis in range(3))
    signs = tuple(int(turn[axes[axis], axis]) for axis in range(3))
    a, b, c = (int(n) for n in offset)
    return Lattice(axes, signs, (a, b, c), stray)  # type: ignore[arg-type]


def place(
    layers: np.ndarray, affine: np.ndarray, to_shape: tuple[int, ...], to_affine: np.ndarray, path: str
) -> tuple[np.ndarray, list[str]]:
    """Layers of one grid on another.

    Args:
        layers: (S, i, j, k) bool on the grid of `affine`.
        to_shape: (i, j, k) of the target grid.

    Returns:
        (S, *to_shape) bool, a view of `layers` where that suffices, and notes.

    Raises:
        DataError: the grids do not overlap, or the result would not fit in memory.
    """
    to_shape = tuple(to_shape[:3])
    lattice = shared_lattice(layers.shape[1:], affine, to_shape, to_affine)
    if lattice is None:
        check_bytes(len(layers), to_shape, path)
        matrix = np.linalg.inv(affine) @ to_affine
        notes = ["the mask's grid differs from the image's: resampled by the nearest voxel"]
        if _reaches_out(layers, np.linalg.inv(matrix), to_shape):
            notes.append("a part of the mask lies outside the image and was cut off")
        return _nearest(layers, matrix, to_shape, path), notes
    placed, cut = _lay(layers, lattice, to_shape, path)
    notes = ["the mask's axes were turned onto the image's"] if lattice.turned else []
    if lattice.stray > ROUNDING:
        notes.append(f"the mask's voxels lie up to {lattice.stray:.2g} voxels off the image's; each was laid on the nearest")
    lost = int(np.count_nonzero(layers)) - int(np.count_nonzero(placed)) if cut else 0
    if lost:
        notes.append(f"{lost:,} marked voxels lie outside the image and were cut off")
    return placed, notes


def _reaches_out(layers: np.ndarray, matrix: np.ndarray, to_shape: tuple[int, ...]) -> bool:
    """Whether a marked voxel lies outside the target grid; `matrix` maps source indices to target indices.

    The first and last marked voxel of each line along k suffice: a linear function takes its extremes there.
    """
    marked = np.any(layers, axis=0)
    i, j = np.nonzero(np.any(marked, axis=2))
    lines = marked[i, j]
    first, last = lines.argmax(1), lines.shape[1] - 1 - lines[:, ::-1].argmax(1)
    ends = np.stack([np.r_[i, i], np.r_[j, j], np.r_[first, last]])
    there = matrix[:3, :3] @ ends + matrix[:3, 3:]
    return bool(((there < -0.5) | (there > np.array(to_shape)[:, None] - 0.5)).any())


def _no_overlap(path: str) -> DataError:
    return DataError(f"'{path}' does not overlap the image: it belongs to another image, or one of the two affines is wrong")


def _lay(layers: np.ndarray, lattice: Lattice, to_shape: tuple[int, ...], path: str) -> tuple[np.ndarray, bool]:
    """(voxel on voxel: transposed, flipped, cropped or padded; whether something was cropped)."""
    source: list[slice] = [slice(None)] * 3
    target: list[slice] = [slice(None)] * 3
    for axis, (other, sign) in enumerate(zip(lattice.axes, lattice.signs, strict=True)):
        size, offset = layers.shape[1 + other], lattice.offset[other]
        # Target indices whose source index sign * index + offset lies in [0, size).
        first, last = (-offset, size - 1 - offset) if sign > 0 else (offset - size + 1, offset)
        first, last = max(first, 0), min(last, to_shape[axis] - 1)
        if first > last:
            raise _no_overlap(path)
        target[axis] = slice(first, last + 1)
        begin, end = sorted((sign * first + offset, sign * last + offset))
        source[other] = slice(begin, end + 1)
    part = layers[(slice(None), *source)].transpose(0, *(1 + axis for axis in lattice.axes))
    part = np.flip(part, tuple(1 + axis for axis, sign in enumerate(lattice.signs) if sign < 0))
    cut = part.size < layers.size
    if part.shape[1:] == to_shape:
        return part, cut
    check_bytes(len(layers), to_shape, path)
    placed = np.zeros((len(layers), *to_shape), bool)
    placed[(slice(None), *target)] = part
    return placed, cut


def _nearest(layers: np.ndarray, matrix: np.ndarray, to_shape: tuple[int, ...], path: str) -> np.ndarray:
    """`matrix` maps target indices to source indices; voxels outside the source are False."""
    placed = np.zeros((len(layers), *to_shape), bool)
    size = np.array(layers.shape[1:])[:, None, None]
    i, j = np.arange(to_shape[0])[None, :, None], np.arange(to_shape[1])[None, None, :]
    plane = matrix[:3, 0, None, None] * i + matrix[:3, 1, None, None] * j
    met = False
    for k in range(to_shape[2]):
        # A voxel midway between two takes the upper, whatever the last digits say.
        index = np.floor(plane + (matrix[:3, 2] * k + matrix[:3, 3] + 0.5 + 1e-6)[:, None, None])
        inside = ((index >= 0) & (index < size)).all(0)
        if inside.any():
            met = True
            a, b, c = index[:, inside].astype(np.intp)
            placed[:, inside, k] = layers[:, a, b, c]
    if not met:
        raise _no_overlap(path)
    return placed
