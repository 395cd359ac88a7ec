"""A folder that holds one DICOM series -> one volume, or one sentence that says why not.

Slices are ordered by their position along the normal, never by file name or instance number. Everything that would give a
volume whose affine lies (gantry tilt, a missing slice, two spacings, mixed orientations) is refused.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from pydicom import Dataset

from medfm.errors import DataError
from medfm.io.dicom import Plane, has_magic, is_localizer, read_dataset, read_file, read_plane, refusal, units
from medfm.io.geometry import as_spacing, directions, floats, patient_affine, pixel_spacing
from medfm.io.pixels import reading
from medfm.types import Image

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


def series_files(folder: Path) -> list[Path]:
    """The DICOM files directly inside `folder`, sorted by name; hidden files and DICOMDIR are left out."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p.name.upper() != "DICOMDIR")
    return [p for p in files if p.suffix.lower() in DICOM_SUFFIXES or has_magic(p)]


def read_series(folder: str | Path) -> Image:
    """The one series in `folder` as an Image of shape (columns, rows, slices) or (columns, rows, slices, 3).

    Raises:
        DataError: no DICOM inside; several series; scouts, multi-frame objects or reports among the slices; different sizes,
            spacings or orientations; slices without position; a position that occurs twice; gantry tilt; missing or unevenly
            spaced slices.
    """
    folder = Path(folder)
    files = series_files(folder)
    if not files:
        raise DataError(f"'{folder}' holds no DICOM files; name one image file, or the folder that directly holds one series")
    if len(files) == 1:
        return read_file(files[0])
    datasets = [read_dataset(path) for path in files]
    with reading(str(folder)):
        _check_alike(datasets, files, folder)
        axes, spacing, notes = _common_geometry(datasets, folder)
        positions = np.array([floats(d, "ImagePositionPatient") for d in datasets])
        order = np.argsort(positions @ axes[2], kind="stable")
        step = _step(positions[order], axes, spacing, folder)
    first, volume, spare = _stack([datasets[n] for n in order], [files[n] for n in order], folder)
    dataset = datasets[order[0]]
    with reading(str(folder)):
        kind, more = units(dataset, first, volume)
        modality, bits = str(dataset.get("Modality") or "OT"), int(dataset.get("BitsStored") or 0) or None
    return Image(
        # (slice, row, column[, 3]) -> (i, j, k[, 3]), a view.
        array=volume.transpose(2, 1, 0, *range(3, volume.ndim)),
        affine=patient_affine(axes, spacing, step, positions[order[0]]),
        modality=modality,
        intensity_units=kind,
        source=str(folder),
        photometric=first.photometric,
        windows=first.windows,
        last_axis="colour" if first.photometric == "RGB" else None,
        bits_stored=bits,
        notes=tuple(notes + spare + more),
    )


def _check_alike(datasets: list[Dataset], files: list[Path], folder: Path) -> None:
    """Refuse a folder whose files are not slices of one series."""
    series = Counter(str(d.get("SeriesInstanceUID", "")) for d in datasets)
    if len(series) > 1:
        sizes = ", ".join(str(n) for _, n in series.most_common(5))
        raise DataError(f"'{folder}' holds {len(series)} series (of {sizes} files); put each into a folder of its own")
    for dataset, path in zip(datasets, files, strict=True):
        problem = refusal(dataset)
        if problem:
            raise DataError(f"'{folder}': '{path.name}' {problem}")
    scouts = sum(map(is_localizer, datasets))
    if 0 < scouts < len(datasets):
        raise DataError(f"'{folder}': {scouts} of {len(datasets)} files are scouts (ImageType LOCALIZER); move them away")
    copies = [uid for uid, n in Counter(str(d.get("SOPInstanceUID", "")) for d in datasets).items() if n > 1 and uid]
    if copies:
        twins = [p.name for p, d in zip(files, datasets, strict=True) if str(d.get("SOPInstanceUID", "")) == copies[0]]
        raise DataError(
            f"'{folder}': duplicate slices: {' and '.join(twins[:3])} are the same image; {len(copies)} images occur twice"
        )
    for keyword in ("Rows", "Columns", "PhotometricInterpretation", "SamplesPerPixel", "Modality", "PixelRepresentation"):
        values = Counter(str(d.get(keyword)) for d in datasets)
        if len(values) > 1:
            raise DataError(f"'{folder}': slices differ in {keyword}: {', '.join(sorted(values))}")


