"""Damage to the bytes themselves: cut files, flipped bits, encapsulation, and slices of a series."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator

import numpy as np

from benchmarks.fuzz.dicom import FRAMES, ORIENTATION, POSITION, ROWS, SLOPE, SPACING, value_of
from benchmarks.fuzz.elements import PIXELS, elements, put, short, text
from benchmarks.fuzz.mutant import Mutant
from benchmarks.fuzz.seeds import JPEG, RLE, Seed, pack

_ITEM, _END = 0xE000, 0xE0DD


def truncated(seed: Seed, count: int) -> Iterator[Mutant]:
    """Cut at evenly spread places and at the last bytes. The whole picture may still be there: then it must be that."""
    name, raw = next(iter(seed.files)), seed.raw
    places = {int(p) for p in np.linspace(0, len(raw) - 1, count)} | {len(raw) - n for n in (1, 2, 9)}
    for place in sorted(places):
        yield Mutant(f"{_label(seed)}: cut at {place} of {len(raw)}", "truncated", {name: raw[:place]}, seed.truth)


def flipped(seed: Seed, part: str, number: int) -> Mutant:
    """One to three flipped bits in the header or in the pixels, by a generator seeded with the number."""
    name, raw = next(iter(seed.files)), bytearray(seed.raw)
    rng = np.random.default_rng([number, len(raw), *seed.name.encode()])
    start = _pixels_start(seed)
    low, high = (132, start) if part == "header" else (start, len(raw))
    if name.endswith((".nii", ".gz")):
        low, high = (0, 352) if part == "header" else (352, len(raw))
        if name.endswith(".gz"):
            low, high = (0, 24) if part == "header" else (24, len(raw))
    for _ in range(int(rng.integers(1, 4))):
        raw[int(rng.integers(low, high))] ^= 1 << int(rng.integers(0, 8))
    return Mutant(
        f"{_label(seed)}: bits of the {part} flipped, {number}",
        f"bit flips, {part}",
        {name: bytes(raw)},
        seed.truth,
        stated=True,
    )


def _label(seed: Seed) -> str:
    return f"NIfTI {seed.name}" if next(iter(seed.files)).endswith((".nii", ".gz")) else seed.name


def _pixels_start(seed: Seed) -> int:
    """Where the pixels begin; half way, where the header cannot be walked (implicit, big endian, deflated)."""
    raw = seed.raw
    marks = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
    found = max(raw.rfind(mark) for mark in marks)
    return found + 12 if found > 0 else len(raw) // 2


def noise(seed: Seed, number: int) -> Mutant:
    """A run of bytes overwritten with noise, or zeroed, or taken out."""
    name, raw = next(iter(seed.files)), seed.raw
    rng = np.random.default_rng([number, 99, *seed.name.encode()])
    at = int(rng.integers(0, len(raw)))
    length = min(int(rng.integers(2, 200)), len(raw) - at)
    middle = (rng.integers(0, 256, length, np.uint8).tobytes(), bytes(length), b"")[number % 3]
    what = ("noise", "zeros", "nothing")[number % 3]
    data = raw[:at] + middle + raw[at + length :]
    return Mutant(
        f"{_label(seed)}: {length} bytes at {at} made {what}", "bytes overwritten", {name: data}, seed.truth, stated=True
    )


def _item(data: bytes, tag: int = _ITEM, length: int | None = None) -> bytes:
    return struct.pack("<HHI", 0xFFFE, tag, len(data) if length is None else length) + data


def encapsulated(seed: Seed) -> Iterator[Mutant]:
    """Items, offset tables and delimiters of one compressed frame."""
    raw = seed.raw
    place = elements(raw)[PIXELS]
    body = raw[place.value :]
    table = struct.unpack_from("<I", body, 4)[0]
    length = struct.unpack_from("<I", body, 8 + table + 4)[0]
    frame = body[16 + table : 16 + table + length]
    end = _item(b"", _END)
    syntax = value_of(raw, 0x00020010).rstrip(b"\0").decode()

    def made(name: str, data: bytes, **kind: object) -> Mutant:
        files = {"image.dcm": raw[: place.value] + data}
        return Mutant(f"{seed.name}: {name}", "encapsulation", files, seed.truth, **kind)  # type: ignore[arg-type]

    half = len(frame) // 4 * 2
    empty = _item(b"")
    yield made("an offset table", _item(struct.pack("<I", 0)) + _item(frame) + end, good=True)
    yield made("an empty offset table", empty + _item(frame) + end, good=True)
    split = empty + _item(frame[:half]) + _item(frame[half:]) + end
    # PS3.5 A.4.2: a frame of RLE is one fragment.
    yield made("the frame in two fragments", split, good=syntax != RLE)
    yield made("no offset table", _item(frame) + end)
    for offset in (8, 1000, 0xFFFFFFFF):
        yield made(f"offset {offset}", _item(struct.pack("<I", offset)) + _item(frame) + end)
    yield made("an offset table of 3 bytes", _item(b"\0\0\0") + _item(frame) + end)
    yield made("an offset table for two frames", _item(struct.pack("<II", 0, 4)) + _item(frame) + end)
    yield made("no delimiter", empty + _item(frame))
    yield made("a delimiter that is cut", empty + _item(frame) + end[:5])
    yield made("bytes behind the delimiter", empty + _item(frame) + end + b"\x01\x02\x03\x04")
    yield made("a wrong item tag", empty + _item(frame, 0xE0FF) + end)
    yield made("no item at all", end, refuse=True)
    yield made("no frame", empty + end, refuse=True)
    yield made("an empty frame", empty + empty + end, refuse=True)
    for claimed in (len(frame) + 2, len(frame) + 1000, len(frame) - 2, len(frame) // 2, 0xFFFFFFFF, 0x7FFFFFFF):
        yield made(f"item length {claimed}", empty + _item(frame, length=claimed) + end)
    for keep in (0.1, 0.5, 0.8, 0.95):
        cut = frame[: int(len(frame) * keep) // 2 * 2]
        yield made(f"frame cut to {100 * keep:.0f} %", empty + _item(cut) + end)
    yield made("a second frame of noise", empty + _item(frame) + _item(bytes(range(200))) + end)
    yield made("the frame twice", empty + _item(frame) + _item(frame) + end)
    yield made("an empty second fragment", empty + _item(frame) + _item(b"") + end)
    yield made(
        "the frame scrambled", empty + _item(bytes(np.random.default_rng(3).permutation(list(frame)).astype(np.uint8))) + end
    )
    yield made("a frame of zeros", empty + _item(bytes(len(frame))) + end)
    yield made("a frame of text", empty + _item(b"no image" * 40) + end, refuse=True)
    yield made("native pixels", bytes(2880))
    if syntax == JPEG:
        yield made("a JPEG of another size", empty + _item(frame.replace(b"\x00\x28\x00\x24", b"\x00\x20\x00\x24", 1)) + end)
    two = put(raw, FRAMES, b"2 ", b"IS")
    yield Mutant(f"{seed.name}: two frames claimed", "encapsulation", {"image.dcm": two}, seed.truth, refuse=True)
    for rows in (20, 80, 4000):
        lie = put(raw, ROWS, short(rows))
        yield Mutant(f"{seed.name}: {rows} rows claimed", "encapsulation", {"image.dcm": lie}, seed.truth, refuse=True)


def series(seed: Seed) -> Iterator[Mutant]:
    """One slice of six damaged."""
    name = sorted(seed.files)[3]
    raw = seed.files[name]

    def made(what: str, data: bytes | None, **kind: object) -> Mutant:
        files = {n: r for n, r in seed.files.items() if n != name} | ({name: data} if data is not None else {})
        return Mutant(f"series: {what}", "series", files, seed.truth, **kind)  # type: ignore[arg-type]

    yield made("a slice gone", None, refuse=True)
    for place in (0, 100, 140, 400, len(raw) - 3000, len(raw) - 500, len(raw) - 2):
        yield made(f"a slice cut at {place}", raw[:place], refuse=place < len(raw) - 2)
    for bad in (
        "nan\\0\\0",
        "",
        "0\\0",
        "a\\b\\c",
        "inf\\0\\0",
        "1e300\\0\\0",
        "-10.5\\20.25\\33",
        "-10.5\\20.25\\36.9",
        "-10.5\\20.25\\133",
    ):
        yield made(f"a position '{bad}'", put(raw, POSITION, text(bad)), refuse=True)
    for bad in ("0\\0\\0\\0\\0\\0", "nan\\0\\0\\0\\1\\0", "0\\1\\0\\-1\\0\\0", "1\\0\\0\\0\\-1\\0", ""):
        yield made(f"an orientation '{bad}'", put(raw, ORIENTATION, text(bad)), refuse=True)
    for bad in ("nan\\nan", "0\\0", "0.9\\0.6", "", "-0.8\\0.6"):
        yield made(f"a spacing '{bad}'", put(raw, SPACING, text(bad)), refuse=True)
    for bad in ("nan", "0", "inf", "abc"):
        yield made(f"a slope '{bad}'", put(raw, SLOPE, text(bad)), refuse=True)
    for rows in (39, 0, 65535):
        yield made(f"a slice of {rows} rows", put(raw, ROWS, short(rows)), refuse=True)
    yield made("a slice of zeros", bytes(len(raw)), refuse=True)
    yield made("a slice twice", raw + b"", good=True)  # the undamaged series itself
    twin = {**seed.files, "copy.dcm": raw}
    yield Mutant("series: a copy of a slice", "series", twin, seed.truth)
    for n in range(20):
        rng = np.random.default_rng([n, 5])
        data = bytearray(raw)
        start = elements(raw)[PIXELS].value
        data[int(rng.integers(132, start))] ^= 1 << int(rng.integers(0, 8))
        yield made(f"a flipped bit in a slice's header, {n}", bytes(data), stated=True)


def enhanced(seed: Seed) -> Iterator[Mutant]:
    """Functional groups, changed in place: the new text is as long as the old."""
    raw = seed.raw

    def made(what: str, data: bytes, **kind: object) -> Mutant:
        return Mutant(f"enhanced: {what}", "enhanced", {"image.dcm": data}, seed.truth, **kind)  # type: ignore[arg-type]

    place = b"-10.5\\20.25\\35.0"
    if place not in raw:
        raise RuntimeError("the enhanced seed changed")
    for what, new in (
        ("nan", b"nan\\20.25\\35.0  "),
        ("text", b"abc\\20.25\\35.0  "),
        ("the neighbour's", b"-10.5\\20.25\\37.5"),
        ("off the grid", b"-10.5\\20.25\\36.1"),
        ("far away", b"-10.5\\20.25\\935."),
        ("sideways", b"-90.5\\20.25\\35.0"),
        ("two numbers", b"-10.5\\20.2535.0 "),
    ):
        yield made(f"a position {what}", raw.replace(place, new, 1), refuse=True)
    for what, new in (
        ("zero", b"0.0\\0.0 "),
        ("nan", b"nan\\nan "),
        ("negative", b"-.8\\0.6 "),
        ("text", b"a.b\\c.d "),
        ("one", b"0.80000 "),
    ):
        yield made(f"pixel spacing {what}", raw.replace(b"0.8\\0.6 ", new, 1), refuse=True)
    for what, new in (("singular", b"1\\0\\0\\1\\0\\0 "), ("zero", b"0\\0\\0\\0\\0\\0 "), ("nan", b"n\\0\\0\\0\\1\\0 ")):
        yield made(f"orientation {what}", raw.replace(b"1\\0\\0\\0\\1\\0 ", new, 1), refuse=True)
    for frames in (b"0 ", b"1 ", b"3 ", b"4 ", b"6 ", b"99", b"-1", b"ab"):
        yield made(f"{frames.decode().strip()} frames", put(raw, FRAMES, frames, b"IS"), refuse=True)
    slope = struct.pack("<HH2sH", 0x0028, 0x1053, b"DS", 2) + b"2 "
    for what, new in (("zero", b"0 "), ("text", b"ab"), ("empty", b"  ")):
        data = raw.replace(slope, slope[:-2] + new, 1)
        yield made(f"a slope {what}", data, refuse=True)
    for keep in (0.99, 0.8, 0.5):
        pixels = value_of(raw, PIXELS)
        yield made(
            f"pixels cut to {100 * keep:.0f} %", put(raw, PIXELS, pixels[: int(len(pixels) * keep) // 2 * 2]), refuse=True
        )
    for tag, what in ((0x52009229, "shared groups"), (0x52009230, "groups of the frames")):
        found = elements(raw)[tag]
        yield made(f"no {what}", raw[: found.start] + raw[found.end :], refuse=True)
        yield made(f"empty {what}", put(raw, tag, b""), refuse=True)
        yield made(f"half of the {what}", put(raw, tag, value_of(raw, tag)[: (found.end - found.value) // 4 * 2]))


def packed(seed: Seed) -> Iterator[Mutant]:
    """gzip: checksum, length, trailing bytes, members, flags."""
    raw = seed.raw
    inner = gzip.decompress(raw)

    def made(what: str, data: bytes, **kind: object) -> Mutant:
        return Mutant(f"packed: {what}", "gzip", {"image.nii.gz": data}, seed.truth, **kind)  # type: ignore[arg-type]

    for n in range(4):
        data = bytearray(raw)
        data[-8 + n] ^= 0x55
        yield made(f"checksum byte {n} wrong", bytes(data), refuse=True)
        data = bytearray(raw)
        data[-4 + n] ^= 0x55
        yield made(f"length byte {n} wrong", bytes(data), refuse=True)
    for n in (1, 4, 8, 9, 20, len(raw) // 2, len(raw) - 12):
        yield made(f"{n} bytes cut off", raw[:-n], refuse=True)
    yield made("zeros behind", raw + bytes(100))
    yield made("noise behind", raw + bytes(range(1, 100)))
    yield made("a second member of nothing", raw + pack(b""))
    yield made("two members", pack(inner[:1000]) + pack(inner[1000:]), good=True)
    yield made("stored, not deflated", gzip.compress(inner, 0, mtime=0), good=True)
    yield made("plain in spite of its name", inner)
    yield made("packed twice", pack(raw))
    named = raw[:3] + b"\x08" + raw[4:10] + b"name.nii\0" + raw[10:]
    yield made("a name in the header", named, good=True)
    yield made("another time and system", raw[:4] + b"\x11\x22\x33\x44\x00\x03" + raw[10:], good=True)
    yield made("40 MiB of zeros behind the voxels", pack(inner + bytes(40 * 2**20)), refuse=True)
    yield made("empty member first", pack(b"") + raw)
    yield made("flags that are reserved", raw[:3] + b"\xe0" + raw[4:])
    yield made("another method", raw[:2] + b"\x07" + raw[3:], refuse=True)
