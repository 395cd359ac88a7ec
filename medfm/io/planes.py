"""Decoded images with physical values, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medfm.errors import DataError
from medfm.io.dataset import PIXEL_KEYWORDS, Header, is_encapsulated, read_dataset, sop_name, text
from medfm.io.geometry import floats, is_empty
from medfm.io.multiframe import frame_groups
from medfm.io.objects import is_enhanced
from medfm.io.pixels import decode, decode_frames
from medfm.io.quiet import reading
from medfm.io.raw import has
from medfm.io.values import replace_padding, to_physical, windows_of
from medfm.types import Photometric, Window

if TYPE_CHECKING:
    from pydicom import Dataset

_PIXEL_VRS = (b"OB", b"OW", b"OF", b"OD", b"OV", b"UN")
# What the values of a frame mean where its functional groups do not say, and what its units are judged by.
_MEANING = (
    "Modality",
    "ImageType",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelRepresentation",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    "Units",
    "SUVType",
    "PresentationIntentType",
    "PresentationLUTShape",
    "RealWorldValueMappingSequence",
)


@dataclass
class Plane:
    """One decoded image: pixels (rows, columns) or (rows, columns, 3) of physical values, what was recorded on the way, and the
    attributes that gave the values their meaning.
    """

    pixels: np.ndarray
    photometric: Photometric
    windows: tuple[Window, ...]
    notes: list[str]
    meaning: Dataset


def with_pixels(header: Header) -> Dataset:
    """The header's dataset with its pixel data, which are read now.

    Raises:
        DataError: the file holds none, or can no longer be read.
    """
    dataset = header.dataset
    if any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        return dataset
    with reading(str(header.path)):
        packed = is_encapsulated(dataset, str(header.path))
    if header.pixels_at is None or packed:
        dataset = read_dataset(header.path)
    else:
        _attach_native(dataset, header)
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        raise DataError(f"'{header.path}' holds no pixels ({sop_name(dataset)})")
    return dataset


def _attach_native(dataset: Dataset, header: Header) -> None:
    """Read an uncompressed pixel data element from where the header ended."""
    from pydicom.filereader import data_element_generator

    path = header.path
    try:
        with open(path, "rb") as file:
            file.seek(header.pixels_at or 0)
            _, little = dataset.original_encoding
            # The element itself says whether it has a VR, some headers lie; a length that reads as one would be odd.
            implicit = file.read(6)[4:] not in _PIXEL_VRS
            file.seek(header.pixels_at or 0)
            element = next(data_element_generator(file, implicit, bool(little)), None)
            tail = file.read(4)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or type(error).__name__}") from None
    except Exception as error:
        raise DataError(f"'{path}': its pixel data are damaged ({type(error).__name__})") from None
    # Some writers fill the last block of a file with zeros; anything else that is no later element is damage.
    if len(tail) == 4 and any(tail) and int.from_bytes(tail[:2], "little" if little else "big") < 0x7FE0:
        raise DataError(f"'{path}': after its pixel data follow bytes that are no DICOM; the file is damaged")
    if element is not None and element.tag.group == 0x7FE0:
        dataset._dict[element.tag] = element  # a raw element, as dcmread stores it


def drop_pixels(dataset: Dataset) -> None:
    """Free the pixel data, so that a series is not held twice."""
    for keyword in PIXEL_KEYWORDS:
        if keyword in dataset:
            del dataset[keyword]


def meanings(dataset: Dataset, path: str) -> Iterator[Dataset]:
    """For each frame the attributes that say what its values mean; the dataset itself for single images.

    Raises:
        DataError: a frame's rescale is empty, or the functional groups do not fit the frames.
    """
    if not is_enhanced(dataset):
        while True:
            yield dataset
    from pydicom.dataset import Dataset

    for group in frame_groups(dataset):  # its count was checked by the grouping
        merged = Dataset()
        merged.file_meta = dataset.file_meta
        for keyword in _MEANING:
            if keyword in dataset:
                merged[keyword] = dataset[keyword]
        merged.update(group)
        for keyword in ("RescaleSlope", "RescaleIntercept"):
            if has(group, keyword) and is_empty(group, keyword):
                raise DataError(f"'{path}': a frame's {keyword} is empty")
        yield merged


def read_plane(dataset: Dataset, path: str, reduce: int = 0, first: bool = True, writable: bool = True) -> Plane:
    """Decode the one image of `dataset` and make its values physical.

    Args:
        reduce, writable: as for `decode`.
        first: False leaves out the windows, which a stack takes from its first image.

    Raises:
        DataError: as `decode` and `physical`.
    """
    with reading(path):
        stored, photometric = decode(dataset, path, 0, reduce, writable)
        return physical(stored, photometric, next(meanings(dataset, path)), path, first)


def read_frames(dataset: Dataset, path: str, wanted: list[int], first: int | None = None) -> Iterator[tuple[int, Plane]]:
    """(number, plane) of the `wanted` frames in stored order.

    Args:
        first: the frame whose windows are wanted.

    Raises:
        DataError: as `decode_frames` and `physical`.
    """
    chosen = set(wanted)
    with reading(path):
        means = list(meanings(dataset, path)) if is_enhanced(dataset) else [dataset] * (max(chosen) + 1)
        if 2 * len(chosen) > len(means):
            for number, (stored, photometric) in enumerate(decode_frames(dataset, path)):
                if number in chosen:
                    yield number, physical(stored, photometric, means[number], path, number == first)
            return
        for number in sorted(chosen):
            stored, photometric = decode(dataset, path, number, writable=False)
            yield number, physical(stored, photometric, means[number], path, number == first)


def physical(stored: np.ndarray, photometric: str, meaning: Dataset, path: str, first: bool = True) -> Plane:
    """Stored values -> physical values, with windows and notes.

    Raises:
        DataError: the rescale or look-up table is broken, or a value is not finite.
    """
    notes: list[str] = []
    windows: tuple[Window, ...] = ()
    if photometric == "RGB":
        pixels = stored
    else:
        stored, note = replace_padding(stored, meaning, bright=photometric == "MONOCHROME1")
        notes.append(note)
        pixels = to_physical(stored, meaning, path)
        if first:
            signed = int(stored.min(initial=0)) < 0 or float(pixels.min(initial=0)) < 0
            windows, more = windows_of(meaning, path, signed)
            notes += more
        if not is_empty(meaning, "ModalityLUTSequence") and not all(
            is_empty(meaning, keyword) for keyword in ("RescaleSlope", "RescaleIntercept")
        ):
            notes.append("a modality LUT and a rescale, of which only one may be; the LUT was applied")
        if pixels.dtype.kind in "iu" and _has_unused_mapping(meaning):
            notes.append("values are stored numbers: a real world value mapping gives them their meaning and was not applied")
        shape = text(meaning, "PresentationLUTShape").upper()
        if (shape, photometric) in (("INVERSE", "MONOCHROME2"), ("IDENTITY", "MONOCHROME1")):
            notes.append(f"PresentationLUTShape {shape} contradicts {photometric}, which was followed")
    if text(meaning, "PresentationIntentType").upper() == "FOR PROCESSING":
        notes.append("the film is FOR PROCESSING: raw detector values, not the picture a radiologist reads")
    if pixels.dtype.kind == "f" and not bool(np.isfinite(pixels).all()):
        raise DataError(f"'{path}': pixel values are not finite numbers")
    return Plane(
        pixels=pixels,
        photometric=photometric,  # type: ignore[arg-type]
        windows=windows,
        notes=[note for note in notes if note],
        meaning=meaning,
    )


def _has_unused_mapping(meaning: Dataset) -> bool:
    """Whether stored values, which no rescale changes, are meant to be mapped (PS3.3 C.7.6.16.2.11): a parametric map's."""
    if not all(is_empty(meaning, keyword) for keyword in ("ModalityLUTSequence", "RescaleSlope")):
        return False
    for item in (meaning.get("RealWorldValueMappingSequence") if has(meaning, "RealWorldValueMappingSequence") else None) or []:
        if floats(item, "RealWorldValueSlope") != [1.0] or floats(item, "RealWorldValueIntercept") not in ([0.0], []):
            return True
    return False
