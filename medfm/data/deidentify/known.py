"""The names and numbers that one file or patient is known by, to be searched for where they do not belong. Never logged."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from medfm.text.known import TOKEN as _WORD
from medfm.text.known import bounded, digits_of, joined, number, phrase, telling, unspaced

if TYPE_CHECKING:
    from pydicom import Dataset

_NUMBER_WORDS = """
    PatientID OtherPatientIDs AccessionNumber StudyID AdmissionID MedicalRecordLocator DeviceSerialNumber RequestedProcedureID
    PlacerOrderNumberImagingServiceRequest FillerOrderNumberImagingServiceRequest
"""
_PLACE_WORDS = """
    InstitutionName InstitutionAddress InstitutionalDepartmentName PatientAddress StationName RequestingService
"""
_NUMBERS, _PLACES = frozenset(_NUMBER_WORDS.split()), frozenset(_PLACE_WORDS.split())
KEYWORDS = tuple(sorted(_NUMBERS | _PLACES))
_FRAMES = "PerFrameFunctionalGroupsSequence"


def known_of(dataset: Dataset) -> frozenset[str]:
    """Names of persons (always with a caret: "Doe^John"), numbers and places in `dataset`, nested ones included."""
    found: set[str] = set()
    _collect(dataset, found)
    return frozenset(v for v in (f.strip(" \0") for f in found) if len(v) > 1)


def _collect(dataset: Dataset, found: set[str]) -> None:
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    for tag in dataset.keys():  # noqa: SIM118, iterating a Dataset converts every element
        if tag.group % 2 or tag.group < 8:
            continue
        keyword = keyword_for_tag(tag)
        try:
            vr = dictionary_VR(tag)
            if vr == "PN":
                # The caret says that the words are parts of a name, wherever the text goes from here.
                found.update(t if "^" in t else f"{t}^" for t in _texts(dataset[tag].value) if t.strip(" ^="))
            elif keyword in _NUMBERS or keyword in _PLACES:
                found.update(_texts(dataset[tag].value))
            elif vr == "SQ":
                items = dataset[tag].value or ()
                for item in items[:1] if keyword == _FRAMES else items:
                    _collect(item, found)
        except Exception:  # what cannot be parsed is removed later
            continue


def _texts(value: Any) -> Iterable[str]:
    if value is None:
        return
    if isinstance(value, bytes):
        yield value.decode("latin-1")
    elif isinstance(value, str) or not isinstance(value, Iterable) or hasattr(value, "family_name"):
        yield str(value)
    else:
        for part in value:
            yield str(part)


class Finder:
    """Whether a text holds one of the known words, in any case and in other spellings (see `medfm.text.known`)."""

    def __init__(self, known: Iterable[str]) -> None:
        words: set[str] = set()
        numbers: set[str] = set()
        others: set[str] = set()
        for text in known:
            if "^" in text:
                words.update(_WORD.findall(text))
            elif any(c.isdigit() for c in text):
                numbers.update(number(t) for t in (text, digits_of(text)) if len(re.sub(r"\W", "", t)) >= 4)
            elif len(text) >= 4:
                others.add(phrase(text))
        alone = {bounded(w) for w in words if (telling(w) if unspaced(w) else len(w) >= 3)}
        self._name = _either(alone | set(joined(words)))
        self._number = _either(numbers)
        self._other = _either(others)

    def __call__(self, text: str) -> bool:
        return any(p is not None and p.search(text) is not None for p in (self._name, self._number, self._other))

    def clearly(self, text: str) -> bool:
        """Two parts of a name, or a number: no word of the trade by chance."""
        if self._number is not None and self._number.search(text) is not None:
            return True
        return self._name is not None and len({m.group().lower() for m in self._name.finditer(text)}) > 1

    def number(self, text: str) -> bool:
        return self._number is not None and self._number.search(text) is not None


def _either(patterns: Iterable[str]) -> re.Pattern[str] | None:
    ordered = sorted(patterns, key=len, reverse=True)
    return re.compile("|".join(ordered), re.IGNORECASE) if ordered else None
