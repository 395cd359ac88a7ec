"""What a decoded image shows of faults that no header names: warnings, in words that say the evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medfm.data.doctor.film import inverted, is_chest
from medfm.data.doctor.picture import brightness, middle_plane
from medfm.data.doctor.verdict import Finding, Judged, sort_note

if TYPE_CHECKING:
    from pydicom import Dataset

    from medfm.io.header import ImageHeader
    from medfm.types import Image

_MOST_VALUES = 2**21
_FILMS = ("CR", "DX", "MG", "RG")


def judge_header(one: Judged, header: ImageHeader, dataset: Dataset | None) -> None:
    """Warnings that the header of a DICOM series, or of its first file, gives. `dataset` holds all attributes but pixels."""
    from medfm.io.phi import burned_in, identifying

    if dataset is None:
        return
    one.phi = identifying(dataset)
    if why := burned_in(dataset):
        one.warnings.append(Finding("burned in", f"the pixels may show text or a face: {why}"))
    if str(dataset.get("PresentationIntentType") or "").strip().upper() == "FOR PROCESSING":
        one.warnings.append(Finding("processing", "FOR PROCESSING: raw detector values, not the picture a radiologist reads"))


def judge_image(one: Judged, header: ImageHeader, image: Image) -> None:
    """Repairs and warnings of an image that load_image has read."""
    one.shape = tuple(int(n) for n in image.shape)
    one.spacing = tuple(round(s, 4) for s in image.spacing) if image.spaced else ()
    one.modality = image.modality if image.modality != "OT" else one.modality
    known = {(f.code, f.text) for f in (*one.repairs, *one.warnings)}
    for note in image.notes:
        sorted_note = sort_note(note)
        if sorted_note is None or (sorted_note[1].code, note) in known:
            continue
        kind, finding = sorted_note
        if kind == "repair":
            one.repairs.append(finding)
        elif finding.code not in {f.code for f in one.warnings if f.code == "processing"}:
            one.warnings.append(finding)
    if not image.spaced:
        one.warnings.append(Finding("no spacing", "the file gives no pixel spacing"))
    _judge_values(one, header, image)
    if one.repairs and one.verdict == "accepted":
        one.verdict = "repaired"


def _judge_values(one: Judged, header: ImageHeader, image: Image) -> None:
    low, high = float(image.array.min()), float(image.array.max())
    if low == high:
        one.warnings.append(Finding("blank", "all pixels have one value"))
        return
    if header.kind == "dicom" and image.modality == "CT" and (image.bits_stored or 16) <= 8:
        what = "Hounsfield units in 256 steps" if image.intensity_units == "HU" else "windowed before it was stored, not HU"
        one.warnings.append(Finding("8 bit", f"8-bit CT: {what} (values from {low:g} to {high:g})"))
    if image.intensity_units == "HU" and (evidence := rescaled_twice(image.array)):
        one.warnings.append(Finding("hu", evidence))
    if image.modality in _FILMS and image.photometric != "RGB" and image.shape[2] == 1:
        plane, _ = middle_plane(image)
        evidence = inverted(brightness(plane, image), is_chest(image.modality, image.view, header.body_part))
        if evidence:
            said = f"{image.photometric} shows it inverted, as it seems: {evidence}"
            one.warnings.append(Finding("inverted", said))


def rescaled_twice(array: np.ndarray) -> str:
    """Why Hounsfield units look as if the rescale (mostly -1024) had been applied twice; "" where they do not.

    Soft tissue then lies near -1000 and air near -2000: much is below air, and almost nothing has the density of tissue.
    Padding below air is common, but beside it there is tissue.
    """
    step = int(np.ceil((array.size / _MOST_VALUES) ** (1 / 3)))
    values = array[::step, ::step, ::step] if step > 1 else array
    below = float((values < -1150).mean())
    tissue = float(((values > -200) & (values < 200)).mean())
    if below > 0.05 and tissue < 0.03:
        return f"not HU, rescaled twice as it seems: {100 * below:.0f} % of values below air, {100 * tissue:.1f} % as of tissue"
    return ""
