"""Read the headers of a chunk of files once and say what images they make. Shared by `medfm index` and `medfm doctor`."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medfm.data.walk import Chunk
from medfm.errors import MedfmError
from medfm.io.header import ImageHeader

if TYPE_CHECKING:
    from pydicom import Dataset

    from medfm.io.dataset import Header
    from medfm.io.group import Series
    from medfm.types import Image

NOT_IMAGES = ("segmentation", "contours", "no image")
ID_FIELDS = ("patient_id", "study_id", "series_id", "image_id")


def relative_message(error: BaseException | str, root: Path) -> str:
    """The text of an error, one line, without the folder that paths are relative to."""
    text = " ".join(str(error).split()) or type(error).__name__
    for base in {str(root), str(root.resolve())}:
        if len(base) > 1:
            text = text.replace(f"{base}/", "")
    return text


def relative_path(path: str | Path, root: Path) -> str:
    """A reference below `root` as posix text relative to it; "." for the root itself."""
    text = Path(path).as_posix()
    base = root.as_posix().rstrip("/")
    if base in ("", "."):
        return text
    if text == base:
        return "."
    return text[len(base) :].lstrip("/") if text.startswith((f"{base}/", f"{base}#")) else text


@dataclass
class Entry:
    """One series of DICOM files, or one other image file, or one that could not be read.

    Attributes:
        path: reference for load_image.
        files: sorted.
        kind: of `medfm.io.group.Series`, "nifti", "picture", or "" where it could not be read.
        header: of the first file; None where it could not be read.
        problem: why load_image refuses it, as far as headers tell.
        uids: 16 hexadecimal digits for the SOP Instance UID of each file, of its patient; "" where it has none.
        headers: of its DICOM files, where they were to be kept.
        series: as grouped; None for other files than DICOM.
        part: name of the DICOM series (a hash), or of the file, for putting together what was read in parts.
    """

    path: str
    files: tuple[Path, ...]
    kind: str
    header: ImageHeader | None
    problem: str = ""
    repairs: tuple[str, ...] = ()
    uids: tuple[str, ...] = ()
    headers: dict[Path, Header] = field(default_factory=dict, repr=False)
    series: Series | None = field(default=None, repr=False)

    @property
    def dataset(self) -> Dataset | None:
        """Of the first file, without pixels, where headers were kept."""
        header = self.headers.get(self.files[0])
        return header.dataset if header is not None else None

    @property
    def part(self) -> str:
        header = self.header
        if header is None or not header.series_id:
            return self.path
        return _hash(f"{header.patient_id}\x1f{header.study_id}\x1f{header.series_id}")


def survey(chunk: Chunk, keep: bool = False) -> list[Entry]:
    """What the files of a chunk make, in the order of their paths; files that are plainly no images are left out.

    The chunk's DICOM files are grouped as if they were all of their folder. Where they are not (`chunk.whole` is false),
    series of several files are referred to as `folder#series=KEY`.

    Args:
        keep: fill `Entry.headers`.
    """
    from medfm.io.dataset import read_header
    from medfm.io.group import group_folder, scan_file
    from medfm.io.load import peek

    scanned: list[Any] = []
    headers: dict[Path, Header] = {}
    entries: list[Entry] = []
    for path in chunk.paths:
        kind = kind_of_file(path)
        if not kind:
            continue
        try:
            if kind != "dicom":
                seen = peek(path)
                entries.append(Entry(str(path), (path,), kind, seen, seen.problem))
                continue
            if not path.stat().st_size:
                entries.append(Entry(str(path), (path,), "", None, f"'{path}' is empty"))
                continue
            header = read_header(path)
        except MedfmError as error:
            entries.append(Entry(str(path), (path,), "", None, str(error)))
            continue
        except OSError as error:
            said = f"'{path}' cannot be read: {error.strerror or type(error).__name__}"
            entries.append(Entry(str(path), (path,), "", None, said))
            continue
        scanned.append(scan_file(path, header.dataset))
        if keep:
            headers[path] = header
    # Files that could not be read are not in it, so that a volume is not taken for complete.
    complete = chunk.whole and not any(not e.kind for e in entries)
    for series in group_folder(Path(chunk.folder), scanned, complete):
        entries.append(_entry(series, headers))
    return sorted(entries, key=lambda e: e.path)


def _entry(series: Series, headers: dict[Path, Header]) -> Entry:
    if not series.slices:  # the header is damaged
        return Entry(series.path, series.files, "", None, series.problem)
    uids = {one.path: uid_hash(one.header) for one in series.slices}
    if len(series.files) == 1 and series.path != str(series.files[0]):
        uids = {}  # some frames of a file: its other frames have the same UID and are no copies
    return Entry(
        path=series.path,
        files=series.files,
        kind=series.kind,
        header=series.header,
        problem=series.problem,
        repairs=series.repairs,
        uids=tuple(uids.get(path, "") for path in series.files),
        headers={path: headers[path] for path in series.files if path in headers},
        series=series,
    )


def load(entry: Entry, modality: str = "", tilt: Literal["refuse", "resample"] = "refuse") -> Image:
    """The image of an entry, as `load_image(entry.path)` gives it, from the headers that were kept.

    Raises:
        DataError: as `load_image`.
    """
    from medfm.io.load import load_image

    series = entry.series
    if series is None or len(entry.headers) < len(entry.files):
        return load_image(entry.path, modality, tilt)
    from medfm.io.dicom import read_single
    from medfm.io.quiet import quiet
    from medfm.io.series import read_dose, read_stack

    with quiet():
        if series.layout is not None:
            image = read_stack(series, dict(entry.headers), entry.path, None, tilt)
        elif series.kind == "dose":
            image = read_dose(series, dict(entry.headers), entry.path)
        else:
            image = read_single(entry.headers[entry.files[0]])
    declared = modality if modality and image.modality == "OT" else image.modality
    return replace(image, modality=declared)


def kind_of_file(path: Path) -> str:
    """ "dicom", "nifti" or "picture" by suffix, or by the DICM prefix where the suffix says nothing; "" for other files."""
    from medfm.io.load import _kind

    return _kind(path)


def uid_hash(header: ImageHeader) -> str:
    """16 hexadecimal digits of a hash of the SOP Instance UID; "" where there is none."""
    return _hash(header.image_id) if header.image_id else ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def name_parts(chunk: Chunk, entries: Collection[Entry]) -> dict[str, list[int]]:
    """Part -> places in `chunk.names` of its files."""
    place = {name: n for n, name in enumerate(chunk.names)}
    found: dict[str, set[int]] = {}
    for entry in entries:
        found.setdefault(entry.part, set()).update(place[path.name] for path in entry.files)
    return {part: sorted(places) for part, places in found.items()}


def spanning(chunks: Collection[Collection[str]]) -> set[str]:
    """Parts that lie in more than one of the chunks of a folder."""
    counts = Counter(part for parts in chunks for part in parts)
    return {part for part, count in counts.items() if count > 1}


def header_as_json(header: ImageHeader, ids: bool = True) -> dict[str, Any]:
    """The header as JSON, without defaults; without `ids` it names neither patient, study, series nor instance."""
    names = [f for f in fields(header) if ids or f.name not in ID_FIELDS]
    return {f.name: getattr(header, f.name) for f in names if getattr(header, f.name) != f.default}


def header_from_json(values: dict[str, Any]) -> ImageHeader:
    # Most texts are the same in a million files: one copy of each is kept.
    texts: dict[str, Any] = {
        k: sys.intern(v) if type(v) is str and k not in ("series_id", "image_id") else v for k, v in values.items()
    }
    shape = values.get("shape")
    return ImageHeader(**{**texts, "shape": None if shape is None else tuple(shape)})
