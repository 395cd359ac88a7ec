"""One DICOM file <-> `Image` or `ImageHeader`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medfm.errors import DataError
from medfm.io.geometry import directions, film_affine, floats, patient_affine, pixel_spacing, view_of
from medfm.io.header import ImageHeader
from medfm.io.pixels import decode, quiet, reading
from medfm.io.values import replace_padding, to_physical, units_of, windows_of
from medfm.types import Image, IntensityUnits, Photometric, Window

if TYPE_CHECKING:
    from pydicom import Dataset

_HEADER_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "ImageType",
    "Modality",
    "PatientID",
    "PatientSex",
    "PatientAge",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "BodyPartExamined",
    "ViewPosition",
    "ViewCodeSequence",
    "PatientOrientation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SharedFunctionalGroupsSequence",
]

# Modalities of objects that are no images: what they are, for the message.
_NOT_IMAGES = {
    "SEG": "a segmentation (SEG)",
    "RTSTRUCT": "radiotherapy contours (RTSTRUCT)",
    "RTDOSE": "a radiotherapy dose (RTDOSE)",
    "RTPLAN": "a radiotherapy plan (RTPLAN)",
    "SR": "a structured report (SR)",
    "PR": "a presentation state (PR)",
    "KO": "a key object selection (KO)",
    "REG": "a registration (REG)",
    "ECG": "a waveform (ECG)",
}


def has_magic(path: Path) -> bool:
    """Whether the file has the DICM prefix after its 128-byte preamble."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dataset(path: str | Path, header_only: bool = False) -> Dataset:
    """The file as a pydicom Dataset that has a transfer syntax.

    Files without preamble are read where their content is plainly DICOM.

    Raises:
        DataError: the file is missing, empty, truncated within its header, or no DICOM.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    path = Path(path)
    tags = list(_HEADER_TAGS) if header_only else None
    try:
        with quiet():
            try:
                dataset = pydicom.dcmread(path, stop_before_pixels=header_only, specific_tags=tags)
            except InvalidDicomError:
                dataset = pydicom.dcmread(path, stop_before_pixels=header_only, specific_tags=tags, force=True)
                if "SOPClassUID" not in dataset:
                    raise DataError(f"'{path}' is not a DICOM file") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or type(error).__name__}") from None
    except DataError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged bytes, and quotes values in them
        raise DataError(f"'{path}' is not readable DICOM ({type(error).__name__}); the file is damaged") from None
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def refusal(dataset: Dataset) -> str:
    """Why this object cannot be loaded as one image, judged by its header alone; "" where it can."""
    modality = str(dataset.get("Modality", ""))
    if modality in _NOT_IMAGES:
        return f"holds {_NOT_IMAGES[modality]}, not an image"
    if not dataset.get("Rows") or not dataset.get("Columns"):
        return f"holds no pixels ({_sop_name(dataset)})"
    frames = _frames(dataset)
    if frames > 1:
        return f"is multi-frame ({frames} frames), which is not read yet; convert it to one file a slice, or to NIfTI"
    if "SharedFunctionalGroupsSequence" in dataset:
        return "is an enhanced object, which is not read yet; convert it to classic DICOM or to NIfTI"
    if "MOSAIC" in _image_type(dataset):
        return "is a Siemens mosaic (many slices tiled in one picture), which is not read yet; convert it with dcm2niix"
    return ""


def _sop_name(dataset: Dataset) -> str:
    uid = dataset.get("SOPClassUID")
    return getattr(uid, "name", None) or "no SOP class"


def _frames(dataset: Dataset) -> int:
    try:
        return int(dataset.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        return 1


def _image_type(dataset: Dataset) -> list[str]:
    value = dataset.get("ImageType") or []
    return [str(v).upper() for v in ([value] if isinstance(value, str) else value)]


def is_localizer(dataset: Dataset) -> bool:
    return "LOCALIZER" in _image_type(dataset)


def peek_dicom(path: str | Path) -> ImageHeader:
    """The header of one DICOM file.

    Raises:
        DataError: the file is missing or no DICOM.
    """
    dataset = read_dataset(path, header_only=True)
    with reading(str(path)):
        problem = refusal(dataset)
        rows, columns, frames = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0), _frames(dataset)
        shape = ((columns, rows, 1) if frames == 1 else (columns, rows, 1, frames)) if rows and columns else None
        return ImageHeader(
            kind="dicom",
            modality=str(dataset.get("Modality") or "OT"),
            shape=shape,
            view=view_of(dataset),
            photometric=str(dataset.get("PhotometricInterpretation", "")),
            patient_id=_text(dataset, "PatientID"),
            study_id=_text(dataset, "StudyInstanceUID"),
            series_id=_text(dataset, "SeriesInstanceUID"),
            image_id=_text(dataset, "SOPInstanceUID"),
            sex=_text(dataset, "PatientSex").upper()[:1],
            age=age_in_years(_text(dataset, "PatientAge")),
            body_part=_text(dataset, "BodyPartExamined"),
            transfer_syntax=str(dataset.file_meta.TransferSyntaxUID),
            problem=problem,
        )


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def age_in_years(value: str) -> float | None:
    """An age string (PS3.5 VR AS: 003D, 018M, 045Y) or a bare number, in years; None where it is neither."""
    match = re.fullmatch(r"(\d{1,3})([DWMY]?)", value.strip().upper())
    if match is None:
        return None
    return int(match[1]) / {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0, "": 1.0}[match[2]]


@dataclass
class Plane:
    """One decoded slice: pixels (rows, columns) or (rows, columns, 3) of physical values, and what was recorded on the way."""

    pixels: np.ndarray
    photometric: Photometric
    windows: tuple[Window, ...]
    notes: list[str]
    signed: bool


def read_plane(dataset: Dataset, path: str) -> Plane:
    """Decode one image and make its values physical.

    Raises:
        DataError: as `refusal`, `decode` and `to_physical`.
    """
    with reading(path):
        problem = refusal(dataset)
        if problem:
            raise DataError(f"'{path}' {problem}")
        if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise DataError(f"'{path}' holds no pixels ({_sop_name(dataset)})")
        stored, photometric = decode(dataset, path)
        notes: list[str] = []
        windows: tuple[Window, ...] = ()
        if photometric == "RGB":
            pixels = stored
        else:
            stored, note = replace_padding(stored, dataset, bright=photometric == "MONOCHROME1")
            notes.append(note)
            pixels = to_physical(stored, dataset, path)
            signed = int(stored.min(initial=0)) < 0 or float(pixels.min(initial=0)) < 0
            windows, more = windows_of(dataset, path, signed)
            notes += more
        if str(dataset.get("PresentationIntentType", "")).upper() == "FOR PROCESSING":
            notes.append("the film is FOR PROCESSING: raw detector values, not the picture a radiologist reads")
    if pixels.dtype.kind == "f" and not bool(np.isfinite(pixels).all()):
        raise DataError(f"'{path}': pixel values are not finite numbers")
    return Plane(
        pixels=pixels,
        photometric=photometric,  # type: ignore[arg-type]
        windows=windows,
        notes=[note for note in notes if note],
        signed=bool(pixels.size) and float(pixels.min()) < 0,
    )


def units(dataset: Dataset, plane: Plane, pixels: np.ndarray) -> tuple[IntensityUnits, list[str]]:
    """Units of `pixels` (the whole series) from the header, and notes."""
    kind, note = units_of(dataset, pixels, plane.photometric, bool(plane.windows))
    return kind, [note] if note else []


def read_file(path: str | Path) -> Image:
    """One DICOM file as an Image of one slice.

    Raises:
        DataError: the file cannot be read as one image; the sentence names the reason.
    """
    dataset = read_dataset(path)
    plane = read_plane(dataset, str(path))
    with reading(str(path)):
        kind, notes = units(dataset, plane, plane.pixels)
        affine, oriented, spaced, more = _single_affine(dataset)
        view = view_of(dataset)
        modality, bits = str(dataset.get("Modality") or "OT"), _bits(dataset, plane)
    return Image(
        # (rows, columns[, 3]) -> (i = column, j = row, k[, colour]); a view, so that going back costs nothing.
        array=plane.pixels.swapaxes(0, 1)[:, :, None],
        affine=affine,
        modality=modality,
        intensity_units=kind,
        source=str(path),
        photometric=plane.photometric,
        windows=plane.windows,
        last_axis="colour" if plane.photometric == "RGB" else None,
        oriented=oriented,
        spaced=spaced,
        bits_stored=bits,
        view=view,
        notes=tuple(plane.notes + notes + more),
    )


def _bits(dataset: Dataset, plane: Plane) -> int | None:
    if plane.photometric == "RGB" and plane.pixels.dtype == np.uint8:
        return 8
    return int(dataset.get("BitsStored") or 0) or None


def _single_affine(dataset: Dataset) -> tuple[np.ndarray, bool, bool, list[str]]:
    """(affine, oriented, spaced, notes) of a single image."""
    spacing, note = pixel_spacing(dataset)
    notes = [note] if note else []
    spaced = spacing[0] > 0
    if not spaced:
        spacing = (1.0, 1.0)
    axes, position = directions(dataset), floats(dataset, "ImagePositionPatient")
    if axes is None or len(position) != 3:
        affine, oriented = film_affine(dataset, spacing)
        return affine, oriented, spaced, notes
    # A lone slice has no neighbour to measure its distance from.
    thickness = (floats(dataset, "SpacingBetweenSlices") or floats(dataset, "SliceThickness") or [0.0])[0]
    if thickness <= 0:
        thickness = 1.0
        notes.append("the file gives no slice thickness; 1 mm is a placeholder")
    return patient_affine(axes, spacing, axes[2] * thickness, np.array(position)), True, spaced, notes
