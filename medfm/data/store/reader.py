"""Stored images by row: memory-mapped, so that a crop reads its own bytes only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medfm.data.store.layout import find_folder
from medfm.data.store.records import Lookup, read_logs, root_digest, shard_path
from medfm.data.store.source import name_keys, same_content, states_of
from medfm.errors import DataError

if TYPE_CHECKING:
    from medfm.transforms.preprocess import Preprocess

_MOST_MAPS = 128  # each holds a file descriptor


@dataclass
class Found:
    """Which rows a store holds.

    Attributes:
        records: (N,) records of the rows; those that are not there are zeros.
        missing: (N,) bool, not stored.
        changed: (N,) bool, stored, but the file has another size or time now.
        foreign: (N,) bool, stored from another folder, where a file of the same name, size and time has other content.
        unclear: (N,) bool, stored in several versions under one name, of files that were not looked at.
    """

    records: np.ndarray
    missing: np.ndarray
    changed: np.ndarray
    foreign: np.ndarray
    unclear: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        return ~(self.missing | self.changed | self.foreign | self.unclear)


def find_rows(folder: Path, names: Sequence[str], modalities: Sequence[str], root: Path | None) -> Found:
    """Look rows up by name, and by the state of their files below `root`; None trusts the names."""
    made, origins = read_logs(folder)
    lookup = Lookup(made, "name")
    keys = name_keys(names, modalities)
    by_name = lookup.find(keys)
    unclear, foreign = np.zeros(len(keys), bool), np.zeros(len(keys), bool)
    if root is None:
        found = by_name
        first, last = lookup.candidates(keys)
        for row in np.flatnonzero(last - first > 1):
            same = lookup.records[lookup.order[first[row] : last[row]]]
            contents = {tuple(r["content"].tolist()) for r in same if tuple(r["name"]) == tuple(keys[row])}
            unclear[row] = len(contents) > 1
    else:
        states = np.array(states_of([root / name for name in names]), np.int64).reshape(len(keys), 2)
        found = np.full(len(keys), -1, np.int64)
        own = root_digest(root)
        for origin in sorted(set(origins.tolist()), key=lambda digest: digest != own):
            rows, among = np.flatnonzero(found < 0), np.flatnonzero(origins == origin)
            state = {"size": states[rows, 0].astype(np.uint64), "stamp": states[rows, 1]}
            hit = Lookup(made[among], "name").find(keys[rows], state)
            rows, places = rows[hit >= 0], among[hit[hit >= 0]]
            if not len(rows):
                continue
            chosen = [(root / names[row], modalities[row]) for row in rows.tolist()]
            holds = origin == own or same_content(chosen, made["content"][places])
            foreign[rows] = not holds
            if holds:
                found[rows] = places
    records = np.zeros(len(keys), made.dtype)
    records[found >= 0] = made[found[found >= 0]]
    return Found(records, by_name < 0, (by_name >= 0) & (found < 0) & ~foreign, foreign, unclear)


def open_rows(
    store: Path, preprocess: Preprocess, names: Sequence[str], modalities: Sequence[str], root: Path | None
) -> tuple[StoredImages, Found]:
    """Images of a manifest's rows under a contract, and which of them are there: only usable ones may be asked for.

    Raises:
        ConfigError: `store` is none, or was made under another contract.
        DataError: a shard is missing or cut short.
    """
    folder = find_folder(store, preprocess)
    found = find_rows(folder, names, modalities, root)
    return StoredImages(folder, len(preprocess.config.size), preprocess.config.dtype, found.records[found.usable]), found


class StoredImages:
    """Records as arrays (C, *spatial), mapped into memory when they are first asked for, in each process anew.

    Holds a few numbers a record in arrays, no Python object: loader processes share them, and the kernel's page cache of the
    pixels as well.

    Raises:
        DataError: a shard is missing or cut short; run `medfm cache verify=true`.
    """

    def __init__(self, folder: Path, dims: int, dtype: str, records: np.ndarray) -> None:
        self.folder = folder
        self.dims = dims
        self.dtype = np.dtype(dtype)
        places = np.stack([records["writer"], records["shard"].astype(np.uint64)], axis=1)
        self._shards, shards = np.unique(places, axis=0, return_inverse=True)
        self.shards = shards.reshape(-1).astype(np.int32)
        self.offsets = records["offset"].astype(np.int64)
        self.shapes = records["shape"].astype(np.int32)
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        self._check_sizes()

    def _check_sizes(self) -> None:
        ends = self.offsets + self.shapes.prod(axis=1, dtype=np.int64) * self.dtype.itemsize
        wanted = np.zeros(len(self._shards), np.int64)
        np.maximum.at(wanted, self.shards, ends)
        for (writer, shard), end in zip(self._shards.tolist(), wanted.tolist(), strict=True):
            path = shard_path(self.folder, writer, shard)
            try:
                size = path.stat().st_size
            except OSError:
                size = -1
            if size < end:
                state = "missing" if size < 0 else "cut short"
                raise DataError(f"'{path}' of the cache is {state}; repair it with `medfm cache ... verify=true`")

    def __len__(self) -> int:
        return len(self.offsets)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict()}

    @property
    def nbytes(self) -> int:
        """Of what is kept a row, in this process's memory."""
        return self.shards.nbytes + self.offsets.nbytes + self.shapes.nbytes

    def _map(self, shard: int) -> np.ndarray:
        found = self._maps.get(shard)
        if found is None:
            writer, number = self._shards[shard].tolist()
            # Copy on write: torch asks for a writable array, and the file stays as it is.
            found = np.memmap(shard_path(self.folder, writer, number), np.uint8, "c").view(np.ndarray)
            self._maps[shard] = found
            if len(self._maps) > _MOST_MAPS:
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(shard)
        return found

    def __getitem__(self, index: int) -> np.ndarray:
        """(C, *spatial) of the storage dtype, a view of the file: only what is read of it is read from disk."""
        shape = self.shapes[index].tolist()
        offset = int(self.offsets[index])
        size = shape[0] * shape[1] * shape[2] * shape[3] * self.dtype.itemsize
        flat = self._map(int(self.shards[index]))[offset : offset + size].view(self.dtype)
        return flat.reshape(shape if self.dims == 3 else (shape[0], *shape[2:]))
