"""Damage to DICOM headers: tags, VRs, lengths, sizes, geometry, values, and harmless peculiarities that must be read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.conformance.space import Truth
from benchmarks.fuzz.elements import PIXELS, UNDEFINED, drop, element, elements, put, short, text
from benchmarks.fuzz.mutant import Mutant
from benchmarks.fuzz.seeds import Seed

ROWS, COLUMNS, SPACING = 0x00280010, 0x00280011, 0x00280030
ALLOCATED, STORED, HIGH, SIGNED, SAMPLES, PHOTOMETRIC, FRAMES = (
    0x00280100,
    0x00280101,
    0x00280102,
    0x00280103,
    0x00280002,
    0x00280004,
    0x00280008,
)
POSITION, ORIENTATION, THICKNESS = 0x00200032, 0x00200037, 0x00180050
SLOPE, INTERCEPT, SYNTAX = 0x00281053, 0x00281052, 0x00020010
MODALITY, SOP_CLASS = 0x00080060, 0x00080016

# Numbers that are none, and what they would be written for.
_BAD_NUMBERS = ("nan", "inf", "-inf", "abc", "1e400", "--1", "1,5", "0x10")


def _one(seed: Seed, name: str, family: str, raw: bytes, **kind: object) -> Mutant:
    return Mutant(f"{seed.name}: {name}", family, {"image.dcm": raw}, seed.truth, **kind)  # type: ignore[arg-type]


def spacing_mutants(seed: Seed) -> Iterator[Mutant]:
    """Spacing and place that are none. A reader may say that it does not know the place (films often have none)."""
    raw = seed.raw
    for bad in ("nan\\nan", "0\\0", "0.8\\0", "-0.8\\0.6", "inf\\inf", "0.8", "", "a\\b", "0.8\\0.6\\0.5", "1e999\\1"):
        yield _one(seed, f"PixelSpacing '{bad}'", "spacing", put(raw, SPACING, text(bad)))
    yield _one(seed, "PixelSpacing tiny", "spacing", put(raw, SPACING, text("1e-300\\1e-300")))
    yield _one(seed, "PixelSpacing huge", "spacing", put(raw, SPACING, text("1e300\\1e300")), stated=True)
    if ORIENTATION not in elements(raw):
        return
    orientations = (
        "0\\0\\0\\0\\0\\0",
        "nan\\0\\0\\0\\1\\0",
        "1\\0\\0\\1\\0\\0",
        "2\\0\\0\\0\\2\\0",
        "1\\0\\0\\0\\1",
        "",
        "a\\b\\c\\d\\e\\f",
    )
    for bad in (*orientations, "inf\\0\\0\\0\\1\\0", "1\\0\\0\\0\\1\\0\\0", "1\\1\\0\\0\\1\\0"):
        yield _one(seed, f"orientation '{bad}'", "orientation", put(raw, ORIENTATION, text(bad)))
    for bad in ("nan\\0\\0", "0\\0", "", "inf\\0\\0", "a\\0\\0", "0\\0\\0\\0"):
        yield _one(seed, f"position '{bad}'", "orientation", put(raw, POSITION, text(bad)))
    for bad in ("nan", "0", "-2.5", "abc", ""):
        yield _one(seed, f"SliceThickness '{bad}'", "spacing", put(raw, THICKNESS, text(bad)))


def rescale_mutants(seed: Seed) -> Iterator[Mutant]:
    raw = seed.raw
    for bad in (*_BAD_NUMBERS, "0", "1\\2", "0.0", "-0"):
        yield _one(seed, f"RescaleSlope '{bad}'", "rescale", put(raw, SLOPE, text(bad)), refuse=True)
    for bad in (*_BAD_NUMBERS, "1\\2"):
        yield _one(seed, f"RescaleIntercept '{bad}'", "rescale", put(raw, INTERCEPT, text(bad)), refuse=True)
    yield _one(seed, "RescaleSlope empty", "rescale", put(raw, SLOPE, b""))
    yield _one(seed, "RescaleSlope gone", "rescale", drop(raw, SLOPE))
    yield _one(seed, "RescaleIntercept gone", "rescale", drop(raw, INTERCEPT), stated=True)
    for good in ("-2", "0.001", "1e3", "32768.5"):
        yield _one(seed, f"RescaleSlope {good}", "rescale", put(raw, SLOPE, text(good)), stated=True)
    sequence = element(0x00283002, b"US", short(256, 0, 16)) + element(0x00283003, b"LO", b"HU")
    for name, table in (("without data", b""), ("short", element(0x00283006, b"OW", bytes(100)))):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(sequence + table)) + sequence + table
        yield _one(seed, f"modality LUT {name}", "rescale", put(raw, 0x00283000, item, b"SQ"), refuse=True)


def size_mutants(seed: Seed) -> Iterator[Mutant]:
    """Sizes that the pixels do not have. Half of the bytes unexplained, or bytes that are not there, can be known."""
    raw = seed.raw
    rows = struct.unpack("<H", raw[elements(raw)[ROWS].value : elements(raw)[ROWS].end])[0]
    for tag, name in ((ROWS, "Rows"), (COLUMNS, "Columns")):
        for value in (0, 1, 2, 65535, 32768, 30000, rows * 2, rows * 4):
            yield _one(seed, f"{name} {value}", "size", put(raw, tag, short(value)), refuse=True)
        yield _one(seed, f"{name} empty", "size", put(raw, tag, b""), refuse=True)
        yield _one(seed, f"{name} gone", "size", drop(raw, tag), refuse=True)
        yield _one(seed, f"{name} twice", "size", put(raw, tag, short(rows, rows)))
    both = put(put(raw, ROWS, short(65535)), COLUMNS, short(65535))
    yield _one(seed, "65535 x 65535", "size", both, refuse=True)
    yield _one(seed, "65535 x 65535, 32 bits", "size", put(both, ALLOCATED, short(32)), refuse=True)
    for frames in ("2", "1000000", "2147483647", "99999999999999999999"):
        huge = put(raw, FRAMES, text(frames), b"IS")
        yield _one(seed, f"{frames} frames", "size", huge, refuse=True)
        yield _one(
            seed,
            f"{frames} frames of 65535 x 65535",
            "size",
            put(put(huge, ROWS, short(65535)), COLUMNS, short(65535)),
            refuse=True,
        )
    for frames in ("0", "-1", "abc", "1.5", "1\\2", ""):
        yield _one(seed, f"NumberOfFrames '{frames}'", "size", put(raw, FRAMES, text(frames), b"IS"))
    yield _one(seed, "NumberOfFrames 1", "harmless", put(raw, FRAMES, b"1 ", b"IS"), good=True)


def bits_mutants(seed: Seed) -> Iterator[Mutant]:
    raw = seed.raw
    for value in (0, 7, 9, 12, 15, 17, 24, 33, 128, 65535):
        yield _one(seed, f"BitsAllocated {value}", "bits", put(raw, ALLOCATED, short(value)), refuse=True)
    for value in (8, 32, 64):
        now = struct.unpack("<H", raw[elements(raw)[ALLOCATED].value : elements(raw)[ALLOCATED].end])[0]
        if value != now:
            yield _one(seed, f"BitsAllocated {value}", "bits", put(raw, ALLOCATED, short(value)), refuse=True)
    for value in (0, 1, 10, 12, 17, 32, 65535):
        # A high bit above the stored bits once meant (PS3.5 before 2014) that they lie at the top of the word.
        top = (_shifted(seed, 16 - value),) if seed.name == "grey" and 0 < value < 16 else ()
        yield _one(seed, f"BitsStored {value}", "bits", put(raw, STORED, short(value)), stated=True, others=top)
    for value in (0, 3, 31, 65535):
        yield _one(seed, f"HighBit {value}", "bits", put(raw, HIGH, short(value)), stated=True)
    for value in (0, 1, 2, 255):
        yield _one(seed, f"PixelRepresentation {value}", "bits", put(raw, SIGNED, short(value)), stated=True)
    for value in (0, 2, 4, 255):
        yield _one(seed, f"SamplesPerPixel {value}", "bits", put(raw, SAMPLES, short(value)))
    yield _one(
        seed, "SamplesPerPixel 3", "bits", put(raw, SAMPLES, short(3)), refuse=SAMPLES in elements(raw) and seed.name != "rgb"
    )
    for tag, name in (
        (ALLOCATED, "BitsAllocated"),
        (STORED, "BitsStored"),
        (SIGNED, "PixelRepresentation"),
        (SAMPLES, "SamplesPerPixel"),
    ):
        yield _one(seed, f"{name} gone", "bits", drop(raw, tag), stated=True)
    for word in ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "FOO", "", "HSV", "ARGB", "MONOCHROME1\\MONOCHROME2"):
        if word != "RGB" or seed.name != "rgb":
            refuse = word in ("FOO", "HSV", "ARGB", "PALETTE COLOR")
            stated = word.startswith("YBR") and seed.name == "rgb"
            yield _one(
                seed, f"photometric '{word}'", "photometric", put(raw, PHOTOMETRIC, text(word)), refuse=refuse, stated=stated
            )
    yield _one(seed, "photometric gone", "photometric", drop(raw, PHOTOMETRIC))


def _shifted(seed: Seed, by: int) -> Truth:
    intercept = -1024.0
    stored = (seed.truth.array - intercept).astype(np.int64)
    return replace(seed.truth, array=(stored >> by) + intercept)


_SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.100",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.113619.5.2",
    "1.2.3",
    "not a uid",
    "",
)


def syntax_mutants(seed: Seed) -> Iterator[Mutant]:
    """The wrong transfer syntax. A file may still be read as it is, never as something else."""
    raw = seed.raw
    now = raw[elements(raw)[SYNTAX].value : elements(raw)[SYNTAX].end].rstrip(b"\0")
    for uid in _SYNTAXES:
        if uid.encode() != now:
            padded = uid.encode() + b"\0" * (len(uid) % 2)
            yield _one(seed, f"transfer syntax '{uid}'", "transfer syntax", put(raw, SYNTAX, padded))
    yield _one(seed, "transfer syntax gone", "transfer syntax", drop(raw, SYNTAX))


def structure_mutants(seed: Seed) -> Iterator[Mutant]:
    """VRs and lengths that lie, tags that are missing, sequences without an end."""
    raw = seed.raw
    found = elements(raw)

    def value(tag: int) -> bytes:
        return raw[found[tag].value : found[tag].end]

    for tag, name in ((ROWS, "Rows"), (ALLOCATED, "BitsAllocated")):
        for vr in (b"SS", b"UL", b"OB", b"UN", b"IS", b"DS", b"SQ", b"XX", b"\0\0", b"FD"):
            yield _one(seed, f"{name} as {vr.decode('latin-1')!r}", "wrong VR", put(raw, tag, value(tag), vr))
    for tag, name in ((SPACING, "PixelSpacing"), (SLOPE, "RescaleSlope"), (PHOTOMETRIC, "photometric")):
        for vr in (b"LO", b"UN", b"US", b"FD", b"SQ", b"ZZ"):
            if tag in found:
                yield _one(seed, f"{name} as {vr.decode()}", "wrong VR", put(raw, tag, value(tag), vr), stated=True)
    for vr in (b"OB", b"OW", b"UN", b"US", b"UT", b"SQ", b"ZZ"):
        yield _one(seed, f"PixelData as {vr.decode()}", "wrong VR", put(raw, PIXELS, value(PIXELS), vr), stated=True)
    size = len(value(PIXELS))
    for length in (size + 2, size - 2, size - 200, size + 100_000, 0, 0x7FFFFFFE, UNDEFINED, size // 2, 0xFFFFFFFE):
        yield _one(seed, f"PixelData length {length}", "wrong length", put(raw, PIXELS, value(PIXELS), None, length))
    for tag, name in ((ROWS, "Rows"), (MODALITY, "Modality"), (SPACING, "PixelSpacing"), (0x00100010, "PatientName")):
        if tag in found:
            for length in (0, 1, 3, 200, 65534, 65535):
                yield _one(
                    seed, f"{name} length {length}", "wrong length", put(raw, tag, value(tag), None, length), stated=True
                )
    for tag, name in ((PIXELS, "PixelData"), (SOP_CLASS, "SOPClassUID"), (MODALITY, "Modality")):
        yield _one(seed, f"{name} gone", "missing tag", drop(raw, tag), refuse=tag == PIXELS)
    yield _one(seed, "PixelData empty", "missing tag", put(raw, PIXELS, b""), refuse=True)
    for modality in ("SEG", "RTDOSE", "SR", "??", ""):
        yield _one(seed, f"Modality '{modality}'", "missing tag", put(raw, MODALITY, text(modality)))
    open_end = struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, UNDEFINED) + struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
    start = found[0x00080016].start if 0x00080016 in found else found[ROWS].start
    yield _one(seed, "a sequence without an end", "wrong length", raw[:start] + open_end + raw[start:])
    for depth in (40, 3000):
        deep = b""
        for _ in range(depth):
            item = struct.pack("<HHI", 0xFFFE, 0xE000, len(deep)) + deep
            deep = element(0x00091001, b"SQ", item)
        after = found[ROWS].start
        whole = raw[:after] + element(0x00111001, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(deep)) + deep) + raw[after:]
        yield _one(seed, f"sequences nested {depth} deep", "wrong length" if depth > 100 else "harmless", whole)
    yield _one(seed, "no preamble", "missing tag", raw[132:])
    yield _one(seed, "magic word wrong", "missing tag", raw[:128] + b"DICX" + raw[132:])
    meta = found[0x00020000]
    for length in (0, 10, 100_000, UNDEFINED):
        yield _one(
            seed, f"meta group length {length}", "wrong length", raw[: meta.value] + struct.pack("<I", length) + raw[meta.end :]
        )


def harmless_mutants(seed: Seed) -> Iterator[Mutant]:
    """Odd but right, or odd where it does not matter: to be read."""
    raw = seed.raw
    found = elements(raw)
    rng = np.random.default_rng(7)
    encapsulated = raw[found[PIXELS].value - 4 : found[PIXELS].value] == b"\xff\xff\xff\xff"
    good: dict[str, bytes] = {
        "random preamble": rng.integers(0, 256, 128, np.uint8).tobytes() + raw[128:],
        "private tags": put(put(raw, 0x00091010, b"\x01\x02\x03\x04", b"OB"), 0x00111010, b"SECRET  ", b"LO"),
        "a private blob of 1 MB": put(raw, 0x00091010, bytes(2**20), b"OB"),
        "an unknown public tag": put(raw, 0x00180001, b"ab", b"UN"),
        "a group length": put(raw, 0x00280000, struct.pack("<I", 12345), b"UL"),
        "an unknown character set": put(raw, 0x00080005, b"ISO_IR 999 ", b"CS"),
        "a name that is no text": put(raw, 0x00100010, b"\xff\xfe\x80\x81^\xc3\x28", b"PN"),
        "a date that is none": put(raw, 0x00080020, b"20209999", b"DA"),
        "an age that is none": put(raw, 0x00101010, b"old ", b"AS"),
        "an instance number that is none": put(raw, 0x00200013, b"abc ", b"IS"),
        "windows that are none": put(put(raw, 0x00281050, b"nan ", b"DS"), 0x00281051, b"-1", b"DS"),
        "trailing padding": raw + element(0xFFFCFFFC, b"OB", bytes(64)),
        "photometric padded with NUL": put(raw, PHOTOMETRIC, value_of(raw, PHOTOMETRIC).rstrip() + b"\0"),
        "numbers with spaces": put(raw, SPACING, b" 0.80 \\ 6.0E-1" + b" " * 0),
        "a number of more than 16 characters": put(raw, SPACING, text("0.80000000000000000001\\0.60000000000000000001")),
        "an overlay": put(put(raw, 0x60000010, short(8), b"US"), 0x60003000, bytes(8), b"OW"),
        "an empty sequence": put(raw, 0x00081140, b"", b"SQ"),
        "an icon beside": put(raw, 0x00880200, struct.pack("<HHI", 0xFFFE, 0xE000, 10) + element(ROWS, b"US", short(4)), b"SQ"),
    }
    if not encapsulated:
        good["one more byte of pixels"] = put(raw, PIXELS, value_of(raw, PIXELS) + b"\0\0")
    for name, data in good.items():
        yield _one(seed, name, "harmless", data, good=True)


def value_of(raw: bytes, tag: int) -> bytes:
    place = elements(raw)[tag]
    return raw[place.value : place.end]


def palette_mutants(seed: Seed) -> Iterator[Mutant]:
    raw = seed.raw
    red, data = 0x00281101, 0x00281201
    table = value_of(raw, data)
    yield _one(seed, "red table gone", "palette", drop(raw, data), refuse=True)
    yield _one(seed, "red descriptor gone", "palette", drop(raw, red), refuse=True)
    yield _one(seed, "red table empty", "palette", put(raw, data, b""), refuse=True)
    yield _one(seed, "red table cut", "palette", put(raw, data, table[:100]), refuse=True)
    for values in ((0, 0, 16), (512, 0, 16), (65535, 0, 16)):
        yield _one(seed, f"descriptor {values}", "palette", put(raw, red, short(*values)), refuse=True)
    for values in ((256, 0, 99), (256, 0, 0), (256, 0, 7), (1, 0, 16), (256, 50, 16), (256, 60000, 16), (128, 0, 16)):
        yield _one(seed, f"descriptor {values}", "palette", put(raw, red, short(*values)), stated=True)
    yield _one(seed, "descriptor of two numbers", "palette", put(raw, red, short(256, 0)), refuse=True)
    yield _one(seed, "photometric MONOCHROME2", "palette", put(raw, PHOTOMETRIC, b"MONOCHROME2 "), stated=True)


def no_dicom(seed: Seed) -> Iterator[Mutant]:
    """Other things named .dcm."""
    rng = np.random.default_rng(11)
    things = {
        "nothing": b"",
        "one byte": b"D",
        "zeros": bytes(5000),
        "noise": rng.integers(0, 256, 5000, np.uint8).tobytes(),
        "text": b"this is no image\n" * 50,
        "a web page": b"<!DOCTYPE html><html><body>404</body></html>" * 20,
        "a zip": b"PK\x03\x04" + bytes(500),
        "a preamble alone": bytes(128) + b"DICM",
        "the magic word and noise": bytes(128) + b"DICM" + rng.integers(0, 256, 3000, np.uint8).tobytes(),
        "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(300),
    }
    for name, raw in things.items():
        yield Mutant(f"no DICOM: {name}", "not the format", {"image.dcm": raw}, None, refuse=True)
