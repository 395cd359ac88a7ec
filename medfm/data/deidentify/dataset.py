"""One DICOM object without its person: attributes, file meta information, preamble."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from medfm.data.deidentify.codes import STANDARD_ROOT, Codes, shifted
from medfm.data.deidentify.known import Finder, known_of
from medfm.data.deidentify.rules import STRUCTURAL, VERBATIM, Rules, fits, safe_private, verdict
from medfm.text.deidentify import scrub

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.tag import BaseTag

IMPLEMENTATION = "2.25.313163216458113172925263926190246341047"
"""Implementation Class UID of medfm: a random UUID below 2.25, once drawn."""

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# What is written by people, or sealed: no rule can clean it. Prefixes of SOP Class UIDs.
_REFUSED = {
    f"{_STORAGE}104.": "an encapsulated document (PDF, CDA, 3D model)",
    f"{_STORAGE}88.": "a structured report",
    f"{_STORAGE}11.": "a presentation state",
    f"{_STORAGE}9.": "a waveform",
    f"{_STORAGE}66.": "",
    f"{_STORAGE}66": "raw data",
    "1.2.840.10008.1.3.10": "a DICOMDIR",
    "1.2.840.10008.5.1.4.43.": "an implant template",
    "1.2.840.10008.5.1.4.38.": "a hanging protocol",
}
_AGE = re.compile(r"(\d{1,3})([DWMY]?)")
_DATETIME = re.compile(r"(\d{8})(\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?)?([+-]\d{4})?")


def refusal(dataset: Dataset) -> str:
    """Why this kind of object is not written at all; "" where it is."""
    sop = str(dataset.get("SOPClassUID") or "").strip().strip("\0")
    for prefix in sorted(_REFUSED, key=len, reverse=True):
        if sop.startswith(prefix):
            if _REFUSED[prefix] and (prefix.endswith(".") or sop == prefix):
                return f"{_REFUSED[prefix]}: its text cannot be cleaned by rules"
            break
    if not sop.startswith(STANDARD_ROOT):
        return "an object of a private or missing SOP class"
    if not sop.startswith(_STORAGE):
        return "a DICOM object that is no image"
    return ""


def patient_of(dataset: Dataset) -> str:
    """What the patient is known by: PatientID, else name and birth date, else the study, else ""."""
    for keywords in (("PatientID",), ("PatientName", "PatientBirthDate"), ("StudyInstanceUID",), ("SOPInstanceUID",)):
        values = [_words(dataset, k) for k in keywords]
        if values[0].strip("^ "):
            return "|".join(values) if keywords[0] != "PatientID" else values[0]
    return ""


def _words(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
    except Exception:  # a value that cannot be parsed is none
        return ""
    return "" if value is None else str(value).strip().strip("\0").strip()


class Cleaner:
    """Cleans one object in place.

    Attributes:
        actions: (keyword, what was done) of each attribute changed; attributes of nested items count as their keyword.
        code: the patient's code.
    """

    def __init__(self, dataset: Dataset, rules: Rules, codes: Codes, path: str) -> None:
        """`path` stands in for ids that the object lacks: it is only ever hashed."""
        self.rules, self.codes = rules, codes
        patient = patient_of(dataset) or path
        self.code = codes.patient(patient)
        self.days = codes.days(patient) if rules.dates == "shift" else 0
        self.explicit = not dataset.file_meta.TransferSyntaxUID.is_implicit_VR if hasattr(dataset, "file_meta") else False
        self.known = known_of(dataset)
        self.holds_known = Finder(self.known)
        self.actions: set[tuple[str, str]] = set()

    def clean(self, dataset: Dataset) -> None:
        """Remove, replace, code and shift, in `dataset` and all its items."""
        from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag

        creators = _creators(dataset)
        for tag in list(dataset.keys()):
            group, element = tag.group, tag.element
            if group < 8 or element == 0:
                del dataset[tag]  # commands, group lengths
            elif group % 2:
                self._private(dataset, tag, creators)
            elif group & 0xFF00 in (0x5000, 0x6000):
                self._remove(dataset, tag, "Overlays" if group & 0xFF00 == 0x6000 else "Curves")
            elif not dictionary_has_tag(tag):
                self._remove(dataset, tag, "(not in the dictionary)")
            else:
                keyword = keyword_for_tag(tag) or f"({group:04X},{element:04X})"
                self._public(dataset, tag, keyword, dictionary_VR(tag).split(" ")[0])
                if self.explicit and tag in dataset and dataset.get_item(tag).VR is None:
                    self._name_type(dataset, tag, keyword)
        if self.rules.private == "safe":
            self._unused_creators(dataset)

    def name_patient(self, dataset: Dataset) -> None:
        """The patient's code where the file names no patient: its images belong together all the same."""
        for keyword in ("PatientID", "PatientName"):
            if not dataset.get(keyword):
                setattr(dataset, keyword, self.code)
                self.actions.add((keyword, "coded"))

    def _name_type(self, dataset: Dataset, tag: BaseTag, keyword: str) -> None:
        """Elements without VR in a file of explicit VR (writers mix them): parsing finds the VR, which writing needs."""
        try:
            _ = dataset[tag].VR
        except Exception:  # a value that cannot be parsed
            self._remove(dataset, tag, keyword)

    def _remove(self, dataset: Dataset, tag: BaseTag, name: str) -> None:
        del dataset[tag]
        self.actions.add((name, "removed"))

    def _private(self, dataset: Dataset, tag: BaseTag, creators: dict[tuple[int, int], str]) -> None:
        if self.rules.private == "safe":
            if tag.element <= 0xFF:
                return  # those with nothing left go last
            creator = creators.get((tag.group, tag.element >> 8), "")
            if safe_private(creator, tag.group, tag.element, stored(dataset, tag)):
                return
        self._remove(dataset, tag, "(private)")

    def _public(self, dataset: Dataset, tag: BaseTag, keyword: str, vr: str) -> None:
        decision = verdict(tag.group, tag.element, keyword, vr, self.rules)
        if decision == "remove":
            self._remove(dataset, tag, keyword)
            return
        if decision == "items":
            self._items(dataset, tag, keyword)
            return
        if decision == "empty" and vr == "SQ":
            self._set(dataset, tag, vr, [], keyword, "emptied")
            return
        value = stored(dataset, tag)
        if not value.strip(b" \0\\"):
            return  # nothing to hide
        if decision == "empty":
            self._set(dataset, tag, vr, None, keyword, "emptied")
        elif decision == "patient":
            self._set(dataset, tag, vr, self.code, keyword, "coded")
        elif decision == "number":
            self._set(dataset, tag, vr, self.codes.number(_decode(value)), keyword, "coded")
        elif decision == "dummy":
            self._dummy(dataset, tag, keyword, vr)
        elif decision == "clean":
            self._describe(dataset, tag, keyword, vr)
        elif decision == "age":
            self._age(dataset, tag, value)
        elif not fits(vr, _vr(dataset, tag), value):
            # A date that is no date, letters in a number.
            if decision in ("date", "time"):
                self._set(dataset, tag, vr, None, keyword, "emptied")
            else:
                self._remove(dataset, tag, keyword)
        elif decision == "uid":
            self._uid(dataset, tag, keyword, value)
        elif decision == "date":
            self._date(dataset, tag, keyword, vr, value)
        elif decision == "text" or (decision == "keep" and vr == "CS"):
            if keyword in STRUCTURAL:
                self._structural(dataset, tag, keyword)
            else:
                self._text(dataset, tag, keyword)
        elif decision == "keep" and vr == "IS" and self.holds_known.number(_decode(value)):
            self._remove(dataset, tag, keyword)

    def _set(self, dataset: Dataset, tag: BaseTag, vr: str, value: Any, keyword: str, what: str) -> None:
        from pydicom.dataelem import DataElement

        dataset[tag] = DataElement(tag, vr, value)
        self.actions.add((keyword, what))

    def _items(self, dataset: Dataset, tag: BaseTag, keyword: str) -> None:
        from pydicom.sequence import Sequence

        try:
            value = dataset[tag].value
            if value is None:
                return
            if not isinstance(value, Sequence):
                raise TypeError
            for item in value:
                self.clean(item)
        except (RecursionError, MemoryError):
            raise
        except Exception:  # bytes that are no sequence
            self._remove(dataset, tag, keyword)

    def _dummy(self, dataset: Dataset, tag: BaseTag, keyword: str, vr: str) -> None:
        from dicomanonymizer.simpledicomanonymizer import replace_element
        from pydicom.dataelem import DataElement

        element = DataElement(tag, vr, None)
        try:
            replace_element(element)
        except NotImplementedError:
            self._remove(dataset, tag, keyword)
            return
        dataset[tag] = element
        self.actions.add((keyword, "replaced"))

    def _uid(self, dataset: Dataset, tag: BaseTag, keyword: str, value: bytes) -> None:
        # The class of an object says what it is, not whose; private classes were refused, referenced ones may be private.
        if self.rules.retain_uids:
            return
        old = _decode(value).split("\\")
        new = [self.codes.uid(u) for u in old]
        if new != [u.strip().strip("\0") for u in old]:
            self._set(dataset, tag, "UI", new if len(new) > 1 else new[0], keyword, "coded")

    def _date(self, dataset: Dataset, tag: BaseTag, keyword: str, vr: str, value: bytes) -> None:
        if self.rules.dates == "keep":
            return
        old = _decode(value).split("\\")
        new = [shifted(d, self.days) if vr == "DA" else self._datetime(d) for d in old]
        what = "shifted" if all(new) else "emptied"
        self._set(dataset, tag, vr, (new if len(new) > 1 else new[0]) if all(new) else None, keyword, what)

    def _datetime(self, text: str) -> str:
        match = _DATETIME.fullmatch(text.strip().strip("\0"))
        if match is None:
            return ""
        day = shifted(match[1], self.days)
        return day and day + (match[2] or "") + (match[3] or "")

    def _age(self, dataset: Dataset, tag: BaseTag, value: bytes) -> None:
        match = _AGE.fullmatch(_decode(value))
        if match is None:
            self._remove(dataset, tag, "PatientAge")
            return
        age, unit = int(match[1]), match[2] or "Y"
        # Above 89 years a person stands out (HIPAA Safe Harbor, 45 CFR 164.514(b)(2)(i)(C)).
        capped = unit == "Y" and age > 89
        if capped or len(match[0]) != 4:
            self._set(
                dataset, tag, "AS", f"{90 if capped else age:03d}{unit}", "PatientAge", "capped" if capped else "respelled"
            )

    def _text(self, dataset: Dataset, tag: BaseTag, keyword: str) -> None:
        text = _parsed(dataset, tag)
        cs = _vr(dataset, tag) == "CS"
        if text is None or self.holds_known(text) or (keyword not in VERBATIM and not cs and scrub(text)[1]):
            self._remove(dataset, tag, keyword)

    def _structural(self, dataset: Dataset, tag: BaseTag, keyword: str) -> None:
        """One word of a name is taken for a term: "CHEST". Two, or a number of the patient's, are none."""
        text = _parsed(dataset, tag)
        if text is None or self.holds_known.clearly(text):
            self._remove(dataset, tag, keyword)

    def _describe(self, dataset: Dataset, tag: BaseTag, keyword: str, vr: str) -> None:
        text = _parsed(dataset, tag)
        if text is None:
            self._remove(dataset, tag, keyword)
            return
        new, counts = scrub(text, self.known)
        if self.holds_known(new):
            self._remove(dataset, tag, keyword)
        elif counts:
            self._set(dataset, tag, vr, new[:64] if vr in ("LO", "SH") else new, keyword, "cleaned")

    def _unused_creators(self, dataset: Dataset) -> None:
        used = {(t.group, t.element >> 8) for t in dataset.keys() if t.group % 2 and t.element > 0xFF}  # noqa: SIM118
        for tag in [t for t in dataset.keys() if t.group % 2 and t.element <= 0xFF]:  # noqa: SIM118
            if (tag.group, tag.element) not in used:
                self._remove(dataset, tag, "(private)")


