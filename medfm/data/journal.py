"""What is already done, one JSON line an item, so that stopped work goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from medfm.errors import DataError

_VERSION = 1


class Journal:
    """Results by key in a file that survives SIGKILL: a torn last line is cut off, all before it counts.

    `results` holds what was there when the file was opened; what is added goes to the file alone.

    Args:
        path: the file; made with its folder where it is not there.
        fingerprint: of everything that decides the results. A journal with another one is started anew.

    Raises:
        DataError: the file cannot be written, or is no journal.
    """

    def __init__(self, path: Path, fingerprint: str = "") -> None:
        self.path = path
        self.results: dict[str, Any] = {}
        head = {"medfm_journal": _VERSION, "fingerprint": fingerprint}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._read(head) if path.exists() and path.stat().st_size else 0
            self._file = open(path, "r+b" if kept else "wb")  # noqa: SIM115, closed by `close`
            if kept:
                self._file.truncate(kept)
                self._file.seek(kept)
            else:
                self._write(head)
        except OSError as error:
            raise DataError(f"'{path}' cannot be written: {error.strerror or type(error).__name__}") from None

    def _read(self, head: dict[str, Any]) -> int:
        """Fill `results`; the bytes that are whole, 0 where the journal is another work's."""
        kept = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file):
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if number == 0:
                    if not isinstance(entry, dict) or "medfm_journal" not in entry:
                        raise DataError(f"'{self.path}' is not a journal of medfm; move it away or choose another place")
                    if entry != head:
                        return 0
                elif not isinstance(entry, list) or len(entry) != 2:
                    break  # the line that was being written
                else:
                    self.results[entry[0]] = entry[1]
                kept += len(line)
        return kept

    def _write(self, entry: Any) -> None:
        self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        # Out of this process, so that a killed one loses nothing; a crash of the machine may lose the last seconds.
        self._file.flush()

    def add(self, key: str, result: Any) -> None:
        """Keep a result (JSON-able). Raises DataError where the disk is full."""
        try:
            self._write([key, result])
        except OSError as error:
            raise DataError(f"'{self.path}' cannot be written: {error.strerror or type(error).__name__}") from None

    def close(self, remove: bool = False) -> None:
        """Flush to the disk; `remove` deletes the file, when the work is done and its result written."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)
