"""`medfm doctor`: every series below a folder, or in a manifest, gets a verdict."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medfm.data.doctor.config import DoctorConfig
from medfm.data.doctor.look import Options, compare, entries_of, look, look_at, parts
from medfm.data.doctor.report import DoctorReport, render, sort, write_json, write_pages
from medfm.data.doctor.verdict import SCHEMA, Finding, Judged
from medfm.data.survey import relative_message, relative_path
from medfm.data.walk import Batch, Chunk, batch_key, batches, listed, walk
from medfm.errors import ConfigError, DataError
from medfm.io.sequences import BETWEEN, split_sequences

if TYPE_CHECKING:
    from medfm.data.engine import Done

__all__ = ["DoctorReport", "render", "run_doctor"]

_PRELOAD = ("medfm.data.doctor.look", "medfm.data.doctor.checks", "medfm.io.group", "medfm.io.load", "PIL.Image")
_BATCH = 24  # files decoded together: small, so that the last batches end together
_FEW = 16
_LEFT_OUT = 8  # notes of what could not be looked at
_JOURNAL = "doctor.journal"


def run_doctor(config: DoctorConfig, progress: bool = False) -> DoctorReport:
    """Look at every series, and write doctor.html and doctor.json into `config.out`.

    Files that an earlier run into the same folder has looked at are not read again, as long as names, sizes and times of
    change are the same; so an interrupted run goes on where it was.

    Raises:
        DataError: `path` is no folder, image or readable manifest, cannot be listed, or holds nothing to look at; with
            `strict`, a series is rejected (after the report is written).
        ConfigError: `out` is `path`; the Dask scheduler does not answer.
    """
    start = time.perf_counter()
    path = Path(config.path)
    named: dict[str, str] | None = None
    closed: list[tuple[str, str]] = []
    _make(config.out, path)
    if path.is_dir():
        root = path
        chunks = list(walk(root.absolute(), [config.out], unreadable=closed))
    elif not path.exists() and ("#" in str(path) or BETWEEN in str(path)):
        root = Path(split_sequences(path)[0]).parent
        named = dict.fromkeys(_parts(root.absolute(), path.relative_to(root).as_posix()), "")
        chunks = list(_chunks_of(root.absolute(), named))
    elif path.exists() and not path.is_file():
        raise DataError(f"'{path}' is neither a folder nor a file, but a pipe, socket or device")
    elif path.suffix not in (".parquet", ".csv"):
        root, chunks = path.parent, list(listed([path.absolute()]))
    else:
        root, named = _manifest(path, config.root)
        chunks = list(_chunks_of(root.absolute(), named))
    total = sum(len(chunk.names) for chunk in chunks)
    if not total and named is not None:
        raise DataError(
            f"none of the {len(named):,} files that '{path}' names is there below '{root}'; say where they are with root=FOLDER"
        )
    if not total:
        raise DataError(f"'{path}' holds no files")
    every = -(-total // config.thumbnails) if config.thumbnails and config.decode else 0
    options = Options(str(root.absolute()), config.decode, config.tilt, every, named or {})
    visit = _Visit(config, options, progress)
    visit.look_at(chunks)
    judged = list(visit.judged.values())
    if named is not None:
        judged = _named_only(judged, named)
    visit.judge_copies(judged)
    if not judged:
        raise DataError(f"'{path}' holds no images among its {total:,} files")
    report = DoctorReport(path, config.out, visit.files, sort(judged), visit.again, config.decode)
    if absent := sum(finding.code == "absent" for one in judged for finding in one.reasons):
        report.notes.append(
            f"{absent:,} of the {len(named or ()):,} files and series that '{path.name}' names are not there; root=FOLDER says "
            "where its paths start"
        )
    report.notes += [f"left out: {relative_message(why, root.absolute())}" for _, why in closed[:_LEFT_OUT]]
    if len(closed) > _LEFT_OUT:
        report.notes.append(
            f"left out: {len(closed) - _LEFT_OUT:,} more folders that cannot be listed or links that lead nowhere"
        )
    report.seconds = time.perf_counter() - start
    write_json(report)
    page = write_pages(report, config.thumbnails)
    if config.strict and report.counts["rejected"]:
        why = ", ".join(f"{n:,} {code}" for code, n in report.codes("reasons").items())
        raise DataError(f"'{path}': {report.counts['rejected']:,} of {len(judged):,} series are rejected ({why}); see '{page}'")
    return report


def _make(out: Path, path: Path) -> None:
    if out.resolve() == path.resolve():
        raise ConfigError(f"out={out} is what is to be looked at; name another folder for the report")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder '{out}' cannot be made: {error.strerror or type(error).__name__}") from None


def _manifest(path: Path, root: Path | None) -> tuple[Path, dict[str, str]]:
    """(root, reference -> modality) of a manifest's rows; of rows of several sequences each of them."""
    from medfm.data.manifest import read_manifest

    manifest = read_manifest(path, root)
    frame = manifest.frame
    root = manifest.root.absolute()
    rows = zip(frame["image"], frame["modality"], strict=True)
    return manifest.root, {part: modality for name, modality in rows for part in _parts(root, name)}


