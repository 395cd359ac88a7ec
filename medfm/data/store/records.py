"""The index of a store: one fixed-size record an image, appended to logs that are never rewritten.

A folder of a store holds one log `records-<run>-<root>.log` for each run of `medfm cache` that wrote to it, where `<root>` is a
digest of the folder that its images lie in, and shards `<writer>-<number>.bin` for each process that wrote pixels. No two
processes write to one file, so that any number of them may work on one store without a lock. A record is appended when its
pixels are on disk; it carries a check of itself, so that a torn one does not count. A record of shape 0 takes back the record
of the same place (found damaged).

Why not an existing format: a crop must read only its bytes and cost microseconds, a killed run must lose nothing, and several
runs must add to one store. Measured on one thread, random 96^3 int16 crops a second: memory map 2,488, blosc2 666, MONAI's
cached tensors 549, zarr v3 170-190; 512 x 512 uint8 images: memory map 67,000, MDS 35,000, litdata 26,000.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from medfm.errors import DataError

RECORD = np.dtype(
    [
        ("name", "<u8", 2),  # of the manifest's path, with the modality it states
        ("size", "<u8"),  # bytes of the source
        ("stamp", "<i8"),  # its time of modification
        ("content", "<u8", 2),  # of the source's bytes
        ("writer", "<u8"),
        ("offset", "<u8"),
        ("shape", "<u4", 4),  # (C, D, H, W); D is 1 for single images
        ("shard", "<u4"),
        ("checksum", "<u4"),  # CRC-32 of the pixels
        ("check", "<u8"),  # of the record
    ]
)
_WORDS = RECORD.itemsize // 8 - 1
# Odd, so that each is invertible modulo 2^64: no change of one word goes unseen. The constant keeps zeros from being valid.
_FACTORS = np.array([2 * int.from_bytes(hashlib.sha256(bytes([n])).digest()[:8], "little") + 1 & (2**64 - 1)
                     for n in range(_WORDS)], np.uint64)  # fmt: skip
_CONSTANT = np.uint64(0x6D6564666D303031)


def _check(records: np.ndarray) -> np.ndarray:
    words = np.ascontiguousarray(records).view(np.uint64).reshape(len(records), _WORDS + 1)[:, :_WORDS]
    return (words * _FACTORS).sum(axis=1, dtype=np.uint64) + _CONSTANT


def seal(records: np.ndarray) -> np.ndarray:
    """`records` with their checks set."""
    records["check"] = _check(records)
    return records


def shard_path(folder: Path, writer: int, shard: int) -> Path:
    return folder / f"{writer:016x}-{shard:05d}.bin"


def halves(digest: bytes) -> tuple[int, int]:
    """The first 16 bytes of a digest as two numbers."""
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


class SyncedFile:
    """A file of the store that is opened when the first bytes come, and is on disk after `sync` and `close`."""

    _file: BinaryIO | None = None

    def sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is None:
            return
        try:
            self.sync()
        finally:
            self._file.close()
            self._file = None


def root_digest(root: Path) -> str:
    """16 hexadecimal digits of a folder's whole path."""
    return hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()


class RecordLog(SyncedFile):
    """The log of one run on the images below `root`; made with its first record."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.path = folder / f"records-{secrets.token_hex(8)}-{root_digest(root)}.log"

    def add(self, records: np.ndarray) -> None:
        """Append sealed records. A killed process loses none of them; `sync` puts them out of the machine's reach too.

        Raises:
            DataError: the disk is full or not writable.
        """
        try:
            if self._file is None:
                self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115, closed by `close`
            data = memoryview(records.tobytes())
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise DataError(f"'{self.path}' cannot be written: {io_words(error)}") from None


def io_words(error: OSError) -> str:
    """Why a write failed, for a message."""
    return "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or type(error).__name__


def read_records(folder: Path) -> np.ndarray:
    """(N,) of RECORD: every valid record of the logs in `folder`, without those that were taken back; the oldest log first."""
    return read_logs(folder)[0]


def read_logs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """`read_records`, and (N,) the `root_digest` of the folder that each was made from.

    Logs of older versions do not tell it: the digits of their run stand for an unknown folder."""
    logs = sorted(folder.glob("records-*.log"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    parts, origins = [np.empty(0, RECORD)], [np.empty(0, "<U16")]
    for log in logs:
        whole = log.stat().st_size // RECORD.itemsize
        part = np.fromfile(log, RECORD, whole)
        parts.append(part[_check(part) == part["check"]])
        origins.append(np.full(len(parts[-1]), log.stem.split("-")[-1], "<U16"))
    records, roots = np.concatenate(parts), np.concatenate(origins)
    gone = records[records["shape"][:, 0] == 0]
    if not len(gone):
        return records, roots
    places = {(int(r["writer"]), int(r["shard"]), int(r["offset"])) for r in gone}
    # Only candidates are looked at one by one: those in a shard that has lost something.
    near = np.flatnonzero(np.isin(records["writer"], gone["writer"]))
    keep = np.ones(len(records), bool)
    keep[near] = [(int(r["writer"]), int(r["shard"]), int(r["offset"])) not in places for r in records[near]]
    return records[keep], roots[keep]


@dataclass
class Lookup:
    """Rows of `records` by one of their 128-bit fields. Equal keys come newest first."""

    records: np.ndarray
    field: str

    def __post_init__(self) -> None:
        high = self.records[self.field][::-1, 0]
        order = np.argsort(high, kind="stable")
        self.order = len(self.records) - 1 - order
        self.high = np.ascontiguousarray(high[order])

    def candidates(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For (N, 2) uint64 keys, [first, last) of the places in `order` whose first halves agree."""
        return np.searchsorted(self.high, keys[:, 0], "left"), np.searchsorted(self.high, keys[:, 0], "right")

    def find(self, keys: np.ndarray, also: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """(N,) int64: the newest record of each key, of those that agree in the fields `also` too; -1 where there is none."""
        first, last = self.candidates(keys)
        found = np.full(len(keys), -1, np.int64)
        for step in range(int((last - first).max(initial=0))):
            rows = np.flatnonzero((first + step < last) & (found < 0))
            place = self.order[first[rows] + step]
            chosen = self.records[place]
            fits = (chosen[self.field][:, 1] == keys[rows, 1]) & (chosen[self.field][:, 0] == keys[rows, 0])
            for name, values in (also or {}).items():
                fits &= chosen[name] == values[rows]
            found[rows[fits]] = place[fits]
        return found
