"""What a DICOM object is: one image, frames with a place each, a cine, a mosaic, a dose, or no image at all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from medfm.io.dataset import code, frame_count, image_type, integer, sop_name, text
from medfm.io.geometry import floats, view_of
from medfm.io.header import ImageHeader
from medfm.io.raw import has

if TYPE_CHECKING:
    from pydicom import Dataset

Kind = Literal["plane", "frames", "cine", "mosaic", "dose", "segmentation", "contours", "no image"]

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Objects that are no images, by SOP class and by modality: kind, and the word for a message.
_SEG = ("segmentation", "a segmentation (SEG)")
_CONTOURS = ("contours", "radiotherapy contours (RTSTRUCT)")
_REPORT = ("no image", "a structured report (SR)")
_PRESENTATION = ("no image", "a presentation state (PR)")
_WAVEFORM = ("no image", "a waveform (ECG)")
_BY_CLASS = {
    "66.4": _SEG,
    "66.7": _SEG,
    "481.3": _CONTOURS,
    "66": ("no image", "raw data"),
    "66.1": ("no image", "a registration (REG)"),
    "66.3": ("no image", "a registration (REG)"),
    "66.5": ("no image", "a surface segmentation"),
    "104.1": ("no image", "an encapsulated document (PDF)"),
    "104.2": ("no image", "an encapsulated document"),
    "104.3": ("no image", "an encapsulated model (STL)"),
    "77.1.6": ("no image", "a whole-slide image, whose tiles are not put together here"),
}
_BY_CLASS_PREFIX = {
    "88.": _REPORT,
    "11.": _PRESENTATION,
    "9.": _WAVEFORM,
    "481.5": ("no image", "a radiotherapy plan (RTPLAN)"),
    "481.8": ("no image", "a radiotherapy plan (RTPLAN)"),
    "4.2": ("no image", "MR spectroscopy"),
}
_BY_MODALITY = {
    "SEG": _SEG,
    "RTSTRUCT": _CONTOURS,
    "RTPLAN": ("no image", "a radiotherapy plan (RTPLAN)"),
    "RTRECORD": ("no image", "a radiotherapy record"),
    "SR": _REPORT,
    "PR": _PRESENTATION,
    "KO": ("no image", "a key object selection (KO)"),
    "REG": ("no image", "a registration (REG)"),
    "ECG": _WAVEFORM,
    "DOC": ("no image", "an encapsulated document"),
    "PLAN": ("no image", "a plan"),
    "FID": ("no image", "fiducials"),
    "RWV": ("no image", "a real world value mapping"),
    "SM": ("no image", "a whole-slide image, whose tiles are not put together here"),
}
# Classes whose frames follow each other in time where they have no place in space.
_CINE = ("3", "3.1", "6", "6.1", "7", "7.1", "7.2", "7.3", "7.4", "12.1", "12.1.1", "12.2", "12.2.1", "12.3", "20", "5")
_CINE_PREFIX = ("77.1.1", "77.1.2", "77.1.4", "77.1.5.1", "77.1.5.2", "14.")
_SEQUENCES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def short_class(dataset: Dataset) -> str:
    """What follows the root of the storage SOP classes, "2" for CT; "" for other classes."""
    uid = text(dataset, "SOPClassUID")
    return uid[len(_STORAGE) :] if uid.startswith(_STORAGE) else ""


def is_enhanced(dataset: Dataset) -> bool:
    return any(has(dataset, keyword) for keyword in _SEQUENCES)


def kind_of(dataset: Dataset) -> tuple[Kind, str]:
    """(what the object is, why `load_image` makes no image of it, or ""), by its header alone."""
    short, modality = short_class(dataset), text(dataset, "Modality").upper()
    found = _BY_CLASS.get(short) or next((v for k, v in _BY_CLASS_PREFIX.items() if short.startswith(k)), None)
    found = found or _BY_MODALITY.get(modality)
    if found is not None:
        return found[0], f"holds {found[1]}, not an image"  # type: ignore[return-value]
    if text(dataset, "SOPClassUID") == "1.2.840.10008.1.3.10":
        return "no image", "is a directory of files (DICOMDIR), not an image"
    if integer(dataset, "Rows") < 1 or integer(dataset, "Columns") < 1:
        return "no image", f"holds no pixels ({sop_name(dataset)})"
    if short == "481.2" or modality == "RTDOSE":
        return "dose", ""
    if "MOSAIC" in image_type(dataset) and frame_count(dataset) == 1:
        return "mosaic", ""
    if is_enhanced(dataset):
        return _enhanced_kind(dataset, short)
    frames = frame_count(dataset)
    if short == "20" and "RECON TOMO" in image_type(dataset):
        return "frames", ""
    if frames > 1:
        if short in _CINE or short.startswith(_CINE_PREFIX):
            return "cine", ""
        return "cine", f"is multi-frame ({frames} frames) and does not say how its frames lie in space ({sop_name(dataset)})"
    return "plane", ""


def _enhanced_kind(dataset: Dataset, short: str) -> tuple[Kind, str]:
    groups = [item for keyword in _SEQUENCES for item in (dataset.get(keyword) or [])[:1]]
    if any("PlanePositionSequence" in item for item in groups):
        return "frames", ""
    if short in _CINE or short.startswith(_CINE_PREFIX):
        return "cine", ""
    if frame_count(dataset) == 1:
        return "plane", ""
    return "cine", f"is multi-frame ({frame_count(dataset)} frames), and its frames have no position"


def is_scout(dataset: Dataset) -> bool:
    return "LOCALIZER" in image_type(dataset)


def header_of(dataset: Dataset) -> ImageHeader:
    """The header of one DICOM file. `problem` names what its kind alone rules out; series faults are found by grouping."""
    kind, problem = kind_of(dataset)
    rows, columns, frames = integer(dataset, "Rows"), integer(dataset, "Columns"), frame_count(dataset)
    shape: tuple[int, ...] | None = None
    if rows > 0 and columns > 0:
        shape = (columns, rows, 1)
        if frames > 1:
            shape = (columns, rows, frames) if kind in ("frames", "dose") else (columns, rows, 1, frames)
        if integer(dataset, "SamplesPerPixel") == 3 or text(dataset, "PhotometricInterpretation") == "PALETTE COLOR":
            shape = (*shape, 3)
    return ImageHeader(
        kind="dicom",
        modality=code(dataset, "Modality") or "OT",
        shape=shape,
        view=view_of(dataset),
        photometric=code(dataset, "PhotometricInterpretation"),
        patient_id=text(dataset, "PatientID"),
        study_id=text(dataset, "StudyInstanceUID"),
        series_id=text(dataset, "SeriesInstanceUID"),
        image_id=text(dataset, "SOPInstanceUID"),
        sex=text(dataset, "PatientSex").upper()[:1],
        age=age_in_years(text(dataset, "PatientAge")),
        body_part=text(dataset, "BodyPartExamined"),
        transfer_syntax=str(dataset.file_meta.TransferSyntaxUID),
        problem=problem,
        sop_class=sop_name(dataset) if "SOPClassUID" in dataset else "",
        frames=frames,
    )


def age_in_years(value: str) -> float | None:
    """An age string (PS3.5 VR AS: 003D, 018M, 045Y) or a bare number, in years; None where it is neither."""
    match = re.fullmatch(r"(\d{1,3})([DWMY]?)", value.strip().upper())
    if match is None:
        return None
    return int(match[1]) / {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0, "": 1.0}[match[2]]


def thickness_of(dataset: Dataset) -> float:
    """Slice thickness, mm, or 0."""
    return max(0.0, (floats(dataset, "SliceThickness") or [0.0])[0])
