"""From a reference to its series, and from the series to its image.

Headers of a folder's DICOM files are remembered for as long as the files stay as they are: loading the series of a flat folder
one by one asks for the same thousands of headers each time, and only new and changed files are read again.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medfm.errors import DataError
from medfm.io.dataset import Header, read_header, series_files
from medfm.io.group import Scanned, Series, by_key, choose_main, group_folder, group_slices, scan_file
from medfm.io.header import ImageHeader
from medfm.io.quiet import quiet
from medfm.io.reference import join_reference
from medfm.io.slices import slices_of

if TYPE_CHECKING:
    from medfm.types import Image

# A slice takes about 3 kB: at most 150 MB in all.
_MOST_SLICES = 50_000
# Full headers of a small folder are handed to the reader, which needs them next.
_MOST_HEADERS = 1024

Tilt = Literal["refuse", "resample"]
# A file changed so shortly before it was read may change again within the same tick of its file system's clock (2 s on FAT).
_FRESH_NS = 3 * 10**9

_Signature = tuple[int, int, int, int]
_lock = threading.Lock()


@dataclass
class _Memory:
    """A folder's files as they were, and the series they were grouped into."""

    files: dict[Path, tuple[_Signature | None, Scanned]] = field(default_factory=dict)
    found: list[Series] | None = None


_known: OrderedDict[str, _Memory] = OrderedDict()


def _signature(path: Path) -> _Signature | None:
    """What tells a file from a changed one; None where it is too fresh to tell."""
    found = os.stat(path)
    # The change time as well: an unpacked archive gives every version of a file the same modification time.
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _FRESH_NS:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def forget() -> None:
    """Forget all folders, so that the next load reads every header, as the first one did."""
    with _lock:
        _known.clear()


def scan_folder(folder: Path) -> tuple[list[Scanned], dict[Path, Header]]:
    """(each DICOM file of `folder` in order of name, the headers that had to be read for it, where they are few).

    Raises:
        DataError: the folder cannot be listed.
    """
    with quiet():  # once for all files: each change of a logger's level empties its caches
        return _scan(folder)


def _scan(folder: Path) -> tuple[list[Scanned], dict[Path, Header]]:
    files = series_files(folder)
    place = str(folder)  # as it was written, since references begin with it
    with _lock:
        memory = _known.get(place, _Memory())
    known = memory.files
    scanned: dict[Path, tuple[_Signature | None, Scanned]] = {}
    headers: dict[Path, Header] = {}
    for path in files:
        try:
            signature = _signature(path)
        except OSError as error:
            raise DataError(f"'{path}' cannot be read: {error.strerror or type(error).__name__}") from None
        before = known.get(path)
        if before is not None and signature is not None and before[0] == signature:
            scanned[path] = before
            continue
        try:
            header = read_header(path)
        except DataError:
            scanned[path] = (signature, scan_file(path))
            continue
        scanned[path] = (signature, scan_file(path, header.dataset))
        if len(files) <= _MOST_HEADERS:
            headers[path] = header
    same = len(scanned) == len(known) and all(known.get(path) is entry for path, entry in scanned.items())
    with _lock:
        _known[place] = _Memory(scanned, memory.found if same else None)
        _known.move_to_end(place)
        while len(_known) > 1 and sum(len(m.files) for m in _known.values()) > _MOST_SLICES:
            _known.popitem(last=False)
    return [one for _, one in scanned.values()], headers


def _grouped(folder: Path, scanned: list[Scanned]) -> list[Series]:
    """The folder's series, grouped anew only where a file has changed."""
    with _lock:
        memory = _known.get(str(folder))
        if memory is not None and memory.found is not None:
            return memory.found
    found = group_folder(folder, scanned, complete=True)
    if memory is not None and [one for _, one in memory.files.values()] == scanned:
        memory.found = found
    return found


