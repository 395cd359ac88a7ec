"""PNG and JPEG files without anything but the picture: EXIF, comments, thumbnails, profiles and trailing bytes go.

Pixels are not coded anew. The orientation that EXIF states stays: without it a reader would turn the picture.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from medfm.errors import DataError
from medfm.io.files import atomic_write

# What decides pixel values or their size; text, times, EXIF, profiles and private chunks are not among it.
_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"bKGD"})
_PNG = b"\x89PNG\r\n\x1a\n"


def clean_picture(source: Path, target: Path) -> list[str]:
    """Write `target` and name what was removed.

    Raises:
        DataError: neither PNG nor JPEG, or damaged.
    """
    data = source.read_bytes()
    try:
        if data.startswith(_PNG):
            clean, done = _png(data)
        elif data.startswith(b"\xff\xd8\xff"):
            clean, done = _jpeg(data)
        else:
            raise DataError("is neither PNG nor JPEG")
    except (struct.error, IndexError):
        raise DataError("is truncated or damaged") from None
    with atomic_write(target) as temporary:
        temporary.write_bytes(clean)
    return sorted(done)


def _orientation(block: bytes) -> int:
    """The orientation, 1 to 8, in a TIFF block (EXIF 2.32 section 4.6.4); 1 where it says none.

    Not by Pillow, which logs every value that it reads.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 10:
        return 1
    (at,) = struct.unpack_from(order + "L", block, 4)
    try:
        (count,) = struct.unpack_from(order + "H", block, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHLH", block, entry)
            if (tag, kind) == (0x0112, 3):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _exif(orientation: int) -> bytes:
    """A TIFF block with the orientation and nothing else."""
    return b"MM\0*" + struct.pack(">LHHHLHHL", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def _png(data: bytes) -> tuple[bytes, set[str]]:
    out, done, at = bytearray(_PNG), set(), len(_PNG)
    while at < len(data):
        (length,) = struct.unpack_from(">L", data, at)
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if len(body) < length or at + 12 + length > len(data):
            raise DataError("is truncated or damaged")
        if name in _CHUNKS:
            out += data[at : at + 12 + length]
        else:
            done.add(f"PNG {name.decode('latin-1')}" if name.isalpha() and name in _NAMED else "PNG chunks")
            orientation = _orientation(body) if name == b"eXIf" else 1
            if orientation > 1:
                block = b"eXIf" + _exif(orientation)
                out += struct.pack(">L", len(block) - 4) + block + struct.pack(">L", zlib.crc32(block))
        at += 12 + length
        if name == b"IEND":
            break
    else:
        raise DataError("is truncated or damaged")
    if at < len(data):
        done.add("bytes behind the picture")
    return bytes(out), done


_NAMED = frozenset({b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME", b"iCCP"})


def _jpeg(data: bytes) -> tuple[bytes, set[str]]:
    out, done = bytearray(b"\xff\xd8"), set()
    at, orientation = 2, 1
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise DataError("is truncated or damaged")
        while data[at + 1] == 0xFF:
            at += 1
        marker = data[at + 1]
        if marker == 0xD9:
            out += b"\xff\xd9"
            at += 2
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        end = at + 2 + length
        if len(body) < length - 2:
            raise DataError("is truncated or damaged")
        if marker == 0xE0:
            # A JFIF header without its thumbnail.
            out += b"\xff\xe0\0\x10" + body[:12].ljust(12, b"\0") + b"\0\0" if body.startswith(b"JFIF\0") else b""
        elif marker == 0xEE and body.startswith(b"Adobe"):
            out += data[at:end]
        elif 0xE1 <= marker <= 0xEF or marker == 0xFE:
            done.add("JPEG comment" if marker == 0xFE else "JPEG EXIF and application data")
            if marker == 0xE1 and body.startswith(b"Exif\0\0") and orientation == 1:
                orientation = _orientation(body[6:])
                if orientation > 1:
                    block = b"Exif\0\0" + _exif(orientation)
                    out += b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
        else:
            if marker == 0xDA:
                end = _scan_end(data, end)
            out += data[at:end]
        at = end
    if at < len(data):
        done.add("bytes behind the picture")
    return bytes(out), done


def _scan_end(data: bytes, at: int) -> int:
    """Where the next marker stands behind entropy-coded data: FF00 is data, FFD0 to FFD7 restart it (ITU-T T.81 B.1.1.5)."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            raise DataError("is truncated or damaged")
        if data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7:
            at += 2
        elif data[at + 1] == 0xFF:
            at += 1
        else:
            return at
