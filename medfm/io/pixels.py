"""Stored DICOM pixels: decoding by the fastest measured decoder, with sizes checked first, and colour as RGB."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from medfm.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

# Decoders in the order they are tried. On a 3000 x 2500 12-bit film, ms: JPEG-LS pyjpegls 130, gdcm 210, pylibjpeg 637; RLE
# pylibjpeg 16, pydicom 87; JPEG lossless gdcm 161, pylibjpeg 243; JPEG 2000 alike with any. 12-bit JPEG Extended decodes with
# pylibjpeg alone.
_DECODERS = {
    "1.2.840.10008.1.2.4.50": ("pillow", "gdcm", "pylibjpeg"),  # JPEG Baseline
    "1.2.840.10008.1.2.4.51": ("pylibjpeg", "gdcm", "pillow"),  # JPEG Extended
    "1.2.840.10008.1.2.4.57": ("gdcm", "pylibjpeg"),  # JPEG Lossless, process 14
    "1.2.840.10008.1.2.4.70": ("gdcm", "pylibjpeg"),  # JPEG Lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": ("pyjpegls", "gdcm", "pylibjpeg"),  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81": ("pyjpegls", "gdcm", "pylibjpeg"),  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90": ("pylibjpeg", "gdcm", "pillow"),  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91": ("pylibjpeg", "gdcm", "pillow"),  # JPEG 2000
    "1.2.840.10008.1.2.5": ("pylibjpeg", "pydicom"),  # RLE
}
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
# A blank 15 MB film packs to a few kB, so only a large claim from few bytes is a lie (or an attack on memory).
_LARGE = 2**29
_HIGHEST_RATIO = 1000


class _Quiet:
    """Silence shared by threads: the first to enter sets it, the last to leave restores what was.

    `warnings.catch_warnings` alone swaps a global list: threads leaving in another order would silence the whole process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()
        self._level = logging.NOTSET

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                logger = logging.getLogger("pydicom")
                self._level = logger.level
                logger.setLevel(logging.CRITICAL + 1)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)
                logging.getLogger("pydicom").setLevel(self._level)


_quiet = _Quiet()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings to ourselves: they quote header values, and so patient data. For any number of threads."""
    _quiet.enter()
    try:
        yield
    finally:
        _quiet.leave()


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Work on a header, quietly. pydicom parses a value when it is first used, so damage shows itself anywhere.

    Raises:
        DataError: a header value cannot be parsed. Only the kind of error is named: its words quote values.
    """
    try:
        with quiet():
            yield
    except DataError:
        raise
    except Exception as error:  # pydicom's own kinds have no common base
        raise DataError(f"'{path}': its header is damaged ({type(error).__name__}); copy it again from its source") from None


def syntax_name(dataset: Dataset) -> str:
    """'JPEG Baseline (Process 1) (1.2.840.10008.1.2.4.50)': name and UID for a message."""
    uid = dataset.file_meta.TransferSyntaxUID
    return str(uid) if uid.name == str(uid) else f"{uid.name} ({uid!s})"


def check_size(dataset: Dataset, path: str) -> None:
    """Compare the size that the header claims with the bytes that are there, before anything is allocated.

    Raises:
        DataError: rows or columns are missing or zero, or the pixel data are shorter than claimed.
    """
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if rows < 1 or columns < 1:
        raise DataError(f"'{path}': the header claims {columns} columns and {rows} rows")
    bits = int(dataset.get("BitsAllocated") or 0)
    if bits not in (1, 8, 16, 32, 64):
        raise DataError(f"'{path}': BitsAllocated is {bits}; 1, 8, 16, 32 or 64 are readable")
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if dataset.get("PhotometricInterpretation") == "YBR_FULL_422" and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        samples = 2  # (0028,0002) says 3, but chroma is stored for every second pixel
    claimed = (rows * columns * samples * bits + 7) // 8
    present = len(_encoded(dataset))
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        if not present:
            raise DataError(f"'{path}': the compressed pixel data are empty")
        if claimed > _LARGE and claimed > present * _HIGHEST_RATIO:
            raise DataError(f"'{path}': the header claims {claimed:,} bytes of pixels, from {present:,} compressed bytes")
    elif present < claimed:
        raise DataError(f"'{path}': truncated: the header claims {claimed:,} bytes of pixels, the file holds {present:,}")


def _encoded(dataset: Dataset) -> bytes:
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            return dataset[keyword].value or b""
    return b""


def decode(dataset: Dataset, path: str) -> tuple[np.ndarray, str]:
    """The first frame's stored values.

    Returns:
        (rows, columns) stored values of a grey image, or (rows, columns, 3) RGB, and "MONOCHROME1", "MONOCHROME2" or "RGB".

    Raises:
        DataError: the photometric interpretation or the transfer syntax is not readable, or the pixels are damaged.
    """
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip()
    if photometric not in ("MONOCHROME1", "MONOCHROME2", *_COLOUR):
        raise DataError(
            f"'{path}': photometric interpretation '{photometric[:16]}' is not readable; export it as MONOCHROME2 or RGB"
        )
    check_size(dataset, path)
    array = _native(_run_decoder(dataset, path))
    if photometric == "PALETTE COLOR":
        array = _palette(array, dataset, path)
    if array.ndim == 3 and array.shape[2] == 3:
        return array, "RGB"
    if array.ndim != 2 or photometric in _COLOUR:
        raise DataError(f"'{path}': {photometric} pixels decode to the shape {array.shape}")
    return array, photometric


def _run_decoder(dataset: Dataset, path: str) -> np.ndarray:
    from pydicom.pixels import get_decoder

    uid = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        raise DataError(
            f"'{path}': no decoder for transfer syntax {syntax_name(dataset)}; convert it to an uncompressed one"
        ) from None
    if not uid.is_encapsulated:
        names: tuple[str, ...] = ("",)
    else:
        preferred = _DECODERS.get(str(uid), ())
        rest = [name for name in decoder.available_plugins if name not in preferred]
        names = tuple(name for name in preferred if name in decoder.available_plugins) + tuple(rest)
    if not names:
        raise DataError(
            f"'{path}': no installed decoder for transfer syntax {syntax_name(dataset)}; convert it to an uncompressed one"
        )
    failures = []
    for name in names:
        try:
            with quiet():
                return decoder.as_array(dataset, index=0, decoding_plugin=name)[0]
        except Exception as error:  # decoders raise whatever their C library does
            # The class alone: a decoder's own words may quote the header.
            failures.append(f"{name}: {type(error).__name__}" if name else type(error).__name__)
    bits = dataset.get("BitsStored", "?")
    raise DataError(
        f"'{path}' cannot be decoded: transfer syntax {syntax_name(dataset)}, {bits} bits ({', '.join(failures)}); "
        "the pixel data are damaged or of a kind that no installed decoder reads"
    )


def _native(array: np.ndarray) -> np.ndarray:
    """The machine's byte order, which torch and fast arithmetic need."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _palette(array: np.ndarray, dataset: Dataset, path: str) -> np.ndarray:
    """Colours of a palette image, (rows, columns, 3) uint8. A 16-bit palette keeps its upper byte (PS3.3 C.7.6.3.1.6)."""
    from pydicom.pixels import apply_color_lut

    try:
        with quiet():
            colour = apply_color_lut(array, dataset)[..., :3]
    except Exception as error:
        raise DataError(f"'{path}': its colour palette is broken ({type(error).__name__})") from None
    if colour.dtype.itemsize > 1:
        colour = (colour >> 8).astype(np.uint8) if colour.max(initial=0) > 255 else colour.astype(np.uint8)
    return colour
