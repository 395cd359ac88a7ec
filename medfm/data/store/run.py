"""`medfm cache`: a manifest's images into a store, each decoded once, whatever stops the run."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medfm.data.engine import bar, run
from medfm.data.store.build import Job, Outcome, Row, damaged, release, store_rows
from medfm.data.store.config import CacheConfig
from medfm.data.store.layout import make_folder
from medfm.data.store.reader import find_rows
from medfm.data.store.records import RECORD, RecordLog, read_records, seal
from medfm.errors import DataError
from medfm.io.files import atomic_write
from medfm.transforms.config import PreprocessConfig

if TYPE_CHECKING:
    from medfm.transforms.preprocess import Preprocess

_BATCH = 16  # films a batch: one flush to disk, one answer; volumes are large enough alone
_PILOT = 16  # images that tell how large the rest will be
_HOPELESS = 50  # failures without one success: a fault of the recipe, not of images
_SYNC_S = 1.0
_SPARE = 2**28  # bytes left free on the disk
_CHECKED = 2**28  # bytes a worker checks at a time


@dataclass
class CacheReport:
    """What `medfm cache` did.

    Attributes:
        out: the store; `data.cache` takes it.
        contract: hash of what decides its pixels, the name of its folder in the store.
        images: of the manifest.
        stored: of them, in the store now.
        decoded: decoded and written by this run.
        recognised: known by content: moved, copied or touched files, and other manifests' images.
        damaged: found damaged and made anew, with verify=true.
        failed: (relative path, why) of images that cannot be used; also listed in `listing`.
        bytes: of pixels, of the manifest's images.
        seconds: the run took.
    """

    out: Path
    contract: str
    images: int
    stored: int = 0
    decoded: int = 0
    recognised: int = 0
    damaged: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    listing: Path | None = None
    bytes: int = 0
    seconds: float = 0.0


def run_cache(config: CacheConfig, preprocess: PreprocessConfig, progress: bool = True) -> CacheReport:
    """Decode and preprocess a manifest's images once, in parallel, into `config.out`.

    A run that was stopped, even killed, goes on where it was; images that the store holds already are not decoded again, also
    those of other manifests and under other names. Several runs may write to one store at once.

    Raises:
        ConfigError: the store's folder holds something else or cannot be written.
        DataError: the manifest cannot be read; images failed and `on_error` is fail (the others are stored); the disk is, or
            would be, full.
    """
    from medfm.data.dataset import select
    from medfm.data.manifest import read_manifest
    from medfm.transforms.preprocess import Preprocess

    start = time.monotonic()
    manifest = read_manifest(config.manifest, config.root)
    frame = select(manifest, None, config.views).drop_duplicates(["image", "modality"])
    contract = Preprocess(preprocess)
    folder = make_folder(config.out, contract)
    report = CacheReport(config.out, folder.name, len(frame))
    names, modalities = frame["image"].tolist(), frame["modality"].tolist()
    root = manifest.root.resolve()
    if config.verify:
        report.damaged = _verify(folder, root, contract, config, progress)
    held = find_rows(folder, names, modalities, root).usable
    rows: list[Row] = [(n, names[n], modalities[n]) for n in np.flatnonzero(~held).tolist()]
    job = Job(root, folder.resolve(), preprocess, int(config.shard_gb * 1e9), secrets.token_hex(8))
    failed = _fill(job, rows, contract, config, report, progress)
    found = find_rows(folder, names, modalities, root)
    report.stored = int(found.usable.sum())
    report.bytes = _bytes(found.records[found.usable], contract)
    report.failed = [(names[n], why) for n, why in sorted(failed)]
    report.listing = _list_failed(folder, config.manifest, report.failed)
    report.seconds = time.monotonic() - start
    if report.failed and config.on_error == "fail":
        name, why = report.failed[0]
        raise DataError(
            f"{len(report.failed):,} of {report.images:,} images cannot be cached, first: '{name}': {why}. All are listed in "
            f"{report.listing}; the other {report.stored:,} are stored. Set on_error=skip to accept that, and "
            "data.on_error=skip for training"
        )
    return report


def _bytes(records: np.ndarray, preprocess: Preprocess) -> int:
    return int(records["shape"].prod(axis=1, dtype=np.int64).sum()) * np.dtype(preprocess.config.dtype).itemsize


def _fill(
    job: Job, rows: list[Row], preprocess: Preprocess, config: CacheConfig, report: CacheReport, progress: bool
) -> list[tuple[int, str]]:
    """Store `rows`; (row, why) of those that cannot be."""
    failed: list[tuple[int, str]] = []
    space = _Space(job, len(rows), preprocess)
    log = RecordLog(job.folder, job.root)
    synced = time.monotonic()
    try:
        with bar(len(rows), "caching images", progress) as advance:
            for batch, outcome in _outcomes(job, rows, config):
                log.add(outcome.records)
                if time.monotonic() - synced > _SYNC_S:
                    log.sync()
                    synced = time.monotonic()
                failed += outcome.failed
                report.decoded += outcome.decoded
                report.recognised += len(outcome.records) - outcome.decoded
                space.spend(outcome, len(batch))
                if not report.decoded + report.recognised and len(failed) >= _HOPELESS:
                    name = next(name for n, name, _ in rows if n == failed[0][0])
                    raise DataError(f"none of the first {len(failed)} images can be cached, first: '{name}': {failed[0][1]}")
                for _ in batch:
                    advance()
    finally:
        release(job)
        log.close()
    return failed


def _outcomes(job: Job, rows: list[Row], config: CacheConfig) -> Iterator[tuple[tuple[Row, ...], Outcome]]:
    """Batches as they are done. A batch whose process died is done again image by image, so that it costs one image only."""
    again: list[tuple[Row, ...]] = []
    for batches in (_batches(rows, len(job.preprocess.size)), again):
        options: dict[str, Any] = {"key": lambda batch: str(batch[0][0]), "preload": ["medfm.data.store.build", "torch"]}
        for done in run(partial(store_rows, job), batches, config, **options):
            if done.failure and len(done.item) > 1:
                again += [(row,) for row in done.item]
            elif done.failure:
                yield done.item, Outcome(np.empty(0, RECORD), failed=[(done.item[0][0], done.failure)])
            else:
                yield done.item, done.result


def _batches(rows: Sequence[Row], dims: int) -> list[tuple[Row, ...]]:
    """A few images from all over the manifest first: their sizes tell what the rest will need."""
    pilot = sorted({int(n) for n in np.linspace(0, len(rows) - 1, _PILOT)}) if rows else []
    rest = np.setdiff1d(np.arange(len(rows)), pilot).tolist()
    size = _BATCH if dims == 2 else 1
    first = [(rows[n],) for n in pilot]
    return first + [tuple(rows[n] for n in rest[i : i + size]) for i in range(0, len(rest), size)]


class _Space:
    """Stops a run that the disk cannot hold, as soon as that can be known."""

    def __init__(self, job: Job, images: int, preprocess: Preprocess) -> None:
        self.folder, self.images = job.folder, images
        self.left, self.written, self.decoded = images, 0, 0
        config = preprocess.config
        if config.spacing is None and config.resize in ("stretch", "crop"):
            each = int(np.prod(preprocess.stored_shape)) * np.dtype(config.dtype).itemsize
            self._check(each * images)

    def spend(self, outcome: Outcome, images: int) -> None:
        self.left -= images
        self.written += outcome.bytes
        self.decoded += outcome.decoded
        if outcome.stopped:
            raise DataError(
                f"'{self.folder}' cannot be written: {outcome.stopped}. What was stored so far is kept: free some space and "
                "run the same command again"
            )
        if self.decoded >= min(_PILOT, self.images):
            self._check(round(self.left * self.written / self.decoded))

    def _check(self, bytes_needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if self.left and bytes_needed + _SPARE > free:
            raise DataError(
                f"'{self.folder}' needs about {bytes_needed / 1e9:,.1f} GB more for {self.left:,} images, and the disk has "
                f"{free / 1e9:,.1f} GB free. What was stored so far is kept: free some space, or choose another out="
            )


def _verify(folder: Path, root: Path, preprocess: Preprocess, config: CacheConfig, progress: bool) -> int:
    """Take back the records of all stored images whose pixels do not match their checksum; how many."""
    records = read_records(folder)
    place = np.stack([records["writer"], records["shard"].astype(np.uint64), records["offset"]], axis=1)
    records = records[np.unique(place, axis=0, return_index=True)[1]]  # one of each place, in the order of the shards
    itemsize = np.dtype(preprocess.config.dtype).itemsize
    ends = np.cumsum(records["shape"].prod(axis=1, dtype=np.int64) * itemsize) // _CHECKED
    parts = [(n, records[ends == n]) for n in np.unique(ends).tolist()]
    log, bad = RecordLog(folder, root), 0
    try:
        with bar(len(records), "verifying images", progress) as advance:
            work = partial(_damaged, folder.resolve(), itemsize)
            for done in run(work, parts, config, key=lambda part: str(part[0]), preload=["medfm.data.store.build"]):
                if done.failure:
                    raise DataError(f"'{folder}' could not be verified: {done.failure}")
                lost = done.result
                if len(lost):
                    lost["shape"] = 0
                    log.add(seal(lost))
                    bad += len(lost)
                for _ in range(len(done.item[1])):
                    advance()
    finally:
        log.close()
    return bad


def _damaged(folder: Path, itemsize: int, part: tuple[int, np.ndarray]) -> np.ndarray:
    return damaged(folder, itemsize, part[1])


def _list_failed(folder: Path, manifest: Path, failed: list[tuple[str, str]]) -> Path | None:
    """`failed-<manifest>.csv`, or none where nothing failed."""
    import csv

    path = folder / f"failed-{manifest.stem}.csv"
    if not failed:
        path.unlink(missing_ok=True)
        return None
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("image", "reason"), *failed])
    return path


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"


def render(report: CacheReport) -> Any:
    """A table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{escape(str(report.out))}, contract {report.contract}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    rate = report.decoded / report.seconds if report.seconds else 0.0
    lines: list[tuple[str, str]] = [
        ("images of the manifest", f"{report.images:,}"),
        ("in the store", f"{report.stored:,}  ({_size(report.bytes)})"),
        ("decoded now", f"{report.decoded:,}  ({rate:,.1f} a second)"),
    ]
    if report.recognised:
        lines.append(("known by content, not decoded again", f"{report.recognised:,}"))
    if report.damaged:
        lines.append(("found damaged and made anew", f"{report.damaged:,}"))
    if report.failed:
        lines.append(("cannot be used", f"{len(report.failed):,}  ({escape(str(report.listing))})"))
    for line in lines:
        table.add_row(*line)
    table.caption = f"train with data.cache={escape(str(report.out))}"
    return table