def _parts(root: Path, name: str) -> list[str]:
    """The references below `root` that one to an image of several sequences names."""
    return [relative_path(part, root) for part in split_sequences(root / name)] if BETWEEN in name else [name]


def _chunks_of(root: Path, named: Iterable[str]) -> Iterator[Chunk]:
    """The files that references name: single files, and all files of folders."""
    from medfm.io.reference import split_reference

    files: set[Path] = set()
    folders: set[Path] = set()
    for name in named:
        try:
            place, _ = split_reference(root / name)
        except DataError:
            continue
        if place.is_dir():
            folders.add(place)
        elif place.is_file():
            files.add(place)
    yield from listed(f for f in files if f.parent not in folders)
    for folder in sorted(folders):
        yield from walk(folder, below=False)


def _named_only(judged: list[Judged], named: dict[str, str]) -> list[Judged]:
    """Verdicts of the rows of a manifest; rows that name nothing that was found are rejected."""
    found = {one.path: one for one in judged}
    result = []
    for name in named:
        plain = name.split("#volume=")[0].split(",volume=")[0]
        one = found.get(plain)
        if one is None:
            one = Judged(name, "rejected", "absent")
            one.reasons.append(Finding("absent", f"'{name}' names no file or series that is there"))
        result.append(one)
    return list({id(one): one for one in result}.values())


