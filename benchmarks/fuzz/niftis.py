"""Damage to NIfTI headers, field by field (nifti1.h), and harmless peculiarities."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.fuzz.mutant import Mutant
from benchmarks.fuzz.seeds import Seed, patch

# Offsets in NIfTI-1.
SIZE, DIM, DATATYPE, BITPIX, PIXDIM, OFFSET, SLOPE, INTER, UNITS = 0, 40, 70, 72, 76, 108, 112, 116, 123
QCODE, SCODE, QUATERN, QSHIFT, SROWS, MAGIC = 252, 254, 256, 268, 280, 344
NAN, INF = float("nan"), float("inf")


def header_mutants(seed: Seed) -> Iterator[Mutant]:
    """For a NIfTI-1 seed of int16 with both forms, little endian."""
    raw = seed.raw
    x, y, z = seed.truth.array.shape

    def made(what: str, data: bytes, family: str, **kind: object) -> Mutant:
        return Mutant(f"NIfTI {seed.name}: {what}", family, {"image.nii": data}, seed.truth, **kind)  # type: ignore[arg-type]

    def dims(*values: int) -> bytes:
        return patch(raw, DIM, "<8h", *(values + (1,) * (8 - len(values))))

    size = "NIfTI size"
    for what, data in (
        ("dim[0] 0", dims(0, x, y, z)),
        ("dim[0] -1", dims(-1, x, y, z)),
        ("dim[0] 8", dims(8, x, y, z)),
        ("dim[0] 999", dims(999, x, y, z)),
        ("no columns", dims(3, 0, y, z)),
        ("negative columns", dims(3, -5, y, z)),
        ("one more column", dims(3, x + 1, y, z)),
        ("32767 columns", dims(3, 32767, y, z)),
        ("32767 cubed", dims(3, 32767, 32767, 32767)),
        ("32767 in seven dimensions", dims(7, *(32767,) * 7)),
        ("2 more in time", dims(4, x, y, z, 2)),
        ("30000 moments", dims(4, x, y, z, 30000)),
        ("half of the slices", dims(3, x, y, z // 2)),
        ("a single slice", dims(3, x, y, 1)),
        ("two dimensions", dims(2, x, y, 1)),
        ("five dimensions", dims(5, x, y, 2, 2, 2)),
        ("six dimensions", dims(6, 5, 2, y, 2, 2, 2)),
    ):
        yield made(what, data, size, refuse=True)
    yield made("columns and rows swapped", dims(3, y, x, z), size, stated=True)
    yield made("trailing dimensions of 1", dims(7, x, y, z, 1, 1, 1, 1), "harmless", good=True)
    yield made("trailing dimensions of 0 beyond dim[0]", patch(raw, DIM, "<8h", 3, x, y, z, 0, 0, 0, 0), "harmless", good=True)

    kind = "NIfTI type"
    for code in (0, 1, 2, 3, 5, 6, 8, 16, 32, 64, 128, 255, 256, 257, 768, 1024, 1280, 1536, 1792, 2048, 2304, -1):
        yield made(f"datatype {code}", patch(raw, DATATYPE, "<h", code), kind, refuse=True)
    yield made("datatype uint16", patch(raw, DATATYPE, "<h", 512), kind, stated=True)
    yield made("datatype float64 with its bits", patch(patch(raw, DATATYPE, "<h", 64), BITPIX, "<h", 64), kind, refuse=True)
    yield made("datatype uint8 with its bits", patch(patch(raw, DATATYPE, "<h", 2), BITPIX, "<h", 8), kind, refuse=True)
    for bits in (0, 1, 8, 32, 64, -16):
        yield made(f"bitpix {bits}", patch(raw, BITPIX, "<h", bits), kind)

    place = "NIfTI offset"
    for offset in (NAN, INF, -INF, -352.0, 1e9, 1e30, 1.0, 340.0, 348.0, 350.0, 353.0, 354.0, 400.0, 2000.0):
        yield made(f"vox_offset {offset:g}", patch(raw, OFFSET, "<f", offset), place, refuse=True)
    yield made("vox_offset 0", patch(raw, OFFSET, "<f", 0.0), place)
    shifted = patch(raw, OFFSET, "<f", 416.0)
    yield made("a gap before the voxels", shifted[:352] + bytes(64) + shifted[352:], "harmless", good=True)

    scale = "NIfTI scaling"
    yield made("scl_slope 0", patch(raw, SLOPE, "<ff", 0.0, 5.0), scale, good=True)
    yield made("scl_slope NaN", patch(raw, SLOPE, "<ff", NAN, NAN), scale)
    for slope, inter in ((INF, 0.0), (-INF, 0.0), (1.0, NAN), (1.0, INF), (2.0, -INF)):
        yield made(f"scl_slope {slope:g}, scl_inter {inter:g}", patch(raw, SLOPE, "<ff", slope, inter), scale, refuse=True)
    for slope, inter in ((-1.0, 0.0), (2.0, 10.0), (1e-3, 0.5), (1e30, 0.0), (1e-42, 0.0), (3e38, 3e38)):
        yield made(f"scl_slope {slope:g}, scl_inter {inter:g}", patch(raw, SLOPE, "<ff", slope, inter), scale, stated=True)


def place_mutants(seed: Seed, which: str) -> Iterator[Mutant]:
    """sform and qform; `which` says which of them the seed has: "s", "q" or both.

    A broken one may give way to a sound one; where there is none, a reader may say that it does not know the place.
    """
    raw = seed.raw

    def made(what: str, data: bytes, **kind: object) -> Mutant:
        return Mutant(f"NIfTI {seed.name}: {what}", "NIfTI place", {"image.nii": data}, seed.truth, **kind)  # type: ignore[arg-type]

    both = which == "sq"
    if "s" in which:
        for what, value in (("NaN", NAN), ("infinity", INF), ("nought", 0.0)):
            yield made(f"sform {what}", patch(raw, SROWS, "<12f", *(value,) * 12))
        flat = struct.unpack_from("<4f", raw, SROWS)
        yield made("sform with equal rows", patch(raw, SROWS, "<12f", *flat * 3))
        yield made("sform with one NaN", patch(raw, SROWS, "<f", NAN))
        yield made("sform with an infinite shift", patch(raw, SROWS + 12, "<f", INF))
        yield made("sform with a row of nought", patch(raw, SROWS + 16, "<4f", 0, 0, 0, 0))
        yield made("sform of 1e30 mm", patch(raw, SROWS, "<f", 1e30), stated=not both)
        for code in (-1, 5, 77, 32767):
            yield made(f"sform_code {code}", patch(raw, SCODE, "<h", code), stated=True)
    if "q" in which:
        for what, values in (
            ("NaN", (NAN, NAN, NAN)),
            ("infinite", (INF, 0, 0)),
            ("longer than 1", (0.9, 0.9, 0.9)),
            ("far longer than 1", (1e20, 0, 0)),
        ):
            yield made(f"quaternion {what}", patch(raw, QUATERN, "<3f", *values))
        for what, values in (("NaN", (NAN, 0, 0)), ("infinite", (INF, 0, 0))):
            yield made(f"qoffset {what}", patch(raw, QSHIFT, "<3f", *values))
        for what, value in (("NaN", NAN), ("nought", 0.0), ("infinite", INF)):
            yield made(f"pixdim[1] {what}", patch(raw, PIXDIM + 4, "<f", value))
        yield made("pixdim[1] negative", patch(raw, PIXDIM + 4, "<f", -0.9), stated=True)
        for value in (NAN, 0.0, 5.0, -1.0):
            yield made(f"qfac {value:g}", patch(raw, PIXDIM, "<f", value), stated=True)
        for code in (-1, 9, 32767):
            yield made(f"qform_code {code}", patch(raw, QCODE, "<h", code), stated=True)
    for unit, scale in ((0, 1.0), (1, 1e3), (3, 1e-3), (4, 1.0), (7, 1.0), (255, 1.0)):
        # Metres and micrometres: the reader may follow them, refuse them, or, as most do, take millimetres.
        affine = np.diag([scale, scale, scale, 1.0]) @ seed.truth.affine
        followed = replace(seed.truth, affine=affine)
        yield made(f"xyzt_units {unit}", patch(raw, UNITS, "<B", unit), others=(followed,))


def whole_mutants(seed: Seed) -> Iterator[Mutant]:
    """Magic, size of the header, byte order, extensions, what is no NIfTI."""
    raw = seed.raw

    def made(what: str, data: bytes, family: str = "NIfTI magic", **kind: object) -> Mutant:
        return Mutant(f"NIfTI {seed.name}: {what}", family, {"image.nii": data}, seed.truth, **kind)  # type: ignore[arg-type]

    for magic in (b"n+2\0", b"ni1\0", b"ni2\0", b"abc\0", bytes(4), b"N+1\0", b"\xff" * 4):
        yield made(f"magic {magic!r}", patch(raw, MAGIC, "<4s", magic))
    for size in (0, 347, 349, 540, 348 << 16, -348, 2**31 - 1):
        yield made(f"sizeof_hdr {size}", patch(raw, SIZE, "<i", size))
    swapped = bytearray(raw)
    for offset, form, count in (
        (0, "i", 1),
        (40, "h", 8),
        (56, "f", 3),
        (68, "h", 4),
        (76, "f", 8),
        (108, "f", 3),
        (120, "h", 1),
    ):
        swapped[offset : offset + struct.calcsize(form) * count] = struct.pack(
            f">{count}{form}", *struct.unpack_from(f"<{count}{form}", raw, offset)
        )
    for offset, form, count in ((252, "h", 2), (256, "f", 6), (280, "f", 12)):
        swapped[offset : offset + struct.calcsize(form) * count] = struct.pack(
            f">{count}{form}", *struct.unpack_from(f"<{count}{form}", raw, offset)
        )
    yield made("header big endian, voxels little", bytes(swapped), "NIfTI byte order", stated=True)
    yield made("dims of the other byte order", raw[:40] + bytes(swapped[40:56]) + raw[56:], "NIfTI byte order", refuse=True)
    yield made("sizeof_hdr of the other byte order", bytes(swapped[:4]) + raw[4:], "NIfTI byte order", stated=True)
    extension = struct.pack("<ii", 32, 6) + b"SECRET comment".ljust(24, b"\0")
    moved = patch(raw, 108, "<f", 384.0)
    yield made("an extension", moved[:348] + b"\x01\0\0\0" + extension + moved[352:], "harmless", good=True)
    long = struct.pack("<ii", 4096, 6) + bytes(4088)
    moved = patch(raw, 108, "<f", 352.0 + 4096)
    yield made("an extension of 4 kB", moved[:348] + b"\x01\0\0\0" + long + moved[352:], "harmless", good=True)
    for claimed in (0, -16, 7, 2**31 - 1):
        broken = struct.pack("<ii", claimed, 6) + bytes(24)
        moved = patch(raw, 108, "<f", 384.0)
        yield made(
            f"an extension that claims {claimed} bytes", moved[:348] + b"\x01\0\0\0" + broken + moved[352:], "NIfTI magic"
        )
    yield made("a description that is no text", patch(raw, 148, "<80s", bytes(range(128, 208))), "harmless", good=True)
    yield made("cal_min above cal_max", patch(raw, 124, "<ff", 9.0, -9.0), "harmless", good=True)
    yield made("an intent", patch(raw, 68, "<h", 1002), "harmless", good=True)
    yield made("a slice code", patch(raw, 122, "<B", 77), "harmless", good=True)
    yield made("16 bytes behind the voxels", raw + bytes(16), "harmless", good=True)
    yield made("as many bytes again behind the voxels", raw + raw[352:], "NIfTI size", refuse=True)
    rng = np.random.default_rng(1)
    for what, data in (
        ("nothing", b""),
        ("zeros", bytes(4000)),
        ("noise", rng.integers(0, 256, 4000, np.uint8).tobytes()),
        ("text", b"no image " * 99),
    ):
        yield Mutant(f"no NIfTI: {what}", "not the format", {"image.nii": data}, None, refuse=True)
        yield Mutant(f"no gzip: {what}", "not the format", {"image.nii.gz": data}, None, refuse=True)
