"""Text that hides in pixel data: comments in compressed streams, bytes behind the last pixel, overlays in unused bits.

Pixel values are never changed, nor is the length of anything that offsets point into.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

_JPEG = "1.2.840.10008.1.2.4."
_MOVIES = frozenset(f"{_JPEG}{n}" for n in range(100, 108))  # MPEG-2, MPEG-4, HEVC
_PIXELS = 0x7FE00010


def clean_pixels(dataset: Dataset) -> list[str]:
    """Clean PixelData in place, before overlays are removed; what was done, in words."""
    if _PIXELS not in dataset:
        return []
    syntax = dataset.file_meta.TransferSyntaxUID
    element = dataset.get_item(_PIXELS)
    value = element.value if element is not None else None
    if not isinstance(value, bytes) or not value:
        return []
    if not syntax.is_compressed or syntax == "1.2.840.10008.1.2.1.99":
        new, done = _native(dataset, value)
    elif syntax.startswith(_JPEG) and str(syntax) not in _MOVIES:
        new, done = _encapsulated(value, frames=str(dataset.get("NumberOfFrames") or 1))
    else:
        return []
    if done:
        dataset[_PIXELS].value = new
    return done


def _native(dataset: Dataset, value: bytes) -> tuple[bytes, list[str]]:
    try:
        rows, columns, allocated = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)
        samples, frames = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("NumberOfFrames") or 1)
    except (AttributeError, TypeError, ValueError):
        return value, []
    if str(dataset.get("PhotometricInterpretation", "")) == "YBR_FULL_422" and samples == 3:
        samples = 2  # two pixels share their colour
    done = []
    size = (rows * columns * samples * frames * allocated + 7) // 8
    size += size % 2
    if 0 < size < len(value):
        value, done = value[:size], ["bytes behind the last pixel"]
    if _overlay_in_bits(dataset) and allocated in (8, 16):
        masked = _mask(dataset, value, allocated)
        if masked != value:
            value = masked
            done.append("overlay in unused bits")
    return value, done


def _overlay_in_bits(dataset: Dataset) -> bool:
    """Whether an overlay lies in the pixels' own bits (retired, PS3.3-2004 C.9.2): it has a bit position and no data."""
    groups = {t.group for t in dataset.keys() if t.group & 0xFF00 == 0x6000 and t.group % 2 == 0}  # noqa: SIM118
    return any((g << 16 | 0x3000) not in dataset and (g << 16 | 0x0102) in dataset for g in groups)


def _mask(dataset: Dataset, value: bytes, allocated: int) -> bytes:
    """Zero (sign-extended where signed) above the stored bits, zero below."""
    import numpy as np

    try:
        stored, high = int(dataset.BitsStored), int(dataset.get("HighBit", dataset.BitsStored - 1))
    except (AttributeError, TypeError, ValueError):
        return value
    low = high - stored + 1
    if not 0 < stored < allocated or low < 0:
        return value
    little = dataset.original_encoding[1] is not False
    dtype = np.dtype(np.uint8 if allocated == 8 else np.uint16).newbyteorder("<" if little else ">")
    whole = len(value) - len(value) % dtype.itemsize
    pixels = np.frombuffer(value[:whole], dtype)
    mask = ((1 << stored) - 1) << low
    kept = pixels & dtype.type(mask)
    if int(dataset.get("PixelRepresentation") or 0):
        above = ((1 << allocated) - 1) ^ ((1 << (high + 1)) - 1)
        kept = np.where(kept & (1 << high), kept | above, kept)
    return kept.astype(dtype).tobytes() + value[whole:]