class _Visit:
    """Verdicts as they come from the workers."""

    def __init__(self, config: DoctorConfig, options: Options, progress: bool) -> None:
        self.config, self.options, self.progress = config, options, progress
        self.judged: dict[str, Judged] = {}
        self.files = self.again = 0
        self._uids: dict[str, str] = {}
        look_of = (options.decode, options.tilt, options.every, sorted(options.modalities.items()))
        self._fingerprint = f"{SCHEMA} {_version()} {hashlib.sha256(repr(look_of).encode()).hexdigest()[:16]}"

    def _run(self, function: Any, items: Sequence[Any], what: str, few_here: bool = False, **more: Any) -> Iterable[Done[Any]]:
        """`few_here`: a few items are done in this process, for they are known not to kill it."""
        from medfm.data.engine import run

        if not items:
            return ()
        config = self.config
        if few_here and config.engine == "local" and config.workers is None and len(items) <= _FEW:
            config = config.model_copy(update={"workers": 0})
        return run(
            function,
            items,
            config,
            journal=self.config.out / _JOURNAL,
            fingerprint=self._fingerprint,
            what=what,
            progress=self.progress,
            limit_s=self.config.limit_s,
            preload=_PRELOAD,
            kept=_without_pictures,
            **more,
        )

    def look_at(self, chunks: Sequence[Chunk]) -> None:
        """Whole folders at once; large ones are first sorted into their series."""
        whole = [chunk for chunk in chunks if chunk.whole]
        self._look(list(batches(whole, _BATCH)))
        cut = [chunk for chunk in chunks if not chunk.whole]
        self._look(list(batches(self._series_of(cut), _BATCH)))

    def _series_of(self, cut: Sequence[Chunk]) -> list[Chunk]:
        """The series of large folders, one chunk each."""
        members: dict[tuple[str, str], list[str]] = defaultdict(list)
        stamps: dict[str, str] = defaultdict(str)
        for chunk in cut:
            stamps[chunk.folder] += chunk.stamp
        for done in self._run(parts, [(chunk,) for chunk in cut], "reading headers", key=lambda b: f"parts {batch_key(b)}"):
            chunk = done.item[0]
            if done.failure:
                self._reject(chunk, done.failure)
                continue
            for part, places in done.result[0].items():
                members[chunk.folder, part] += [chunk.names[n] for n in places]
        return [
            Chunk(folder, tuple(sorted(names)), hashlib.sha256(f"{part}{stamps[folder]}".encode()).hexdigest(), whole=False)
            for (folder, part), names in sorted(members.items())
        ]

    def _look(self, work: Sequence[Batch]) -> None:
        # The largest first, so that no worker begins one when the others have ended.
        work = sorted(work, key=lambda batch: -sum(len(chunk.names) for chunk in batch))
        alone: list[Chunk] = []
        for done in self._run(partial(look, options=self.options), work, "looking", key=batch_key):
            if done.failure:
                alone += done.item
            else:
                self._take(done.result, done.again)
        # A batch that failed is looked at again chunk by chunk, then series by series, so that only the culprit is lost.
        singly: list[Chunk] = []
        for done in self._run(partial(look, options=self.options), [(c,) for c in alone], "looking again", key=batch_key):
            if done.failure:
                singly += done.item
            else:
                self._take(done.result, done.again)
        tasks: list[tuple[Chunk, str]] = []
        for done in self._run(entries_of, singly, "reading headers", key=lambda c: f"entries {batch_key((c,))}"):
            if done.failure:
                self._reject(done.item, done.failure)
            else:
                tasks += [(done.item, path) for path in done.result]
        for done in self._run(partial(look_at, options=self.options), tasks, "looking one by one", key=_task_key):
            if done.failure:
                self._crashed(done.item[1], done.failure)
            else:
                self._take([{"judged": [done.result], "files": done.result["files"]}], done.again)

    def _take(self, results: Sequence[dict[str, Any]], again: bool) -> None:
        for result in results:
            self.files += result["files"]
            self.again += result["files"] if again else 0
            for values in result["judged"]:
                one = Judged.from_json(values)
                if values.get("picture"):
                    one.thumbnail = self._save(one.path, values["picture"])
                elif values.get("pictured"):
                    one.thumbnail = self._name(one.path)
                self.judged[one.path] = one
                if values.get("uids"):
                    self._uids[one.path] = values["uids"]

    def _name(self, path: str) -> str:
        return f"thumbnails/{hashlib.sha256(path.encode('utf-8', 'replace')).hexdigest()[:20]}.jpg"

    def _save(self, path: str, picture: str) -> str:
        name = self._name(path)
        place = self.config.out / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(base64.b64decode(picture))
        return name

    def _crashed(self, path: str, failure: str) -> None:
        relative = relative_path(path, Path(self.options.root))
        one = Judged(relative, "rejected", "unreadable")
        one.reasons.append(Finding("crash", relative_message(failure, Path(self.options.root))))
        self.judged[relative] = one
        self.files += 1

    def _reject(self, chunk: Chunk, failure: str) -> None:
        for path in chunk.paths:
            self._crashed(str(path), failure)

    def judge_copies(self, judged: Sequence[Judged]) -> None:
        """Files with one SOP Instance UID: with the same pixels a copy; with others a conflict: no one knows the right one."""
        usable = [one for one in judged if one.verdict in ("accepted", "repaired") and one.path in self._uids]
        # The larger one first: of a series and a part of it, the part is the copy.
        usable.sort(key=lambda one: (-one.files, one.path))
        pairs = _shared(usable, self._uids)
        if not self.config.decode:
            for first, second, places in pairs:
                said = f"shares SOP Instance UIDs with '{usable[first].path}' ({len(places)}); decode=true compares the pixels"
                usable[second].warnings.append(Finding("copy", said))
            return
        tasks = [(usable[a].path, usable[b].path, places) for a, b, places in pairs]
        known = {one.path: one for one in usable}
        conflicts: list[tuple[Judged, Judged, str]] = []
        for done in self._run(partial(compare, options=self.options), tasks, "comparing copies", True, key=self._pair_key):
            first, second, places = done.item
            one, other = known[first], known[second]
            if done.failure:
                other.warnings.append(
                    Finding("copy", f"has the SOP Instance UID of '{first}' and could not be compared with it")
                )
            elif done.result != "same":
                conflicts.append((one, other, done.result))
            elif len(places) == len(self._uids[second]) // 16:
                other.reject("copy", f"copy of '{first}' (same SOP Instance UID, same pixels)")
            else:
                said = f"{len(places)} of its {other.files} images are in '{first}' too (same SOP Instance UID, same pixels)"
                other.warnings.append(Finding("copy", said))
        for one, other, how in sorted(conflicts, key=lambda c: (c[0].path, c[1].path)):
            for this, that in ((one, other), (other, one)):
                if not any(f.code == "conflict" for f in this.reasons):
                    this.reject("conflict", f"has the SOP Instance UID of '{that.path}', but not its pixels: {how}")

    def _pair_key(self, pair: tuple[str, str, Sequence[tuple[int, int]]]) -> str:
        text = repr([(p, *_state(Path(self.options.root, p.split("#")[0]))) for p in pair[:2]]) + repr(pair[2])
        return "pair " + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:24]


