"""A group of DICOM slices -> one volume, with a time axis where several share a place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import Dataset

from medfm.errors import DataError
from medfm.io.dataset import Header, integer, read_header
from medfm.io.dicom import bits_of, put, units
from medfm.io.dose import dose_units
from medfm.io.geometry import complete_axes, floats, patient_affine
from medfm.io.group import Series
from medfm.io.mosaic import untile
from medfm.io.pixels import decode_frames
from medfm.io.planes import Plane, drop_pixels, read_frames, read_plane, with_pixels
from medfm.io.quiet import reading
from medfm.io.slices import Slice
from medfm.io.tilt import unshear
from medfm.types import Image


def read_stack(
    series: Series, headers: dict[Path, Header], source: str, volume: int | None = None, tilt: str = "refuse"
) -> Image:
    """A stack, the frames of enhanced objects, or mosaics, as (i, j, k), with time and then colour last where there are any.

    Args:
        series: what `group` found, with its layout.
        headers: of its files, as far as they are at hand; emptied on the way.
        volume: the one volume wanted of several.
        tilt: "resample" shears a tilted stack back, "refuse" refuses it.

    Raises:
        DataError: the series has a fault, or a file cannot be decoded.
    """
    layout = series.layout
    if layout is None or (series.problem and not layout.tilted):
        raise DataError(f"'{source}': {series.problem}")
    if layout.tilted and tilt != "resample":
        raise DataError(f"'{source}': {layout.tilt_fault}")
    order = layout.order
    if volume is not None:
        if volume >= len(order):
            raise DataError(f"'{source}' holds volumes 0 to {len(order) - 1}, not {volume}")
        order = (order[volume],)
    reader = _Reader(series, headers, order)
    pixels, plane = reader.read()
    if len(order) > 1:
        _refuse_equal_volumes(pixels, source)
    notes = [*layout.notes, *_few(reader.notes)]
    position, step = layout.position, layout.step
    first = series.slices[order[0][0]]
    if first.step is not None:  # a mosaic
        step = np.array(first.step)
    if layout.tilted:
        if pixels.ndim == 5:
            raise DataError(f"'{source}': {layout.tilt_fault.split(';')[0]}; a stack in colour is not resampled")
        volumes = [unshear(one, layout) for one in pixels]
        pixels, position = np.stack([one for one, _ in volumes]), volumes[0][1]
        step = layout.step - layout.shear
        angle = np.degrees(np.arctan2(np.linalg.norm(layout.shear), np.linalg.norm(step)))
        notes.append(f"a gantry tilt of {angle:.1f} degrees was sheared back by linear interpolation")
    with reading(str(first.path)):
        kind, more = units(plane, pixels)
    colour = plane.photometric == "RGB"
    several = len(order) > 1
    array = pixels.transpose(3, 2, 1, 0, *range(4, pixels.ndim))  # (i, j, k, time[, 3]), a view
    last_axis = ("time, colour" if colour else "time") if several else ("colour" if colour else None)
    return Image(
        array=array if several else array[:, :, :, 0],
        affine=patient_affine(layout.axes, layout.spacing, step, position),
        modality=first.header.modality,
        intensity_units=kind,
        source=source,
        photometric=plane.photometric,
        windows=plane.windows,
        last_axis=last_axis,  # type: ignore[arg-type]
        bits_stored=reader.bits,
        notes=tuple(notes + more),
    )


class _Reader:
    """Decodes the wanted slices file by file, each file once, and puts them where they belong."""

    def __init__(self, series: Series, headers: dict[Path, Header], order: tuple[tuple[int, ...], ...]) -> None:
        self.first: Plane | None = None
        self.bits: int | None = None
        self.notes: list[str] = []
        self._headers = headers
        self._mosaic: Slice | None = series.slices[0] if series.slices[0].kind == "mosaic" else None
        self._size = (len(order), series.slices[0].count if self._mosaic else len(order[0]))
        # file -> {frame: (volume, slice)}, files in the order of their first slice
        self._wanted: dict[Path, dict[int | None, tuple[int, int]]] = defaultdict(dict)
        for time, row in enumerate(order):
            for place, number in enumerate(row):
                one = series.slices[number]
                self._wanted[one.path][one.frame] = (time, place)

    def read(self) -> tuple[np.ndarray, Plane]:
        """((time, slice, row, column[, 3]), the plane of the first slice)."""
        pixels: np.ndarray | None = None
        for path, places in self._wanted.items():
            header = self._headers.pop(path, None) or read_header(path)
            dataset = with_pixels(header)
            for frame, plane in self._planes(dataset, path, places):
                values = untile(plane.pixels, self._mosaic) if self._mosaic else plane.pixels
                if pixels is None:
                    ahead = self._size[:1] if self._mosaic else self._size
                    pixels = np.empty((*ahead, *values.shape), values.dtype)
                pixels = put(pixels, places[frame][0] if self._mosaic else places[frame], values, path)
                if places[frame] == (0, 0):
                    self.first, self.bits = plane, bits_of(dataset, plane)
                self.notes += [note for note in plane.notes if note not in self.notes]
            drop_pixels(dataset)
        if pixels is None or self.first is None:
            raise DataError("holds no slices")
        return pixels, self.first

    def _planes(
        self, dataset: Dataset, path: Path, places: dict[int | None, tuple[int, int]]
    ) -> Iterator[tuple[int | None, Plane]]:
        first = next((frame for frame, place in places.items() if place == (0, 0)), -1)
        if None in places:
            yield None, read_plane(dataset, str(path), first=first is None, writable=False)
            return
        yield from read_frames(dataset, str(path), [frame for frame in places if frame is not None], first)


def _few(notes: list[str]) -> list[str]:
    return [*notes[:3], *([f"and {len(notes) - 3} more notes on single slices"] if len(notes) > 3 else [])]


def _refuse_equal_volumes(pixels: np.ndarray, source: str) -> None:
    """Two equal volumes in a row are one that was stored twice, not two points in time. A blank one says nothing."""
    for number in range(1, len(pixels)):
        one, other = pixels[number - 1], pixels[number]
        if np.array_equal(one, other) and one.min() != one.max():
            raise DataError(
                f"'{source}': duplicate slices: volumes {number - 1} and {number} of the series are equal in every voxel"
            )


def read_dose(series: Series, headers: dict[Path, Header], source: str) -> Image:
    """A radiotherapy dose grid, in gray where the file says so.

    Raises:
        DataError: the file cannot be decoded, or its values are not finite.
    """
    one = series.slices[0]
    header = headers.pop(one.path, None) or read_header(one.path)
    dataset = with_pixels(header)
    planes = []
    with reading(str(one.path)):
        scale = floats(dataset, "DoseGridScaling")[0]
        for stored, photometric in decode_frames(dataset, str(one.path)):
            if photometric != "MONOCHROME2":
                raise DataError(f"'{one.path}': a radiotherapy dose whose pixels are {photometric}")
            planes.append((stored * scale).astype(np.float32))
        kind, notes = dose_units(dataset)
    values = np.stack(planes)
    if len(values) != one.count or not bool(np.isfinite(values).all()):
        raise DataError(f"'{one.path}': a radiotherapy dose whose values are not finite or whose planes are not all there")
    return Image(
        array=values.transpose(2, 1, 0),
        affine=patient_affine(complete_axes(one.cosines or ()), one.spacing, np.array(one.step), np.array(one.position)),
        modality=one.header.modality,
        intensity_units=kind,
        source=source,
        bits_stored=integer(dataset, "BitsStored") or None,
        notes=tuple(notes),
    )
