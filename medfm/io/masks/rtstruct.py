"""Radiotherapy contours (RTSTRUCT) -> `Mask`.

Contours are closed polygons in patient millimetres, each in the plane of a slice. A voxel belongs to a region where its centre
lies inside an odd number of the region's contours of that plane: a contour within another is a hole, and a keyhole
contour (outline, channel, hole, channel back) works as it is drawn. Source: DICOM PS3.3 C.8.8.6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from medfm.errors import DataError
from medfm.io.dataset import integer, text
from medfm.io.geometry import LPS_TO_RAS
from medfm.io.masks.grid import check_bytes
from medfm.io.masks.labels import check_only
from medfm.io.masks.polygon import cross, fill
from medfm.io.masks.source import check_frame
from medfm.io.quiet import reading
from medfm.types import Image, Mask

if TYPE_CHECKING:
    from pydicom import Dataset

_CLOSED = ("CLOSED_PLANAR", "CLOSED_PLANAR_XOR", "CLOSEDPLANAR", "CLOSEDPLANAR_XOR")
# A contour lies in a slice where it strays less than this from a plane, in slices.
_FLAT = 0.25


@dataclass
class _Region:
    """One region of interest: `contours` are (n, 3) LPS mm, or voxels once they are laid on the image."""

    number: int
    name: str
    frame: str
    contours: list[np.ndarray] = field(default_factory=list)
    xor: bool = False
    other: int = 0  # points and open lines, which enclose nothing


def read_rtstruct(dataset: Dataset, path: str, reference: Image, names: Mapping[int, str], only: Sequence[str]) -> Mask:
    """The closed contours of an RTSTRUCT on the grid of `reference`.

    Raises:
        DataError: no closed contours; another frame of reference; contours that do not lie in the image's slices, or all
            outside of it; damaged contours; a name in `only` is missing.
    """
    with reading(path):
        regions = _regions(dataset, path, names)
    notes = []
    points = sum(region.other for region in regions)
    if points:
        notes.append(f"{points} points and open lines enclose nothing and were left out")
    closed = [region for region in regions if region.contours]
    if not closed:
        raise DataError(f"'{path}' holds no closed contours, so that there is nothing to fill")
    if len(closed) < len(regions):
        notes.append(f"{len(regions) - len(closed)} of {len(regions)} regions have no closed contour and were left out")
    note = check_frame({region.frame for region in closed}, reference.source, path)
    here = _in_frame(closed, reference) if not note else closed
    notes += [note] if note else []
    if len(here) < len(closed):
        notes.append(f"{len(closed) - len(here)} regions of another frame of reference were left out")
    check_only(only, [region.name for region in here], path)
    here = [region for region in here if not only or region.name in only]
    check_bytes(len(here), reference.shape[:3], path)
    to_voxel = np.linalg.inv(reference.affine) @ LPS_TO_RAS
    for region in here:
        region.contours = [c @ to_voxel[:3, :3].T + to_voxel[:3, 3] for c in region.contours]
    axis = _slice_axis(here, reference, path)
    typical = _typical_gap(here, axis)
    total = sum(len(region.contours) for region in here)
    lost, clipped = _clip(here, reference.shape, axis)
    if clipped:
        notes.append(f"{clipped} of {total} contours reach beyond the image's edge and were clipped")
    # Slice by slice in memory, as it is filled.
    plane = [reference.shape[a] for a in range(3) if a != axis]
    array = np.zeros((len(here), reference.shape[axis], *plane), bool)
    for layer, region in zip(array, here, strict=True):
        if not region.contours:
            continue
        more, outside = _fill_region(layer, region, axis, typical)
        notes += more
        lost += outside
    if lost == total:
        raise DataError(f"'{path}' does not overlap the image: all {total} contours lie outside of it")
    if lost:
        notes.append(f"{lost} of {total} contours lie outside the image and were left out")
    return Mask(
        array=np.moveaxis(array, 1, 1 + axis),
        names=tuple(region.name for region in here),
        affine=reference.affine.copy(),
        source=path,
        notes=tuple(notes),
    )


def _in_frame(regions: list[_Region], reference: Image) -> list[_Region]:
    """The regions drawn in the image's frame of reference, which at least one of them is."""
    from medfm.io.masks.source import first_header, frame_of_reference

    header = first_header(reference.source)
    known = frame_of_reference(header) if header is not None else ""
    return [region for region in regions if region.frame in ("", known)]


