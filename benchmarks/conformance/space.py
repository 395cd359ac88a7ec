"""A truth, and whether what a reader returned equals it in world space."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

Placed = Literal["space", "spacing", "nothing"]


@dataclass(frozen=True, eq=False)
class Truth:
    """What a reader must return.

    Attributes:
        array: (i, j, k[, t][, 3]) physical values: after rescale, before any window or inversion.
        affine: (4, 4) RAS+ mm.
        placed: what the file says of the place: all of it; the spacing of the plane alone (a film); nothing.
        tolerance: largest difference of a value that still counts as equal, for lossy encodings; 0: float32 rounding alone.
        padding: (i, j, k[, t]) where the file marks pixels as padding, or holds no number (NaN): a reader may replace those by
            the lowest or highest other value.
        made_by: who says so.
    """

    array: np.ndarray = field(repr=False)
    affine: np.ndarray = field(repr=False)
    placed: Placed = "space"
    tolerance: float = 0.0
    padding: np.ndarray | None = field(default=None, repr=False)
    made_by: str = "header"

    def save(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        padding = self.padding if self.padding is not None and self.padding.any() else np.zeros(0, bool)
        numbers = {"array": self.array, "affine": self.affine, "padding": padding, "tolerance": np.array(self.tolerance)}
        with open(path, "wb") as file:
            np.savez(file, **numbers, words=np.array([self.placed, self.made_by]))
        return path

    @classmethod
    def load(cls, path: Path) -> Truth:
        with np.load(path) as file:
            padding = file["padding"]
            placed, made_by = (str(w) for w in file["words"])
            return cls(
                file["array"],
                file["affine"],
                placed,  # type: ignore[arg-type]
                float(file["tolerance"]),
                padding if padding.size else None,
                made_by,
            )


def to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes permuted and flipped to the nearest of RAS+; a view."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    turn = io_orientation(affine)
    if np.isnan(turn).any():
        raise ValueError("an affine with an axis of no direction")
    return apply_orientation(array, turn), affine @ inv_ornt_aff(turn, array.shape[:3])


def difference(array: np.ndarray, affine: np.ndarray, truth: Truth) -> str:
    """How the result of a reader differs from the truth, in words; "" where it does not."""
    if array.dtype.names or array.dtype.kind not in "biufc":
        return f"values of type {array.dtype}"
    array, affine = _like(np.asarray(array), truth), np.array(affine, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return "no finite affine"
    wanted, place, padding = truth.array, truth.affine, truth.padding
    if truth.placed == "space":
        if array.shape[2] == 1:
            affine[:3, 2] = _normal(affine)
        try:
            array, affine = to_ras(array, affine)
            padding = to_ras(padding, place)[0] if padding is not None else None
            wanted, place = to_ras(wanted, place)
        except (ValueError, np.linalg.LinAlgError) as error:
            return str(error)
    if array.shape != wanted.shape:
        return f"shape {array.shape}, not {wanted.shape}"
    why = _place_difference(affine, place, array.shape, truth.placed)
    return why or _value_difference(array, wanted, padding, truth.tolerance)


def _normal(affine: np.ndarray) -> np.ndarray:
    """The third axis of a lone plane: as it is where it stands upright, else (some readers leave it nought) made so."""
    upright = np.cross(affine[:3, 0], affine[:3, 1])
    third = affine[:3, 2]
    long, length = np.linalg.norm(third), np.linalg.norm(upright)
    if length > 0 and (long == 0 or abs(third @ upright) < 0.999 * long * length):
        return np.asarray(upright / length)
    return np.asarray(third)


def _like(array: np.ndarray, truth: Truth) -> np.ndarray:
    """The same voxels with the truth's number of axes: a plane gets its third, a cine read as (i, j, frames) its fourth."""
    array = array.reshape(*array.shape, *(1,) * (3 - array.ndim)) if array.ndim < 3 else array
    wanted = truth.array.shape
    if array.shape == wanted:
        return array
    if array.shape[-1] == 4 and wanted[-1] == 3:  # with transparency
        array = array[..., :3]
    flat = truth.placed != "space"
    if flat and len(wanted) == array.ndim + 1 and wanted[2] == 1 and array.shape == (*wanted[:2], *wanted[3:]):
        return array[:, :, None]
    while array.ndim > len(wanted) and array.shape[-1] == 1:
        array = array[..., 0]
    return array


def _place_difference(affine: np.ndarray, wanted: np.ndarray, shape: tuple[int, ...], placed: Placed) -> str:
    spacing, right = (np.linalg.norm(a[:3, :3], axis=0) for a in (affine, wanted))
    if placed == "nothing":
        return ""
    if placed == "spacing":
        off = np.abs(spacing[:2] - right[:2]).max()
        return f"pixel spacing off by {off:.3g} mm" if off > 1e-3 * right[:2].max() else ""
    ends = [(0, n - 1) for n in shape[:3]]
    corners = np.array([(*corner, 1) for corner in itertools.product(*ends)], np.float64).T
    far = np.linalg.norm((affine @ corners - wanted @ corners)[:3], axis=0).max()
    if far > 0.02 + 0.02 * right.min():
        return f"voxels off by up to {far:.3g} mm"
    # Along an axis of one voxel the corners say nothing: its direction still counts, its length is a matter of taste.
    for axis in (n for n in range(3) if shape[n] == 1):
        along = abs(affine[:3, axis] @ wanted[:3, axis]) / (spacing[axis] * right[axis])
        if along < 0.999:
            return "the plane's normal is wrong"
    return ""


def _value_difference(array: np.ndarray, wanted: np.ndarray, padding: np.ndarray | None, tolerance: float) -> str:
    array, wanted = array.astype(np.float64), wanted.astype(np.float64)
    size = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))
    wrong = ~(np.abs(array - wanted) <= tolerance + 1e-6 * size + 1e-6 * np.abs(wanted))
    wrong &= ~((array == wanted) | (np.isnan(array) & np.isnan(wanted)))
    if padding is not None and wrong.any():
        wrong &= ~_filled(array, wanted, padding)
    count = int(wrong.sum())
    if not count:
        return ""
    off = np.abs(array - wanted)[wrong]
    return f"{count} of {array.size} values wrong, by up to {np.nanmax(off) if np.isfinite(off).any() else float('nan'):.4g}"


def _filled(array: np.ndarray, wanted: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """Where padding was replaced by the lowest or highest other value, of the whole array or of its slice."""
    inside = np.broadcast_to(padding.reshape(padding.shape + (1,) * (wanted.ndim - padding.ndim)), wanted.shape)
    filled = np.zeros(wanted.shape, bool)
    for axes in (None, (0, 1), (0, 2), (1, 2)):
        for pick, empty in ((np.min, np.inf), (np.max, -np.inf)):
            edge = pick(np.where(inside, empty, wanted), axis=axes, keepdims=True)
            filled |= inside & (np.abs(array - edge) <= 1e-6 * (1 + np.abs(edge)))
    return filled


def named(truth: Truth, made_by: str) -> Truth:
    return replace(truth, made_by=made_by)
