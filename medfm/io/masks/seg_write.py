"""Layers -> a DICOM SEG file, through highdicom, that a PACS files with the images it was drawn on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medfm.errors import DataError
from medfm.io.dataset import frame_count, integer, text
from medfm.io.files import atomic_write
from medfm.io.geometry import LPS_TO_RAS, directions, floats, pixel_spacing
from medfm.io.masks.grid import ROUNDING
from medfm.io.masks.labels import join
from medfm.io.masks.source import frame_of_reference, source_headers
from medfm.io.quiet import quiet, reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

    from medfm.types import Image

Code = tuple[str, str, str]
"""A coded term: value, scheme, meaning; ("10200004", "SCT", "Liver") for example."""

TISSUE: Code = ("85756007", "SCT", "Tissue")
# Identifiers that SEG must name, and those that it must hold but may leave empty.
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)


@dataclass(frozen=True)
class Author:
    """Who drew the segments.

    Attributes:
        algorithm: name of the algorithm; "" says that a person drew them.
        version: its version.
        description: SeriesDescription of the new series.
    """

    algorithm: str
    version: str
    description: str


def write_seg(
    layers: np.ndarray,
    names: Sequence[str],
    path: Path,
    like: Image,
    author: Author,
    codes: Mapping[str, tuple[Code, Code]],
) -> None:
    """Write segments as one binary SEG: frames without a mark are left out, overlapping segments stay apart.

    Args:
        layers: (S, i, j, k) bool on the grid of `like`.
        codes: name -> (category, type); tissue in both where a name has none.

    Raises:
        DataError: `like` did not come from DICOM files; these lack what a SEG needs; a name is longer than 64 characters.
    """
    import highdicom

    headers = [dataset for _, dataset in source_headers(like.source)] if like.source else []
    if not headers:
        raise DataError(
            f"'{path}': a DICOM SEG refers to the DICOM files it was drawn on, and '{like.source}' holds none; "
            "name them with source_series=, or save the mask as .nii.gz"
        )
    with reading(like.source):
        sources = [_complete(dataset, like.source) for dataset in headers]
        planes = _planes(sources)
    where, pixels = _arranged(layers, sources, planes, like, path)
    segments = [_describe(n, name, author, codes.get(name, (TISSUE, TISSUE))) for n, name in enumerate(names, start=1)]
    if not "".join([*names, author.description]).isascii():
        where["specific_character_set"] = "ISO_IR 192"
    try:
        with quiet(), _silent("highdicom"):
            seg = highdicom.seg.Segmentation(
                source_images=sources,
                pixel_array=pixels,
                segmentation_type="BINARY",
                segment_descriptions=segments,
                series_instance_uid=highdicom.UID(),
                series_number=1000,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="medfm",
                manufacturer_model_name="medfm",
                software_versions=medfm_version(),
                device_serial_number="0",
                content_label="SEGMENTATION",
                series_description=author.description,
                **where,
            )
            with atomic_write(path) as temporary:
                seg.save_as(temporary)
    except OSError:
        raise
    except Exception as error:  # highdicom checks what the standard demands; its words quote header values
        raise DataError(
            f"'{path}': the headers of '{like.source}' do not make a valid DICOM SEG ({type(error).__name__}); "
            "save the mask as .nii.gz instead"
        ) from None


def medfm_version() -> str:
    from medfm import __version__

    return __version__


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """highdicom logs what it does, and warns of an empty mask."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _describe(number: int, name: str, author: Author, codes: tuple[Code, Code]) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.coding import Code as Coded

    algorithm = None
    if author.algorithm:
        family = Coded("123109", "DCM", "Artificial Intelligence")
        algorithm = AlgorithmIdentificationSequence(name=author.algorithm, family=family, version=author.version)
    category, kind = codes
    return SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=Coded(*category),
        segmented_property_type=Coded(*kind),
        algorithm_type="AUTOMATIC" if author.algorithm else "MANUAL",
        algorithm_identification=algorithm,
    )


def _complete(dataset: Dataset, source: str) -> Dataset:
    """A shallow copy in which attributes that may be empty are there."""
    missing = [keyword for keyword in _NEEDED if not text(dataset, keyword)]
    if missing:
        raise DataError(
            f"'{source}': a DICOM SEG needs {' and '.join(missing)} of its source, which the file does not have; "
            "save the mask as .nii.gz"
        )
    dataset = copy(dataset)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in dataset or not _conforms(dataset, keyword):
            setattr(dataset, keyword, "")
    return dataset


def _conforms(dataset: Dataset, keyword: str) -> bool:
    """Whether a date or time can be written again: "11:20:00" of the 1980s cannot."""
    from pydicom.valuerep import DA, TM

    kind = {"DA": DA, "TM": TM}.get(str(dataset[keyword].VR))
    if kind is None:
        return True
    try:
        kind(dataset[keyword].value or "")
    except (TypeError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class _Plane:
    """Where one source image or frame lies, LPS mm."""

    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]


