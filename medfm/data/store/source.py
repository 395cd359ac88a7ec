"""What a stored image was made from: its name in the manifest, the state of its files, and their content.

A row finds its record by name and state (size and time of modification), which costs one `stat`. Where they fail (a file was
moved, copied or touched, another manifest names it otherwise), `medfm cache` reads the file once and finds the record by
content, without decoding it again.

Two data sets may name files alike, of one size and unpacked with one time (`0001/t1.nii`). Rows below the folder that a record
was made from are found by name and state; below any other, `SAMPLE` of them are read whole and must have the content that was
stored, as those of a data set that was moved or is mounted elsewhere have.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR

import numpy as np

from medfm.data.store.records import halves
from medfm.errors import DataError
from medfm.io.reference import split_reference
from medfm.io.sequences import BETWEEN, split_sequences

State = tuple[int, int]
"""(bytes, time of modification in ns); of a folder, of its files together."""

_MISSING: State = (0, 0)
_BLOCK = 2**20
SAMPLE = 8


def name_keys(names: Sequence[str], modalities: Sequence[str]) -> np.ndarray:
    """(N, 2) uint64 of each row's relative path and stated modality, which decides how some files are read."""
    keys = np.empty((len(names), 2), np.uint64)
    for number, (name, modality) in enumerate(zip(names, modalities, strict=True)):
        text = f"{name}\0{modality}".encode("utf-8", "surrogatepass")
        keys[number] = halves(hashlib.blake2b(text, digest_size=16).digest())
    return keys


def state_of(path: str | Path) -> State:
    """The state of a reference's file or folder, or of several together; (0, 0) where there is none."""
    parts = split_sequences(path) if BETWEEN in os.fspath(path) else []
    if len(parts) > 1:
        states = [state_of(part) for part in parts]
        return _MISSING if _MISSING in states else _together(states)
    try:
        base = split_reference(path)[0] if "#" in os.fspath(path) else path
        found = os.stat(base)
    except (OSError, DataError):
        return _MISSING
    if not S_ISDIR(found.st_mode):
        return found.st_size, found.st_mtime_ns
    files = _files(base)
    digest = hashlib.blake2b(repr(files).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return sum(size for _, size, _ in files), int.from_bytes(digest, "little", signed=True)


def _together(states: Sequence[State]) -> State:
    digest = hashlib.blake2b(repr(states).encode(), digest_size=8).digest()
    return sum(size for size, _ in states), int.from_bytes(digest, "little", signed=True)


def states_of(paths: Sequence[str | Path]) -> list[State]:
    """`state_of` of each, on threads: a network's answer takes long, and many may be asked for at once."""

    def base(path: str) -> str:
        try:
            return os.fspath(split_reference(path)[0]) if "#" in path and BETWEEN not in path else path
        except DataError:
            return path

    bases = [base(os.fspath(path)) for path in paths]
    asked = list(dict.fromkeys(bases))  # a folder of many series is looked at once
    with ThreadPoolExecutor(8) as pool:
        known = dict(zip(asked, pool.map(state_of, asked, chunksize=64), strict=True))
    return [known[path] for path in bases]


def _files(folder: str | Path) -> list[tuple[str, int, int]]:
    """(name, size, time) of the files that a folder directly holds, by name."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                stat = entry.stat()
                found.append((entry.name, stat.st_size, stat.st_mtime_ns))
    return sorted(found)


def content_key(path: str | Path, modality: str) -> tuple[int, int]:
    """128 bits of SHA-256 over all bytes of a reference's file or folder, its selectors and the stated modality.

    Raises:
        OSError: it cannot be read.
    """
    parts = split_sequences(path)
    if len(parts) > 1:
        keys = repr([content_key(part, modality) for part in parts])
        return halves(hashlib.sha256(keys.encode()).digest())
    base, selectors = split_reference(path)
    digest = _folder_digest(str(base), state_of(base)) if base.is_dir() else _file_digest(base)
    return halves(hashlib.sha256(digest + repr((sorted(selectors.items()), modality)).encode()).digest())


def _file_digest(path: str | Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()


def same_content(references: Sequence[tuple[Path, str]], contents: np.ndarray) -> bool:
    """Whether `SAMPLE` of the (path, modality), evenly spread, still have the `content_key` (N, 2) that was stored of them."""
    for row in np.unique(np.linspace(0, len(references) - 1, SAMPLE).round().astype(int)).tolist():
        try:
            found = content_key(*references[row])
        except (OSError, DataError):
            return False
        if found != tuple(contents[row].tolist()):
            return False
    return True


@lru_cache(maxsize=8)  # several series of one folder: its files are read once
def _folder_digest(folder: str, state: State) -> bytes:
    """Of the contents alone: files may be renamed."""
    digests = sorted(_file_digest(os.path.join(folder, name)) for name, _, _ in _files(folder))
    return hashlib.sha256(b"".join(digests)).digest()
