"""The images that DICOM files are made of: one per single-frame file, one per frame of an enhanced object, each with its place.

A `Slice` is small and holds no pydicom object, so that thousands are kept in memory and pass between processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medfm.errors import DataError
from medfm.io.contrast import kernel_of, scale_of
from medfm.io.dataset import image_type, integer, text
from medfm.io.geometry import floats, pixel_spacing, place_of
from medfm.io.header import ImageHeader
from medfm.io.objects import Kind, header_of, is_scout, kind_of, thickness_of
from medfm.io.quiet import reading
from medfm.io.volume4d import order_values

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True, slots=True)
class Slice:
    """One image of a file and its place.

    Attributes:
        frame: its number in the file from 0; None where the file is taken as a whole (one image, a cine, a mosaic, ...).
        kind: what the file is, see `objects.kind_of`.
        rows, columns: of the image; of one tile for a mosaic.
        cosines: six direction cosines (LPS) of a row and a column; None where the file has no usable ones.
        position: LPS, mm, of the first voxel; None where the file has no usable one.
        spacing: (row, column) spacing, mm; (0, 0) where unknown.
        fault: what is damaged in its place or spacing, "" for sound ones.
        location: SliceLocation, which only serves to catch positions that cannot be true.
        order: what could order volumes that lie at one place, see `volume4d.order_values`.
        image_type: values of ImageType or FrameType from the third on.
        scale, kernel: what its values mean, see `contrast.scale_of`, and the CT kernel.
        gap: SpacingBetweenSlices, mm, or 0, which only serves to notice that slices are left out.
        parts: files that the concatenation counts which this one belongs to; 1 for files of their own.
        count, step: images inside a mosaic or a dose, and the LPS vector, mm, from one to the next.
    """

    path: Path
    frame: int | None
    kind: Kind
    header: ImageHeader
    rows: int = 0
    columns: int = 0
    cosines: tuple[float, ...] | None = None
    position: tuple[float, ...] | None = None
    spacing: tuple[float, float] = (0.0, 0.0)
    spacing_note: str = ""
    thickness: float = 0.0
    location: float | None = None
    fault: str = ""
    frame_of_reference: str = ""
    scout: bool = False
    image_type: tuple[str, ...] = ()
    order: tuple[tuple[str, float], ...] = ()
    scale: tuple[str, ...] = ()
    kernel: str = ""
    gap: float = 0.0
    parts: int = 1
    count: int = 1
    step: tuple[float, ...] | None = None

    @property
    def placed(self) -> bool:
        return self.cosines is not None and self.position is not None

    def __repr__(self) -> str:
        return f"Slice({str(self.path)!r}, {self.frame}, {self.kind})"


def slices_of(dataset: Dataset, path: Path) -> tuple[Slice, ...]:
    """The slices of one file.

    Raises:
        DataError: the header is damaged.
    """
    with reading(str(path)):
        kind, problem = kind_of(dataset)
        header = header_of(dataset)
        whole = Slice(path, None, kind, header, scout=is_scout(dataset), image_type=image_type(dataset)[2:])
        if header.shape is None or problem:
            return (whole,)
        columns, rows = header.shape[:2]
        whole = replace(whole, rows=rows, columns=columns, order=order_values(dataset))
        if kind == "plane" or kind == "cine":
            return (_placed(whole, dataset, dataset),)
        try:
            if kind == "frames":
                return tuple(_frames(whole, dataset))
            placed = _placed(whole, dataset, dataset)
            if kind == "mosaic":
                from medfm.io.mosaic import mosaic_slice

                return (mosaic_slice(placed, dataset),)
            if kind == "dose":
                from medfm.io.dose import dose_slice

                return (dose_slice(placed, dataset),)
        except DataError as error:
            return (replace(whole, header=replace(header, problem=str(error))),)
    return (placed,)


def _placed(plain: Slice, dataset: Dataset, group: Dataset) -> Slice:
    """`plain` with the geometry of `group`: the dataset itself, or the merged functional groups of a frame."""
    problem, note = "", ""
    axes, position, spacing = None, None, (0.0, 0.0)
    try:
        axes, position = place_of(group)
        spacing, note = pixel_spacing(group)
        if axes is not None and spacing[0] <= 0 and plain.kind == "plane":
            raise DataError("it has a position and no pixel spacing, so its size is not known")
    except DataError as error:
        problem = str(error)
    return replace(
        plain,
        fault=problem,
        cosines=None if axes is None else tuple(axes[:2].ravel().tolist()),
        position=position,
        spacing=spacing,
        spacing_note=note,
        thickness=thickness_of(group),
        location=next(iter(floats(group, "SliceLocation")), None),
        frame_of_reference=text(dataset, "FrameOfReferenceUID"),
        scale=scale_of(group, dataset),
        kernel=kernel_of(dataset),
        gap=next(iter(floats(group, "SpacingBetweenSlices")), 0.0),
        parts=max(1, integer(dataset, "InConcatenationTotalNumber")),
    )


def _frames(whole: Slice, dataset: Dataset) -> Iterator[Slice]:
    from medfm.io.multiframe import frame_groups

    for number, group in enumerate(frame_groups(dataset)):
        placed = _placed(replace(whole, frame=number), dataset, group)
        kinds = image_type(group, "FrameType")[2:] or whole.image_type
        part = text(group, "ComplexImageComponent")
        # Values that only the file has (its own acquisition time) order frames of several files.
        order = dict(whole.order) | dict(order_values(group))
        order["InstanceNumber"] = order.get("InstanceNumber", 0.0) * 1e6 + number
        yield replace(placed, image_type=(*kinds, part) if part else kinds, order=tuple(order.items()))
