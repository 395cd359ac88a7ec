"""How slices make a volume, judged by their headers: an even grid, or the fault that forbids one.

Slices are ordered by their position along the normal, never by file name or instance number. Whatever would give a volume whose
affine lies (gantry tilt, a missing slice, two spacings, mixed orientations) is a `Fault`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medfm.io.contrast import disagreement
from medfm.io.geometry import as_spacing, complete_axes
from medfm.io.slices import Slice
from medfm.io.volume4d import order_volumes

# Two images closer than this, in mm along the normal, lie at one position.
_SAME_PLACE = 1e-3
# A CT in which the table stands a metre off its scanner's centre is possible; ten metres are not.
_FARTHEST = 1e4


class Fault(Exception):
    """Why slices make no volume, in words without a path."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Slices on an even grid.

    Attributes:
        order: [volume][slice] -> index into the slices that were given; slices run along +normal.
        axes: (3, 3) LPS unit vectors of i, j and their normal, as rows.
        spacing: (row, column) spacing, mm.
        step: LPS vector from a slice to the next, mm.
        position: LPS position of the first voxel, mm.
        shear: LPS in-plane part of `step`, mm, where the gantry was tilted; zero otherwise.
        ordered_by: the attribute that told volumes apart, "" for one volume.
    """

    order: tuple[tuple[int, ...], ...]
    axes: np.ndarray
    spacing: tuple[float, float]
    step: np.ndarray
    position: np.ndarray
    shear: np.ndarray
    ordered_by: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def tilted(self) -> bool:
        return bool(self.shear.any())

    @property
    def tilt_fault(self) -> str:
        """The sentence that refuses a tilted stack."""
        gap, drift = abs(float(self.step @ self.axes[2])), float(np.linalg.norm(self.shear))
        angle = np.degrees(np.arctan2(drift, gap))
        return (
            f"gantry tilt: slices shift sideways by {drift * (len(self.order[0]) - 1):.3g} mm ({angle:.1f} degrees) along the "
            "stack, so the volume is sheared; load it with tilt='resample', which shears it back"
        )


def arrange(slices: Sequence[Slice]) -> Layout:
    """The even grid that `slices` lie on. They are of one size, orientation and pixel spacing.

    Raises:
        Fault: the stack is no even grid, or volumes at one place cannot be told apart.
    """
    missing = [s for s in slices if not s.placed or s.fault]
    if missing:
        why = next((s.fault for s in missing if s.fault), "")
        raise Fault(
            f"{len(missing)} of {len(slices)} images have no usable ImageOrientationPatient, ImagePositionPatient or pixel "
            f"spacing, so the slices cannot be ordered{f' ({why})' if why else ''}"
        )
    spacing = slices[0].spacing
    if spacing[0] <= 0:
        raise Fault("the slices give no usable pixel spacing, so the volume would have no shape")
    axes = complete_axes(slices[0].cosines or ())
    positions = np.array([s.position for s in slices], float)
    if np.abs(positions).max() > _FARTHEST:
        raise Fault("a slice position lies more than 10 m from the scanner's centre; the header is damaged")
    along = positions @ axes[2]
    sequence = np.argsort(along, kind="stable")
    places = np.empty(len(slices), int)
    places[sequence] = np.concatenate([[0], np.cumsum(np.diff(along[sequence]) >= _SAME_PLACE)])
    order, ordered_by = _volumes(slices, places, positions, axes)
    fault, differences = disagreement([[slices[n] for n in row] for row in order])
    if fault:
        raise Fault(fault)
    first = positions[list(order[0])]
    notes = (*((slices[0].spacing_note,) if slices[0].spacing_note else ()), *differences)
    if len(first) == 1:
        thickness = slices[0].thickness
        if thickness <= 0:
            thickness, notes = 1.0, (*notes, "the file gives no slice thickness; 1 mm is a placeholder")
        step, shear = axes[2] * thickness, np.zeros(3)
    else:
        step, shear = _even_step(first, axes, spacing)
        notes = (*notes, *_grid_notes(first, axes, step, slices[order[0][0]].gap))
    thicknesses = [s.thickness for s in slices]
    if np.ptp(thicknesses) > 1e-2 * max(thicknesses):
        notes = (*notes, f"slices differ in thickness: {min(thicknesses):.4g} to {max(thicknesses):.4g} mm on an even grid")
    if ordered_by:
        notes = (*notes, f"{len(order)} volumes ordered by {ordered_by}")
    return Layout(order, axes, spacing, step, first[0], shear, ordered_by, notes)


def _volumes(
    slices: Sequence[Slice], places: np.ndarray, positions: np.ndarray, axes: np.ndarray
) -> tuple[tuple[tuple[int, ...], ...], str]:
    """([volume][slice] -> index, the attribute that told)."""
    total, count = len(slices), int(places.max()) + 1
    if total == count:
        return (tuple(np.argsort(places).tolist()),), ""
    per_place = np.bincount(places)
    if (per_place != per_place[0]).any():
        raise Fault(
            f"duplicate slices: {total} images lie at {count} positions, {per_place.min()} to {per_place.max()} at each; a "
            "slice occurs twice, or a time series is not complete"
        )
    for place in range(count):
        here = positions[places == place]
        if np.abs((here - here[0]) @ axes[:2].T).max() > 0.05:
            raise Fault("slices lie in one plane but at different places of it, so they are tiles and not one stack")
        locations = [s.location for s, p in zip(slices, places, strict=True) if p == place and s.location is not None]
        if locations and np.ptp(locations) > 0.5:
            raise Fault(
                f"{per_place[0]} images lie at one position by ImagePositionPatient, and {np.ptp(locations):.4g} mm apart by "
                "SliceLocation: one of them is damaged"
            )
    times, name = order_volumes(places, [dict(s.order) for s in slices])
    if not name:
        what = f"{per_place[0]} images at each of {count} positions" if count > 1 else f"all {total} images lie at one position"
        raise Fault(
            f"{what}: a time series, or several echoes or weightings, that no attribute orders (temporal position, b-value, "
            "echo time, acquisition time, instance number), or duplicate slices; put each volume into a folder of its own"
        )
    order = np.lexsort((places, times)).reshape(-1, count)
    return tuple(tuple(row.tolist()) for row in order), name


def _even_step(positions: np.ndarray, axes: np.ndarray, spacing: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """(the LPS vector from a slice to the next, its in-plane part where the stack is sheared) of slices along the normal.

    Args:
        positions: (n, 3) LPS, mm; no two at one place.

    Raises:
        Fault: a slice is missing or the spacing is not uniform.
    """
    count = len(positions)
    along = positions @ axes[2]
    gaps = np.diff(along)
    typical = float(np.median(gaps))
    inside = (positions - positions[0]) @ axes[:2].T  # (n, 2) in-plane drift, mm
    # Half a pixel over the stack is more than rounding.
    tolerance = max(0.5 * min(spacing), 0.05)
    drift = float(np.linalg.norm(inside[-1]))
    angle = np.degrees(np.arctan2(drift, along[-1] - along[0]))
    also = f"; gantry tilt as well ({angle:.1f} degrees)" if drift > tolerance else ""
    uneven = np.abs(gaps - typical) > max(0.1 * typical, 0.1 if typical > 0.4 else 0.0)
    if uneven.any():
        where = int(np.argmax(np.abs(gaps - typical)))
        ratio = gaps[where] / typical
        if bool(np.all(np.abs(gaps / typical - np.round(gaps / typical)) < 0.1)) and ratio > 1.5:
            missing = int((np.round(gaps / typical) - 1).sum())
            raise Fault(
                f"missing slices: {missing} between the {count} that are there (spacing {typical:.4g} mm, first "
                f"gap after slice {int(np.argmax(uneven)) + 1} along the normal){also}"
            )
        raise Fault(
            f"slice spacing is not uniform: from {gaps.min():.4g} to {gaps.max():.4g} mm; "
            f"slices {where + 1} and {where + 2} lie {gaps[where]:.4g} mm apart{also}"
        )
    step = (positions[-1] - positions[0]) / (count - 1)
    stray = np.abs(along - (along[0] + np.arange(count) * (step @ axes[2]))).max()
    if stray > 0.25 * typical:
        raise Fault(f"slice spacing is not uniform: a slice lies {as_spacing([stray])} off an even grid")
    if np.abs(inside).max() <= tolerance:
        return step, np.zeros(3)
    expected = np.arange(count)[:, None] * (inside[-1] / (count - 1))
    if np.abs(inside - expected).max() > tolerance:
        raise Fault(
            f"slices lie aside of each other by up to {np.abs(inside).max():.3g} mm, without the regularity of a gantry tilt"
        )
    return step, step - (step @ axes[2]) * axes[2]


def _grid_notes(positions: np.ndarray, axes: np.ndarray, step: np.ndarray, stated: float) -> tuple[str, ...]:
    """How far slices stray from the grid, and whether every second or third may be missing.

    Args:
        stated: SpacingBetweenSlices, mm, or 0.
    """
    notes = []
    along, gap = (positions - positions[0]) @ axes[2], abs(float(step @ axes[2]))
    stray = float(np.abs(along - np.linspace(0, along[-1], len(along))).max())
    if stray > max(0.02 * gap, 0.02):
        notes.append(f"slice positions stray by up to {as_spacing([stray])} from an even grid")
    times = gap / abs(stated) if stated else 0.0
    if times > 1.5 and abs(times - round(times)) < 0.05:
        notes.append(
            f"slices lie {gap:.4g} mm apart and SpacingBetweenSlices says {abs(stated):.4g}: some may be missing evenly"
        )
    return tuple(notes)
