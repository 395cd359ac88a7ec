"""Headers of codestreams, and the run-length decoder."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as Pictures
from rle.utils import encode_array

from medfm.io.codestream import BrokenStream, Stream, parse
from medfm.io.decoders import _decoders, decode_rle, decode_stream


def picture(kind: str, mode: str = "L", size: tuple[int, int] = (37, 21), **options: object) -> bytes:
    array = np.random.default_rng(0).integers(0, 256, (size[1], size[0], *([3] if mode == "RGB" else [])), np.uint8)
    buffer = io.BytesIO()
    Pictures.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def test_parse__jpeg() -> None:
    assert parse(picture("JPEG")) == Stream("JPEG", 21, 37, 1, 8, lossy=True)
    colour = parse(picture("JPEG", "RGB", progressive=True))
    assert (colour.components, colour.colour, colour.converted, colour.progressive) == (3, "YBR", True, True)


def test_parse__jpeg2000() -> None:
    stream = parse(picture("JPEG2000", size=(64, 48), no_jp2=True, num_resolutions=4))
    assert (stream.kind, stream.rows, stream.columns, stream.levels, stream.lossy) == ("JPEG 2000", 48, 64, 3, False)
    assert parse(picture("JPEG2000", size=(64, 48), num_resolutions=4)) == stream  # within JP2 boxes
    tiled = parse(picture("JPEG2000", size=(64, 48), no_jp2=True, tile_size=(20, 12), num_resolutions=4))
    assert tiled.levels == 2  # tiles of 20 x 12 stay whole twice


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_parse__truncated_and_damaged(kind: str) -> None:
    data = picture(kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
    for broken in (data[:-2], data[:40], b"", b"\xff\xd8", bytes(100), data[:2] + bytes(60) + data[62:]):
        with pytest.raises(BrokenStream):
            parse(broken)
    assert parse(data + b"\x00").rows == 21  # evened out


def test_decode_stream__says_which_decoders_failed() -> None:
    data = bytearray(picture("JPEG2000", no_jp2=True, size=(64, 64)))
    stream = parse(bytes(data))
    data[120:160] = bytes(40)
    with pytest.raises(BrokenStream, match="openjpeg"):
        decode_stream(bytes(data), stream, colour=False)


def test_decoders__gdcm_gets_no_colour() -> None:
    for kind in ("JPEG", "JPEG lossless", "JPEG-LS", "JPEG 2000", "HTJ2K"):
        for precision in (8, 12):
            names = [name for name, _ in _decoders(Stream(kind, 9, 9, 3, precision))]  # type: ignore[arg-type]
            assert "gdcm" not in names  # it ends the process on some damaged streams


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("shape", [(11, 7), (11, 7, 3), (8, 16), (1, 1)])
def test_decode_rle__gives_what_was_encoded_and_refuses_other_sizes(dtype: type, shape: tuple[int, ...]) -> None:
    for top in (3, np.iinfo(dtype).max):  # runs, and none
        array = np.random.default_rng(0).integers(0, top, shape).astype(dtype)
        bits, samples = 8 * array.itemsize, shape[2] if len(shape) == 3 else 1
        options = {"rows": shape[0], "columns": shape[1], "bits_allocated": bits, "samples_per_pixel": samples}
        frame = bytes(next(iter(encode_array(array, **options, pixel_representation=0, number_of_frames=1))))
        np.testing.assert_array_equal(decode_rle(memoryview(frame), shape[0], shape[1], samples, bits), array)
        for rows in {shape[0] - 2, shape[0] - 1, shape[0] + 1} - {-1, 0}:
            with pytest.raises(BrokenStream):
                decode_rle(memoryview(frame), rows, shape[1], samples, bits)
        cut = memoryview(frame)[:-2] if len(frame) % 2 == 0 else memoryview(frame)[:-1]
        with pytest.raises(BrokenStream):
            decode_rle(cut, shape[0], shape[1], samples, bits)
