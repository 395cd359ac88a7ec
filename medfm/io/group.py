"""Which DICOM files make one image: by folder, series and geometry.

A series may mix scouts with its volume, three orientations, magnitude with phase, or two sizes: each part is a `Series` of its
own, with a key that depends on the series and its geometry alone, so that the same files give the same key anywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from medfm.errors import DataError
from medfm.io.dataset import read_header, series_files
from medfm.io.header import ImageHeader
from medfm.io.reference import join_reference
from medfm.io.slices import Slice, slices_of
from medfm.io.stack import Fault, Layout, arrange

if TYPE_CHECKING:
    from pydicom import Dataset

SeriesKind = Literal["image", "stack", "multiframe", "mosaic", "4d", "cine", "segmentation", "contours", "dose", "no image"]
NOT_IMAGES = ("segmentation", "contours", "no image")


@dataclass(frozen=True, eq=False)
class Series:
    """Files that make one image, or one object that is none.

    Attributes:
        path: the reference by which `load_image` loads it.
        files: its files, sorted by name.
        kind: what it is.
        header: of its first file, with the shape of the whole and the problem, if any.
        problem: why `load_image` refuses it, as far as headers tell; "" where it does not.
        repairs: what `load_image` repairs or sets apart, in words.
        key: 12 hexadecimal digits that select it within its folder.
        slices, layout: what `problem` was judged by; the layout is None where there is none.
        scout: a localizer.
    """

    path: str
    files: tuple[Path, ...] = field(repr=False)
    kind: SeriesKind
    header: ImageHeader
    problem: str = ""
    repairs: tuple[str, ...] = ()
    key: str = ""
    slices: tuple[Slice, ...] = field(default=(), repr=False)
    layout: Layout | None = field(default=None, repr=False)
    scout: bool = False


@dataclass(frozen=True)
class Scanned:
    """One file, read without its pixels: its slices, or why it could not be read."""

    path: Path
    slices: tuple[Slice, ...] = ()
    problem: str = ""


def scan_file(path: Path, dataset: Dataset | None = None) -> Scanned:
    """Read one file's header. Damage is recorded and not raised."""
    try:
        return Scanned(path, slices_of(dataset if dataset is not None else read_header(path).dataset, path))
    except DataError as error:
        return Scanned(path, (), str(error).removeprefix(f"'{path}'").lstrip(": "))


def find_series(
    files: Sequence[Path], datasets: Sequence[Dataset | None] | None = None, scanned: Iterable[Scanned] | None = None
) -> list[Series]:
    """Group DICOM files into series, folder by folder, by their headers alone.

    Args:
        files: DICOM files of any folders. Files of one folder that are not given play no part, except that a series is only
            referred to by its folder's path where all DICOM files of the folder are given.
        datasets: their headers, where they are at hand.
        scanned: what `scan_file` gave of them, where another process did that.
    """
    if scanned is None:
        given = datasets if datasets is not None else [None] * len(files)
        scanned = [scan_file(Path(path), dataset) for path, dataset in zip(files, given, strict=True)]
    folders: dict[Path, list[Scanned]] = defaultdict(list)
    for one in scanned:
        folders[one.path.parent].append(one)
    return [series for folder, members in folders.items() for series in group_folder(folder, members)]


def group_folder(folder: Path, scanned: Sequence[Scanned], complete: bool | None = None) -> list[Series]:
    """The series of one folder's files, the largest first within each DICOM series.

    Args:
        complete: whether `scanned` holds all DICOM files of the folder; None looks.
    """
    broken = [
        Series(str(one.path), (one.path,), "no image", ImageHeader("dicom", problem=one.problem), one.problem)
        for one in scanned
        if one.problem
    ]
    found = group_slices([s for one in scanned for s in one.slices], folder)
    mains = [s for s in found if s.kind not in NOT_IMAGES and not s.scout]
    if complete is None:
        # A look into the folder only where its own path could be the reference.
        complete = len(mains) == 1 and {one.path.name for one in scanned} >= {path.name for path in series_files(folder)}
    main, _ = choose_main(found)
    if complete and main is not None and not broken and len(main.files) > 1:
        aside = set_apart(main, found)
        found = [replace(s, path=str(folder), repairs=(*aside, *s.repairs)) if s is main else s for s in found]
    return found + broken


