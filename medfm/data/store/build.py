"""What a worker of `medfm cache` does: decode, preprocess, write pixels; and check what is written."""

from __future__ import annotations

import multiprocessing
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from isal.isal_zlib import crc32

from medfm.data.scan import relative_message
from medfm.data.store.records import RECORD, Lookup, io_words, read_records, seal, shard_path
from medfm.data.store.source import content_key, name_keys, state_of
from medfm.data.store.writer import ShardWriter
from medfm.errors import DataError, MedfmError
from medfm.transforms.config import PreprocessConfig

Row = tuple[int, str, str]
"""(row of the manifest, relative path, stated modality)."""

_BLOCK = 2**24


@dataclass(frozen=True)
class Job:
    """What all images of a run share.

    Attributes:
        root: folder of the images.
        folder: of the store, for this contract.
        shard_bytes: largest size of a shard.
        run: a name of the run: its processes start shards of their own.
    """

    root: Path
    folder: Path
    preprocess: PreprocessConfig
    shard_bytes: int
    run: str


@dataclass
class Outcome:
    """Of one batch of rows.

    Attributes:
        records: sealed; their pixels are on disk.
        bytes: of pixels written.
        decoded: images decoded; the other records name pixels that the store held already.
        failed: (row, why).
        stopped: why the process cannot write any more, for example a full disk.
    """

    records: np.ndarray
    bytes: int = 0
    decoded: int = 0
    failed: list[tuple[int, str]] = field(default_factory=list)
    stopped: str = ""


class _CannotWriteError(Exception):
    """The store, not the image, is at fault."""


class _Process:
    """What one process (or thread) keeps between batches of one run."""

    def __init__(self, job: Job) -> None:
        import torch

        from medfm.transforms.preprocess import Preprocess

        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)  # workers share the cores
        self.preprocess = Preprocess(job.preprocess)
        self.writer = ShardWriter(job.folder, job.shard_bytes)
        # As the run found the store: an image that two of its rows hold is decoded twice at worst.
        self.stored = Lookup(read_records(job.folder), "content")

    def record(self, path: str, name: str, modality: str, done: Outcome) -> np.ndarray:
        """(1,) of RECORD, unsealed; `done` counts what it took."""
        if not name:
            raise DataError("the row names no image")
        state = state_of(path)
        if state == (0, 0):
            raise DataError(f"'{path}' does not exist")
        content = content_key(path, modality)
        record = np.zeros(1, RECORD)
        known = int(self.stored.find(np.array([content], np.uint64))[0])
        if known >= 0:
            record[:] = self.stored.records[known]
        else:
            whole = self.preprocess.whole(self.preprocess.load(path, modality))
            try:
                record["shard"], record["offset"], record["checksum"] = self.writer.add(whole)
            except OSError as error:
                raise _CannotWriteError(io_words(error)) from None
            record["writer"] = self.writer.writer
            record["shape"] = whole.shape if whole.ndim == 4 else (whole.shape[0], 1, *whole.shape[1:])
            done.decoded += 1
            done.bytes += whole.nbytes
        record["name"], record["content"] = name_keys([name], [modality])[0], content
        record["size"], record["stamp"] = state
        return record


class _Mine(threading.local):
    """A Dask worker runs several threads: each has a writer of its own."""

    key: tuple[str, int] | None = None
    process: _Process | None = None


_MINE = _Mine()


def _process(job: Job) -> _Process:
    key = (job.run, os.getpid())
    if _MINE.process is None or _MINE.key != key:
        _MINE.key, _MINE.process = key, _Process(job)
    return _MINE.process


def release(job: Job) -> None:
    """Close this process's shard, where it worked itself."""
    if _MINE.process is not None and _MINE.key == (job.run, os.getpid()):
        # Whatever has a record was flushed before: a disk that is full now was told of then.
        with suppress(OSError):
            _MINE.process.writer.close()
        _MINE.process = None


def store_rows(job: Job, rows: tuple[Row, ...]) -> Outcome:
    """Decode, preprocess and write some rows; what cannot be used is told, not raised."""
    process = _process(job)
    done = Outcome(np.empty(0, RECORD))
    records = []
    try:
        for row, name, modality in rows:
            try:
                records.append(process.record(os.path.join(job.root, name), name, modality, done))
            except (MedfmError, OSError) as error:
                done.failed.append((row, relative_message(error, job.root)))
    except _CannotWriteError as error:
        done.stopped = str(error)
    try:
        process.writer.sync()
    except OSError as error:
        return Outcome(done.records, failed=done.failed, stopped=io_words(error))
    if records:
        done.records = seal(np.concatenate(records))
    return done


def damaged(folder: Path, itemsize: int, records: np.ndarray) -> np.ndarray:
    """Those of `records` whose pixels are not what was written: cut short, gone or changed."""
    bad = []
    for record in records:
        path = shard_path(folder, int(record["writer"]), int(record["shard"]))
        rest, crc = int(np.prod(record["shape"], dtype=np.int64)) * itemsize, 0
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(int(record["offset"]))
                while rest and (block := file.read(min(rest, _BLOCK))):
                    crc, rest = crc32(block, crc), rest - len(block)
        except OSError:
            rest = -1
        if rest or crc != record["checksum"]:
            bad.append(record)
    return np.array(bad, RECORD)
