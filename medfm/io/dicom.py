"""One DICOM file <-> `Image` or `ImageHeader`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from medfm.errors import DataError
from medfm.io.dataset import Header, code, frame_count, has_magic, integer, read_dataset, read_header
from medfm.io.geometry import film_affine, floats, patient_affine, pixel_spacing, place_of, view_of
from medfm.io.header import ImageHeader
from medfm.io.objects import age_in_years, header_of, is_enhanced, kind_of
from medfm.io.pixels import reduction
from medfm.io.planes import Plane, meanings, read_frames, read_plane, with_pixels
from medfm.io.quiet import reading
from medfm.io.slices import slices_of
from medfm.io.values import units_of
from medfm.types import Image, IntensityUnits

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["age_in_years", "has_magic", "peek_dicom", "read_dataset", "read_file"]

# mm; beyond these a slice thickness is damaged
_THINNEST, _THICKEST = 1e-3, 1e3


def peek_dicom(path: str | Path) -> ImageHeader:
    """The header of one DICOM file.

    Raises:
        DataError: the file is missing or no DICOM.
    """
    from medfm.io.group import choose_main, group_slices

    path = Path(path)
    dataset = read_header(path).dataset
    with reading(str(path)):
        header = header_of(dataset)
    if header.problem:
        return header
    found = group_slices(slices_of(dataset, path))
    main, reason = choose_main(found)
    return main.header if main is not None else replace(header, problem=reason)


def read_file(
    path: str | Path,
    selectors: dict[str, str] | None = None,
    tilt: Literal["refuse", "resample"] = "refuse",
    min_size: tuple[int, int] | None = None,
) -> Image:
    """One DICOM file as an Image: a film or a slice, a cine, or the volume of a multi-frame object, a mosaic or a dose.

    Args:
        selectors: as `split_reference` gives them.
        tilt, min_size: as for `load_image`.

    Raises:
        DataError: the file cannot be read as one image; the sentence names the reason.
    """
    path, selectors = Path(path), selectors or {}
    header = read_header(path)
    with reading(str(path)):
        kind, problem = kind_of(header.dataset)
    if problem:
        raise DataError(f"'{path}' {problem}")
    if kind != "plane" or selectors:
        from medfm.io.folder import read_reference

        return read_reference(path, selectors, tilt)
    return read_single(header, min_size)


def read_single(header: Header, min_size: tuple[int, int] | None = None, volume: int | None = None) -> Image:
    """A film, a lone slice or a cine.

    Raises:
        DataError: as `read_file`.
    """
    path = header.path
    dataset = with_pixels(header)
    with reading(str(path)):
        frames = frame_count(dataset)
        meaning = next(meanings(dataset, str(path)))
        place = meaning if is_enhanced(dataset) and pixel_spacing(meaning)[0][0] > 0 else dataset
        shrink = 0
        if frames == 1 and kind_of(dataset)[0] == "plane":
            shrink = _halvings(dataset, path, min_size)
            first = read_plane(dataset, str(path), shrink)
            pixels = first.pixels[None]
        else:
            first, pixels = _sequence(dataset, path, frames, volume)
        kind, notes = units(first, pixels)
        affine, oriented, spaced, more = _single_affine(place, path)
        modality, bits, view = code(dataset, "Modality") or "OT", bits_of(dataset, first), view_of(dataset)
        if shrink:
            rows, columns = pixels.shape[1:3]
            # Low-pass samples of a wavelet lie on every second pixel, from the first one on.
            affine = affine @ np.diag([2.0**shrink, 2.0**shrink, 1.0, 1.0])
            more = [*more, f"decoded at 1/{2**shrink} of its resolution, {columns} x {rows} pixels"]
        if frames > 1:
            more = [*more, *_sequence_notes(dataset)]
    colour = first.photometric == "RGB"
    # (time, rows, columns[, 3]) -> (i = column, j = row, k, time[, 3]); a view, so that going back costs nothing.
    array = pixels.transpose(2, 1, 0, *range(3, pixels.ndim))
    last_axis = "colour" if colour else None
    if frames > 1 and volume is None:
        array = array[:, :, None]
        last_axis = "time, colour" if colour else "time"
    return Image(
        array=array,
        affine=affine,
        modality=modality,
        intensity_units=kind,
        source=str(path),
        photometric=first.photometric,
        windows=first.windows,
        last_axis=last_axis,  # type: ignore[arg-type]
        oriented=oriented,
        spaced=spaced,
        bits_stored=bits,
        view=view,
        notes=tuple(first.notes + notes + more),
    )


def _sequence(dataset: Dataset, path: Path, frames: int, volume: int | None) -> tuple[Plane, np.ndarray]:
    """(the first plane, (time, rows, columns[, 3])) of a cine."""
    if volume is not None and volume >= frames:
        raise DataError(f"'{path}' holds frames 0 to {frames - 1}, not {volume}")
    first: Plane | None = None
    pixels = np.empty(0)
    wanted = [volume] if volume is not None else list(range(frames))
    for place, (_, plane) in enumerate(read_frames(dataset, str(path), wanted, wanted[0])):
        if first is None:
            first, pixels = plane, np.empty((len(wanted), *plane.pixels.shape), plane.pixels.dtype)
        pixels = put(pixels, place, plane.pixels, path)
    if first is None:
        raise DataError(f"'{path}' holds no frames")
    return first, pixels


def put(pixels: np.ndarray, place: int | tuple[int, int], plane: np.ndarray, path: Path) -> np.ndarray:
    """`pixels` with `plane` at `place`; where their own rescale gives planes another dtype, in one that holds them all.

    Raises:
        DataError: the plane has another size than the first.
    """
    if plane.shape != pixels.shape[-plane.ndim :]:
        raise DataError(f"'{path}': its pixels have the shape {plane.shape}, those before {pixels.shape[-plane.ndim :]}")
    if plane.dtype != pixels.dtype:
        mixed = np.promote_types(pixels.dtype, plane.dtype)
        pixels = pixels.astype(np.float32 if mixed.kind == "f" else mixed, copy=False)
    pixels[place] = plane
    return pixels


def _sequence_notes(dataset: Dataset) -> list[str]:
    """What the frames follow: time for a cine, detectors or angles for nuclear medicine."""
    from pydicom.datadict import keyword_for_tag

    pointer = dataset.get("FrameIncrementPointer")
    tags = pointer if isinstance(pointer, list | tuple) or type(pointer).__name__ == "MultiValue" else [pointer]
    names = [keyword_for_tag(int(tag)) for tag in tags if tag]
    if not names and not is_enhanced(dataset) and not floats(dataset, "FrameTime"):
        return ["the file does not say what its frames follow; they were taken as points in time"]
    return [f"frames follow {', '.join(names)}"] if names and names != ["FrameTime"] else []


def _halvings(dataset: Dataset, path: Path, min_size: tuple[int, int] | None) -> int:
    """How often a film may be halved and keep `min_size`. Padding would bleed into its neighbours: then never."""
    return 0 if min_size is None or "PixelPaddingValue" in dataset else reduction(dataset, str(path), min_size)


def units(plane: Plane, pixels: np.ndarray) -> tuple[IntensityUnits, list[str]]:
    """Units of `pixels` (the whole series) as the header of its first plane says, and notes."""
    kind, note = units_of(plane.meaning, pixels, plane.photometric, bool(plane.windows))
    return kind, [note] if note else []


def bits_of(dataset: Dataset, plane: Plane) -> int | None:
    if plane.photometric == "RGB" and plane.pixels.dtype == np.uint8:
        return 8
    return integer(dataset, "BitsStored") or None


def _single_affine(dataset: Dataset, path: Path) -> tuple[np.ndarray, bool, bool, list[str]]:
    """(affine, oriented, spaced, notes) of a single image.

    Raises:
        DataError: its place or spacing is damaged.
    """
    try:
        axes, position = place_of(dataset)
        spacing, note = pixel_spacing(dataset)
    except DataError as error:
        raise DataError(f"'{path}': {error}") from None
    notes = [note] if note else []
    spaced = spacing[0] > 0
    if not spaced:
        spacing = (1.0, 1.0)
        ratio = floats(dataset, "PixelAspectRatio")  # vertical, horizontal
        if len(ratio) == 2 and ratio[0] != ratio[1]:
            notes.append(f"pixels are not square (PixelAspectRatio {ratio[0]:g}:{ratio[1]:g}), but their size is not known")
    if axes is None or position is None:
        affine, oriented = film_affine(dataset, spacing)
        return affine, oriented, spaced, notes
    if not spaced and frame_count(dataset) == 1:
        raise DataError(f"'{path}': it has a position and no pixel spacing, so its size is not known")
    # A lone slice has no neighbour to measure its distance from.
    thickness = (floats(dataset, "SpacingBetweenSlices") or floats(dataset, "SliceThickness") or [0.0])[0]
    if not _THINNEST <= thickness <= _THICKEST:
        thickness = 1.0
        notes.append("the file gives no usable slice thickness; 1 mm is a placeholder")
    return patient_affine(axes, spacing, axes[2] * thickness, np.array(position)), True, spaced, notes