def stored(dataset: Dataset, tag: BaseTag) -> bytes:
    """A value as the file holds it; a value that was parsed before is spelled out again."""
    element = dataset.get_item(tag)
    value = element.value if element is not None else None
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    parts = [value] if isinstance(value, str | int | float) or not hasattr(value, "__iter__") else list(value)
    return "\\".join(str(p) for p in parts).encode("utf-8", "replace")


def _vr(dataset: Dataset, tag: BaseTag) -> str:
    """The VR in the file; the dictionary's where the file has none (implicit VR)."""
    from pydicom.datadict import dictionary_VR

    element = dataset.get_item(tag)
    vr = element.VR if element is not None else None
    return str(vr or dictionary_VR(tag)).split(" ")[0]


def _decode(value: bytes) -> str:
    # Only looked at or hashed. Latin-1 reads any bytes; a code of UTF-8 bytes is as good as one of letters.
    try:
        return value.decode("utf-8").strip(" \0")
    except UnicodeDecodeError:
        return value.decode("latin-1").strip(" \0")


def _parsed(dataset: Dataset, tag: BaseTag) -> str | None:
    """A text in the letters of its character set, as names are compared; None where it cannot be read."""
    try:
        value = dataset[tag].value
        if isinstance(value, bytes):
            return _decode(value)
        return value if isinstance(value, str) else "\\".join(map(str, value))
    except Exception:  # bytes that its character set does not know
        return None


