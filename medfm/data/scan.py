"""Walk a folder, read headers on the engine, and make one item of each image: a film, a volume, a series of a mixed folder."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medfm.data.engine_config import EngineConfig
from medfm.data.scan_work import Tilt, decode_images, read_batch, read_ids, try_file, without_ids
from medfm.data.survey import header_from_json, relative_message, relative_path, spanning
from medfm.data.walk import Batch, Chunk, batch_key, batches, listed, walk

if TYPE_CHECKING:
    from medfm.data.engine import Done
    from medfm.io.header import ImageHeader

T = TypeVar("T")
R = TypeVar("R")

__all__ = ["Item", "Scan", "parallel", "relative_message", "scan"]

_FEW = 400  # so few headers are read faster in this process than new ones start
_PRELOAD = ("medfm.data.scan_work", "medfm.io.group", "medfm.io.load", "pydicom")
_IMAGES = 16  # decoded together


@dataclass(slots=True)
class Item:
    """One row to be: `path` a reference, relative and posix; `header` of the image, or of its first file."""

    path: str
    header: ImageHeader | None = field(default=None, repr=False)
    files: int = 1


@dataclass
class Scan:
    """What a walk found. `rejected` holds (relative path, reason); `again`: files that an earlier, interrupted run had read."""

    root: Path
    items: list[Item]
    rejected: list[tuple[str, str]]
    files: int
    again: int = 0


def parallel(function: Callable[[T], R], values: Sequence[T], workers: int, what: str = "", progress: bool = False) -> list[R]:
    """`[function(v) for v in values]` on threads, in order; a bar where there are many and `progress` is set."""
    from medfm.data.engine import bar

    def step(value: T) -> R:
        result = function(value)
        advance()
        return result

    with bar(len(values), what, progress) as advance:
        if workers <= 1 or len(values) < 2:
            return [step(v) for v in values]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(step, values, chunksize=1))


def scan(
    root: Path,
    files: Iterable[Path] | None,
    level: str,
    config: EngineConfig | None = None,
    journal: Path | None = None,
    progress: bool = False,
    start: Path | None = None,
    tilt: Tilt = "refuse",
) -> Scan:
    """Items below `root`: of `files`, or of every image found below `start`.

    What `medfm.io.group` finds becomes an item: a folder that holds one series, one series of a folder that mixes several
    (`folder#series=KEY`), a film, a multi-frame file, a NIfTI file or a picture. Objects that are no images, copies, and series
    that load_image would refuse are rejected.

    Args:
        level: "headers" reads them, "decode" also decodes every image, "none" reads nothing and groups nothing.
        config: where to work; None works in this process.
        tilt: "resample" keeps series of a tilted gantry, for a contract that resamples them.
        journal: where an interrupted scan goes on. It holds no patient or study ids: those are read again.

    Raises:
        DataError: `root` cannot be listed, or the journal not be written.
    """
    shown, root = root, root.absolute()  # for workers on other machines, or with another working folder
    closed: list[tuple[str, str]] = []
    if files is None:
        chunks = list(walk((start or shown).absolute(), unreadable=closed))
    else:
        chunks = list(listed(p.absolute() for p in files))
    if level == "none":
        names = sorted(relative_path(p, root) for chunk in chunks for p in chunk.paths)
        return Scan(shown, [Item(n) for n in names], [], len(names))
    config = config or EngineConfig(workers=0)
    total = sum(len(chunk.names) for chunk in chunks)
    if config.engine == "local" and config.workers is None and total <= _FEW and level == "headers":
        config = EngineConfig(workers=0)
    work = _Work(root, config, journal, progress, tilt)
    work.rejected += [(relative_path(folder, root), relative_message(reason, root)) for folder, reason in closed]
    work.read(list(batches(chunks)))
    work.identify()
    work.drop_copies()
    if level == "decode":
        work.decode()
    work.rows.sort(key=lambda row: row.path)
    items = []
    while work.rows:  # rows go as items come, so that no file is held twice
        row = work.rows.pop()
        items.append(Item(row.path, row.header, row.files))
    items.reverse()
    return Scan(shown, items, sorted(work.rejected), work.files, work.again)


@dataclass(slots=True)
class _Row:
    """An item on its way: `first` its first file, `uids` 16 digits a file, `stamp` of the files it was read from."""

    path: str
    header: ImageHeader
    files: int
    first: str
    uids: str
    stamp: str


_Parts = list[tuple[Chunk, dict[str, Any], bool]]
"""(chunk, what was read of it, from the journal) of a folder that was read in parts."""


def _fingerprint(tilt: Tilt) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"scan of medfm {version('medfm')}, tilt {tilt}"
    except PackageNotFoundError:  # run from a checkout that was not installed
        return f"scan, tilt {tilt}"


class _Work:
    """Rows and rejections as they come from the workers."""

    def __init__(self, root: Path, config: EngineConfig, journal: Path | None, progress: bool, tilt: Tilt) -> None:
        self.root, self.config, self.journal, self.progress, self.tilt = root, config, journal, progress, tilt
        self.rows: list[_Row] = []
        self.rejected: list[tuple[str, str]] = []
        self.files = self.again = 0
        self._nameless: list[_Row] = []

    def _run(self, function: Callable[..., Any], items: Sequence[Any], what: str, **options: Any) -> Iterable[Done[Any]]:
        from medfm.data.engine import run

        return run(function, items, self.config, what=what, progress=self.progress, preload=_PRELOAD, **options)

    def read(self, work: Sequence[Batch]) -> None:
        """Headers of all batches. Folders that were cut come together again: a series in several parts is read as a whole."""
        folders: dict[str, _Parts] = defaultdict(list)
        for chunk, result, again in self._results(work):
            if chunk.whole:
                self._take(chunk, result, again)
            else:
                folders[chunk.folder].append((chunk, result, again))
        rest = [chunk for folder, parts in folders.items() for chunk in self._take_parts(folder, parts)]
        for chunk, result, again in self._results(list(batches(rest))):
            self._take(chunk, result, again)

    def _results(self, work: Sequence[Batch]) -> Iterable[tuple[Chunk, dict[str, Any], bool]]:
        """(chunk, result, from the journal). A batch that failed is tried again chunk by chunk, then without the files that
        kill their reader.
        """
        alone: list[Chunk] = []
        for done in self._read(work):
            if done.failure:
                alone += done.item
                continue
            yield from ((chunk, result, done.again) for chunk, result in zip(done.item, done.result, strict=True))
        for done in self._read([(chunk,) for chunk in alone]):
            if not done.failure:
                yield done.item[0], done.result[0], done.again
                continue
            rest = self._without_killers(done.item[0])
            if rest is None:
                continue
            for last in self._read([(rest,)]):
                if last.failure:
                    self._reject_files(rest, last.failure)
                else:
                    yield rest, last.result[0], last.again

    def _read(self, work: Sequence[Batch]) -> Iterable[Done[Batch]]:
        function = partial(read_batch, root=str(self.root), tilt=self.tilt)
        options = {"key": batch_key, "journal": self.journal, "fingerprint": _fingerprint(self.tilt), "kept": without_ids}
        return self._run(function, work, "reading headers", **options) if work else ()

    def _without_killers(self, chunk: Chunk) -> Chunk | None:
        """The chunk without the files that kill their reader, which are rejected; None where nothing is left to try."""
        killers = {}
        for done in self._run(try_file, [str(p) for p in chunk.paths], "looking for a file that cannot be read"):
            if done.failure:
                killers[Path(done.item).name] = done.failure
        for name, failure in killers.items():
            self._reject_files(Chunk(chunk.folder, (name,), ""), failure)
        left = tuple(name for name in chunk.names if name not in killers)
        return Chunk(chunk.folder, left, f"{chunk.stamp} {len(killers)}", whole=False) if left else None

    def _reject_files(self, chunk: Chunk, failure: str) -> None:
        self.files += len(chunk.names)
        self.rejected += [(relative_path(p, self.root), relative_message(failure, self.root)) for p in chunk.paths]

    def _take(self, chunk: Chunk, result: dict[str, Any], again: bool, without: frozenset[str] = frozenset()) -> None:
        """Rows and rejections of a chunk, but for the parts `without`."""
        files = result["files"] - sum(len(result["names"][part]) for part in without)
        self.files += files
        self.again += files if again else 0
        self.rejected += [(path, reason) for path, reason, part in result["rejected"] if part not in without]
        for row in result["rows"]:
            if row["part"] in without:
                continue
            header = header_from_json(row["header"])
            # A film is its own first file: one text for both.
            first = row["path"] if row["first"] == row["path"] else row["first"]
            one = _Row(row["path"], header, row["files"], first, row["uids"], chunk.stamp)
            self.rows.append(one)
            if again and header.kind == "dicom":
                self._nameless.append(one)

    def _take_parts(self, folder: str, parts: _Parts) -> list[Chunk]:
        """Take the series that lie in one part; a chunk for each of the others."""
        across = frozenset(spanning([result["names"] for _, result, _ in parts]))
        members: dict[str, list[str]] = defaultdict(list)
        for chunk, result, again in parts:
            here = across & result["names"].keys()
            self._take(chunk, result, again, without=here)
            for part in here:
                members[part] += [chunk.names[n] for n in result["names"][part]]
        stamp = hashlib.sha256("".join(sorted(chunk.stamp for chunk, _, _ in parts)).encode()).hexdigest()
        return [Chunk(folder, tuple(sorted(names)), part + stamp, whole=False) for part, names in sorted(members.items())]

    def identify(self) -> None:
        """Read again, one file an item, the identifiers that the journal does not keep."""
        names = sorted({row.first for row in self._nameless})
        known: dict[str, list[str]] = {}
        groups = [tuple(names[i : i + 256]) for i in range(0, len(names), 256)]
        for done in self._run(partial(read_ids, root=str(self.root)), groups, "reading identifiers"):
            known |= done.result or {}
        gone = set()
        for row in self._nameless:
            if row.first in known:
                patient, study, series, image = known[row.first]
                row.header = replace(row.header, patient_id=patient, study_id=study, series_id=series, image_id=image)
            else:
                gone.add(row.path)
                self.rejected.append((row.path, "cannot be read any more"))
        self.rows = [row for row in self.rows if row.path not in gone]

    def drop_copies(self) -> None:
        """Files of one patient with one SOP Instance UID are the same image, and so are links to one file."""
        first: dict[tuple[str, str], str] = {}
        places: dict[tuple[int, int], str] = {}
        kept: list[_Row] = []
        # The larger one first: of a series and a part of it, the part is the copy.
        for row in sorted(self.rows, key=lambda r: (-r.files, r.path)):
            keys = [(row.header.patient_id, row.uids[i : i + 16]) for i in range(0, len(row.uids), 16)]
            place = self._place(row.first) if not keys and row.path == row.first else None
            if place is not None and places.setdefault(place, row.path) != row.path:
                self.rejected.append((row.path, f"copy of '{places[place]}' (a link to the same file)"))
                continue
            before = [first[key] for key in keys if key in first]
            if not before:
                first.update(dict.fromkeys(keys, row.path))
                kept.append(row)
            elif len(before) == len(keys):
                self.rejected.append((row.path, f"copy of '{before[0]}' (same SOP Instance UID)"))
            else:
                said = f"{len(before)} of its {len(keys)} images are in '{before[0]}' too (same SOP Instance UID)"
                self.rejected.append((row.path, said))
        self.rows = kept

    def _place(self, name: str) -> tuple[int, int] | None:
        """Where a file lies: links to one file give one place."""
        try:
            state = os.stat(self.root / name)
        except OSError:
            return None
        return (state.st_dev, state.st_ino) if state.st_ino else None

    def decode(self) -> None:
        """Decode every item; reject what cannot be."""
        of = {row.path: row.stamp for row in self.rows}
        paths = list(of)
        groups = [tuple(paths[i : i + _IMAGES]) for i in range(0, len(paths), _IMAGES)]
        reasons: dict[str, str] = {}
        alone: list[tuple[str, ...]] = []
        for again in (False, True):
            for done in self._run(
                partial(decode_images, root=str(self.root), tilt=self.tilt),
                alone if again else groups,
                "decoding images",
                key=lambda group: hashlib.sha256(
                    "\n".join(f"{p}\t{of[p]}" for p in group).encode("utf-8", "replace")
                ).hexdigest(),
                journal=self.journal,
                fingerprint=_fingerprint(self.tilt),
            ):
                if not done.failure:
                    reasons |= done.result
                elif again:
                    reasons[done.item[0]] = done.failure
                else:
                    alone += [(path,) for path in done.item]
        self.rejected += [(path, reason) for path, reason in reasons.items() if reason]
        self.rows = [row for row in self.rows if not reasons[row.path]]