def _planes(sources: list[Dataset]) -> list[_Plane]:
    """The planes of the sources; [] where they have none."""
    found = []
    for dataset in sources:
        for position, turn, measure in _places(dataset):
            axes, spacing, place = directions(turn), pixel_spacing(measure)[0], floats(position, "ImagePositionPatient")
            if axes is None or len(place) != 3 or spacing[0] <= 0:
                return []
            found.append(_Plane(np.array(place), axes, spacing))
    return found


def _places(dataset: Dataset) -> Iterator[tuple[Dataset, Dataset, Dataset]]:
    """The header items that hold position, orientation and spacing, for each frame."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        yield dataset, dataset, dataset
        return
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [dataset])[0]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        place, turn, measure = (
            (frame.get(name) or shared.get(name) or [dataset])[0]
            for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        )
        yield place, turn, measure


def _arranged(
    layers: np.ndarray, sources: list[Dataset], planes: list[_Plane], like: Image, path: Path
) -> tuple[dict[str, Any], Any]:
    """(keywords that say where the frames lie, the pixels in highdicom's order).

    Frames take their position from the very headers of the source slices, so that viewers match them to the digit. Where the
    image is no longer on the source's grid (resampled, turned, put together from tiles) they lie where its affine says.
    """
    import highdicom

    values = join(layers)
    # (k, j, i) labels, or (k, j, i, S) where segments overlap.
    pixels = np.ascontiguousarray(values.T if values is not None else layers.transpose(3, 2, 1, 0).astype(np.uint8))
    if not planes:
        _as_film(sources, like, path)
        return {}, pixels
    if not frame_of_reference(sources[0]):
        raise DataError(
            f"'{like.source}': a DICOM SEG needs the FrameOfReferenceUID of its source, which the files do not have; "
            "save the mask as .nii.gz"
        )
    _share_geometry(sources, like)
    slices = _slices(planes, sources, like)
    if slices is not None:
        positions = [highdicom.PlanePositionSequence("PATIENT", planes[n].position.tolist()) for n in slices]
        return {"plane_positions": positions}, pixels
    affine = (LPS_TO_RAS @ like.affine)[:, [2, 1, 0, 3]]
    channels: Any = {"SegmentNumber": list(range(1, len(layers) + 1))} if values is None else None
    return {}, highdicom.Volume(pixels, affine, "PATIENT", frame_of_reference(sources[0]), channels)


def _as_film(sources: list[Dataset], like: Image, path: Path) -> None:
    """Prepare a single image without a place in space; its frame of reference, if it names one, then means nothing."""
    size = (integer(sources[0], "Columns"), integer(sources[0], "Rows"), 1)
    if len(sources) > 1 or frame_count(sources[0]) > 1:
        raise DataError(
            f"'{path}': the source has several frames without a position, which a DICOM SEG cannot refer to; save .nii.gz"
        )
    if like.shape[:3] != size:
        raise DataError(f"'{path}': the source has no position, and the image is not of its size; save the mask as .nii.gz")
    if "FrameOfReferenceUID" in sources[0]:
        del sources[0].FrameOfReferenceUID


def _share_geometry(sources: list[Dataset], like: Image) -> None:
    """Give all sources one orientation and their true slice distance: headers round the first and misstate the second."""
    from pydicom import Dataset
    from pydicom.sequence import Sequence as Items

    step = float(np.linalg.norm(like.affine[:3, 2]))
    first = sources[0]
    if "PerFrameFunctionalGroupsSequence" in first:
        _, turn, measure = next(_places(first))
        shared = copy((first.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
        measure = copy(measure)
        shared.PlaneOrientationSequence = Items([turn])
        shared.PixelMeasuresSequence = Items([measure])
        first.SharedFunctionalGroupsSequence = Items([shared])
        items = [measure]
    else:
        for dataset in sources:
            dataset.ImageOrientationPatient = first.ImageOrientationPatient
            dataset.PixelSpacing = first.PixelSpacing
        items = sources
    for item in items:
        if not floats(item, "SliceThickness"):
            item.SliceThickness = f"{step:.10g}"
        item.SpacingBetweenSlices = f"{step:.10g}"


def _slices(planes: list[_Plane], sources: list[Dataset], like: Image) -> list[int] | None:
    """For each slice of `like` the number of its plane; None where `like` is not on the grid of the planes."""
    affine = LPS_TO_RAS @ like.affine
    first = planes[0]
    edges = np.stack([first.axes[0] * first.spacing[1], first.axes[1] * first.spacing[0]], axis=1)
    size = (integer(sources[0], "Columns"), integer(sources[0], "Rows"))
    if like.shape[:2] != size or np.abs((affine[:3, :2] - edges) * np.array(size)).max() > ROUNDING * min(first.spacing):
        return None
    index = np.linalg.inv(affine) @ np.c_[np.array([plane.position for plane in planes]), np.ones(len(planes))].T
    numbers = np.rint(index[2])
    off = np.abs(index[:3] - np.stack([np.zeros_like(numbers), np.zeros_like(numbers), numbers])).max(0)
    found = {int(number): n for n, number in reversed(list(enumerate(numbers))) if off[n] < 0.25}
    slices = [found.get(k) for k in range(like.shape[2])]
    return None if None in slices else [n for n in slices if n is not None]