def _regions(dataset: Dataset, path: str, names: Mapping[int, str]) -> list[_Region]:
    shared = [text(item, "FrameOfReferenceUID") for item in dataset.get("ReferencedFrameOfReferenceSequence") or []]
    regions = {}
    for item in dataset.get("StructureSetROISequence") or []:
        number = integer(item, "ROINumber")
        frame = text(item, "ReferencedFrameOfReferenceUID") or (shared[0] if len(set(shared)) == 1 else "")
        regions[number] = _Region(number, names.get(number) or text(item, "ROIName") or f"region {number}", frame)
    for item in dataset.get("ROIContourSequence") or []:
        number = integer(item, "ReferencedROINumber")
        if number not in regions:
            raise DataError(f"'{path}': contours refer to region number {number}, which StructureSetROISequence does not have")
        for contour in item.get("ContourSequence") or []:
            _add(contour, regions[number], path)
    return list(regions.values())


def _add(contour: Dataset, region: _Region, path: str) -> None:
    kind = text(contour, "ContourGeometricType").upper()
    points = _points(contour, region.number, path)
    if kind not in _CLOSED or len(points) < 3:
        region.other += 1
        return
    region.xor |= kind.endswith("XOR")
    region.contours.append(points)


def _points(contour: Dataset, number: int, path: str) -> np.ndarray:
    """(n, 3) LPS mm. Parsed from the bytes: a structure set holds millions of decimal strings."""
    from pydicom.dataelem import RawDataElement

    element = contour.get_item("ContourData") if "ContourData" in contour else None
    value = element.value if element is not None else None
    if value is None:
        return np.empty((0, 3))
    try:
        if isinstance(element, RawDataElement) and isinstance(value, bytes):
            numbers = np.array(value.replace(b"\0", b" ").split(b"\\"), dtype="S").astype(np.float64) if value.strip() else []
        else:
            numbers = np.array([float(v) for v in value], np.float64)
    except (TypeError, ValueError):
        raise DataError(f"'{path}': a contour of region number {number} holds something that is no number") from None
    numbers = np.asarray(numbers, np.float64)
    if len(numbers) % 3 or not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > 1e7:
        raise DataError(f"'{path}': a contour of region number {number} is damaged: no triples of millimetres")
    return numbers.reshape(-1, 3)


def _slice_axis(regions: list[_Region], reference: Image, path: str) -> int:
    """The image axis across which the contours are flat: k, unless the image's axes are turned."""
    spread = np.array([np.ptp(c, axis=0) for region in regions for c in region.contours])
    flat = spread < _FLAT
    whole = [axis for axis in (2, 1, 0) if flat[:, axis].all()]
    if whole:
        # A tiny contour may be flat in every direction: the largest extent tells the planes apart.
        return min(whole, key=lambda axis: (spread[:, axis].max(), axis != 2))
    best = int(np.argmax(flat.sum(0)))
    raise DataError(
        f"'{path}': {len(flat) - int(flat[:, best].sum())} of {len(flat)} contours do not lie in the image's slices; they were "
        "drawn on another orientation: load the series that they were drawn on"
    )