def _common_geometry(datasets: list[Dataset], folder: Path) -> tuple[np.ndarray, tuple[float, float], list[str]]:
    """(axes, (row, column) spacing, notes) that all slices share. The spacing is 1 mm with a note where there is none."""
    axes = [directions(d) for d in datasets]
    placed = [a is not None and len(floats(d, "ImagePositionPatient")) == 3 for a, d in zip(axes, datasets, strict=True)]
    if not all(placed):
        raise DataError(
            f"'{folder}': {placed.count(False)} of {len(placed)} files have no usable ImageOrientationPatient and "
            "ImagePositionPatient, so the slices cannot be ordered; load them one by one"
        )
    directed = np.stack([a for a in axes if a is not None])
    angles = np.degrees(np.arccos(np.clip((directed[:, :2] * directed[0, :2]).sum(-1).min(axis=1), -1, 1)))
    turned = int((angles > 0.5).sum())
    if turned:
        raise DataError(
            f"'{folder}': slices differ in orientation ({turned} of {len(angles)} are turned by up to {angles.max():.0f} "
            "degrees against the first); put each orientation into a folder of its own"
        )
    spacings = [pixel_spacing(d) for d in datasets]
    spread = np.ptp([s for s, _ in spacings], axis=0)
    if spread.max() > 1e-3 * max(spacings[0][0]):
        raise DataError(f"'{folder}': slices differ in pixel spacing by up to {spread.max():.3g} mm")
    spacing, note = spacings[0]
    if spacing[0] <= 0:
        raise DataError(f"'{folder}': the slices give no pixel spacing, so the volume would have no shape")
    return directed[0], spacing, [note] if note else []


def _step(positions: np.ndarray, axes: np.ndarray, spacing: tuple[float, float], folder: Path) -> np.ndarray:
    """The LPS vector from a slice to the next, of slices sorted along the normal; refuses uneven and sheared stacks.

    Args:
        positions: (n, 3) LPS, mm.
    """
    count = len(positions)
    along = positions @ axes[2]
    gaps = np.diff(along)
    same = gaps < 1e-3
    if same.any():
        places = 1 + int((~same).sum())
        if count % places == 0 and places > 1:
            raise DataError(
                f"'{folder}': {count // places} images at each of {places} positions: a time series, or several echoes or "
                "weightings; put each volume into a folder of its own"
            )
        if places == 1:
            raise DataError(f"'{folder}': all {count} images lie at one position: not a volume")
        raise DataError(f"'{folder}': duplicate slices: {count} images lie at {places} positions")
    # In-plane drift: half a pixel over the stack is more than rounding.
    drift = np.abs((positions - positions[0]) @ axes[:2].T).max()
    if drift > max(0.5 * min(spacing), 0.05):
        angle = np.degrees(np.arctan2(drift, along[-1] - along[0]))
        raise DataError(
            f"'{folder}': gantry tilt: slices shift sideways by {drift:.3g} mm ({angle:.1f} degrees) along the stack, so "
            "the volume is sheared; resample it first, for example with dcm2niix"
        )
    typical = float(np.median(gaps))
    uneven = np.abs(gaps - typical) > max(0.1 * typical, 0.1 if typical > 0.4 else 0.0)
    if uneven.any():
        where = int(np.argmax(np.abs(gaps - typical)))
        ratio = gaps[where] / typical
        if bool(np.all(np.abs(gaps / typical - np.round(gaps / typical)) < 0.1)) and ratio > 1.5:
            missing = int((np.round(gaps / typical) - 1).sum())
            raise DataError(
                f"'{folder}': missing slices: {missing} between the {count} that are there (spacing {typical:.4g} mm, first "
                f"gap after slice {int(np.argmax(uneven)) + 1} along the normal)"
            )
        raise DataError(
            f"'{folder}': slice spacing is not uniform: from {gaps.min():.4g} to {gaps.max():.4g} mm; "
            f"slices {where + 1} and {where + 2} lie {gaps[where]:.4g} mm apart"
        )
    step = (positions[-1] - positions[0]) / (count - 1)
    stray = np.abs(along - (along[0] + np.arange(count) * (step @ axes[2]))).max()
    if stray > 0.25 * typical:
        raise DataError(f"'{folder}': slice spacing is not uniform: a slice lies {as_spacing([stray])} off an even grid")
    return step


def _stack(datasets: list[Dataset], files: list[Path], folder: Path) -> tuple[Plane, np.ndarray, list[str]]:
    """(the first plane, (slice, row, column[, 3]) physical values, notes). Compressed bytes are dropped as slices are
    decoded.
    """
    first: Plane | None = None
    volume = np.empty(0)
    notes: list[str] = []
    for n, (dataset, path) in enumerate(zip(datasets, files, strict=True)):
        plane = read_plane(dataset, str(path))
        for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
            if keyword in dataset:
                del dataset[keyword]
        if first is None:
            first = plane
            volume = np.empty((len(files), *plane.pixels.shape), plane.pixels.dtype)
        if plane.pixels.dtype != volume.dtype:
            # Slices with their own rescale: the volume takes the dtype that holds them all.
            mixed = np.promote_types(volume.dtype, plane.pixels.dtype)
            volume = volume.astype(np.float32 if mixed.kind == "f" else mixed)
        volume[n] = plane.pixels
        notes += [note for note in plane.notes if note not in notes]
    if first is None:
        raise DataError(f"'{folder}' holds no slices")
    return first, volume, [*notes[:3], *([f"and {len(notes) - 3} more notes on single slices"] if len(notes) > 3 else [])]
