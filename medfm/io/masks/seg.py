"""DICOM SEG -> `Mask`: binary, fractional and label map segmentations.

Frames are placed by their position in the patient, never by their number: SEGs leave empty frames out, and order them as they
like. Source: DICOM PS3.3 A.51 and C.8.20 (Supplement 243 for label maps).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medfm.errors import DataError
from medfm.io.dataset import frame_count, integer, text
from medfm.io.geometry import LPS_TO_RAS, directions, floats, patient_affine, pixel_spacing
from medfm.io.layout import check_size
from medfm.io.masks.grid import check_bytes, place
from medfm.io.masks.labels import check_only
from medfm.io.masks.source import check_frame, first_header, frame_of_reference
from medfm.io.pixels import decode_frames
from medfm.io.quiet import reading
from medfm.types import Image, Mask

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True)
class _Stack:
    """Where frames lie: an even stack of slices.

    Attributes:
        slices: for each frame its slice, from 0.
        count: slices from the first to the last that a frame uses.
        affine: (4, 4) RAS+ mm of (column, row, slice).
    """

    slices: np.ndarray
    count: int
    affine: np.ndarray


def read_seg(dataset: Dataset, path: str, reference: Image, names: Mapping[int, str], only: Sequence[str]) -> Mask:
    """The segments of a SEG on the grid of `reference`.

    Raises:
        DataError: no segments; another frame of reference; frames that are turned or shifted against each other, lie unevenly
            or occur twice; no overlap with the image; damaged pixels.
    """
    with reading(path):
        kind = _kind(dataset, path)
        named, background = _segments(dataset, path, names)
        check_only(only, named.values(), path)
        kept = [number for number, name in named.items() if not only or name in only]
        owner = _frame_segments(dataset, kind, named, path)
        check_size(dataset, path)
        notes = [check_frame({frame_of_reference(dataset)}, reference.source, path)]
        stack = _stack(dataset, reference, path)
    columns, rows = integer(dataset, "Columns"), integer(dataset, "Rows")
    if stack is None:
        notes = [_check_film(dataset, reference, path)]
        stack = _Stack(np.zeros(len(owner), int), 1, reference.affine)
    check_bytes(len(kept), (columns, rows, stack.count), path)
    layers = np.zeros((len(kept), stack.count, rows, columns), bool)
    done: set[tuple[int, int]] = set()
    for frame, number, pixels in _decoded(dataset, owner, kind, kept, background, path):
        where = (kept.index(number), int(stack.slices[frame]))
        if where in done:
            raise DataError(f"'{path}': segment {number} has two frames at one position; a SEG over time is not read")
        done.add(where)
        layers[where] = pixels
    if kind == "FRACTIONAL":
        notes.append("a fractional segmentation was cut at half of its largest value")
    array, more = place(layers.transpose(0, 3, 2, 1), stack.affine, reference.shape, reference.affine, path)
    return Mask(
        array=array,
        names=tuple(named[number] for number in kept),
        affine=reference.affine.copy(),
        source=path,
        notes=tuple(note for note in [*notes, *more] if note),
    )


def _kind(dataset: Dataset, path: str) -> str:
    kind = text(dataset, "SegmentationType").upper()
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise DataError(f"'{path}': SegmentationType is missing or unknown; BINARY, FRACTIONAL and LABELMAP are readable")
    if "TotalPixelMatrixRows" in dataset:
        raise DataError(f"'{path}' segments a whole-slide image, whose tiles are not put together here")
    return kind


def _segments(dataset: Dataset, path: str, names: Mapping[int, str]) -> tuple[dict[int, str], int]:
    """({segment number: name}, ascending, without the background; the background's number)."""
    background = integer(dataset, "PixelPaddingValue")
    found: dict[int, str] = {}
    for item in dataset.get("SegmentSequence") or []:
        number = integer(item, "SegmentNumber")
        if number in found:
            raise DataError(f"'{path}': segment number {number} is described twice")
        meaning = [text(code, "CodeMeaning") for code in item.get("SegmentedPropertyTypeCodeSequence") or []]
        found[number] = names.get(number) or text(item, "SegmentLabel") or " ".join(meaning) or f"segment {number}"
    found.pop(background, None)
    if not found:
        raise DataError(f"'{path}' describes no segments (SegmentSequence is empty)")
    return dict(sorted(found.items())), background


def _groups(dataset: Dataset, path: str) -> tuple[Dataset | None, list[Dataset]]:
    """(the shared functional groups, those of each frame)."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    each = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if len(each) != frame_count(dataset):
        raise DataError(f"'{path}': NumberOfFrames is {frame_count(dataset)}, but {len(each)} frames are described")
    return shared, each


def _group(name: str, shared: Dataset | None, frame: Dataset) -> Dataset | None:
    """One functional group of a frame, its own or the shared one."""
    for item in (frame, shared):
        if item is not None and item.get(name):
            return item.get(name)[0]
    return None


def _frame_segments(dataset: Dataset, kind: str, named: Mapping[int, str], path: str) -> list[int]:
    """The segment number of each frame; 0 for the frames of a label map, which hold them all."""
    shared, each = _groups(dataset, path)
    if kind == "LABELMAP":
        return [0] * len(each)
    owner = []
    for number, frame in enumerate(each, start=1):
        group = _group("SegmentIdentificationSequence", shared, frame)
        segment = integer(group, "ReferencedSegmentNumber") if group is not None else 0
        if segment not in named:
            raise DataError(f"'{path}': frame {number} names no segment, or one that SegmentSequence does not describe")
        owner.append(segment)
    return owner


def _stack(dataset: Dataset, reference: Image, path: str) -> _Stack | None:
    """Where the frames lie; None where none has a position.

    Raises:
        DataError: some have none, or they differ in orientation or pixel spacing, or lie on no even stack.
    """
    shared, each = _groups(dataset, path)
    positions, turns, measures = [], [], []
    groups = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    for frame in each:
        where, turn, measure = (_group(name, shared, frame) for name in groups)
        position = floats(where, "ImagePositionPatient") if where is not None else []
        if len(position) == 3 and turn is not None and measure is not None:
            positions.append(position)
            turns.append(turn)
            measures.append(measure)
    if not positions:
        return None
    if len(positions) < len(each):
        raise DataError(f"'{path}': {len(each) - len(positions)} of {len(each)} frames have no place in space")
    axes, spacing = directions(turns[0]), pixel_spacing(measures[0])[0]
    if axes is None or spacing[0] <= 0:
        raise DataError(f"'{path}': its frames have no usable orientation or pixel spacing")
    for turn, measure in zip(turns[1:], measures[1:], strict=True):
        if turn is not turns[0]:
            other = directions(turn)
            if other is None or (other[:2] * axes[:2]).sum(1).min() < np.cos(np.radians(0.5)):
                raise DataError(f"'{path}': its frames differ in orientation, so that they make no volume")
        if measure is not measures[0] and not np.allclose(pixel_spacing(measure)[0], spacing, rtol=1e-3):
            raise DataError(f"'{path}': its frames differ in pixel spacing")
    return _lattice(np.array(positions), axes, spacing, measures[0], reference, path)


def _lattice(
    positions: np.ndarray, axes: np.ndarray, spacing: tuple[float, float], measures: Dataset, reference: Image, path: str
) -> _Stack:
    """Number the slices: on the image's own slices where the frames lie on them, else on an even stack of their own."""
    along = positions @ axes[2]
    step = _own_step(along, measures, path)
    numbers = np.rint((along - along.min()) / step)
    for axis in range(3):
        edge = LPS_TO_RAS[:3, :3] @ reference.affine[:3, axis]
        height = float(edge @ axes[2])
        if abs(height) < np.cos(np.radians(0.5)) * np.linalg.norm(edge):
            continue
        # Frames sparser than the image's slices would be thickened to fill the gaps between them.
        exact = (along - float(LPS_TO_RAS[:3, :3] @ reference.affine[:3, 3] @ axes[2])) / abs(height)
        if np.abs(exact - np.rint(exact)).max() < 0.25:
            numbers, step = np.rint(exact), abs(height)
    numbers = numbers - numbers.min()
    if not numbers.max() < 2**20:
        raise DataError(f"'{path}': its frames lie up to {np.ptp(along):.3g} mm apart")
    numbers = numbers.astype(int)
    count = int(numbers.max()) + 1
    first = positions[numbers == 0].mean(0)
    edge = axes[2] * step
    if count > 1:
        # The slope of position on slice number: oblique to the frames where the scanner was tilted.
        centred = numbers - numbers.mean()
        edge = centred @ positions / (centred @ centred)
    stray = positions - first - numbers[:, None] * edge
    if np.abs(stray @ axes[2]).max() > 0.3 * step or np.abs(stray @ axes[:2].T).max() > max(0.5 * min(spacing), 0.05):
        raise DataError(f"'{path}': its frames are shifted against each other and lie on no even stack of slices")
    return _Stack(numbers, count, patient_affine(axes, spacing, edge, first))


def _own_step(along: np.ndarray, measures: Dataset, path: str) -> float:
    """Millimetres from slice to slice."""
    gaps = np.diff(np.unique(np.round(along, 3)))
    stated = [v for v in floats(measures, "SpacingBetweenSlices")[:1] if v > 0]
    if not len(gaps):
        return (stated or [v for v in floats(measures, "SliceThickness")[:1] if v > 0] or [1.0])[0]
    for step in (*stated, float(np.sort(gaps)[(len(gaps) - 1) // 2])):
        ratio = gaps / step
        if np.abs(ratio - np.rint(ratio)).max() < 0.1 and ratio.min() > 0.5:
            return step
    raise DataError(f"'{path}': its frames lie unevenly, from {gaps.min():.4g} to {gaps.max():.4g} mm apart")


def _check_film(dataset: Dataset, reference: Image, path: str) -> str:
    """A note; refuses a SEG without positions that is not of this very film."""
    size = (integer(dataset, "Columns"), integer(dataset, "Rows"), 1)
    if reference.shape[:3] != size:
        raise DataError(f"'{path}': its frames have no position, and their size is not that of the image")
    header = first_header(reference.source)
    with reading(path):
        meant = set(_referenced(dataset))
        known = text(header, "SOPInstanceUID") if header is not None else ""
    if known and meant and known not in meant:
        raise DataError(f"'{path}' was drawn on another image than '{reference.source}', and its frames have no position")
    return "" if known and meant else "the mask's frames have no position; they were laid on the image pixel on pixel"


def _referenced(dataset: Dataset) -> Iterator[str]:
    """SOPInstanceUIDs of the images that the frames were drawn on."""
    shared, each = (dataset.get("SharedFunctionalGroupsSequence") or []), dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*shared, *each):
        for derivation in group.get("DerivationImageSequence") or []:
            for source in derivation.get("SourceImageSequence") or []:
                yield text(source, "ReferencedSOPInstanceUID")
    for series in dataset.get("ReferencedSeriesSequence") or []:
        for source in series.get("ReferencedInstanceSequence") or []:
            yield text(source, "ReferencedSOPInstanceUID")


def _decoded(
    dataset: Dataset, owner: list[int], kind: str, kept: list[int], background: int, path: str
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(frame, segment number, (rows, columns) bool) of the frames that hold something of the segments in `kept`."""
    top = integer(dataset, "MaximumFractionalValue") or 255
    if text(dataset, "PhotometricInterpretation") == "PALETTE COLOR":
        dataset.PhotometricInterpretation = "MONOCHROME2"  # the palette only colours labels
    for frame, (stored, _) in enumerate(decode_frames(dataset, path)):
        if kind == "LABELMAP":
            for number in np.unique(stored).tolist():
                if number in kept:
                    yield frame, number, stored == number
                elif number not in (background, 0) and number not in _described(dataset):
                    raise DataError(f"'{path}': label {number} occurs in its pixels, but SegmentSequence does not describe it")
        elif owner[frame] in kept:
            yield frame, owner[frame], stored > 0 if kind == "BINARY" else stored.astype(np.int64) * 2 >= top


def _described(dataset: Dataset) -> set[int]:
    return {integer(item, "SegmentNumber") for item in dataset.SegmentSequence}