def _clip(regions: list[_Region], shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """Drop contours beside the image; (how many these are, how many of the others cross its edge)."""
    plane = [a for a in range(3) if a != axis]
    top = np.array([shape[a] for a in plane]) - 0.5
    lost, clipped = 0, 0
    for region in regions:
        kept = []
        for contour in region.contours:
            low, high = contour[:, plane].min(0), contour[:, plane].max(0)
            if (high < -0.5).any() or (low > top).any():
                lost += 1
                continue
            clipped += bool((low < -0.5).any() or (high > top).any())
            kept.append(contour)
        region.contours = kept
    return lost, clipped


def _planes(region: _Region, axis: int) -> dict[float, list[np.ndarray]]:
    """Contours (n, 2) in the other two axes by their place along `axis`, in slices; 0.05 slices apart is one place."""
    places = np.array([float(np.mean(c[:, axis])) for c in region.contours])
    order = np.argsort(places, kind="stable")
    planes: dict[float, list[np.ndarray]] = {}
    last = -np.inf
    for n in order:
        if places[n] - last > 0.05:
            last = float(places[n])
            planes[last] = []
        planes[last].append(np.delete(region.contours[n], axis, axis=1))
    return planes


def _typical_gap(regions: list[_Region], axis: int) -> float:
    """Slices from one contour plane to the next: 1 where contours were drawn on this image, else what most planes have.

    Only distances that repeat count, since two planes far apart are two regions, not one thick slab.
    """
    gaps = np.concatenate([np.diff(list(_planes(region, axis))) for region in regions] or [np.empty(0)])
    if not len(gaps):
        return 1.0
    typical = float(np.median(gaps))
    return typical if int((np.abs(gaps - typical) < 0.1 * typical).sum()) >= 2 else 1.0


def _fill_region(layer: np.ndarray, region: _Region, axis: int, typical: float) -> tuple[list[str], int]:
    """Fill `layer`, (slices, a, b), in place: each slice from the nearest contour plane within half a gap.

    Returns:
        notes and the number of contours on planes that no slice is near to.
    """
    planes = _planes(region, axis)
    places = np.array(list(planes))
    reach = 0.5 * max(1.0, typical)
    shape = (layer.shape[1], layer.shape[2])
    used: dict[int, int] = {}
    crossed, copies = False, 0
    filled: dict[int, np.ndarray] = {}
    for number in range(len(layer)):
        # Half open, and rounded so that digits do not decide: of two planes as near the lower is taken, and a plane midway
        # between two slices goes to the upper.
        away = np.round(number - places, 3)
        near = int(np.argmin(np.abs(away)))
        if not -reach + 0.005 < away[near] < reach + 0.005:
            continue
        if near not in filled:
            contours = planes[float(places[near])]
            kept = contours if region.xor else _without_copies(contours)
            copies += len(contours) - len(kept)
            crossed |= not region.xor and len(kept) > 1 and cross(kept, shape)
            filled = {near: fill(kept, shape)}
        layer[number] = filled[near]
        used[near] = used.get(near, 0) + 1
    return _region_notes(region.number, planes, used, layer, crossed, copies, typical)


def _region_notes(
    number: int,
    planes: dict[float, list[np.ndarray]],
    used: dict[int, int],
    layer: np.ndarray,
    crossed: bool,
    copies: int,
    typical: float,
) -> tuple[list[str], int]:
    notes = []
    counts = [len(contours) for contours in planes.values()]
    first, last = (min(used), max(used)) if used else (0, -1)
    skipped = [n for n in range(first, last + 1) if n not in used]
    outside = sum(counts[n] for n in range(len(counts)) if n not in used and n not in skipped)
    if copies:
        notes.append(f"region {number}: {copies} contours occur twice and were taken once")
    if crossed:
        notes.append(f"region {number}: contours of one plane cross each other; where two overlap counts as outside (even-odd)")
    if skipped:
        notes.append(f"region {number}: contours are finer than the slices; the nearest of them were taken")
    if any(times > 1 for times in used.values()):
        notes.append(f"region {number}: contours lie {typical:.3g} slices apart; each was taken for the slices nearest to it")
    marked = np.flatnonzero(layer.any((1, 2)))
    if len(marked):
        empty = int(marked[-1] - marked[0] + 1 - len(marked))
        if empty:
            notes.append(f"region {number}: {empty} slices between its first and last contour have none and stay empty")
    off = max((abs(place - round(place)) for n, place in enumerate(planes) if n in used), default=0.0)
    if off > 0.1 and not skipped:
        notes.append(f"region {number}: contours lie up to {off:.2g} slices off the slices they were laid on")
    if used and not len(marked):
        notes.append(f"region {number}: its contours enclose no voxel's centre or lie beside the image; its layer is empty")
    return notes, outside


def _without_copies(contours: list[np.ndarray]) -> list[np.ndarray]:
    """Each contour once: exported twice, it would cancel itself out."""
    if len(contours) < 2:
        return contours
    seen: dict[tuple[tuple[float, float], ...], np.ndarray] = {}
    for contour in contours:
        seen.setdefault(tuple(sorted((float(a), float(b)) for a, b in np.round(contour, 3))), contour)
    return list(seen.values())
