"""Values of a pydicom Dataset without converting its elements.

pydicom makes an object of each element that is looked at, 10 to 30 us; grouping looks at 40 of each slice. Plain text and short
integers are taken from the bytes; `None` sends the caller to pydicom.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.tag import BaseTag

# Text whose bytes mean the same in every character set of DICOM; names, descriptions and long texts are left to pydicom.
_PLAIN = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"))
_TEXT = frozenset(("LO", "SH"))
_BINARY = frozenset(("AT", "FD", "FL", "OB", "OD", "OF", "OL", "OV", "OW", "SL", "SQ", "SS", "SV", "UL", "US", "UV"))


@lru_cache(maxsize=2**14)
def tag_of(number: int) -> BaseTag:
    """The one BaseTag of a number: a look-up among BaseTags that are not the same object compares them in Python."""
    from pydicom.tag import BaseTag

    return BaseTag(number)


@cache
def _entry(keyword: str) -> tuple[BaseTag, str]:
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag_of(tag), dictionary_VR(tag)


def has(dataset: Dataset, keyword: str) -> bool:
    """As `keyword in dataset`."""
    return _entry(keyword)[0] in dataset._dict


def raw_bytes(dataset: Dataset, keyword: str) -> bytes | None:
    """The value of a text element as stripped ASCII bytes, b"" where it is empty; None where pydicom is to be asked."""
    tag, known = _entry(keyword)
    element: Any = dataset._dict.get(tag)
    if type(element).__name__ != "RawDataElement":
        return None
    vr = element.VR or known
    value = element.value
    if vr not in _PLAIN and vr not in _TEXT:
        return None
    if not isinstance(value, bytes) or not value.isascii() or (vr in _TEXT and b"\x1b" in value):
        return None
    return value.strip(b" \0")


def is_mislabelled(dataset: Dataset, keyword: str) -> bool:
    """Whether a number that DICOM writes as text carries the VR of a binary one: its bytes would be read as another number."""
    tag, known = _entry(keyword)
    element: Any = dataset._dict.get(tag)
    return known in ("DS", "IS") and element is not None and element.VR in _BINARY


def raw_integer(dataset: Dataset, keyword: str) -> int | None:
    """The value of a single US element; None where pydicom is to be asked."""
    tag, known = _entry(keyword)
    element: Any = dataset._dict.get(tag)
    if type(element).__name__ != "RawDataElement" or (element.VR or known) != "US":
        return None
    value = element.value
    if not isinstance(value, bytes) or len(value) != 2:
        return None
    return int.from_bytes(value, "little" if element.is_little_endian else "big")
