"""What a worker does for the doctor: read, judge and picture the series of a batch of files. Results are JSON."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medfm.data.doctor.verdict import Finding, Judged, reason, repair
from medfm.data.survey import NOT_IMAGES, Entry, load, name_parts, relative_message, relative_path, survey
from medfm.data.walk import Batch, Chunk
from medfm.errors import DataError, MedfmError

_ASIDE = 64  # files of a rejected stack that are decoded one by one, at most


@dataclass(frozen=True)
class Options:
    """How to look.

    Attributes:
        root: absolute; paths in the report are relative to it.
        every: of this many series one gets a picture; rejected ones all do; 0: none does.
        modalities: reference -> modality that a manifest gives.
    """

    root: str
    decode: bool = True
    tilt: str = "refuse"
    every: int = 1
    modalities: Mapping[str, str] = field(default_factory=dict)


def look(batch: Batch, options: Options) -> list[dict[str, Any]]:
    """The verdicts of each chunk: {"judged": [...], "files": n}; each with "uids" (16 digits a file) and, perhaps, "picture"
    (JPEG, base64).
    """
    return [_look_chunk(chunk, options) for chunk in batch]


def parts(batch: Batch) -> list[dict[str, list[int]]]:
    """Which files of each chunk belong to which series, for folders that are too large for one worker."""
    return [name_parts(chunk, survey(chunk)) for chunk in batch]


def entries_of(chunk: Chunk) -> list[str]:
    """References of a chunk's series, read from headers alone."""
    return [entry.path for entry in survey(chunk)]


def look_at(task: tuple[Chunk, str], options: Options) -> dict[str, Any]:
    """The verdict of one series of a chunk. For a chunk that killed its worker."""
    chunk, path = task
    entries = survey(chunk, keep=True)
    _note_parts(entries)
    for entry in entries:
        if entry.path == path:
            return _judge(entry, options)
    raise DataError(f"'{path}' is not there any more")


def _look_chunk(chunk: Chunk, options: Options) -> dict[str, Any]:
    entries = survey(chunk, keep=True)
    _note_parts(entries)
    files = len({path for entry in entries for path in entry.files})
    return {"judged": [_judge(entry, options) for entry in entries], "files": files}


def _note_parts(entries: Sequence[Entry]) -> None:
    """Stacks that share a Series Instance UID were set apart: say so, and by what."""
    from medfm.io.group import difference

    parts: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.series is not None and entry.kind in ("stack", "4d", "multiframe") and not entry.series.scout:
            parts.setdefault(entry.part, []).append(entry)
    for alike in parts.values():
        for entry, other in zip(alike, (alike[1], *alike[:-1]) if len(alike) > 1 else (), strict=False):
            if entry.series is None or other.series is None:
                continue
            what = difference(entry.series.slices[0], other.series.slices[0]) or "contrast (ImageType or EchoTime)"
            said = f"one of {len(alike)} stacks with one Series Instance UID, set apart: they differ in {what}"
            entry.repairs = (*entry.repairs, said)


def _judge(entry: Entry, options: Options) -> dict[str, Any]:
    from medfm.data.doctor.checks import judge_header, judge_image

    root = Path(options.root)
    path = relative_path(entry.path, root)
    one = Judged(path, "accepted", entry.kind or "unreadable", files=len(entry.files))
    values: dict[str, Any] = {}
    if entry.header is None:
        one.verdict = "rejected"
        one.reasons.append(reason(relative_message(entry.problem, root)))
        return one.as_json()
    header = entry.header
    one.modality = header.modality
    one.shape = header.shape or ()
    one.syntax = _syntax(header.transfer_syntax)
    judge_header(one, header, entry.dataset)
    if entry.kind == "no image" and entry.problem.startswith("holds no pixels") and "Image" in (header.sop_class or "Image"):
        one.reject("damaged", f"{relative_message(entry.problem, root)}, though its kind has some; it may be truncated")
        return one.as_json()
    if entry.kind in NOT_IMAGES:
        one.verdict = "mask" if entry.kind != "no image" else "not an image"
        one.warnings = [f for f in one.warnings if f.code == "burned in"]
        one.reasons.append(Finding("refused", relative_message(entry.problem, root)))
        return one.as_json()
    mended = options.tilt == "resample" and entry.series is not None and _only_tilted(entry)
    if entry.problem and not mended:
        one.verdict = "rejected"
        one.reasons.append(reason(relative_message(entry.problem, root)))
    one.repairs += [repair(text) for text in entry.repairs]
    modality = options.modalities.get(path, "")
    if options.decode:
        try:
            if one.verdict == "rejected":
                values["picture"] = _look_aside(one, entry, options)
            else:
                image = load(entry, modality, "resample" if options.tilt == "resample" else "refuse")
                judge_image(one, header, image)
                values["picture"] = _picture(image, options, path)
        except (MedfmError, OSError) as error:
            one.verdict = "rejected"
            one.reasons.append(reason(relative_message(_words(error), root)))
    if one.repairs and one.verdict == "accepted":
        one.verdict = "repaired"
    uids = "".join(entry.uids) if all(entry.uids) else ""
    return {**one.as_json(), **({"uids": uids} if uids else {}), **{k: v for k, v in values.items() if v}}


