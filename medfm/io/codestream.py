"""What a compressed frame says about itself: size, precision, components and colour, read from its own header.

The header is compared with the DICOM header before a decoder allocates anything: a decoder believes the codestream, and a
file whose two headers differ is damaged.

Sources: ITU-T T.81 annex B (JPEG), T.87 annex C (JPEG-LS), T.800 annex A (JPEG 2000), DICOM PS3.5 annex G (RLE).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

Kind = Literal["JPEG", "JPEG lossless", "JPEG-LS", "JPEG 2000", "HTJ2K"]

_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_LOSSLESS_MARKERS = (0xC3, 0xC7, 0xCB, 0xCF)
# Hierarchical frames, which no installed decoder reads.
_HIERARCHICAL = (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE)
_JP2 = b"\x00\x00\x00\x0cjP  "


class BrokenStream(Exception):
    """The codestream's header is damaged or of a kind that is not read; its text says how, without values of patients."""


@dataclass(frozen=True)
class Stream:
    """A codestream's own header.

    Attributes:
        precision: bits of a sample.
        signed: JPEG 2000 alone knows signed samples.
        colour: "RGB" or "YBR" where the stream says so itself (JFIF, Adobe, component names), "" where it does not.
        converted: whether libjpeg would take it for YCbCr and convert it unasked.
        levels: how often JPEG 2000 can be halved while decoding: by its wavelet levels, and so that tiles stay whole.
        progressive: more than one scan refines each sample.
        lossy: samples may differ from those that were encoded.
    """

    kind: Kind
    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False
    colour: Literal["RGB", "YBR", ""] = ""
    converted: bool = False
    levels: int = 0
    progressive: bool = False
    lossy: bool = False


def parse(data: bytes) -> Stream:
    """The header of a JPEG, JPEG-LS or JPEG 2000 codestream.

    Raises:
        BrokenStream: it is none of these, its header is damaged, or its end is missing.
    """
    try:
        if data[:2] == b"\xff\xd8":
            stream = _parse_jpeg(data)
        elif data[:4] == b"\xff\x4f\xff\x51":
            stream = _parse_jpeg2000(data, 0)
        elif data[:8] == _JP2:
            stream = _parse_jpeg2000(data, _codestream_in_boxes(data))
        else:
            raise BrokenStream("the frame does not begin as a JPEG, JPEG-LS or JPEG 2000 codestream")
    except (struct.error, IndexError):
        raise BrokenStream("the codestream's header is truncated") from None
    if min(stream.rows, stream.columns, stream.components, stream.precision) < 1:
        raise BrokenStream("the codestream's header gives no size")
    if not _ends(data):
        raise BrokenStream("the codestream is truncated: its end marker is missing")
    return stream


def _ends(data: bytes) -> bool:
    """Whether the end marker FFD9 stands last, padding aside."""
    tail = data[-64:].rstrip(b"\x00")
    return tail.endswith(b"\xff\xd9") or tail.rstrip(b"\xff").endswith(b"\xff\xd9")