def _creators(dataset: Dataset) -> dict[tuple[int, int], str]:
    """(group, block) -> private creator."""
    return {
        (t.group, t.element): _decode(stored(dataset, t))
        for t in dataset.keys()  # noqa: SIM118
        if t.group % 2 and 0x10 <= t.element <= 0xFF
    }


def mark(dataset: Dataset, rules: Rules, version: str) -> None:
    """Say in the object that and how it was de-identified (PS3.15 E.1.1, PS3.3 C.12.1.1.9)."""
    from pydicom.dataset import Dataset as New
    from pydicom.sequence import Sequence

    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"medfm {version}: PS3.15 basic profile 2026c"
    items = []
    for value, meaning in rules.codes():
        item = New()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = Sequence(items)
    changed = {"shift": "MODIFIED", "remove": "REMOVED", "keep": "UNMODIFIED"}[rules.dates]
    dataset.LongitudinalTemporalInformationModified = changed


def rebuild_meta(dataset: Dataset, version: str) -> None:
    """New preamble of zeros and new file meta information: class, instance, transfer syntax, medfm's own name, no more."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    syntax = dataset.file_meta.TransferSyntaxUID
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = UID(IMPLEMENTATION)
    meta.ImplementationVersionName = f"MEDFM_{version}"[:16].upper()
    dataset.file_meta = meta
    dataset.preamble = b"\0" * 128