def resolve(path: Path, selectors: dict[str, str]) -> tuple[Series, dict[Path, Header], tuple[str, ...]]:
    """The one series that a reference names, the headers at hand, and notes on what was set apart.

    Args:
        path: a DICOM file or a folder.
        selectors: as `split_reference` gives them.

    Raises:
        DataError: a file is damaged, the folder holds no DICOM or several series, or no series has that key.
    """
    if path.is_dir():
        return _resolve_folder(path, selectors)
    header = read_header(path)
    found = group_slices(slices_of(header.dataset, path))
    series = _pick(found, selectors, path)
    return series, {path: header}, ()


def _resolve_folder(folder: Path, selectors: dict[str, str]) -> tuple[Series, dict[Path, Header], tuple[str, ...]]:
    scanned, headers = scan_folder(folder)
    if not scanned:
        raise DataError(f"'{folder}' holds no DICOM files; name one image file, or the folder that directly holds one series")
    broken = [one for one in scanned if one.problem]
    if broken and "series" not in selectors:
        raise DataError(f"'{broken[0].path}': {broken[0].problem}; {len(broken)} of {len(scanned)} files are not readable")
    found = _grouped(folder, scanned)
    series = _pick([s for s in found if s.key], selectors, folder)
    notes = (f"{len(broken)} files of the folder are not readable",) if broken else ()
    return series, headers, notes


def _pick(found: list[Series], selectors: dict[str, str], path: Path) -> Series:
    if "series" in selectors:
        series = by_key(found, selectors["series"])
        if series is None:
            keys = ", ".join(s.key for s in found[:8])
            raise DataError(f"'{path}' holds no series {selectors['series']}; it holds {len(found)}: {keys}")
        return series
    main, reason = choose_main(found)
    if main is None:
        raise DataError(sentence(str(path), reason))
    return main


def sentence(source: str, problem: str) -> str:
    """The error of a problem: some are a predicate ("holds a report, not an image"), some a clause of their own."""
    return f"'{source}' {problem}" if problem.startswith(("is ", "holds ")) else f"'{source}': {problem}"


def read_reference(path: Path, selectors: dict[str, str], tilt: Tilt = "refuse") -> Image:
    """The image of a DICOM reference.

    Raises:
        DataError: as `resolve`; the series has a fault, or cannot be decoded.
    """
    series, headers, notes = resolve(path, selectors)
    volume = int(selectors["volume"]) if "volume" in selectors else None
    return read_found(series, headers, join_reference(path, **selectors), notes, tilt, volume)


def read_found(
    series: Series,
    headers: dict[Path, Header],
    source: str,
    notes: tuple[str, ...] = (),
    tilt: Tilt = "refuse",
    volume: int | None = None,
) -> Image:
    """The image of a series that `find_series` found.

    Raises:
        DataError: the series has a fault, or cannot be decoded.
    """
    from medfm.io.dicom import read_single
    from medfm.io.series import read_dose, read_stack

    if volume is not None and series.kind not in ("4d", "cine"):
        raise DataError(f"'{source}': the series has no time axis to take a volume from")
    if series.problem and series.layout is None:
        raise DataError(sentence(source, series.problem))
    if series.layout is not None:
        with quiet():
            image = read_stack(series, headers, source, volume, tilt)
    elif series.kind == "dose":
        image = read_dose(series, headers, source)
    else:
        one = series.files[0]
        header = headers.get(one)
        image = read_single(header if header is not None else read_header(one), volume=volume)
    return replace(image, source=source, notes=(*image.notes, *series.repairs, *notes))


def peek_reference(path: Path, selectors: dict[str, str]) -> ImageHeader:
    """The header of the series that a reference names; of a folder that mixes several, the first one's with the problem.

    Raises:
        DataError: the folder holds no readable DICOM file, or no series has that key.
    """
    if path.is_dir() and "series" not in selectors:
        scanned, _ = scan_folder(path)
        readable = [one for one in scanned if one.slices]
        if not readable:
            # The same sentence as `load_image`'s.
            resolve(path, selectors)
        try:
            return resolve(path, selectors)[0].header
        except DataError as error:
            reason = str(error).removeprefix(f"'{path}'").lstrip(": ")
            return replace(readable[0].slices[0].header, problem=reason)
    return resolve(path, selectors)[0].header
