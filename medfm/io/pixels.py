"""Stored DICOM pixels: sizes checked before anything is allocated, frames decoded by the fastest installed decoder, values
freed of unused bits, colour as RGB.

A header that contradicts its own pixels (size, precision, number of frames, bits beyond BitsStored) is refused: whichever of
the two is damaged, the picture would be wrong.

Source: DICOM PS3.5 8.1.1 (bits), 8.2 and annex A.4 (encapsulated frames).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from medfm.errors import DataError
from medfm.io.codestream import BrokenStream, Stream, parse
from medfm.io.colour import expand_422, palette, rgb_from_ybr
from medfm.io.dataset import frame_count
from medfm.io.decoders import decode_rle, decode_stream, inflate, reduced_jpeg2000
from medfm.io.layout import BIG_ENDIAN, DEFLATED_FRAME, RLE, Layout, check_size, encoded, is_codestream, syntax_name
from medfm.io.quiet import quiet, reading

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["check_size", "decode", "decode_frames", "frame_count", "quiet", "reading", "reduction", "syntax_name"]


def decode_frames(dataset: Dataset, path: str) -> Iterator[tuple[np.ndarray, str]]:
    """Each frame in stored order as `decode` gives it, one at a time; the arrays may be read-only views of the file's bytes.

    The sizes of all frames together, and their number, are checked before the first is decoded.

    Raises:
        DataError: as `decode`, or fewer or more frames than NumberOfFrames are there.
    """
    layout = check_size(dataset, path)
    colours = palette(dataset, path) if layout.photometric == "PALETTE COLOR" else None
    if not layout.encapsulated:
        raw = _uncompressed(dataset, layout)
        for number in range(layout.frames):
            yield _finished(_native(raw, layout, number), layout, dataset, path, colours)
        return
    for data in _compressed(dataset, layout, path):
        yield _finished(_decoded(data, dataset, layout, path), layout, dataset, path, colours, _overshoot(layout))


def decode(dataset: Dataset, path: str, frame: int = 0, reduce: int = 0, writable: bool = True) -> tuple[np.ndarray, str]:
    """One frame's stored values.

    Args:
        frame: counted from 0.
        reduce: JPEG 2000 only: each side halved so many times while decoding, see `reduction`. 0 gives every pixel.
        writable: False allows a view of the file's own bytes, which saves a copy of uncompressed pixels.

    Returns:
        (rows, columns) stored values of a grey image, or (rows, columns, 3) RGB, and "MONOCHROME1", "MONOCHROME2" or "RGB".

    Raises:
        DataError: the photometric interpretation or the transfer syntax is not readable, the header contradicts the pixels, or
            the pixels are damaged.
    """
    layout = check_size(dataset, path)
    if not 0 <= frame < layout.frames:
        raise DataError(f"'{path}' has no frame {frame + 1}: it has {layout.frames}")
    colours = palette(dataset, path) if layout.photometric == "PALETTE COLOR" else None
    if layout.encapsulated:
        data = _compressed(dataset, layout, path)[frame]
        array = _decoded(data, dataset, layout, path, reduce)
    else:
        array = _native(_uncompressed(dataset, layout), layout, frame)
    array, photometric = _finished(array, layout, dataset, path, colours, _overshoot(layout, reduce))
    return (array.copy() if writable and not array.flags.writeable else array), photometric


def reduction(dataset: Dataset, path: str, smallest: tuple[int, int]) -> int:
    """How often a film may be halved while decoding and still have `smallest` (height, width) pixels; 0 where it cannot be:
    only single JPEG 2000 frames that are no palette can.

    Pixel (0, 0) keeps its place and spacing doubles with each halving.

    Raises:
        DataError: as `check_size`.
    """
    layout = check_size(dataset, path)
    if (
        not layout.encapsulated
        or layout.frames > 1
        or layout.photometric == "PALETTE COLOR"
        or not is_codestream(layout.syntax)
    ):
        return 0
    try:
        stream = parse(bytes(_compressed(dataset, layout, path)[0]))
    except BrokenStream:
        return 0  # `decode` names the fault
    if stream.kind != "JPEG 2000":
        return 0
    sides = (layout.rows, layout.columns)
    return max((n for n in range(stream.levels + 1) if _halves_to(sides, n, smallest)), default=0)


def _halves_to(sides: tuple[int, int], times: int, smallest: tuple[int, int]) -> bool:
    """Whether both sides stay large enough, and are what Pillow makes of them: it rounds where the standard rounds up."""
    scale = 1 << times
    halved = [-(-side // scale) for side in sides]
    return all(n >= wanted for n, wanted in zip(halved, smallest, strict=True)) and halved == [
        (side + scale // 2) // scale for side in sides
    ]


def _native(data: bytes, layout: Layout, number: int = 0) -> np.ndarray:
    """Frame `number` of uncompressed `data`, (rows, columns[, 3]), a view of it where nothing has to change."""
    start = layout.frame_bits * number
    shape = (layout.rows, layout.columns)
    if layout.allocated == 1:
        first, last = start // 8, (start + layout.frame_bits + 7) // 8
        bits = np.unpackbits(np.frombuffer(data[first:last], np.uint8), bitorder="little")
        return bits[start % 8 : start % 8 + layout.frame_bits].reshape(shape)
    item = layout.allocated // 8
    order = ">" if layout.syntax == BIG_ENDIAN else "<"
    letter = "f" if layout.real else "i" if layout.signed else "u"
    samples = np.frombuffer(data, f"{order}{letter}{item}", layout.frame_bits // layout.allocated, start // 8)
    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    if layout.samples == 1:
        return samples.reshape(shape)
    if layout.photometric == "YBR_FULL_422":
        samples = expand_422(samples, *shape)
    elif layout.planar:
        samples = np.ascontiguousarray(np.moveaxis(samples.reshape(layout.samples, *shape), 0, -1))
    samples = samples.reshape(*shape, layout.samples)
    return rgb_from_ybr(samples, layout.stored) if layout.photometric.startswith("YBR") else samples


def _uncompressed(dataset: Dataset, layout: Layout) -> bytes:
    """All frames' bytes in the order that `_native` takes."""
    data = encoded(dataset)
    if layout.syntax == BIG_ENDIAN and layout.allocated == 8 and dataset["PixelData"].VR == "OW":
        # Bytes were written in pairs, the second of each first.
        even = len(data) // 2 * 2
        return np.frombuffer(data[:even], "<u2").byteswap().tobytes() + data[even:]
    return data