def _encapsulated(value: bytes, frames: str) -> tuple[bytes, list[str]]:
    """Blank comments, application data and what follows the end of each codestream; lengths stay."""
    new = bytearray(value)
    done: dict[str, None] = {}
    fragments = list(_fragments(value))
    # Only in a whole codestream the last FFD9 is its end: in scan data FF is never followed by D9.
    whole = frames.strip() == str(len(fragments))
    for start, length in fragments:
        if value[start : start + 2] == b"\xff\xd8":
            segments = _jpeg_segments(value, start, start + length)
        elif value[start : start + 4] == b"\xff\x4f\xff\x51":
            segments = _jpeg2000_segments(value, start, start + length)
        elif value[start + 4 : start + 8] == b"jP  ":
            segments = _jp2_boxes(value, start, start + length)
        else:
            continue
        end = value.rfind(b"\xff\xd9", start, start + length) if whole else -1
        if end >= 0:
            segments = [*segments, (end + 2, start + length)]
        for a, b in segments:
            if new[a:b].strip(b"\0"):
                new[a:b] = bytes(b - a)
                done["comments in the compressed stream"] = None
    return bytes(new), list(done)


def _fragments(value: bytes) -> Iterator[tuple[int, int]]:
    """(start, length) of each fragment behind the basic offset table (PS3.5 A.4), always little-endian."""
    at, first = 0, True
    while at + 8 <= len(value):
        group, element, length = struct.unpack_from("<HHL", value, at)
        if (group, element) != (0xFFFE, 0xE000) or at + 8 + length > len(value):
            return
        if not first:
            yield at + 8, length
        first = False
        at += 8 + length


# Application data that decide how pixels are decoded: APP8 (JPEG-LS colour transform), APP14 (Adobe).
_NEEDED = frozenset({0xE8, 0xEE})


def _jpeg_segments(value: bytes, start: int, end: int) -> list[tuple[int, int]]:
    """Ranges of COM and APPn payloads before the first scan (ITU-T T.81 annex B)."""
    found = []
    at = start + 2
    while at + 4 <= end and value[at] == 0xFF:
        marker = value[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:
            break
        length = int.from_bytes(value[at + 2 : at + 4], "big")
        stop = min(at + 2 + length, end)
        if marker == 0xE0:
            jfif = value[at + 4 : at + 9] == b"JFIF\0"
            found.append((min(at + 18 if jfif else at + 9, stop), stop))  # a thumbnail
        elif marker == 0xFE or (0xE1 <= marker <= 0xEF and marker not in _NEEDED):
            found.append((at + 4, stop))
        at += 2 + max(length, 2)
    return found


def _jpeg2000_segments(value: bytes, start: int, end: int) -> list[tuple[int, int]]:
    """Ranges of COM texts in the main header (ISO 15444-1 A.9.2)."""
    found = []
    at = start + 2
    while at + 4 <= end and value[at] == 0xFF:
        marker = value[at + 1]
        if marker == 0x90:  # the first tile part
            break
        length = int.from_bytes(value[at + 2 : at + 4], "big")
        if marker == 0x64:
            found.append((min(at + 6, end), min(at + 2 + length, end)))
        at += 2 + max(length, 2)
    return found


# What a decoder needs of a JP2 file: signature, file type, header, codestream.
_JP2_NEEDED = frozenset({b"jP  ", b"ftyp", b"jp2h", b"jp2c"})


def _jp2_boxes(value: bytes, start: int, end: int) -> list[tuple[int, int]]:
    """Ranges of the payloads of all other boxes (XML, UUID, ...), and of COM texts in the codestream (ISO 15444-1 annex I)."""
    found = []
    at = start
    while at + 8 <= end:
        length, kind = struct.unpack_from(">I4s", value, at)
        head = 16 if length == 1 else 8
        length = int.from_bytes(value[at + 8 : at + 16], "big") if length == 1 else length or end - at  # 0: up to the end
        stop = min(at + max(length, head), end)
        if kind == b"jp2c":
            found += _jpeg2000_segments(value, at + head, stop)
        elif kind not in _JP2_NEEDED:
            found.append((at + head, stop))
        at = stop
    return found
