"""Keep what pydicom says about a header to ourselves: its words quote values, and so patient data."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from medfm.errors import DataError


class _Quiet:
    """Silence shared by threads: the first to enter sets it, the last to leave restores what was.

    `warnings.catch_warnings` alone swaps a global list: threads leaving in another order would silence the whole process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()
        self._level = logging.NOTSET

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                logger = logging.getLogger("pydicom")
                self._level = logger.level
                logger.setLevel(logging.CRITICAL + 1)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)
                logging.getLogger("pydicom").setLevel(self._level)


_quiet = _Quiet()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings to ourselves: they quote header values, and so patient data. For any number of threads."""
    _quiet.enter()
    try:
        yield
    finally:
        _quiet.leave()


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Work on a header, quietly. pydicom parses a value when it is first used, so damage shows itself anywhere.

    Raises:
        DataError: a header value cannot be parsed. Only the kind of error is named: its words quote values.
    """
    try:
        with quiet():
            yield
    except DataError:
        raise
    except Exception as error:  # pydicom's own kinds have no common base
        raise DataError(f"'{path}': its header is damaged ({type(error).__name__}); copy it again from its source") from None
