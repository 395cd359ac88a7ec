"""Many texts, or rows of numbers, in two arrays: loader processes share them, where a list of a million strings is copied page
by page as each process touches their reference counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np


class PackedTexts(Sequence[str]):
    """An immutable sequence of strings: the UTF-8 bytes of all of them, and where each begins."""

    def __init__(self, texts: Iterable[str]) -> None:
        # Bytes that were no UTF-8 are kept as lone surrogates by a lenient read.
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._bytes = np.frombuffer(b"".join(parts), np.uint8)
        self._ends = np.fromiter(accumulate(map(len, parts), initial=0), np.int64, len(parts) + 1)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        index %= len(self)
        first, last = self._ends[index : index + 2]
        return self._bytes[first:last].tobytes().decode("utf-8", "surrogatepass")

    @property
    def nbytes(self) -> int:
        return self._bytes.nbytes + self._ends.nbytes


class PackedNumbers(Sequence[np.ndarray]):
    """An immutable sequence of rows of small numbers, 0 to 2^32 - 1, of different lengths."""

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        rows = list(rows)
        self._values = np.fromiter((n for row in rows for n in row), np.uint32)
        self._ends = np.fromiter(accumulate(map(len, rows), initial=0), np.int64, len(rows) + 1)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._values[self._ends[index] : self._ends[index + 1]].astype(np.int64)

    @property
    def nbytes(self) -> int:
        return self._values.nbytes + self._ends.nbytes


class CodedTexts(Sequence[str]):
    """Texts of which many are equal: each different one once, and a number for each place."""

    def __init__(self, texts: Sequence[str]) -> None:
        known = {text: code for code, text in enumerate(dict.fromkeys(texts))}
        self.unique = PackedTexts(known)
        self.codes = np.fromiter((known[text] for text in texts), np.int32, len(texts))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return self.unique[int(self.codes[index])]

    @property
    def nbytes(self) -> int:
        return self.unique.nbytes + self.codes.nbytes
