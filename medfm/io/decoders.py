"""One compressed frame -> its samples, by the fastest installed decoder, chosen by what the codestream is.

The order of decoders was measured on a 3000 x 2500 film, see benchmarks/results/io_decode.md. gdcm's codecs are called
directly: its Python binding hands pixels out as text, which costs as much as decoding them.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np

from medfm.io.codestream import BrokenStream, Stream
from medfm.io.colour import rgb_from_ybr

# PackBits gives at most 128 bytes from 2.
RLE_RATIO = 64
# Bytes put behind a segment, each a run of its own (PS3.5 G.3.1). Behind a padding zero, which takes the first byte for
# a pixel, they come out otherwise; and otherwise again where pixels are missing and the last run takes bytes from here.
_RLE_MARK = bytes.fromhex("01910c5f3be87a46")
_RLE_PADDED = bytes.fromhex("0000910c5f3be87a")
_RLE_END = b"".join(bytes((0, byte)) for byte in _RLE_MARK)


def container(precision: int) -> np.dtype[Any]:
    """The smallest unsigned integer that holds `precision` bits."""
    return np.dtype(np.uint8 if precision <= 8 else np.uint16 if precision <= 16 else np.uint32)


def decode_stream(data: bytes, stream: Stream, colour: bool) -> np.ndarray:
    """The samples of a JPEG, JPEG-LS or JPEG 2000 frame, each as the stream's own unsigned or signed number.

    Args:
        colour: for a lossy JPEG of three components, whether it holds YCbCr, which then becomes RGB. JPEG 2000 undoes its own
            transform; everything else is given as stored.

    Returns:
        (rows, columns) or (rows, columns, components), native integers of 8, 16 or 32 bits.

    Raises:
        BrokenStream: no decoder is installed for it, or every one of them failed; the text names them.
    """
    failures = []
    for name, decoder in _decoders(stream):
        try:
            array = decoder(data, stream, colour)
        except Exception as error:  # decoders raise whatever their C library does
            # The class alone: a decoder's own words may quote the data.
            failures.append(f"{name}: {type(error).__name__}")
            continue
        expected = (stream.rows, stream.columns) + ((stream.components,) if stream.components > 1 else ())
        if array.shape == expected:
            return array
        failures.append(f"{name}: other size")
    raise BrokenStream(", ".join(failures) or f"{stream.kind} of {stream.precision} bits has no installed decoder")


def _decoders(stream: Stream) -> list[tuple[str, Callable[[bytes, Stream, bool], np.ndarray]]]:
    """Fastest first; the next is asked where one fails."""
    grey = stream.components == 1
    if stream.kind == "JPEG":
        if stream.precision == 8:
            return [("pillow", _pillow)]
        return [("gdcm", _gdcm)] if grey and not stream.progressive else []
    if stream.kind == "JPEG lossless":
        # gdcm ends the process on some damaged streams of three components, so that it gets grey ones alone.
        found: list[tuple[str, Callable[[bytes, Stream, bool], np.ndarray]]] = [("pylibjpeg", _libjpeg)]
        found = [("gdcm", _gdcm), *found] if grey else found
        # Pillow does not notice damage in colour.
        return [("pillow", _pillow), *found] if stream.precision == 8 and grey else found
    if stream.kind == "JPEG-LS":
        # gdcm is 2 to 5 % quicker, and wrong below 8 bits.
        return [("gdcm", _gdcm), ("pyjpegls", _jpegls)] if grey and stream.precision >= 8 else [("pyjpegls", _jpegls)]
    # For JPEG 2000 gdcm would win by the clock, but takes a thread for each core, for which data loaders have other use.
    return [("openjpeg", _openjpeg)]


def _shaped(samples: np.ndarray, stream: Stream, planar: bool = False) -> np.ndarray:
    """Flat samples, by pixel or by plane, as (rows, columns[, components]). More or fewer than that raise ValueError."""
    if stream.components == 1:
        return samples.reshape(stream.rows, stream.columns)
    if planar:
        return np.moveaxis(samples.reshape(stream.components, stream.rows, stream.columns), 0, -1)
    return samples.reshape(stream.rows, stream.columns, stream.components)


def _little(buffer: Any, stream: Stream) -> np.ndarray:
    """Little-endian samples in a writable buffer, as native integers."""
    dtype = container(stream.precision)
    if stream.signed:
        dtype = np.dtype(f"i{dtype.itemsize}")
    samples = np.frombuffer(buffer, dtype.newbyteorder("<"))
    return samples.astype(dtype, copy=False)


def _pillow(data: bytes, stream: Stream, colour: bool) -> np.ndarray:
    from PIL import Image as Pictures

    with Pictures.open(BytesIO(data), formats=("JPEG",)) as picture:
        if stream.converted and not colour:
            picture.draft("YCbCr", picture.size)  # libjpeg takes unmarked components for YCbCr; this leaves them alone
        array = np.array(picture)
    return rgb_from_ybr(array) if colour and not stream.converted else array


def reduced_jpeg2000(data: bytes, stream: Stream, reduce: int) -> np.ndarray:
    """A JPEG 2000 frame whose sides are halved `reduce` times: the low-pass band of the wavelet, so that the other bands are
    never decoded. Sample (i, j) lies at sample (2^reduce i, 2^reduce j) of the whole frame.

    Raises:
        BrokenStream: the frame is damaged.
    """
    from PIL import Image as Pictures

    try:
        with Pictures.open(BytesIO(data), formats=("JPEG2000",)) as picture:
            picture.reduce = reduce  # type: ignore[method-assign, assignment]
            array = np.array(picture)
    except Exception as error:
        raise BrokenStream(f"pillow: {type(error).__name__}") from None
    if array.dtype == np.int32:
        array = array.astype(np.uint16)
    # Pillow moves samples up to fill 8 or 16 bits, and signed ones from zero up.
    array >>= 8 * array.itemsize - stream.precision
    if stream.signed:
        array = array.astype(np.int32) - (1 << (stream.precision - 1))
        array = array.astype(np.int8 if stream.precision <= 8 else np.int16)
    scale = 1 << reduce
    if array.shape[:2] != (-(-stream.rows // scale), -(-stream.columns // scale)):
        raise BrokenStream("pillow: other size")
    return array


def _jpegls(data: bytes, stream: Stream, colour: bool) -> np.ndarray:
    import jpeg_ls

    buffer, info = jpeg_ls.decode_pixel_data(data)
    return _shaped(_little(buffer, stream), stream, planar=info["components"] > 1 and info["interleave_mode"] == 0)


def _libjpeg(data: bytes, stream: Stream, colour: bool) -> np.ndarray:
    from libjpeg.utils import decode_pixel_data

    return _shaped(_little(decode_pixel_data(data, version=2), stream), stream)


def _openjpeg(data: bytes, stream: Stream, colour: bool) -> np.ndarray:
    from openjpeg.utils import decode_pixel_data

    return _shaped(_little(decode_pixel_data(data, version=2), stream), stream)


@cache
def _gdcm_quiet() -> Any:
    import gdcm

    for switch in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
        switch()  # it would write to the terminal past Python
    return gdcm


def _gdcm(data: bytes, stream: Stream, colour: bool) -> np.ndarray:
    gdcm = _gdcm_quiet()
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    codec = gdcm.JPEGLSCodec() if stream.kind == "JPEG-LS" else gdcm.JPEGCodec()
    codec.SetNumberOfDimensions(2)
    codec.SetDimensions((stream.columns, stream.rows, 1))
    codec.SetPlanarConfiguration(0)
    photometric = gdcm.PhotometricInterpretation
    codec.SetPhotometricInterpretation(photometric(photometric.RGB if stream.components == 3 else photometric.MONOCHROME2))
    bits = 8 * container(stream.precision).itemsize
    # Its 12-bit codec is chosen by the allocated bits; 16 would first try the 16-bit one, which complains aloud.
    allocated = 12 if stream.kind == "JPEG" else bits
    pixel = gdcm.PixelFormat(stream.components, allocated, stream.precision, stream.precision - 1, int(stream.signed))
    codec.SetPixelFormat(pixel)
    codec.SetNeedByteSwap(False)
    out = gdcm.DataElement()
    if not codec.Decode(element, out):
        raise ValueError("gdcm failed")
    value = out.GetByteValue()
    size = stream.rows * stream.columns * stream.components * bits // 8
    if value is None or int(str(value.GetLength())) != size:
        raise ValueError("gdcm gave another number of bytes")
    buffer = np.empty(size, np.uint8)
    # The length was just checked, and `out` keeps its memory alive until this returns.
    ctypes.memmove(buffer.ctypes.data, int(value.GetVoidPointer()), size)
    return _shaped(_little(buffer, stream), stream)


def decode_rle(data: memoryview, rows: int, columns: int, samples: int, bits: int) -> np.ndarray:
    """(rows, columns) or (rows, columns, samples) of an RLE frame, unsigned, of `bits` allocated bits.

    Raises:
        BrokenStream: the number of segments is not that of the samples' bytes, or a segment is damaged.
    """
    if len(data) < 64:
        raise BrokenStream("the RLE header is truncated")
    segments = int.from_bytes(data[:4], "little")
    if bits not in (8, 16, 32) or segments != samples * bits // 8:
        raise BrokenStream(f"{segments} RLE segments cannot hold {samples} samples of {bits} bits")
    offsets = [int.from_bytes(data[4 * n : 4 * n + 4], "little") for n in range(1, segments + 1)]
    ends = [*offsets[1:], len(data)]
    if offsets[0] != 64 or any(b <= a for a, b in zip(offsets, ends, strict=True)):
        raise BrokenStream("the RLE header's offsets are out of order")
    if any((b - a) * RLE_RATIO < rows * columns for a, b in zip(offsets, ends, strict=True)):
        raise BrokenStream("an RLE segment is too short for the image's size")
    pieces = [data[start:end] for start, end in zip(offsets, ends, strict=True)]
    unpack = _rle_grey if samples == 1 else _rle_segments
    try:
        return unpack(pieces, rows, columns, bits)
    except (BrokenStream, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the decoder is written in Rust, whose panics are no Exceptions
        raise BrokenStream(f"pylibjpeg: {type(error).__name__}") from None


def _rle_grey(pieces: list[memoryview], rows: int, columns: int, bits: int) -> np.ndarray:
    """By the decoder of whole frames, which takes half the time of that of segments, but crops a segment that holds more than
    the header claims. So each gets a mark at its end, which must come out right behind the pixels.
    """
    from rle.rle import decode_frame

    header = np.zeros(16, "<u4")
    header[: len(pieces) + 1] = len(pieces), *np.cumsum([64, *(len(piece) + len(_RLE_END) for piece in pieces[:-1])])
    marked = b"".join((header.tobytes(), *(part for piece in pieces for part in (piece, _RLE_END))))
    count, more = rows * columns, len(_RLE_MARK)
    buffer = decode_frame(marked, count + more, bits, "<")
    tails = np.frombuffer(buffer, np.uint8).reshape(count + more, len(pieces))[count:].T
    if not all(tail.tobytes() in (_RLE_MARK, _RLE_PADDED) for tail in tails):
        raise BrokenStream("an RLE segment does not hold one byte for each pixel")
    values = np.frombuffer(buffer, f"<u{bits // 8}", count)
    return values.astype(values.dtype.newbyteorder("="), copy=False).reshape(rows, columns)


def _rle_segments(pieces: list[memoryview], rows: int, columns: int, bits: int) -> np.ndarray:
    """Segment by segment: (rows, columns, samples)."""
    from rle.rle import decode_segment

    size = bits // 8
    words = np.zeros((rows * columns, len(pieces) // size), f"u{size}")
    for number, piece in enumerate(pieces):
        segment = decode_segment(bytes(piece))
        if not 0 <= len(segment) - rows * columns <= 1:
            raise BrokenStream("an RLE segment does not hold one byte for each pixel")
        word = words[:, number // size]
        if size > 1:
            word <<= 8  # the most significant bytes come first
        word |= np.frombuffer(segment, np.uint8, rows * columns)
    return words.reshape(rows, columns, -1)


def inflate(data: bytes, size: int) -> bytes:
    """A deflated frame (PS3.5 A.4.13) of `size` bytes.

    Raises:
        BrokenStream: it is damaged, or holds fewer or more bytes.
    """
    from isal import isal_zlib

    stream = isal_zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = stream.decompress(data, size + 2)
    except isal_zlib.error:  # type: ignore[misc]
        raise BrokenStream("the deflated frame is damaged") from None
    if not size <= len(out) <= size + 1 or not stream.eof:
        raise BrokenStream(f"the deflated frame holds {'more than' if len(out) > size else len(out)} {size} bytes")
    return out[:size]