def _state(path: Path) -> tuple[int, int]:
    try:
        state = os.stat(path)
    except OSError:
        return (-1, 0)
    return state.st_size, state.st_mtime_ns


def _task_key(task: tuple[Chunk, str]) -> str:
    return f"one {batch_key((task[0],))} {hashlib.sha256(task[1].encode('utf-8', 'replace')).hexdigest()[:16]}"


def _without_pictures(result: Any) -> Any:
    """What the journal keeps: pictures lie in files of their own."""
    if not isinstance(result, list):
        return {**{k: v for k, v in result.items() if k != "picture"}, "pictured": True} if _pictured(result) else result
    return [
        {**one, "judged": [_without_pictures(j) for j in one["judged"]]} if isinstance(one, dict) and "judged" in one else one
        for one in result
    ]


def _pictured(result: Any) -> bool:
    return isinstance(result, dict) and bool(result.get("picture"))


def _shared(judged: Sequence[Judged], uids: dict[str, str]) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """(earlier series, later series, [(place, place)]) of files that share a UID, each with the first one that has it."""
    texts = [uids[one.path] for one in judged]
    counts = np.array([len(text) // 16 for text in texts], np.int64)
    if not counts.size:
        return []
    # As numbers, 8 bytes a file: a million files are looked through in a second.
    codes = np.frombuffer(bytes.fromhex("".join(texts)), ">u8")
    owner = np.repeat(np.arange(len(texts)), counts)
    place = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(codes, kind="stable")
    same = np.flatnonzero(codes[order][1:] == codes[order][:-1])
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    first = -1
    for n in same.tolist():
        here, there = int(order[n]), int(order[n + 1])
        if first < 0 or codes[first] != codes[there]:
            first = here
        if owner[first] != owner[there]:
            pairs[int(owner[first]), int(owner[there])].append((int(place[first]), int(place[there])))
    return [(a, b, places) for (a, b), places in sorted(pairs.items())]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("medfm")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return ""
