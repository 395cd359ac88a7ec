"""List a tree and cut it into chunks of files that one worker reads: cheap, so that a million files are listed in seconds."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medfm.errors import DataError

LARGEST = 512
"""Files of one folder that a worker takes at once; a folder of more is read in parts."""
BATCH = 64
"""Small folders go out together until they hold so many files."""

_Listing = list[tuple[str, int, int]]
"""(name, size, time of change in ns) of each file, sorted."""


@dataclass(frozen=True)
class Chunk:
    """Files of one folder.

    Attributes:
        folder: as the root was given, and below.
        names: of the files, sorted.
        stamp: hash of names, sizes and times of change; the same stamp means the same files.
        whole: these are all files of the folder, so that each series in it is complete.
    """

    folder: str
    names: tuple[str, ...]
    stamp: str
    whole: bool = True

    @property
    def paths(self) -> list[Path]:
        return [Path(self.folder, name) for name in self.names]


Batch = tuple[Chunk, ...]


def batch_key(batch: Batch) -> str:
    """The journal's name of a batch."""
    return _digest(f"{chunk.folder}\t{chunk.whole}\t{chunk.stamp}" for chunk in batch)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def walk(
    root: Path, skip: Iterable[Path] = (), below: bool = True, unreadable: list[tuple[str, str]] | None = None
) -> Iterator[Chunk]:
    """Chunks of all files in `root`, and `below` it, folder by folder in sorted order.

    Hidden files and folders, `__MACOSX`, DICOMDIR and the folders `skip` are left out. Links to folders are not followed, so
    that no walk is endless.

    Args:
        unreadable: takes (path, reason) of folders below that cannot be listed and of links that lead nowhere; None: such
            folders are errors, such links are passed over.

    Raises:
        DataError: `root`, or a folder below it, cannot be listed.
    """
    left_out = {os.path.realpath(p) for p in skip}
    pending = [str(root)]
    while pending:
        folder = pending.pop()
        try:
            files, folders, dangling = _list(folder)
        except DataError as error:
            if unreadable is None or folder == str(root):
                raise
            unreadable.append((folder, str(error)))
            continue
        if unreadable is not None:
            unreadable += [(path, f"'{path}' is a link that leads nowhere") for path in dangling]
        if below:
            pending += sorted((f for f in folders if not left_out or os.path.realpath(f) not in left_out), reverse=True)
        yield from _cut(folder, files)


def _list(folder: str) -> tuple[_Listing, list[str], list[str]]:
    """(files, folders, dangling links); pipes, sockets and devices are none of them."""
    files: _Listing = []
    below: list[str] = []
    dangling: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX" or entry.name.upper() == "DICOMDIR":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                elif entry.is_file():
                    state = entry.stat()
                    files.append((entry.name, state.st_size, state.st_mtime_ns))
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    dangling.append(entry.path)
    except OSError as error:
        raise DataError(f"'{folder}' cannot be listed: {error.strerror or type(error).__name__}") from None
    return sorted(files), below, sorted(dangling)


def listed(files: Iterable[Path]) -> Iterator[Chunk]:
    """Chunks of these files. Those that do not exist are in them too: reading them says so."""
    folders: dict[str, _Listing] = defaultdict(list)
    for path in sorted(set(files)):
        try:
            state = path.stat()
            folders[str(path.parent)].append((path.name, state.st_size, state.st_mtime_ns))
        except OSError:
            folders[str(path.parent)].append((path.name, -1, 0))
    for folder, names in folders.items():
        yield from _cut(folder, names)


def _cut(folder: str, files: _Listing) -> Iterator[Chunk]:
    whole = len(files) <= LARGEST
    for start in range(0, len(files), LARGEST):
        part = files[start : start + LARGEST]
        yield Chunk(folder, tuple(name for name, _, _ in part), _digest(f"{n}\t{s}\t{t}" for n, s, t in part), whole)


def batches(chunks: Iterable[Chunk], size: int = BATCH) -> Iterator[Batch]:
    """Chunks put together to about `size` files, in order: one item of work each."""
    waiting: list[Chunk] = []
    count = 0
    for chunk in chunks:
        if waiting and count + len(chunk.names) > size:
            yield tuple(waiting)
            waiting, count = [], 0
        waiting.append(chunk)
        count += len(chunk.names)
    if waiting:
        yield tuple(waiting)
