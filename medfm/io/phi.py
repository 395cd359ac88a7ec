"""Which attributes of a DICOM object identify a person, and whether its pixels may: keywords and reasons, never values.

Source of the attributes: DICOM PS3.15 Annex E, table E.1-1 (edition 2026c), as dicom-anonymizer carries it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

PROFILE = "dicomfields_2026c"
"""The edition of table E.1-1 in dicom-anonymizer that medfm follows."""

# The profile removes these too, but alone they name nobody: UIDs, a patient's characteristics, technique, times of day.
_HARMLESS_VRS = frozenset({"UI", "TM"})
_HARMLESS_WORDS = """
    PatientSex PatientAge PatientSize PatientWeight PatientSexNeutered PregnancyStatus SmokingStatus PatientState EthnicGroup
    SeriesDescription ProtocolName AcquisitionProtocolDescription DerivationDescription ContrastBolusAgent LensSpecification
    AcquisitionDeviceProcessingDescription RequestedContrastAgent TimezoneOffsetFromUTC PositionAcquisitionTemplateName
    MultienergyAcquisitionDescription ROIName ROIObservationLabel StructureSetLabel RTPlanLabel ContextGroupVersion
    ContextGroupLocalVersion TemplateVersion TemplateLocalVersion InstanceOriginStatus GPSVersionID OverlayData