def choose_main(found: Sequence[Series]) -> tuple[Series | None, str]:
    """(the one series that a folder stands for, "") or (None, why there is none).

    Scouts and objects that are no images are set apart; a report or a segmentation inside the very series is a fault.
    """
    images = [s for s in found if s.kind not in NOT_IMAGES]
    mains = [s for s in images if not s.scout] or images
    if len(mains) != 1:
        return None, _mixture(mains, found)
    main = mains[0]
    for other in found:
        lost = other.kind == "no image" and other.header.shape is None and other.problem.startswith("holds no pixels")
        if lost or (other.kind in NOT_IMAGES and other.header.series_id == main.header.series_id):
            return None, f"'{other.files[0].name}' {other.problem}"
    return main, ""


def set_apart(main: Series, found: Sequence[Series]) -> tuple[str, ...]:
    """What lies beside `main` in its folder, in words."""
    scouts = sum(len(s.files) for s in found if s.scout and s is not main)
    others = Counter(s.kind for s in found if s.kind in NOT_IMAGES)
    words = [f"{scouts} scout{'s' * (scouts > 1)} (ImageType LOCALIZER) set apart"] if scouts else []
    words += [f"{n} other object{'s' * (n > 1)} in the folder left alone ({kind})" for kind, n in sorted(others.items())]
    return tuple(words)


def group_slices(slices: Sequence[Slice], folder: Path | None = None) -> list[Series]:
    """Series of slices that lie in one folder (or in one file, where `folder` is None)."""
    by_series: dict[tuple[str, str, str], list[Slice]] = defaultdict(list)
    for one in slices:
        by_series[one.header.patient_id, one.header.study_id, one.header.series_id].append(one)
    found: list[Series] = []
    for members in by_series.values():
        found += _one_series(members)
    found = _with_keys(found)
    return [replace(s, path=_path(s, folder)) for s in found]


def _path(series: Series, folder: Path | None) -> str:
    if len(series.files) == 1:
        whole = all(s.frame is None for s in series.slices) or len(series.slices) == series.slices[0].header.frames
        return str(series.files[0]) if whole else join_reference(series.files[0], series=series.key)
    return join_reference(folder if folder is not None else series.files[0].parent, series=series.key)


def _one_series(members: list[Slice]) -> list[Series]:
    """The parts of one DICOM series."""
    alone = [s for s in members if s.header.problem or s.kind in (*NOT_IMAGES, "cine", "dose")]
    rest = [s for s in members if not (s.header.problem or s.kind in (*NOT_IMAGES, "cine", "dose"))]
    found = [_whole_file(s) for s in alone]
    scouts = [s for s in rest if s.scout]
    if 0 < len(scouts) < len(rest):
        found += _parts(scouts, scout=True) + _parts([s for s in rest if not s.scout])
    elif rest:
        found += _parts(rest, scout=bool(scouts))
    return found


def _whole_file(one: Slice) -> Series:
    kind: SeriesKind
    if one.kind in NOT_IMAGES or one.kind in ("cine", "dose", "mosaic"):
        kind = one.kind  # type: ignore[assignment]
    else:
        kind = "multiframe" if one.kind == "frames" else "image"
    problem = one.header.problem or one.fault
    return Series("", (one.path,), kind, replace(one.header, problem=problem), problem, slices=(one,), scout=one.scout)


def _parts(slices: list[Slice], scout: bool = False) -> list[Series]:
    """Slices of one series split by geometry, then by contrast."""
    placed = sum(s.placed for s in slices)
    if slices[0].kind == "plane" and (len(slices) == 1 or (placed == 0 and not any(s.fault for s in slices))):
        return [replace(_whole_file(s), scout=scout) for s in slices]
    if placed < len(slices) or any(s.fault for s in slices):
        # Files that lost their place may belong anywhere: without them the rest would look complete.
        return [_series(slices, scout)]
    found = [_series(part, scout) for group in _by_geometry(slices) for part in _by_contrast(group)]
    return sorted(found, key=lambda s: -len(s.slices))


