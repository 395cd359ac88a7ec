"""How the stored pixels of a DICOM object lie, judged by its header and checked against the bytes that are there.

Source: DICOM PS3.3 C.7.6.3 (image pixel module), PS3.5 8.1.1 (bits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medfm.errors import DataError
from medfm.io.dataset import frame_count, integer, text
from medfm.io.decoders import RLE_RATIO
from medfm.io.raw import has

if TYPE_CHECKING:
    from pydicom import Dataset

_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_NUMBERS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
BIG_ENDIAN, RLE, DEFLATED_FRAME = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8.1"
# JPEG, JPEG-LS and JPEG 2000; the codestream itself says which. MPEG (.100 to .108), JPEG XL (.110) and JPIP (.94) are others.
_CODESTREAMS = (*range(50, 94), 201, 202, 203)
# A blank 15 MB film packs to a few kB, so only a large claim from few bytes is a lie (or an attack on memory).
_LARGE = 2**29
_HIGHEST_RATIO = 1000


def syntax_name(dataset: Dataset) -> str:
    """'JPEG Baseline (Process 1) (1.2.840.10008.1.2.4.50)': name and UID for a message."""
    uid = dataset.file_meta.TransferSyntaxUID
    return str(uid) if uid.name == str(uid) else f"{uid.name} ({uid!s})"


@dataclass(frozen=True)
class Layout:
    """What the DICOM header says of the pixels, checked for what it can mean."""

    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    stored: int
    signed: bool
    planar: bool
    photometric: str
    real: bool
    syntax: str
    encapsulated: bool

    @property
    def frame_bits(self) -> int:
        # YBR_FULL_422 says 3 samples, but chroma is stored for every second pixel.
        halved = self.photometric == "YBR_FULL_422" and not self.encapsulated
        return self.rows * self.columns * (2 if halved else self.samples) * self.allocated

    @property
    def claimed(self) -> int:
        """Bytes of all frames together, decoded."""
        return (self.frame_bits * self.frames + 7) // 8


def check_size(dataset: Dataset, path: str) -> Layout:
    """Compare what the header claims with the bytes that are there, all frames together, before anything is allocated.

    Raises:
        DataError: rows, columns or bits are missing, zero or contradictory; the photometric interpretation or transfer syntax
            is not readable; the pixel data are shorter or longer than claimed.
    """
    layout = _layout(dataset, path)
    present = len(encoded(dataset))
    claimed = layout.claimed
    if layout.encapsulated:
        if not present:
            raise DataError(f"'{path}': the compressed pixel data are empty")
        highest = RLE_RATIO if layout.syntax == RLE else _HIGHEST_RATIO
        if (claimed > _LARGE or layout.syntax == RLE) and claimed > present * highest:
            raise DataError(f"'{path}': the header claims {claimed:,} bytes of pixels, from {present:,} compressed bytes")
    elif present < claimed:
        raise DataError(f"'{path}': truncated: the header claims {claimed:,} bytes of pixels, the file holds {present:,}")
    elif present - claimed > 1 and not _is_padding(encoded(dataset), layout):
        raise DataError(
            f"'{path}': the header claims {claimed:,} bytes of pixels, the file holds {present:,}: rows, columns, "
            "frames or bits are wrong"
        )
    return layout


def _is_padding(data: bytes, layout: Layout) -> bool:
    """Whether the bytes beyond the claimed ones are padding: few, all 0, and after a row that is not.

    Rows or columns claimed too small would leave pixels over just so.
    """
    excess = len(data) - layout.claimed
    row = layout.claimed // (layout.rows * layout.frames)
    return excess <= layout.claimed // 8 and not any(data[-excess:]) and any(data[layout.claimed - row : layout.claimed])


def encoded(dataset: Dataset) -> bytes:
    for keyword in _KEYWORDS:
        if has(dataset, keyword):
            return dataset[keyword].value or b""
    return b""


def _layout(dataset: Dataset, path: str) -> Layout:
    number = {keyword: integer(dataset, keyword) for keyword in _NUMBERS}
    rows, columns, allocated = number["Rows"], number["Columns"], number["BitsAllocated"]
    photometric = text(dataset, "PhotometricInterpretation")
    samples = number["SamplesPerPixel"] or 1
    if photometric not in (*_GREY, *_COLOUR, "PALETTE COLOR"):
        raise DataError(
            f"'{path}': photometric interpretation '{photometric[:16]}' is not readable; export it as MONOCHROME2 or RGB"
        )
    if samples != (3 if photometric in _COLOUR else 1):
        raise DataError(f"'{path}': {photometric} cannot have {samples} samples per pixel; the header is damaged")
    if rows < 1 or columns < 1:
        raise DataError(f"'{path}': the header claims {columns} columns and {rows} rows")
    if allocated not in (1, 8, 16, 32, 64):
        raise DataError(f"'{path}': BitsAllocated is {allocated}; 1, 8, 16, 32 or 64 are readable")
    real = not has(dataset, "PixelData") and any(has(dataset, keyword) for keyword in _KEYWORDS[1:])
    stored = allocated if real else number["BitsStored"]
    high = allocated - 1 if real else number["HighBit"]
    if real and allocated != (32 if has(dataset, "FloatPixelData") else 64):
        raise DataError(f"'{path}': float pixels cannot have {allocated} bits; the header is damaged")
    if not 1 <= stored <= allocated or high != stored - 1 or number["PixelRepresentation"] not in (0, 1):
        raise DataError(
            f"'{path}': BitsAllocated {allocated}, BitsStored {stored}, HighBit {high} and PixelRepresentation "
            f"{number['PixelRepresentation']} contradict each other"
        )
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    layout = Layout(
        rows=rows,
        columns=columns,
        samples=samples,
        frames=frame_count(dataset),
        allocated=allocated,
        stored=stored,
        signed=number["PixelRepresentation"] == 1 and not real,
        planar=samples > 1 and integer(dataset, "PlanarConfiguration") == 1,
        photometric=photometric,
        real=real,
        syntax=syntax,
        encapsulated=_is_encapsulated(dataset),
    )
    if layout.encapsulated and not (syntax in (RLE, DEFLATED_FRAME) or is_codestream(syntax)):
        raise DataError(f"'{path}': no decoder for transfer syntax {syntax_name(dataset)}; convert it to an uncompressed one")
    if photometric in ("YBR_ICT", "YBR_RCT") and not layout.encapsulated:
        raise DataError(f"'{path}': {photometric} belongs to JPEG 2000, but the pixels are not compressed")
    if photometric == "YBR_FULL_422" and not layout.encapsulated and (columns % 2 or layout.planar):
        raise DataError(f"'{path}': YBR_FULL_422 pixels cannot have {columns} columns by plane")
    return layout


def _is_encapsulated(dataset: Dataset) -> bool:
    uid = dataset.file_meta.TransferSyntaxUID
    try:
        return bool(uid.is_encapsulated)
    except ValueError:  # a UID that pydicom does not know
        return encoded(dataset)[:4] == b"\xfe\xff\x00\xe0"


def is_codestream(syntax: str) -> bool:
    prefix, _, last = syntax.rpartition(".")
    return prefix == "1.2.840.10008.1.2.4" and last.isdigit() and int(last) in _CODESTREAMS
