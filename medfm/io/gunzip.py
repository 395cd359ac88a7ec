"""A gzip file as one stream of bytes, with every checksum and length tested.

isal inflates at about twice zlib's speed. Members that follow each other (bgzip, concatenated files) are one stream; after the
last only padding of zeros may come.
"""

from __future__ import annotations

import zlib
from typing import Any, BinaryIO

# Compressed bytes at a time: what they inflate to stays in the processor's cache while it is copied to its place, and even the
# densest stream gives 33 MB of them.
_STEP = 2**15
# Deflate cannot pack tighter than this, so a larger claim is a damaged header.
DEFLATE_LIMIT = 1032


class DamagedGzip(Exception):
    """The stream is damaged ("damaged") or ends early ("truncated"): its text is that word."""


class GzipStream:
    """Reads `file` from its place, as `readinto` and `read` of a file object."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ready = memoryview(b"")
        self._compressed = b""
        self._member: Any = None
        self._ended = False

    def _more(self) -> bool:
        """Inflate the next bytes into `_ready`; False at the end of the last member."""
        from isal import isal_zlib

        while not self._ready:
            if self._ended:
                return False
            data = self._compressed or self._file.read(_STEP)
            self._compressed = b""
            if self._member is None:
                data = self._next_member(data)
                if not data:
                    self._ended = True
                    return False
                self._member = isal_zlib.decompressobj(16 + zlib.MAX_WBITS)
            if not data:
                raise DamagedGzip("truncated")
            try:
                self._ready = memoryview(self._member.decompress(data))
            except isal_zlib.error:  # type: ignore[misc]
                raise DamagedGzip("damaged") from None
            if self._member.eof:
                self._compressed = self._member.unused_data
                self._member = None
        return True

    def _next_member(self, data: bytes) -> bytes:
        """`data` from the beginning of the next member on, b"" at the end of the file."""
        while True:
            data = data.lstrip(b"\x00")
            if len(data) < 2:
                more = self._file.read(_STEP)
                if more:
                    data += more
                    continue
                if data:
                    raise DamagedGzip("damaged")
                return b""
            if data[:2] != b"\x1f\x8b":
                raise DamagedGzip("damaged")
            return data

    def readinto(self, view: memoryview) -> int:
        """Fill `view` as far as the stream goes; the number of bytes."""
        got = 0
        while got < len(view) and self._more():
            part = self._ready[: len(view) - got]
            view[got : got + len(part)] = part
            got += len(part)
            self._ready = self._ready[len(part) :]
        return got

    def read(self, size: int) -> bytes:
        """At most `size` bytes, fewer only at the end."""
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def rest(self, limit: int) -> int:
        """How many bytes are left, counted up to just above `limit`; reaching the end tests the last checksum."""
        count = 0
        while count <= limit and self._more():
            count += len(self._ready)
            self._ready = memoryview(b"")
        return count