"""
_HARMLESS = frozenset(_HARMLESS_WORDS.split())
# What other tools leave behind; a value that is one of these names nobody.
_DUMMY = re.compile(
    rb"(?i)[\s\0^]*(anon\w*|de-?identified|removed|none|null|unknown|n/?a|no[ _]?name|x+|0+"
    rb"|0001-?01-?01[0-9.+-]*|19000101)?[\s\0^]*"
)
_CODED = frozenset({"PatientID", "PatientName", "AccessionNumber"})  # codes, where PatientIdentityRemoved is YES
_FRAMES = "PerFrameFunctionalGroupsSequence"


@cache
def profile() -> tuple[dict[tuple[int, int], str], tuple[tuple[tuple[int, int, int, int], str], ...]]:
    """The basic profile: (group, element) -> action code, and those of repeating groups.

    The latter are pairs of (group, element, group mask, element mask) and action code. Action codes are those of table E.1-1:
    "D", "Z", "X", "U", "Z/D", "X/Z", "X/D", "X/Z/D", "X/Z/U*".
    """
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    table = dicom_anonymization_database_selector(PROFILE)
    single: dict[tuple[int, int], str] = {}
    ranges: list[tuple[tuple[int, int, int, int], str]] = []
    for category, tags in table.items():
        if category == "ALL_TAGS":
            continue
        action = category.removesuffix("_TAGS").replace("_STAR", "*").replace("_", "/")
        for tag in tags:
            if len(tag) == 2:
                single[tag] = action
            else:
                ranges.append((tag, action))
    return single, tuple(ranges)


def action_of(group: int, element: int) -> str:
    """What the basic profile does with a public attribute: a code of table E.1-1, "" where it is kept."""
    single, ranges = profile()
    action = single.get((group, element), "")
    if action:
        return action
    for (g, e, group_mask, element_mask), code in ranges:
        if group & group_mask == g & group_mask and element & element_mask == e & element_mask:
            return code
    return ""


@cache
def _named(group: int, element: int) -> str:
    """The keyword of an attribute that identifies, "" where it does not or is not in the profile."""
    from pydicom.datadict import dictionary_keyword, dictionary_VR

    if not action_of(group, element):
        return ""
    tag = group << 16 | element
    try:
        keyword, vr = dictionary_keyword(tag), dictionary_VR(tag)
    except KeyError:
        return f"({group:04X},{element:04X})"
    if vr in _HARMLESS_VRS or vr == "SQ" or keyword in _HARMLESS:
        return ""
    return keyword or f"({group:04X},{element:04X})"


def _empty(value: Any) -> bool:
    if value is None:
        return True
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
    return len(raw) < 64 and _DUMMY.fullmatch(raw) is not None


def identifying(dataset: Dataset) -> tuple[str, ...]:
    """Keywords of the non-empty attributes in `dataset`, nested ones included, by which a person can be found; never a value.

    They are those that the basic profile removes or replaces, without UIDs, times of day, a patient's characteristics (sex,
    age, size, weight) and descriptions of technique. Common dummies ("ANONYMIZED", "00010101") do not count; nor do dates,
    patient id, name and accession number where the object says that they are codes (PatientIdentityRemoved is YES; for dates
    also LongitudinalTemporalInformationModified). Private attributes are counted: the last entry is then "3 private tags".

    Returns:
        sorted keywords, for example ("AccessionNumber", "PatientName", "RequestAttributesSequence.RequestingPhysician",
        "3 private tags"); an empty tuple where nothing was found.
    """
    removed = _text(dataset, "PatientIdentityRemoved") == "YES"
    moved = removed and _text(dataset, "LongitudinalTemporalInformationModified") in ("MODIFIED", "REMOVED")
    found: set[str] = set()
    private = _collect(dataset, "", found, removed, moved)
    result = sorted(found)
    if private:
        result.append(f"{private} private tag{'s' if private > 1 else ''}")
    return tuple(result)


def _collect(dataset: Dataset, prefix: str, found: set[str], removed: bool, moved: bool) -> int:
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    private = 0
    # items() gives elements as they were read: converting each would be most of the time.
    for where, data in dataset.items():
        group, element = where.group, where.element
        if group % 2:
            # A private creator names the vendor, not the patient.
            private += element > 0xFF and not _empty(data.value)
            continue
        tag = group << 16 | element
        vr = data.VR
        if vr is None or vr == "UN":
            try:
                vr = dictionary_VR(tag)
            except KeyError:
                vr = "UN"
        if vr == "SQ":
            keyword = keyword_for_tag(tag)
            try:
                items = dataset[tag].value or ()
                # Frames differ in numbers, not in whose they are.
                items = items[:1] if keyword == _FRAMES else items
                for item in items:
                    private += _collect(item, f"{prefix}{keyword or f'({group:04X},{element:04X})'}.", found, removed, moved)
            except Exception:  # a sequence that cannot be parsed is judged by those who decode it
                found.add(f"{prefix}{keyword}")
            continue
        keyword = _named(group, element)
        if not keyword or _empty(data.value):
            continue
        if (removed and keyword in _CODED) or (moved and vr in ("DA", "DT")):
            continue
        found.add(prefix + keyword)
    return private


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
    except Exception:  # a damaged value says nothing
        return ""
    return "" if value is None else str(value).strip().upper()


def _words(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
        parts = [value] if value is None or isinstance(value, str) else list(value)
        return "\\".join(str(p) for p in parts if p is not None).upper()
    except Exception:
        return ""


_CONVERSIONS = {
    "DV": "digitized video",
    "DI": "digital interface",
    "DF": "digitized film",
    "WSD": "workstation",
    "SD": "scanned document",
    "SI": "scanned image",
    "DRW": "drawing",
    "SYN": "synthetic image",
}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame children
_ULTRASOUND = ("1.2.840.10008.5.1.4.1.1.6", "1.2.840.10008.5.1.4.1.1.3")  # and what is derived of them
_PHOTOGRAPH = "1.2.840.10008.5.1.4.1.1.77.1.4"  # and video
_SCREEN = re.compile(
    r"SCREEN ?SAVE|SCREEN ?SHOT|SCREEN ?CAPTURE|DOSE[ _]?(INFO|REPORT|SHEET)|PATIENT[ _]PROTOCOL|REPORT|FILMED"
)


def burned_in(dataset: Dataset) -> str:
    """Why the pixels of `dataset` may show text or a face, judged by the header alone; "" where nothing says so.

    BurnedInAnnotation = NO is believed, but for screen saves. Ultrasound, secondary captures, screen saves and photographs are
    suspected otherwise: there names stand in practice (the pixel rules of RSNA's CTP name the same). No one reads the pixels.
    """
    if _text(dataset, "BurnedInAnnotation") == "YES":
        return "BurnedInAnnotation is YES"
    image_type = _words(dataset, "ImageType")
    if match := _SCREEN.search(image_type):
        return f"ImageType says {match.group().replace('_', ' ').lower()}"
    if _text(dataset, "RecognizableVisualFeatures") == "YES":
        return "RecognizableVisualFeatures is YES"
    sop, modality = _text(dataset, "SOPClassUID"), _text(dataset, "Modality")
    if (modality == "XC" or _is(sop, _PHOTOGRAPH)) and _text(dataset, "RecognizableVisualFeatures") != "NO":
        return "a photograph"
    if _text(dataset, "BurnedInAnnotation") == "NO":
        return ""
    if _is(sop, _SECONDARY_CAPTURE):
        how = _CONVERSIONS.get(_text(dataset, "ConversionType"), "")
        return f"secondary capture ({how})" if how else "secondary capture"
    if modality == "US" or _is(sop, *_ULTRASOUND):
        return "ultrasound, and BurnedInAnnotation is not NO"
    if modality in ("SC", "DOC"):
        return f"modality {modality}"
    how = _CONVERSIONS.get(_text(dataset, "ConversionType"), "")
    return f"ConversionType is {how}" if how else ""


def _is(sop: str, *classes: str) -> bool:
    """Whether a SOP class is one of these, or derived of it: 1.1.6 has 1.1.6.1, but 1.1.66 is a segmentation."""
    return any(sop == each or sop.startswith(each + ".") for each in classes)


_HEAD = re.compile(
    r"HEAD|BRAIN|SKULL|NEURO|CRANI|SINUS|ORBIT|MAXILL|MANDIB|TEMPORAL|PITUIT"
    r"|(?<![A-Z])(?:FACE|FACIAL|DENT|EYE|(?:IAC|EARS?|JAW)(?![A-Z]))"
)
_SLICES = frozenset({"CT", "MR", "PT", "NM"})


def face(dataset: Dataset) -> str:
    """Why a face may be rebuilt from the pixels: a head CT, MR or PET; "" where it may not (PS3.15 E.3.2)."""
    if _text(dataset, "RecognizableVisualFeatures") == "YES":
        return "RecognizableVisualFeatures is YES"
    if _text(dataset, "RecognizableVisualFeatures") == "NO" or _text(dataset, "Modality") not in _SLICES:
        return ""
    words = (_text(dataset, k) for k in ("BodyPartExamined", "ProtocolName", "SeriesDescription", "StudyDescription"))
    return f"{_text(dataset, 'Modality')} of a head" if any(map(_HEAD.search, words)) else ""