def _by_geometry(slices: list[Slice]) -> list[list[Slice]]:
    """Slices of one size, orientation (within half a pixel) and spacing (within a thousandth)."""
    groups: list[list[Slice]] = []
    for one in slices:
        for group in groups:
            if not difference(group[0], one):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def difference(first: Slice, second: Slice) -> str:
    """In what two slices cannot share a grid, in words; "" where they can."""
    found = []
    for what, a, b in (
        ("Modality", first.header.modality, second.header.modality),
        ("Rows", first.rows, second.rows),
        ("Columns", first.columns, second.columns),
        ("PhotometricInterpretation", first.header.photometric, second.header.photometric),
        ("kind", first.kind, second.kind),
    ):
        if a != b:
            found.append(f"{what} ({', '.join(sorted((str(a), str(b))))})")
    if first.frame_of_reference != second.frame_of_reference:
        found.append("frame of reference")
    gap = np.abs(np.subtract(first.spacing, second.spacing)).max()
    if gap > 1e-3 * max(first.spacing):
        found.append(f"pixel spacing by up to {gap:.3g} mm")
    turn = _angle(first, second)
    # Half a pixel at the picture's far edge, within what rounded cosines need.
    if turn > min(0.5, max(0.06, math.degrees(0.5 / max(first.rows, first.columns, 1)))):
        found.append(f"orientation by up to {turn:.2g} degrees")
    return " and ".join(found)


def _angle(first: Slice, second: Slice) -> float:
    a, b = np.reshape(first.cosines or np.zeros(6), (2, 3)), np.reshape(second.cosines or np.zeros(6), (2, 3))
    return float(np.degrees(np.arccos(np.clip((a * b).sum(axis=1).min(), -1, 1))))


def _by_contrast(group: list[Slice]) -> list[list[Slice]]:
    """Split images that share places by ImageType (magnitude, phase, water, fat), by CT kernel, then by echo where something
    else orders the rest, but only where each part covers the same places: an ImageType that merely varies splits nothing.
    """
    for value in (lambda s: s.image_type, lambda s: (s.kernel,), lambda s: dict(s.order).get("EchoTime")):
        parts: dict[object, list[Slice]] = defaultdict(list)
        for one in group:
            parts[value(one)].append(one)
        if len(parts) < 2:
            continue
        places = [Counter(_place(s) for s in part) for part in parts.values()]
        echoes_alone = not isinstance(next(iter(parts)), tuple) and max(places[0].values()) == 1
        if all(p == places[0] for p in places) and not echoes_alone:
            return [piece for part in parts.values() for piece in _by_contrast(part)]
    return [group]


def _place(one: Slice) -> tuple[float, ...]:
    return tuple(round(v, 2) + 0.0 for v in one.position or ())


def _series(slices: list[Slice], scout: bool) -> Series:
    files = tuple(sorted({s.path for s in slices}))
    first = slices[0]
    problem, layout = "", None
    if len(slices) > 1 or first.kind in ("frames", "mosaic"):
        try:
            _refuse_copies(slices)
            _refuse_lost_parts(slices)
            layout = arrange(slices)
            if first.kind == "mosaic" and len(layout.order[0]) > 1:
                layout = None
                raise Fault("mosaics lie at different positions, so they are no time series of one volume")
            problem = layout.tilt_fault if layout.tilted else ""
        except Fault as fault:
            problem = str(fault)
    kind: SeriesKind = "image"
    if layout is not None and len(layout.order) > 1:
        kind = "4d"
    elif first.kind == "mosaic":
        kind = "mosaic"
    elif first.kind == "frames":
        kind = "multiframe"
    elif len(slices) > 1:
        kind = "stack"
    if layout is not None:
        # The lowest slice first, so that headers and keys do not depend on file names.
        first = slices[layout.order[0][0]]
    header = replace(first.header, shape=_shape(first, slices, layout), problem=problem)
    return Series("", files, kind, header, problem, slices=tuple(slices), layout=layout, scout=scout)


def _refuse_copies(slices: list[Slice]) -> None:
    seen: dict[tuple[str, int | None], Slice] = {}
    copies: list[tuple[Slice, Slice]] = []
    for one in slices:
        identity = (one.header.image_id, one.frame)
        if one.header.image_id and identity in seen:
            copies.append((seen[identity], one))
        seen.setdefault(identity, one)
    if copies:
        names = " and ".join(s.path.name for s in copies[0])
        raise Fault(f"duplicate slices: {names} are the same image (SOPInstanceUID); {len(copies)} images occur twice")


