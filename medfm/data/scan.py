"""Walk a folder, read headers in parallel, and make one item of each film and of each series of slices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from medfm.errors import MedfmError

if TYPE_CHECKING:
    from medfm.io.header import ImageHeader

T = TypeVar("T")
R = TypeVar("R")

# Modalities whose files are slices of a volume.
_SLICED = frozenset({"CT", "MR", "PT", "NM"})


@dataclass
class Item:
    """One row to be: `path` relative and posix, a file or a folder with one series; `header` of its first file."""

    path: str
    header: ImageHeader | None = field(default=None, repr=False)
    files: int = 1


@dataclass
class Scan:
    """What a walk found. `rejected` holds (relative path, reason)."""

    root: Path
    items: list[Item]
    rejected: list[tuple[str, str]]
    files: int


def relative_message(error: BaseException, root: Path) -> str:
    """The text of an error, one line, without the folder that paths are relative to."""
    text = " ".join(str(error).split()) or type(error).__name__
    for base in {str(root), str(root.resolve())}:
        if len(base) > 1:
            text = text.replace(f"{base}/", "")
    return text


@contextmanager
def _progress(total: int, what: str, show: bool) -> Iterator[Callable[[], None]]:
    if not show or total < 200:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def parallel(function: Callable[[T], R], values: Sequence[T], workers: int, what: str = "", progress: bool = False) -> list[R]:
    """`[function(v) for v in values]` on threads, in order; a bar where there are many and `progress` is set."""

    def step(value: T) -> R:
        result = function(value)
        advance()
        return result

    with _progress(len(values), what, progress) as advance:
        if workers <= 1 or len(values) < 2:
            return [step(v) for v in values]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(step, values, chunksize=1))


def _peek(path: Path, root: Path) -> ImageHeader | str:
    """The header, or why the file is no usable image."""
    from medfm.io.load import peek

    try:
        header = peek(path)
    except MedfmError as error:
        return relative_message(error, root)
    except OSError as error:
        return f"cannot be read: {error.strerror or type(error).__name__}"
    if header.problem:
        return relative_message(ValueError(header.problem), root)
    return "holds no image" if header.shape is None else header


def _decode(path: Path, root: Path) -> str:
    """'' or why the image cannot be decoded."""
    from medfm.io.load import load_image

    try:
        load_image(path)
    except MedfmError as error:
        return relative_message(error, root)
    except OSError as error:
        return f"cannot be read: {error.strerror or type(error).__name__}"
    return ""


def scan(root: Path, files: Iterable[Path] | None, level: str, workers: int, progress: bool = False) -> Scan:
    """Items below `root`: of `files`, or of every image found.

    A DICOM series of CT, MR, PT or NM slices that lies alone in its folder becomes one item, the folder; single slices, films
    and multi-frame files are items of their own. Slices of a folder that mixes series are rejected, for no path can name one.

    Args:
        level: "headers" reads them, "decode" also decodes every image, "none" reads nothing and groups nothing.
    """
    from medfm.io.load import find_images

    paths = list(find_images(root)) if files is None else sorted(files)
    names = [p.relative_to(root).as_posix() for p in paths]
    if level == "none":
        return Scan(root, [Item(n) for n in names], [], len(paths))
    headers = parallel(lambda p: _peek(p, root), paths, workers, "reading headers", progress)
    rejected = [(n, h) for n, h in zip(names, headers, strict=True) if isinstance(h, str)]
    items = [Item(n, h) for n, h in zip(names, headers, strict=True) if not isinstance(h, str)]
    items, twice = _drop_copies(items)
    items, mixed = _group_series(items)
    rejected += twice + mixed
    if level == "decode":
        reasons = parallel(lambda i: _decode(root / i.path, root), items, workers, "decoding images", progress)
        rejected += [(i.path, reason) for i, reason in zip(items, reasons, strict=True) if reason]
        items = [i for i, reason in zip(items, reasons, strict=True) if not reason]
    return Scan(root, items, sorted(rejected), len(paths))


def _drop_copies(items: list[Item]) -> tuple[list[Item], list[tuple[str, str]]]:
    """Two files of one patient with one SOP Instance UID are the same image."""
    first: dict[tuple[str, str], str] = {}
    kept, copies = [], []
    for item in items:
        header = item.header
        if header is not None and header.image_id:
            key = (header.patient_id, header.image_id)
            if key in first:
                copies.append((item.path, f"copy of '{first[key]}' (same SOP Instance UID)"))
                continue
            first[key] = item.path
        kept.append(item)
    return kept, copies


def _is_slice(item: Item) -> bool:
    header = item.header
    if header is None or header.kind != "dicom" or header.modality not in _SLICED or not header.series_id:
        return False
    return header.shape is not None and all(n == 1 for n in header.shape[2:])


def _group_series(items: list[Item]) -> tuple[list[Item], list[tuple[str, str]]]:
    folders: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        folders[PurePosixPath(item.path).parent.as_posix()].append(item)
    grouped: list[Item] = []
    rejected: list[tuple[str, str]] = []
    for folder, members in folders.items():
        series: dict[str, list[Item]] = defaultdict(list)
        for item in members:
            if _is_slice(item):
                series[item.header.series_id if item.header else ""].append(item)
            else:
                grouped.append(item)
        dicom = sum(1 for m in members if m.header is not None and m.header.kind == "dicom")
        for slices in series.values():
            if len(slices) == 1:
                grouped += slices
            elif len(slices) == dicom:
                grouped.append(Item(folder, slices[0].header, len(slices)))
            else:
                reason = (
                    f"one of {len(slices)} slices of a series in a folder that holds other DICOM images; one folder per series"
                )
                rejected += [(s.path, reason) for s in slices]
    return sorted(grouped, key=lambda i: i.path), rejected
