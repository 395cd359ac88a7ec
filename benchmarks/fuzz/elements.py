"""Editing of an explicit little-endian DICOM file as bytes, element by element, so that anything wrong can be written."""

from __future__ import annotations

import struct
from dataclasses import dataclass

LONG = (b"OB", b"OD", b"OF", b"OL", b"OW", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT")
UNDEFINED = 0xFFFFFFFF
PIXELS = 0x7FE00010


@dataclass(frozen=True)
class Place:
    """Bytes start:value hold tag, VR and length; value:end the value."""

    vr: bytes
    start: int
    value: int
    end: int


def elements(raw: bytes) -> dict[int, Place]:
    """Top-level elements, file meta included. The last may have an undefined length: it then reaches to the end."""
    found: dict[int, Place] = {}
    at = 132
    while at + 8 <= len(raw):
        group, number, vr = struct.unpack_from("<HH2s", raw, at)
        if vr in LONG:
            length, value = struct.unpack_from("<I", raw, at + 8)[0], at + 12
        else:
            length, value = struct.unpack_from("<H", raw, at + 6)[0], at + 8
        end = len(raw) if length == UNDEFINED else value + length
        found[(group << 16) + number] = Place(vr, at, value, end)
        at = end
    return found


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """Its bytes; `length` lies about the value's."""
    size = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<HI", 0, size) if vr in LONG else struct.pack("<H", size & 0xFFFF)) + value


def put(raw: bytes, tag: int, value: bytes, vr: bytes | None = None, length: int | None = None) -> bytes:
    """`raw` with an element replaced, or added at its place in the order of tags."""
    found = elements(raw)
    if tag in found:
        place = found[tag]
        return raw[: place.start] + element(tag, vr or place.vr, value, length) + raw[place.end :]
    after = min((p.start for t, p in found.items() if t > tag), default=len(raw))
    return raw[:after] + element(tag, vr or b"UN", value, length) + raw[after:]


def drop(raw: bytes, tag: int) -> bytes:
    place = elements(raw)[tag]
    return raw[: place.start] + raw[place.end :]


def text(value: str) -> bytes:
    """Padded to an even length."""
    data = value.encode("latin-1")
    return data + b" " * (len(data) % 2)


def short(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}H", *(v & 0xFFFF for v in values))