def _only_tilted(entry: Entry) -> bool:
    layout = entry.series.layout if entry.series is not None else None
    return layout is not None and layout.tilted


def _words(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or type(error).__name__}"
    return str(error)


def _syntax(uid: str) -> str:
    """The name of a transfer syntax; its UID where it is unknown."""
    if not uid:
        return ""
    from pydicom.uid import UID

    return UID(uid).name


def _look_aside(one: Judged, entry: Entry, options: Options) -> str:
    """A rejected series, file by file: those that cannot be decoded are further reasons. Returns the middle one's picture."""
    from medfm.io.load import load_image

    root = Path(options.root)
    files = entry.files if len(entry.files) <= _ASIDE else entry.files[:: -(-len(entry.files) // _ASIDE)]
    middle = files[len(files) // 2]
    failures: dict[str, list[str]] = {}
    picture = ""
    known = {f.text for f in one.reasons}
    for path in files if len(files) > 1 else (middle,):
        try:
            image = load_image(path)
        except (MedfmError, OSError) as error:
            said = relative_message(_words(error), root)
            if len(files) == 1 and any(said.endswith(text) or text.endswith(said) for text in known):
                continue
            failures.setdefault(_general(said, relative_path(path, root)), []).append(said)
            continue
        if path == middle or not picture:
            picture = _picture(image, options, one.path, worst=True)
    for alike in failures.values():
        more = f" (and {len(alike) - 1} more of its files)" if len(alike) > 1 else ""
        finding = reason(alike[0] + more)
        if finding.code in ("syntax", "damaged"):
            one.reasons.append(finding)
    return picture


def _general(said: str, path: str) -> str:
    return said.replace(path, "")


def _picture(image: Any, options: Options, path: str, worst: bool = False) -> str:
    from medfm.data.doctor.picture import thumbnail

    if not options.every:
        return ""
    drawn = int.from_bytes(hashlib.sha256(path.encode("utf-8", "replace")).digest()[:4], "big")
    if not worst and drawn % options.every:
        return ""
    return base64.b64encode(thumbnail(image)).decode()


def compare(pair: tuple[str, str, Sequence[tuple[int, int]]], options: Options) -> str:
    """Whether files with one SOP Instance UID hold the same pixels: "same", or in words how they differ.

    `pair` is two references and the places, in the sorted files of each, of the files to compare.
    """
    import numpy as np

    from medfm.io.load import load_image

    first, second, places = pair
    ours, theirs = files_of(Path(options.root, first)), files_of(Path(options.root, second))
    for a, b in places:
        one, other = load_image(ours[a]).array, load_image(theirs[b]).array
        if one.shape != other.shape:
            return f"{' x '.join(map(str, one.shape))} and {' x '.join(map(str, other.shape))} pixels"
        if not np.array_equal(one, other):
            apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
            return f"values differ by up to {apart.max():g} in {100 * np.count_nonzero(apart) / apart.size:.0f} % of the pixels"
    return "same"


def files_of(reference: Path) -> list[Path]:
    """The sorted files of a reference."""
    from medfm.io.dataset import series_files
    from medfm.io.group import by_key, choose_main, find_series
    from medfm.io.reference import split_reference

    path, selectors = split_reference(reference)
    if path.is_file():
        return [path]
    found = find_series(series_files(path))
    series = by_key(found, selectors["series"]) if "series" in selectors else choose_main(found)[0]
    if series is None:
        raise DataError(f"'{reference}' is not there any more")
    return list(series.files)
