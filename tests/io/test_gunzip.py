"""gzip streams: members, padding, checksums, ends."""

from __future__ import annotations

import gzip
import io
import struct
import zlib

import numpy as np
import pytest

from medfm.io.gunzip import DamagedGzip, GzipStream

DATA = np.random.default_rng(0).integers(0, 8, 200_000, dtype=np.uint8).tobytes()


def blocked(data: bytes) -> bytes:
    """As bgzip writes: members of 64 kB with an extra field, and an empty one at the end."""
    out = b""
    for start in range(0, len(data) + 1, 2**16):
        part = data[start : start + 2**16] if start < len(data) else b""
        body = zlib.compress(part, 6, wbits=-15)
        size = len(body) + 26 - 1
        out += b"\x1f\x8b\x08\x04" + bytes(6) + struct.pack("<H2sHH", 6, b"BC", 2, size) + body
        out += struct.pack("<II", zlib.crc32(part), len(part))
    empty = zlib.compress(b"", 6, wbits=-15)
    return out + b"\x1f\x8b\x08\x04" + bytes(6) + struct.pack("<H2sHH", 6, b"BC", 2, len(empty) + 25) + empty + bytes(8)


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(DATA),
        gzip.compress(DATA[:999]) + gzip.compress(DATA[999:]),
        gzip.compress(DATA) + bytes(1000),
        blocked(DATA),
    ],
    ids=["one member", "two members", "padded", "bgzip"],
)
def test_read__whole_streams(packed: bytes) -> None:
    stream = GzipStream(io.BytesIO(packed))
    assert stream.read(10) == DATA[:10]
    buffer = bytearray(len(DATA) - 10 - 7)
    assert stream.readinto(memoryview(buffer)) == len(buffer)
    assert buffer == DATA[10:-7]
    assert stream.rest(2**20) == 7
    assert stream.read(5) == b""


@pytest.mark.parametrize("cut", [1, 9, 12_345, 40_000])
def test_read__truncated(cut: int) -> None:
    stream = GzipStream(io.BytesIO(gzip.compress(DATA)[:-cut]))
    with pytest.raises(DamagedGzip, match="truncated"):
        stream.rest(2**30)


@pytest.mark.parametrize("place", [-1, -6, 30_000, 0])
def test_read__a_flipped_byte(place: int) -> None:
    packed = bytearray(gzip.compress(DATA))
    packed[place] ^= 0x55
    with pytest.raises(DamagedGzip, match="damaged"):
        GzipStream(io.BytesIO(bytes(packed))).rest(2**30)


def test_read__text_behind_the_last_member() -> None:
    with pytest.raises(DamagedGzip, match="damaged"):
        GzipStream(io.BytesIO(gzip.compress(DATA) + b"text")).rest(2**30)


def test_rest__stops_at_its_limit() -> None:
    stream = GzipStream(io.BytesIO(gzip.compress(bytes(50_000_000))))
    assert 1000 < stream.rest(1000) < 50_000_000
