"""References: a path, or a path and what to take from it.

`scans/p1` is a file or a folder; `scans/p1#series=1f0c3a9b7d21` is one series of a folder that mixes several, and
`scans/p1#volume=3` one volume, counted from 0, of a series with a time axis. Both combine:
`scans/p1#series=1f0c3a9b7d21,volume=3`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from medfm.errors import DataError

_SELECTOR = re.compile(r"(series)=([0-9a-f]{12})|(volume)=(\d{1,9})")


def split_reference(path: str | Path) -> tuple[Path, dict[str, str]]:
    """(the file or folder, {selector: value}). A path that exists as it stands has no selectors, whatever its name holds.

    Raises:
        DataError: what follows the last `#` is no list of selectors, or names one twice.
    """
    text = os.fspath(path)
    base, mark, tail = text.rpartition("#")
    if not mark or not base or "/" in tail or os.sep in tail or os.path.lexists(text):
        return Path(text), {}
    found: dict[str, str] = {}
    for part in tail.split(","):
        match = _SELECTOR.fullmatch(part.strip())
        name, value = (match[1] or match[3], match[2] or match[4]) if match else ("", "")
        if not name or name in found:
            raise DataError(
                f"'{text}' does not exist, and what follows '#' is no selector; use '#series=' and 12 hexadecimal digits, "
                "'#volume=' and a number, or both with a comma"
            )
        found[name] = value
    return Path(base), found


def join_reference(path: str | Path, **selectors: str | int) -> str:
    """The reference that `split_reference` takes apart; an empty value leaves its selector out.

    Raises:
        DataError: a selector is unknown or its value is not of its form.
    """
    parts = [f"{name}={value}" for name, value in selectors.items() if value != ""]
    for part in parts:
        if _SELECTOR.fullmatch(part) is None:
            raise DataError(f"'{part}' is no selector of a reference: series=<12 hexadecimal digits> and volume=<number> are")
    return f"{os.fspath(path)}#{','.join(parts)}" if parts else os.fspath(path)
