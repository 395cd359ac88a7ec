"""Pixels of one process -> its own shards."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
from isal.isal_zlib import crc32

from medfm.data.store.records import SyncedFile, shard_path

ALIGNMENT = 64  # a cache line; numpy and torch need no more, and small images would waste a page each


class ShardWriter(SyncedFile):
    """Raw C-order arrays one after the other, in files of at most `limit` bytes (one larger image has a file of its own).

    Raises:
        OSError: the disk is full or not writable. What was being written does not count, for it has no record.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self.writer = secrets.randbits(64)
        self.shard = -1
        self._end = 0

    def add(self, array: np.ndarray) -> tuple[int, int, int]:
        """(shard, offset, CRC-32) of an array; it is on disk after the next `sync`."""
        data = np.ascontiguousarray(array).data.cast("B")
        start = -(-self._end // ALIGNMENT) * ALIGNMENT
        if self._file is None or (start and start + len(data) > self.limit):
            self._next()
            start = 0
        assert self._file is not None
        self._file.seek(start)
        self._end = start
        rest = data
        while rest:
            rest = rest[self._file.write(rest) :]
        self._end = start + len(data)
        return self.shard, start, crc32(data)

    def _next(self) -> None:
        self.close()
        self.shard += 1
        self._file = open(shard_path(self.folder, self.writer, self.shard), "xb", buffering=0)  # noqa: SIM115
        self._end = 0
