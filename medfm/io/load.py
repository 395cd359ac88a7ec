"""`load_image`: whatever a hospital or a data set gives -> `Image`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medfm.errors import DataError
from medfm.io.header import ImageHeader
from medfm.io.nifti import is_nifti_name, peek_nifti, read_nifti
from medfm.io.picture import PICTURE_SUFFIXES, peek_picture, read_picture
from medfm.io.reference import join_reference, split_reference
from medfm.io.sequences import split_sequences, stack_headers, stack_sequences
from medfm.types import Image

if TYPE_CHECKING:
    from medfm.io.group import Series

__all__ = ["ImageHeader", "find_images", "is_image_file", "load_image", "load_series", "peek"]

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
# Suffixes of files that surely are no images, so that a walk over a data set need not open them.
_OTHER_SUFFIXES = frozenset(
    {".csv", ".tsv", ".txt", ".json", ".jsonl", ".xlsx", ".xls", ".parquet", ".md", ".pdf", ".html", ".xml", ".yaml", ".yml"}
    | {".zip", ".gz", ".tar", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".py", ".ipynb", ".log", ".bval", ".bvec", ".ini"}
)


def _kind(path: Path) -> str:
    """The kind of `ImageHeader`, or "": by suffix, and by the DICM prefix where the suffix says nothing."""
    name = path.name.lower()
    suffix = path.suffix.lower()
    if is_nifti_name(name):
        return "nifti"
    if suffix in PICTURE_SUFFIXES:
        return "picture"
    if suffix in _DICOM_SUFFIXES:
        return "dicom"
    if suffix not in _OTHER_SUFFIXES:
        from medfm.io.dicom import has_magic

        return "dicom" if has_magic(path) else ""
    return ""


def _checked(reference: str | Path) -> tuple[Path, dict[str, str]]:
    path, selectors = split_reference(reference)
    if not path.exists():
        raise DataError(f"'{path}' does not exist")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"'{path}' is empty")
    return path, selectors


def load_image(
    path: str | Path,
    modality: str = "",
    tilt: Literal["refuse", "resample"] = "refuse",
    min_size: tuple[int, int] | None = None,
) -> Image:
    """Read a DICOM, NIfTI, PNG or JPEG file, or a folder that directly holds a DICOM series.

    Values are physical (after the modality LUT or rescale); no VOI window is applied and nothing is inverted: both are
    recorded on the Image for the preprocessing contract.

    Args:
        path: the file or folder, or a reference: `folder#series=KEY` for one series of a folder that mixes several, and
            `path#volume=3` for one volume, counted from 0, of a series with a time axis. `T1.nii.gz|T2.nii.gz` stacks several
            sequences as channels, see `medfm.io.sequences`.
        modality: what a manifest knows of files that cannot say it themselves (NIfTI, PNG, JPEG, DICOM "OT"). "CT" on a NIfTI
            file makes its values Hounsfield units. A DICOM file's own modality is never overruled.
        tilt: what to do with a stack taken with a tilted gantry: "refuse" it, or "resample" it onto a rectangular grid.
        min_size: (height, width) that a film must keep: one stored as JPEG 2000 and at least twice as large is decoded at a
            half, a quarter, ... of its resolution, many times faster, with its spacing set accordingly.

    Raises:
        DataError: the file is missing, damaged or of a kind that is refused; the sentence names it and the reason.
    """
    parts = split_sequences(path)
    if len(parts) > 1:
        return stack_sequences([load_image(part, modality, tilt, min_size) for part in parts], str(path))
    path, selectors = _checked(path)
    if path.is_dir():
        from medfm.io.folder import read_reference

        return _declared(read_reference(path, selectors, tilt), modality)
    kind = _kind(path)
    if kind == "dicom":
        from medfm.io.dicom import read_file

        return _declared(read_file(path, selectors, tilt, min_size), modality)
    if "series" in selectors:
        raise DataError(f"'{path}' is no DICOM file, so there is no series to select in it")
    if kind == "nifti" or path.suffix.lower() == ".hdr":  # half of a pair, which `read_nifti` names
        return _volume(read_nifti(path, modality or "OT"), selectors)
    if kind == "picture":
        return _volume(read_picture(path, modality or "OT"), selectors)
    raise DataError(f"'{path}' is no image that medfm reads: DICOM, NIfTI (.nii, .nii.gz), PNG or JPEG")


def load_series(series: Series, modality: str = "", tilt: Literal["refuse", "resample"] = "refuse") -> Image:
    """The image of a series that `medfm.io.group.find_series` found, without looking at its folder again.

    Raises:
        DataError: as `load_image`.
    """
    from medfm.io.folder import read_found

    return _declared(read_found(series, {}, series.path, tilt=tilt), modality)


def _declared(image: Image, modality: str) -> Image:
    return replace(image, modality=modality) if modality and image.modality == "OT" else image


def _volume(image: Image, selectors: dict[str, str]) -> Image:
    """The one volume of a 4D image that the reference names."""
    if "volume" not in selectors:
        return image
    number = int(selectors["volume"])
    if image.last_axis != "time" or number >= image.shape[3]:
        raise DataError(f"'{image.source}' of shape {image.shape} has no volume {number}")
    return replace(image, array=image.array[..., number], last_axis=None, source=join_reference(image.source, volume=number))


def peek(path: str | Path) -> ImageHeader:
    """The header of one image file or series, without decoding it. Takes the same references as `load_image`.

    `ImageHeader.problem` says why `load_image` would refuse it, as far as the header shows.

    Raises:
        DataError: the file is missing, empty or no image.
    """
    parts = split_sequences(path)
    if len(parts) > 1:
        return stack_headers([peek(part) for part in parts])
    path, selectors = _checked(path)
    if path.is_dir() or "series" in selectors:
        from medfm.io.folder import peek_reference

        return _one_volume(peek_reference(path, selectors), selectors)
    kind = _kind(path)
    if kind == "dicom":
        from medfm.io.dicom import peek_dicom

        return _one_volume(peek_dicom(path), selectors)
    if kind == "nifti":
        return _one_volume(peek_nifti(path), selectors)
    if kind == "picture":
        return _one_volume(peek_picture(path), selectors)
    raise DataError(f"'{path}' is no image that medfm reads: DICOM, NIfTI (.nii, .nii.gz), PNG or JPEG")


def _one_volume(header: ImageHeader, selectors: dict[str, str]) -> ImageHeader:
    if "volume" in selectors and header.shape is not None and len(header.shape) > 3:
        return replace(header, shape=header.shape[:3] + header.shape[4:])
    return header


def is_image_file(path: str | Path) -> bool:
    """Whether a suffix, or else the DICM prefix, marks an image. Hidden files and DICOMDIR do not count."""
    path = Path(path)
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return False
    return path.is_file() and bool(_kind(path))


def find_images(root: str | Path) -> Iterator[Path]:
    """Image files below `root`, in sorted order folder by folder; hidden files and folders, `__MACOSX` and DICOMDIR are
    skipped.

    Raises:
        DataError: `root` is no folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"'{root}' is not a folder")
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        for name in sorted(files):
            path = Path(folder, name)
            if is_image_file(path):
                yield path
