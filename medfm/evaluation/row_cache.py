"""Arrays of one shape, one a key, kept in files: what was computed of an image is not computed again.

A folder holds shards `<random>.npy`, each a table of keys and values written at once or not at all, so that a killed run loses
no more than its last shard, and several runs may add to one folder without a lock. Keys are digests: no path and no patient is
in a shard. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfm.data.store.records import halves, io_words
from medfm.errors import ConfigError
from medfm.io.files import atomic_write

_LOG = logging.getLogger(__name__)
# Bytes of a shard: what a killed run may lose, and what waits in memory.
_SHARD = 2**26


def row_key(*parts: object) -> tuple[int, int]:
    """128 bits over `parts`."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return halves(hashlib.blake2b(text, digest_size=16).digest())


class RowCache:
    """Values of one dtype and shape by key.

    Args:
        folder: made when the first value comes.
        shape: of one value; None where it is known with the first value.
        dtype: of values.
    """

    def __init__(self, folder: Path, dtype: Any, shape: tuple[int, ...] | None = None) -> None:
        self.folder, self.dtype, self.shape = folder, np.dtype(dtype), shape
        self._shards: list[NDArray] = []
        self._places: dict[tuple[int, int], tuple[int, int]] = {}
        self._waiting: list[NDArray] = []
        self._bytes = 0
        for path in sorted(folder.glob("*.npy")) if folder.is_dir() else []:
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            table = np.load(path, mmap_mode="r", allow_pickle=False)
            fits = table.dtype.names == ("key", "value") and table.ndim == 1 and len(table) > 0
            shape = table.dtype["value"].shape if fits else ()
            fits = fits and table.dtype["value"].base == self.dtype and shape == (shape if self.shape is None else self.shape)
        except (OSError, ValueError, EOFError):
            fits = False
        if not fits:
            _LOG.warning("'%s' is no shard of this cache and was left out", path)
            return
        self.shape = shape
        for row, (high, low) in enumerate(table["key"].tolist()):
            self._places[high, low] = (len(self._shards), row)
        self._shards.append(table)

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._places

    def add(self, keys: Sequence[tuple[int, int]], values: NDArray) -> None:
        """Keep `values` (n, *shape); they can be read after `flush`.

        Raises:
            ConfigError: the folder cannot be written.
        """
        if not len(keys):
            return
        self.shape = tuple(values.shape[1:]) if self.shape is None else self.shape
        table = np.empty(len(keys), np.dtype([("key", "<u8", (2,)), ("value", self.dtype, self.shape)]))
        table["key"], table["value"] = np.array(keys, np.uint64), values
        self._waiting.append(table)
        self._bytes += table.nbytes
        if self._bytes >= _SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        table = np.concatenate(self._waiting)
        self._waiting, self._bytes = [], 0
        path = self.folder / f"{secrets.token_hex(8)}.npy"
        try:
            with atomic_write(path) as temporary:
                np.save(temporary, table, allow_pickle=False)
        except OSError as error:
            raise ConfigError(f"features '{self.folder}' cannot be written: {io_words(error)}; set features=DIR") from None
        self._open(path)

    def take(self, keys: Sequence[tuple[int, int]]) -> NDArray:
        """(n, *shape), in the order of `keys`. Raises KeyError where one is missing."""
        assert self.shape is not None
        places = np.array([self._places[key] for key in keys], np.int64).reshape(-1, 2)
        out = np.empty((len(keys), *self.shape), self.dtype)
        for shard in np.unique(places[:, 0]):
            here = np.flatnonzero(places[:, 0] == shard)
            # In the order of the file, so that a disk is read along.
            here = here[np.argsort(places[here, 1], kind="stable")]
            out[here] = self._shards[shard]["value"][places[here, 1]]
        return out
