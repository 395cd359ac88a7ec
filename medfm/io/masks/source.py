"""The DICOM files that an Image came from: what a SEG must refer to, and the frame of reference that a mask must share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medfm.errors import DataError
from medfm.io.dataset import DICOM_SUFFIXES, has_magic, read_header, series_files, text
from medfm.io.nifti import is_nifti_name
from medfm.io.objects import kind_of
from medfm.io.picture import PICTURE_SUFFIXES
from medfm.io.quiet import reading
from medfm.io.reference import split_reference

if TYPE_CHECKING:
    from pydicom import Dataset


def source_files(source: str | Path) -> list[Path]:
    """The DICOM files at an image reference; all of a folder's, whatever they are. [] where it is gone or no DICOM."""
    try:
        path, _ = split_reference(source)
    except DataError:
        return []
    if path.is_dir():
        return series_files(path)
    if not path.is_file() or is_nifti_name(path.name) or path.suffix.lower() in PICTURE_SUFFIXES:
        return []
    return [path] if path.suffix.lower() in DICOM_SUFFIXES or has_magic(path) else []


def source_headers(source: str | Path) -> list[tuple[Path, Dataset]]:
    """The headers of the series that `load_image(source)` reads, one a file; [] where the source is gone or no DICOM.

    Raises:
        DataError: one of them cannot be read, or the folder holds several series and the reference selects none.
    """
    from medfm.io.group import by_key, choose_main, find_series

    files = source_files(source)
    if len(files) < 2:
        return [(path, read_header(path).dataset) for path in files]
    found = find_series(files)
    key = split_reference(source)[1].get("series", "")
    main, problem = (by_key(found, key), "has no such series") if key else choose_main(found)
    if main is None:
        raise DataError(f"'{source}': {problem}")
    return [(path, read_header(path).dataset) for path in main.files]


def first_header(source: str | Path) -> Dataset | None:
    """The header of one image of `source`, preferably one with a frame of reference; None where there is none."""
    files = source_files(source)
    if "series" in (split_reference(source)[1] if files else {}):
        return source_headers(source)[0][1]
    found = None
    for path in files:
        try:
            dataset = read_header(path).dataset
            with reading(str(path)):
                image = kind_of(dataset)[0] not in ("segmentation", "contours", "no image")
                if image and frame_of_reference(dataset):
                    return dataset
                found = dataset if image and found is None else found
        except DataError:
            continue
    return found


def frame_of_reference(dataset: Dataset) -> str:
    """FrameOfReferenceUID, "" where there is none."""
    return text(dataset, "FrameOfReferenceUID")


def check_frame(uids: set[str], source: str | Path, path: str) -> str:
    """Refuse a mask of another frame of reference than the image's.

    Args:
        uids: frames of reference in which the mask is drawn.

    Returns:
        a note where it cannot be known.

    Raises:
        DataError: both are known and differ.
    """
    header = first_header(source)
    with reading(str(source)):
        known = frame_of_reference(header) if header is not None else ""
    uids = {uid for uid in uids if uid}
    if not known or not uids:
        side = "image" if not known else "mask"
        return f"the {side} names no frame of reference: that both share one is taken on trust"
    if known not in uids:
        raise DataError(
            f"'{path}' is drawn in another frame of reference than the image '{source}': its positions mean other places; "
            "choose the series that it was drawn on, or register the two"
        )
    return ""