def _check_items(data: bytes) -> None:
    """Raise ValueError where a fragment claims more bytes than are there (PS3.5 A.4); pydicom would take what is left."""
    at = 0
    while at + 8 <= len(data) and data[at : at + 4] == b"\xfe\xff\x00\xe0":
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    if at > len(data):
        raise ValueError("a fragment is truncated")


def _compressed(dataset: Dataset, layout: Layout, path: str) -> list[bytes | memoryview]:
    """The encapsulated frames' bytes, as many as the header says."""
    from pydicom.encaps import generate_frames

    data = encoded(dataset)
    if layout.frames == 1 and (single := _single_fragment(data)) is not None:
        return [single]
    tables = None
    if dataset.get("ExtendedOffsetTable") and dataset.get("ExtendedOffsetTableLengths"):
        tables = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    try:
        _check_items(data)
        with quiet():
            frames = list(generate_frames(data, number_of_frames=layout.frames, extended_offsets=tables))
    except Exception as error:  # pydicom's own kinds have no common base
        raise DataError(
            f"'{path}': the compressed frames cannot be told apart ({type(error).__name__}); it is damaged"
        ) from None
    if len(frames) != layout.frames:
        raise DataError(f"'{path}': the header claims {layout.frames} frames, the file holds {len(frames)}")
    return frames  # type: ignore[return-value]


