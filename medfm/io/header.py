"""What is known of an image file without decoding it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of one image file or series, as the file states it. Identifiers are raw strings, "" when absent, and stay out
    of the repr.

    Attributes:
        kind: what sort of file it is.
        modality: DICOM code, "OT" where the file says nothing.
        shape: (i, j, k), then frames or time, then colour; None where the file holds no pixels.
        view: "PA", "AP", "LATERAL", ... or "".
        photometric: DICOM photometric interpretation as stored; "MONOCHROME2" or "RGB" for other files.
        age: years, or None.
        sex: "M", "F", "O" or "".
        transfer_syntax: DICOM transfer syntax UID, "" for other files.
        problem: why `load_image` refuses this file, judged by the header alone; "" where it does not.
        sop_class: name of the DICOM SOP class, "CT Image Storage" for example; "" where there is none.
        frames: NumberOfFrames, 1 for single images.
    """

    kind: Literal["dicom", "nifti", "picture"]
    modality: str = "OT"
    shape: tuple[int, ...] | None = None
    view: str = ""
    photometric: str = ""
    patient_id: str = field(default="", repr=False)
    study_id: str = field(default="", repr=False)
    series_id: str = field(default="", repr=False)
    image_id: str = field(default="", repr=False)
    sex: str = field(default="", repr=False)
    age: float | None = field(default=None, repr=False)
    body_part: str = ""
    transfer_syntax: str = ""
    problem: str = ""
    sop_class: str = ""
    frames: int = 1
