"""A quick pass over the header of a well-formed DICOM file.

pydicom reads an element at a time from the file and parses sequences of undefined length at once, 1.2 ms a CT slice. Here the
header is one buffer, sequences are kept as bytes until they are asked for, and a slice takes a third of that. Anything unusual
(no preamble, big-endian or deflated, an unknown VR, tags out of order, lengths beyond the file) is left to pydicom.
"""

from __future__ import annotations

import os
from struct import Struct
from typing import TYPE_CHECKING, BinaryIO

from medfm.io.raw import tag_of

if TYPE_CHECKING:
    from pydicom import Dataset

_EXPLICIT = Struct("<HH2sH").unpack_from
_IMPLICIT = Struct("<HHL").unpack_from
_LENGTH = Struct("<L").unpack_from
_UNDEFINED = 0xFFFFFFFF
_PIXEL_GROUP = 0x7FE0
_ITEM, _ITEM_END, _SEQUENCE_END = 0xE000, 0xE00D, 0xE0DD
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OW", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"))
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_NAMES = {vr: vr.decode() for vr in _LONG | _SHORT}
_FIRST_READ = 2**17
_LARGEST = 2**28
_DEEPEST = 16


class Unusual(Exception):
    """The header is not one for the quick pass."""


class _Short(Exception):
    """The buffer ends before the header does."""


def walk_header(file: BinaryIO) -> tuple[Dataset, int]:
    """(the dataset up to its pixels with `file_meta`, the offset of the pixel data element).

    Raises:
        Unusual: pydicom is to read it.
    """
    size = os.fstat(file.fileno()).st_size
    take = min(size, _FIRST_READ)
    while True:
        file.seek(0)
        data = file.read(take)
        try:
            return _walk(data, size)
        except _Short:
            if take >= min(size, _LARGEST):
                raise Unusual from None
            take = min(size, take * 8)


def _walk(data: bytes, size: int) -> tuple[Dataset, int]:
    from pydicom import Dataset
    from pydicom.charset import convert_encodings
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
    from pydicom.values import convert_string

    if data[128:132] != b"DICM":
        raise Unusual
    elements, start = _elements(data, 132, size, implicit=False, group=2)
    meta = FileMetaDataset()
    meta._dict = elements
    meta.set_original_encoding(False, True)
    syntax = meta.get("TransferSyntaxUID")
    if (
        not isinstance(syntax, UID)
        or not syntax.is_transfer_syntax
        or syntax in (ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    ):
        raise Unusual
    implicit = syntax == ImplicitVRLittleEndian
    elements, end = _elements(data, start, size, implicit, group=None)
    dataset = Dataset(elements)
    charset = elements.get(0x00080005)
    encoding = convert_encodings(convert_string(charset.value or b"", True)) if charset is not None else None
    dataset.set_original_encoding(implicit, True, encoding)
    dataset.file_meta = meta
    return dataset, end


def _elements(data: bytes, at: int, size: int, implicit: bool, group: int | None) -> tuple[dict, int]:
    """(raw elements by tag, offset after them) of one `group`, or of everything before the pixel data."""
    from pydicom.dataelem import RawDataElement

    found: dict = {}
    last, end = -1, len(data)
    while True:
        if at + 8 > end:
            raise _Short
        if implicit:
            high, low, length = _IMPLICIT(data, at)
            vr, begin = None, at + 8
        else:
            high, low, vr, length = _EXPLICIT(data, at)
            begin = at + 8
        if group is not None:
            if high != group:
                return found, at
        elif high >= _PIXEL_GROUP:
            if high == _PIXEL_GROUP and low in (0x08, 0x09, 0x10):
                return found, at
            raise Unusual
        tag = high << 16 | low
        if tag <= last:
            raise Unusual
        last = tag
        if vr is not None:
            if vr in _LONG:
                if at + 12 > end:
                    raise _Short
                (length,) = _LENGTH(data, begin)
                begin += 4
            elif vr not in _SHORT:
                raise Unusual
        name: str | None
        if length == _UNDEFINED:
            if vr not in (None, b"SQ"):
                raise Unusual
            stop, at = _skip_sequence(data, begin, size, implicit, 0)
            name = "SQ"
        else:
            stop = at = begin + length
            if stop > end:
                raise _Short if stop <= size else Unusual
            name = _NAMES[vr] if vr is not None else None
        key = tag_of(tag)
        found[key] = RawDataElement(key, name, stop - begin, data[begin:stop], begin, implicit, True)


def _skip_sequence(data: bytes, at: int, size: int, implicit: bool, depth: int) -> tuple[int, int]:
    """(end of the items, offset after the delimiter) of a sequence of undefined length."""
    end = len(data)
    if depth > _DEEPEST:
        raise Unusual
    while True:
        if at + 8 > end:
            raise _Short
        high, low, length = _IMPLICIT(data, at)
        if high != 0xFFFE:
            raise Unusual
        if low == _SEQUENCE_END:
            return at, at + 8
        if low != _ITEM:
            raise Unusual
        at += 8
        if length != _UNDEFINED:
            at += length
            if at > size:
                raise Unusual
            continue
        at = _skip_item(data, at, size, implicit, depth)


def _skip_item(data: bytes, at: int, size: int, implicit: bool, depth: int) -> int:
    """The offset after the delimiter of an item of undefined length."""
    end = len(data)
    while True:
        if at + 8 > end:
            raise _Short
        if implicit:
            high, low, length = _IMPLICIT(data, at)
            at += 8
        else:
            high, low, vr, length = _EXPLICIT(data, at)
            at += 8
            if high != 0xFFFE:
                if vr in _LONG:
                    if at + 4 > end:
                        raise _Short
                    (length,) = _LENGTH(data, at)
                    at += 4
                elif vr not in _SHORT:
                    raise Unusual
        if high == 0xFFFE:
            if low != _ITEM_END:
                raise Unusual
            return at
        if length == _UNDEFINED:
            _, at = _skip_sequence(data, at, size, implicit, depth + 1)
        else:
            at += length
            if at > size:
                raise Unusual