def _parse_jpeg(data: bytes) -> Stream:
    place, colour, jfif, adobe = 2, "", False, -1
    frame: tuple[int, bytes] | None = None
    while frame is None or data[place + 1] != 0xDA:
        if data[place] != 0xFF:
            raise BrokenStream("the codestream's header is damaged")
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker in _HIERARCHICAL:
            raise BrokenStream("hierarchical JPEG has no installed decoder")
        if marker in (0xD8, 0xD9, 0xDA):
            raise BrokenStream("the codestream's header is damaged")
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : place + 2 + length]
        if length < 2 or len(body) != length - 2:
            raise BrokenStream("the codestream's header is truncated")
        if marker == 0xE0 and body.startswith(b"JFIF"):
            jfif = True
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
        elif marker in _FRAME_MARKERS:
            if frame is not None:
                raise BrokenStream("the codestream holds two frame headers")
            frame = (marker, body)
        place += 2 + length
    marker, body = frame
    precision, rows, columns, components = struct.unpack(">BHHB", body[:6])
    if len(body) < 6 + 3 * components:
        raise BrokenStream("the codestream's header is damaged")
    kind: Kind = "JPEG-LS" if marker == 0xF7 else "JPEG lossless" if marker in _LOSSLESS_MARKERS else "JPEG"
    if not (precision in (8, 12) if kind == "JPEG" else 2 <= precision <= 16):
        raise BrokenStream(f"{kind} samples cannot have {precision} bits")
    names = bytes(body[6 + 3 * n] for n in range(components))
    # libjpeg's own rules (default_decompress_parms). Adobe's 0 says only that the encoder transformed nothing, so that the
    # DICOM header decides.
    named = names in (b"RGB", b"rgb")
    converted = components == 3 and (jfif or (adobe != 0 if adobe >= 0 else names != b"RGB"))
    if components == 3:
        colour = "RGB" if named and adobe != 1 else "YBR" if jfif or adobe == 1 else ""
    near = marker == 0xF7 and data[place + 4 : place + 5] and data[place + 5 + 2 * data[place + 4]] > 0
    return Stream(
        kind=kind,
        rows=rows,
        columns=columns,
        components=components,
        precision=precision,
        colour=colour,  # type: ignore[arg-type]
        converted=converted,
        progressive=marker in (0xC2, 0xCA),
        lossy=bool(near) or kind == "JPEG",
    )


def _codestream_in_boxes(data: bytes) -> int:
    """Where the codestream begins within JP2 boxes (not conformant, but written by some)."""
    place = 0
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        if kind == b"jp2c":
            return place + (16 if length == 1 else 8)
        if length < 8:
            break
        place += length
    raise BrokenStream("the JP2 boxes hold no codestream")


def _parse_jpeg2000(data: bytes, start: int) -> Stream:
    # SOC, then SIZ first of all (A.5.1).
    if data[start : start + 4] != b"\xff\x4f\xff\x51":
        raise BrokenStream("the codestream's header is damaged")
    x1, y1, x0, y0, tile_x, tile_y = struct.unpack(">6I", data[start + 8 : start + 32])
    components = int.from_bytes(data[start + 40 : start + 42], "big")
    sizes = {bytes(data[start + 42 + 3 * n : start + 45 + 3 * n]) for n in range(components)}
    if len(sizes) != 1:
        raise BrokenStream("the codestream's components differ in precision or sampling")
    precision, step_x, step_y = next(iter(sizes))
    if x1 <= x0 or y1 <= y0 or not tile_x or not tile_y or (step_x, step_y) != (1, 1):
        raise BrokenStream("the codestream's header gives no size")
    place, levels, high_throughput, lossy = start + 2, 0, False, False
    while data[place + 1] not in (0x90, 0xD9):  # until the first tile
        if data[place] != 0xFF:
            raise BrokenStream("the codestream's header is damaged")
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0x50:  # CAP: capabilities of part 15
            high_throughput = True
        elif marker == 0x52:  # COD
            levels, lossy = data[place + 9], data[place + 13] == 0
        if length < 2:
            raise BrokenStream("the codestream's header is damaged")
        place += 2 + length
    if tile_x < x1 - x0 or tile_y < y1 - y0 or x0 or y0:
        whole = tile_x | tile_y | x0 | y0
        levels = min(levels, (whole & -whole).bit_length() - 1)
    if (precision & 0x7F) + 1 > 32:
        raise BrokenStream("the codestream has over 32 bits")
    return Stream(
        kind="HTJ2K" if high_throughput else "JPEG 2000",
        rows=y1 - y0,
        columns=x1 - x0,
        components=components,
        precision=(precision & 0x7F) + 1,
        signed=bool(precision & 0x80),
        levels=levels,
        lossy=lossy,
    )
