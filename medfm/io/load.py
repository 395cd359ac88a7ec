"""`load_image`: whatever a hospital or a data set gives -> `Image`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from medfm.errors import DataError
from medfm.io.header import ImageHeader
from medfm.io.nifti import is_nifti_name, peek_nifti, read_nifti
from medfm.io.picture import PICTURE_SUFFIXES, peek_picture, read_picture
from medfm.types import Image

__all__ = ["ImageHeader", "find_images", "is_image_file", "load_image", "peek"]

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


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise DataError(f"'{path}' does not exist")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"'{path}' is empty")
    return path


def load_image(path: str | Path, modality: str = "") -> Image:
    """Read a DICOM, NIfTI, PNG or JPEG file, or a folder that directly holds one DICOM series.

    Values are physical (after the modality LUT or rescale); no VOI window is applied and nothing is inverted: both are
    recorded on the Image for the preprocessing contract.

    Args:
        path: the file or folder.
        modality: what a manifest knows of files that cannot say it themselves (NIfTI, PNG, JPEG, DICOM "OT"). "CT" on a NIfTI
            file makes its values Hounsfield units. A DICOM file's own modality is never overruled.

    Raises:
        DataError: the file is missing, damaged or of a kind that is refused; the sentence names it and the reason.
    """
    path = _checked(path)
    if path.is_dir():
        from medfm.io.series import read_series

        return _declared(read_series(path), modality)
    kind = _kind(path)
    if kind == "dicom":
        from medfm.io.dicom import read_file

        return _declared(read_file(path), modality)
    if kind == "nifti":
        return read_nifti(path, modality or "OT")
    if kind == "picture":
        return read_picture(path, modality or "OT")
    raise DataError(f"'{path}' is no image that medfm reads: DICOM, NIfTI (.nii, .nii.gz), PNG or JPEG")


def _declared(image: Image, modality: str) -> Image:
    return replace(image, modality=modality) if modality and image.modality == "OT" else image


def peek(path: str | Path) -> ImageHeader:
    """The header of one image file (or of the first file of a series folder) without decoding it.

    `ImageHeader.problem` says why `load_image` would refuse it, as far as the header shows.

    Raises:
        DataError: the file is missing, empty or no image.
    """
    path = _checked(path)
    if path.is_dir():
        from medfm.io.series import series_files

        files = series_files(path)
        if not files:
            raise DataError(f"'{path}' holds no DICOM files; name one image file, or the folder that directly holds one series")
        header = peek(files[0])
        if len(files) > 1 and header.shape is not None:
            return replace(header, shape=(*header.shape[:2], len(files)))
        return header
    kind = _kind(path)
    if kind == "dicom":
        from medfm.io.dicom import peek_dicom

        return peek_dicom(path)
    if kind == "nifti":
        return peek_nifti(path)
    if kind == "picture":
        return peek_picture(path)
    raise DataError(f"'{path}' is no image that medfm reads: DICOM, NIfTI (.nii, .nii.gz), PNG or JPEG")


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