def _single_fragment(data: bytes) -> memoryview | None:
    """The one fragment behind the offset table, without a copy; None where the items lie otherwise."""
    item = b"\xfe\xff\x00\xe0"
    start = 8 + int.from_bytes(data[4:8], "little")
    if data[:4] != item or data[start : start + 4] != item:
        return None
    end = start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")
    if end > len(data) or data[end:] not in (b"", b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"):
        return None
    return memoryview(data)[start + 8 : end]


def _decoded(frame: bytes | memoryview, dataset: Dataset, layout: Layout, path: str, reduce: int = 0) -> np.ndarray:
    """A compressed frame, (rows, columns[, 3]), of the header's signedness; YCbCr that no decoder converts is converted."""
    try:
        if layout.syntax == RLE:
            return _decoded_rle(memoryview(frame), layout)
        data = bytes(frame)
        if layout.syntax == DEFLATED_FRAME:
            return _native(inflate(data, (layout.frame_bits + 7) // 8), layout)
        stream = parse(data)
        _check_stream(stream, layout)
        ybr = layout.samples == 3 and (stream.colour or layout.photometric[:8]) in ("YBR", "YBR_FULL")
        if reduce and stream.kind == "JPEG 2000":
            array = reduced_jpeg2000(data, stream, min(reduce, stream.levels))
        else:
            array = decode_stream(data, stream, ybr)
        array = _signed_as_header(array, stream, layout)
        return rgb_from_ybr(array, layout.stored) if ybr and stream.kind != "JPEG" else array
    except BrokenStream as error:
        raise DataError(
            f"'{path}' cannot be decoded: transfer syntax {syntax_name(dataset)}, {layout.stored} bits ({error}); the pixel "
            "data are damaged or of a kind that no installed decoder reads; convert it to an uncompressed one"
        ) from None


def _decoded_rle(data: memoryview, layout: Layout) -> np.ndarray:
    if layout.allocated == 1:
        return _native(decode_rle(data, 1, (layout.frame_bits + 7) // 8, 1, 8).tobytes(), layout)
    array = decode_rle(data, layout.rows, layout.columns, layout.samples, layout.allocated)
    array = array.view(f"i{array.itemsize}") if layout.signed else array
    return rgb_from_ybr(array, layout.stored) if layout.photometric.startswith("YBR_FULL") else array


def _check_stream(stream: Stream, layout: Layout) -> None:
    """Compare the codestream's own header with the DICOM header; raise BrokenStream where they differ."""
    inside = (stream.rows, stream.columns, stream.components)
    outside = (layout.rows, layout.columns, layout.samples)
    if inside != outside:
        words = [f"{rows} rows, {columns} columns, {n} components" for rows, columns, n in (inside, outside)]
        raise BrokenStream(f"the codestream has {words[0]}, the header {words[1]}")
    if stream.precision > max(8, layout.allocated):
        raise BrokenStream(f"the codestream has {stream.precision} bits, the header allocates {layout.allocated}")


def _signed_as_header(array: np.ndarray, stream: Stream, layout: Layout) -> np.ndarray:
    """A stream's numbers in the signedness of the DICOM header, which alone knows it for JPEG and JPEG-LS.

    Values that two readings of a contradictory header would take for different numbers raise BrokenStream.
    """
    if layout.samples > 1 or stream.signed == layout.signed:
        return array
    contradiction = BrokenStream("the codestream and the header disagree on signed values")
    if stream.signed:
        if int(array.min()) < 0:
            raise contradiction
        return array.view(f"u{array.itemsize}")
    spare = 8 * array.itemsize - stream.precision
    if stream.precision < layout.stored:
        if stream.kind != "JPEG" and stream.kind != "JPEG lossless" and int(array.max()) >> (stream.precision - 1):
            raise contradiction
        return array.astype(f"i{max(array.itemsize, layout.allocated // 8)}")
    if spare:
        array = array << spare
    array = array.view(f"i{array.itemsize}")
    return array >> spare if spare else array


def _finished(
    array: np.ndarray,
    layout: Layout,
    dataset: Dataset,
    path: str,
    colours: tuple[np.ndarray, int] | None,
    overshoot: float = 0.0,
) -> tuple[np.ndarray, str]:
    """Stored values free of unused bits, palette colours looked up, and the photometric interpretation they then have."""
    if layout.samples == 3:
        return array, "RGB"
    if not layout.real and layout.stored < 8 * array.itemsize:
        array = _stored_bits(array, layout, dataset, path, overshoot)
    if colours is None:
        return array, layout.photometric
    table, first = colours
    return table[np.clip(array.astype(np.int32) - first, 0, len(table) - 1)], "RGB"


def _stored_bits(array: np.ndarray, layout: Layout, dataset: Dataset, path: str, overshoot: float) -> np.ndarray:
    """The BitsStored bits of each value, sign-extended.

    Bits outside them have no meaning, but hold something only where overlays were put there, or where the header is wrong, so
    that anything else is refused. Padding may lie outside, and values may `overshoot` by that share of the range.
    """
    bits = layout.stored
    lowest, highest = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if layout.signed else (0, (1 << bits) - 1)
    low, high = int(array.min()) if layout.signed else 0, int(array.max())
    if lowest <= low and high <= highest:
        return array
    if max(lowest - low, high - highest) <= overshoot * (highest - lowest):
        return np.clip(array, lowest, highest)
    overlay = any(element.tag.elem == 0x0102 and 0x6000 <= element.tag.group < 0x6100 and element.value for element in dataset)
    if not overlay and _only_padding_outside(array, lowest, highest, dataset):
        return array
    plain = layout.signed and low >= 0 and high < 1 << bits  # unused bits are 0 instead of copies of the sign
    if not (overlay or plain):
        raise DataError(
            f"'{path}': pixels use bits outside the {bits} that BitsStored names, and no overlay explains it; the header is "
            "damaged"
        )
    spare = 8 * array.itemsize - bits
    return (array << spare) >> spare


def _overshoot(layout: Layout, reduce: int = 0) -> float:
    """How far a lossy coder, or the low-pass band of a wavelet, may leave the range of the values, at edges."""
    lossy = is_codestream(layout.syntax) and layout.syntax.rpartition(".")[2] in ("50", "51", "81", "91", "203")
    return 0.25 if reduce else 1 / 16 if lossy else 0.0


def _only_padding_outside(array: np.ndarray, lowest: int, highest: int, dataset: Dataset) -> bool:
    try:
        padding = int(dataset.PixelPaddingValue)
    except (AttributeError, TypeError, ValueError):
        return False
    size = 8 * array.itemsize
    values = np.array([padding % (1 << size)], f"u{array.itemsize}").view(array.dtype)
    outside = (array < lowest) | (array > highest)
    return bool((array[outside] == values[0]).all())
