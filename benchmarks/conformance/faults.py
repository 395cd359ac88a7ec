"""Geometry faults, each made in a copy of a base series. name -> (words by which a refusal names it, maker).

A maker writes the folder and gives the volume that is right all the same (the duplicates dropped, the scout set apart), or None
where any volume would lie.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.conformance.space import Truth
from benchmarks.conformance.synth import (
    Base,
    Slices,
    base_truth,
    cosines,
    normal,
    pixels,
    place,
    position,
    set_pixels,
    uid,
    write,
)

if TYPE_CHECKING:
    from pydicom import Dataset

Maker = Callable[[Base, Path], Truth | None]


def _gap(slices: Slices) -> np.ndarray:
    return position(slices[1]) - position(slices[0])


def _left_out(base: Base, folder: Path, which: tuple[int, ...]) -> None:
    write([d for n, d in enumerate(base.copy()) if n not in which], folder)


def _copied(base: Base, folder: Path, new_uid: bool, other_pixels: bool = False) -> Truth | None:
    slices = base.copy()
    twin = base.copy()[4]
    if new_uid:
        twin.SOPInstanceUID = uid(base.name, "twin")
    if other_pixels:
        set_pixels(twin, pixels(twin)[::-1])
    write([*slices, twin], folder)
    return None if other_pixels else base_truth(base.slices)


def _shifted(base: Base, folder: Path, offset: Callable[[int, int, np.ndarray, Dataset], np.ndarray]) -> None:
    """Each position moved by offset(slice, count, gap, dataset), mm."""
    slices = base.copy()
    gap = _gap(slices)
    for n, dataset in enumerate(slices):
        place(dataset, position(dataset) + offset(n, len(slices), gap, dataset))
    write(slices, folder)


def _tilted(base: Base, folder: Path, degrees: float) -> Truth:
    """Slices shifted along their columns, as a tilted gantry leaves them. A sheared affine places every voxel rightly."""
    slices = base.copy()
    gap = _gap(slices)
    for n, dataset in enumerate(slices):
        place(dataset, position(dataset) + _shear(n, len(slices), gap, dataset, degrees))
    write(slices, folder)
    return base_truth(slices)


def _shear(n: int, count: int, gap: np.ndarray, dataset: Dataset, degrees: float) -> np.ndarray:
    _, column = cosines(dataset)
    return column * n * float(np.linalg.norm(gap)) * np.tan(np.radians(degrees))


def _in_plane(n: int, count: int, gap: np.ndarray, dataset: Dataset) -> np.ndarray:
    return cosines(dataset)[0] * (6.0 if n == count // 2 else 0.0)


def _two_spacings(n: int, count: int, gap: np.ndarray, dataset: Dataset) -> np.ndarray:
    return gap * max(0, n - count // 2) * 0.6


def _one_off(n: int, count: int, gap: np.ndarray, dataset: Dataset) -> np.ndarray:
    return gap * (0.4 if n == count // 2 else 0.0)


def _growing(n: int, count: int, gap: np.ndarray, dataset: Dataset) -> np.ndarray:
    return gap * 0.02 * n * n


def _other_half(base: Base, folder: Path, change: Callable[[Dataset, int], None], beside: bool = False) -> None:
    """Every second slice changed; or (`beside`) a second whole copy changed, at the same places."""
    slices = base.copy()
    if beside:
        more = base.copy()
        for n, dataset in enumerate(more):
            dataset.SOPInstanceUID = uid(base.name, "more", n)
            change(dataset, n)
        slices += more
    else:
        for n, dataset in enumerate(slices):
            if n % 2:
                change(dataset, n)
    write(slices, folder)


def _series(dataset: Dataset, n: int) -> None:
    dataset.SeriesInstanceUID = uid("another series")


def _patient(dataset: Dataset, n: int) -> None:
    dataset.PatientID, dataset.PatientName = "another", "Another^One"


def _study(dataset: Dataset, n: int) -> None:
    dataset.StudyInstanceUID = uid("another study")


def _frame(dataset: Dataset, n: int) -> None:
    dataset.FrameOfReferenceUID = uid("another frame")


def _turn(dataset: Dataset, n: int) -> None:
    row, column = cosines(dataset)
    dataset.ImageOrientationPatient = [*column.tolist(), *np.cross(row, column).tolist()]


def _turn_a_little(dataset: Dataset, n: int) -> None:
    if n == 5:
        row, column = cosines(dataset)
        a = np.radians(4.0)
        dataset.ImageOrientationPatient = [*(np.cos(a) * row + np.sin(a) * column), *(np.cos(a) * column - np.sin(a) * row)]


def _flip_one(dataset: Dataset, n: int) -> None:
    if n == 5:
        row, column = cosines(dataset)
        dataset.ImageOrientationPatient = [*row.tolist(), *(-column).tolist()]


def _other_pixels(dataset: Dataset, n: int) -> None:
    dataset.PixelSpacing = [float(v) * 1.3 for v in dataset.PixelSpacing]


def _other_size(dataset: Dataset, n: int) -> None:
    set_pixels(dataset, pixels(dataset)[:-8, :-8])


def _other_modality(dataset: Dataset, n: int) -> None:
    dataset.Modality = "PT"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.128"


def _without(dataset: Dataset, n: int, keyword: str, only: int | None = None) -> None:
    if (only is None or n == only) and keyword in dataset:
        del dataset[keyword]


def _every(base: Base, folder: Path, change: Callable[[Dataset, int], None]) -> None:
    slices = base.copy()
    for n, dataset in enumerate(slices):
        change(dataset, n)
    write(slices, folder)


def _raw(dataset: Dataset, n: int, keyword: str, value: object, only: int | None = None) -> None:
    if only is None or n == only:
        dataset.__setattr__(keyword, value)


def _scout(base: Base, folder: Path, own_series: bool, marked: bool = True) -> Truth:
    """A sagittal scout among axial slices (or the reverse)."""
    slices = base.copy()
    scout = base.copy()[0]
    row, column = cosines(scout)
    scout.ImageOrientationPatient = [*column.tolist(), *np.cross(row, column).tolist()]
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"] if marked else scout.get("ImageType")
    scout.SOPInstanceUID = uid(base.name, "scout")
    set_pixels(scout, pixels(scout)[:64, :48])
    if own_series:
        scout.SeriesInstanceUID = uid("scout series")
    write([scout, *slices], folder)
    return base_truth(base.slices)


def _report(base: Base, folder: Path) -> Truth:
    slices = base.copy()
    report = base.copy()[0]
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "ImagePositionPatient"):
        del report[keyword]
    report.Modality = "SR"
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    report.SOPInstanceUID, report.SeriesInstanceUID = uid(base.name, "report"), uid("report series")
    write([*slices, report], folder)
    return base_truth(base.slices)


def _cut(base: Base, folder: Path, how: str) -> None:
    write(base.copy(), folder)
    path = sorted(folder.iterdir())[5]
    raw = path.read_bytes()
    if how == "truncated":
        path.write_bytes(raw[: len(raw) - 3000])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(raw[:132] + bytes(np.random.default_rng(3).integers(0, 256, 4000, np.uint8)))


def _phases(base: Base, folder: Path, missing: bool, tell: bool) -> Truth | None:
    """Every place twice: two moments; `tell` by AcquisitionNumber, TemporalPositionIdentifier and time."""
    slices: Slices = []
    for moment in range(2):
        for n, dataset in enumerate(base.copy()):
            dataset.SOPInstanceUID = uid(base.name, "phase", moment, n)
            dataset.InstanceNumber = moment * len(base.slices) + n + 1
            if tell:
                dataset.AcquisitionNumber = dataset.TemporalPositionIdentifier = moment + 1
                dataset.NumberOfTemporalPositions = 2
                dataset.AcquisitionTime = f"{120000 + 10 * moment}"
            if moment:
                set_pixels(dataset, pixels(dataset) // 2)
            slices.append(dataset)
    if missing:
        del slices[-4]
    write(slices, folder)
    if missing:
        return None
    count = len(base.slices)
    first, second = base_truth(slices[:count]), base_truth(slices[count:])
    return Truth(np.stack([first.array, second.array], axis=-1), first.affine, "space", 0.0, None, "made")


def _segmentation_beside(base: Base, folder: Path) -> Truth:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    slices = base.copy()
    write(slices, folder)
    mask = np.zeros((len(slices), slices[0].Rows, slices[0].Columns), np.uint8)
    mask[2:5, 10:30, 10:30] = 1
    segment = hd.seg.SegmentDescription(
        1, "thing", codes.SCT.Tissue, codes.SCT.Tissue, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    )
    made = hd.seg.Segmentation(
        source_images=slices,
        pixel_array=mask,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=uid("seg"),
        series_number=9,
        sop_instance_uid=uid("seg", 1),
        instance_number=1,
        manufacturer="made",
        manufacturer_model_name="made",
        software_versions="1",
        device_serial_number="1",
    )
    made.save_as(folder / "mask.dcm")
    return base_truth(base.slices)


def _far(base: Base, folder: Path) -> None:
    """Two blocks of one series 200 mm apart."""
    _shifted(base, folder, lambda n, count, gap, d: normal(d) * (200.0 if n >= count // 2 else 0.0))


def _gone(base: Base, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


_MIXED = "series|patient|stud"
_PLACE = "single films|ImagePositionPatient|ImageOrientationPatient|position|orientation|order"
FAULTS: dict[str, tuple[str, Maker]] = {
    "a slice missing": ("missing", partial(_left_out, which=(5,))),
    "three slices missing together": ("missing", partial(_left_out, which=(4, 5, 6))),
    "every place but three empty": ("missing|uniform", partial(_left_out, which=(1, 2, 3, 5, 6, 8))),
    "a file twice": ("duplicate|twice", partial(_copied, new_uid=False)),
    "a slice twice under two UIDs": ("duplicate|twice", partial(_copied, new_uid=True)),
    "two different images at one place": ("duplicate|twice|same position", partial(_copied, new_uid=True, other_pixels=True)),
    "two spacings": ("spacing|uniform|missing", partial(_shifted, offset=_two_spacings)),
    "one slice off its place": ("spacing|uniform", partial(_shifted, offset=_one_off)),
    "growing spacing": ("spacing|uniform", partial(_shifted, offset=_growing)),
    "two blocks far apart": ("missing|uniform|spacing", _far),
    "gantry tilt 1.5 degrees": ("tilt", partial(_tilted, degrees=1.5)),
    "gantry tilt 12 degrees": ("tilt", partial(_tilted, degrees=12.0)),
    "gantry tilt -25 degrees": ("tilt", partial(_tilted, degrees=-25.0)),
    "one slice shifted sideways": ("tilt|sideways|drift|shift", partial(_shifted, offset=_in_plane)),
    "two series, interleaved": (_MIXED, partial(_other_half, change=_series)),
    "two series at the same places": (_MIXED, partial(_other_half, change=_series, beside=True)),
    "two patients, one series UID": (_MIXED, partial(_other_half, change=_patient)),
    "two studies, one series UID": (_MIXED, partial(_other_half, change=_study)),
    "two frames of reference": ("frame", partial(_other_half, change=_frame)),
    "two orientations": ("orientation", partial(_other_half, change=_turn)),
    "one slice turned 4 degrees": ("orientation", partial(_every, change=_turn_a_little)),
    "one slice mirrored": ("orientation", partial(_every, change=_flip_one)),
    "two pixel spacings": ("pixel spacing", partial(_other_half, change=_other_pixels)),
    "two sizes": ("rows|columns|size", partial(_other_half, change=_other_size)),
    "two modalities": ("modalit|SOP|class", partial(_other_half, change=_other_modality)),
    "a slice without position": (_PLACE, partial(_every, change=partial(_without, keyword="ImagePositionPatient", only=4))),
    "no positions": (_PLACE, partial(_every, change=partial(_without, keyword="ImagePositionPatient"))),
    "no orientation": (_PLACE, partial(_every, change=partial(_without, keyword="ImageOrientationPatient"))),
    "no pixel spacing": ("pixel spacing", partial(_every, change=partial(_without, keyword="PixelSpacing"))),
    "all at one position": (
        "one position|at each",
        partial(_every, change=partial(_raw, keyword="ImagePositionPatient", value=[0, 0, 0])),
    ),
    "singular orientation": (
        _PLACE,
        partial(_every, change=partial(_raw, keyword="ImageOrientationPatient", value=[1, 0, 0, 1, 0, 0])),
    ),
    "pixel spacing zero": ("pixel spacing", partial(_every, change=partial(_raw, keyword="PixelSpacing", value=[0, 0]))),
    "a scout of its own series": ("scout|series", partial(_scout, own_series=True)),
    "a scout in the same series": ("scout", partial(_scout, own_series=False)),
    "a scout not marked as one": ("orientation|rows|columns|size", partial(_scout, own_series=False, marked=False)),
    "a report beside": ("series|report|SR", _report),
    "a segmentation beside": ("series|SEG|segmentation", _segmentation_beside),
    "a slice truncated": ("truncated|damaged|cut|short|missing", partial(_cut, how="truncated")),
    "an empty file among the slices": ("empty|damaged|readable|missing|not a DICOM", partial(_cut, how="empty")),
    "a scrambled file among the slices": ("damaged|readable|not a DICOM|no pixels|series", partial(_cut, how="scrambled")),
    "two moments": ("time", partial(_phases, missing=False, tell=True)),
    "two moments, told by instance number alone": ("time", partial(_phases, missing=False, tell=False)),
    "two moments, a slice missing": ("time|missing|duplicate|positions", partial(_phases, missing=True, tell=True)),
    "an empty folder": ("no DICOM", _gone),
}