def _refuse_lost_parts(slices: list[Slice]) -> None:
    """An enhanced object may be cut into several files, a concatenation, which counts them (PS3.3 C.7.6.16.2.2.4)."""
    total, here = max(s.parts for s in slices), len({s.path for s in slices})
    if here < total:
        raise Fault(f"{here} of the {total} files of a concatenation; all parts in one folder are read as one volume")


def _shape(first: Slice, slices: Sequence[Slice], layout: Layout | None) -> tuple[int, ...]:
    deep = len(layout.order[0]) * first.count if layout is not None else len(slices) * first.count
    times = len(layout.order) if layout is not None else 1
    colour = (3,) if first.header.shape and first.header.shape[-1] == 3 and first.header.photometric[:4] != "MONO" else ()
    return (first.columns, first.rows, deep, *((times,) if times > 1 else ()), *colour)


def _with_keys(found: list[Series]) -> list[Series]:
    named: dict[str, list[Series]] = defaultdict(list)
    for series in found:
        named[_signature(series)].append(series)
    keyed: dict[int, str] = {}
    for signature, same in named.items():
        for series in same:
            # Equal geometry twice in one series: told apart by an instance, never by a running number, which a file that comes
            # later would shift, so that a key would mean another image.
            instance = min(one.header.image_id for one in series.slices) if len(same) > 1 else ""
            keyed[id(series)] = hashlib.sha256(f"{signature}|{instance}".encode()).hexdigest()[:12]
    return [replace(series, key=keyed[id(series)]) for series in found]


def _signature(series: Series) -> str:
    """The series and its geometry. The UIDs enter a hash only."""
    one = min(series.slices, key=lambda s: (s.header.image_id, s.frame or 0))
    kind = "stack" if series.kind in ("stack", "4d", "image", "multiframe") else series.kind
    values = [f"{v:.1f}" for v in (*(one.cosines or ()), *one.spacing)]
    header = one.header
    echoes = {dict(s.order).get("EchoTime") for s in series.slices}
    parts = (
        *(header.series_id, header.study_id, kind, header.modality, one.rows, one.columns, series.scout),
        # Parts that geometry alone does not tell apart. What has no place, as a film, is known by its instance.
        *(header.photometric, one.frame_of_reference, one.kernel, echoes.pop() if len(echoes) == 1 else ""),
        "" if one.placed else (header.image_id, one.frame),
    )
    return "|".join(map(str, (*parts, *(v.replace("-0.0", "0.0") for v in values), *one.image_type)))


def _mixture(mains: Sequence[Series], found: Sequence[Series]) -> str:
    """Why a folder stands for no single series."""
    if not mains:
        return found[0].problem and f"'{found[0].files[0].name}' {found[0].problem}" if found else "holds no image"
    ids = Counter(s.header.series_id for s in mains for _ in s.files)
    patients = len({s.header.patient_id for s in mains})
    if patients > 1:
        reason = f"mixed patients: files of {patients} patients in {len(ids)} series"
    elif len(ids) > 1:
        sizes = ", ".join(str(n) for _, n in ids.most_common(5))
        reason = f"mixed series: {len(ids)} series (of {sizes} files)"
    else:
        what = ""
        first = mains[0].slices[0]
        for other in mains[1:]:
            what = what or difference(first, other.slices[0])
        reason = f"one series of {len(mains)} images or stacks"
        reason += f" that differ in {what}" if what else " (several contrasts, or single films)"
    mains = sorted(mains, key=lambda s: -len(s.slices))
    listed = [f"'{s.path}' ({_words(s)})" for s in mains[:8]]
    more = f" and {len(mains) - 8} more" if len(mains) > 8 else ""
    return f"{reason}; load one by its reference: {', '.join(listed)}{more}"


def _words(series: Series) -> str:
    size = " x ".join(map(str, series.header.shape or ()))
    words = f"{series.header.modality}, {size}" if size else series.header.modality
    return f"{words}: {series.problem}" if series.problem else words


def by_key(found: Sequence[Series], key: str) -> Series | None:
    """The series that `key` selects."""
    return next((s for s in found if s.key == key), None)


__all__ = ["Mapping", "Scanned", "Series", "find_series", "group_folder", "group_slices", "scan_file"]
