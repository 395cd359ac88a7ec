"""Enhanced multi-frame objects made from real ones (Philips, Siemens) and from series: frames in other orders, and faults."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.conformance.cases import FAULT, FOURD, FRAMES, Case
from benchmarks.conformance.space import Truth
from benchmarks.conformance.synth import Base, base_truth, uid
from benchmarks.conformance.truth import frames_truth, read

if TYPE_CHECKING:
    from pydicom import Dataset

Change = Callable[["Dataset"], None]


def frames(dataset: Dataset) -> np.ndarray:
    """(frame, row, column) stored, writable."""
    dtype = np.dtype(f"<{'i' if dataset.PixelRepresentation else 'u'}{dataset.BitsAllocated // 8}")
    return np.frombuffer(dataset.PixelData, dtype).reshape(int(dataset.NumberOfFrames), dataset.Rows, dataset.Columns).copy()


def put(dataset: Dataset, array: np.ndarray, groups: list[Dataset]) -> None:
    dataset.NumberOfFrames = len(array)
    dataset.PixelData = np.ascontiguousarray(array).tobytes()
    dataset.PerFrameFunctionalGroupsSequence = groups


def _groups(dataset: Dataset) -> list[Dataset]:
    return list(dataset.PerFrameFunctionalGroupsSequence)


def _order(dataset: Dataset, order: Callable[[int], np.ndarray]) -> None:
    which = order(int(dataset.NumberOfFrames))
    groups = _groups(dataset)
    put(dataset, frames(dataset)[which], [groups[n] for n in which])


def _shuffle(n: int) -> np.ndarray:
    return np.random.default_rng(5).permutation(n)


def _reverse(n: int) -> np.ndarray:
    return np.arange(n)[::-1]


def _position(group: Dataset) -> Dataset:
    return group.PlanePositionSequence[0]


def _cosines(dataset: Dataset) -> np.ndarray:
    for item in (dataset.PerFrameFunctionalGroupsSequence[0], *dataset.get("SharedFunctionalGroupsSequence", [])):
        if "PlaneOrientationSequence" in item:
            return np.array(item.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    raise ValueError("no orientation")


def _own_rescale(dataset: Dataset) -> None:
    from pydicom.dataset import Dataset as Item

    for shared in dataset.get("SharedFunctionalGroupsSequence", []):
        if "PixelValueTransformationSequence" in shared:
            del shared.PixelValueTransformationSequence
    for n, group in enumerate(_groups(dataset)):
        item = Item()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = f"{1.5 + 0.25 * (n % 4)}", f"{-10 * (n % 3)}", "US"
        group.PixelValueTransformationSequence = [item]


def _shared_orientation(dataset: Dataset) -> None:
    """What all frames share moved where the standard wants it: into the shared groups."""
    from pydicom.dataset import Dataset as Item

    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Item()])[0]
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        for group in _groups(dataset):
            if name in group:
                shared[name] = copy.deepcopy(group[name])
                del group[name]
    dataset.SharedFunctionalGroupsSequence = [shared]


def _tomosynthesis(dataset: Dataset) -> None:
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.13.1.3"
    dataset.Modality = "MG"


def _drop_one(dataset: Dataset) -> None:
    array, groups = frames(dataset), _groups(dataset)
    keep = [n for n in range(len(array)) if n != len(array) // 2]
    put(dataset, array[keep], [groups[n] for n in keep])


def _repeat_one(dataset: Dataset) -> None:
    array, groups = frames(dataset), _groups(dataset)
    keep = [*range(len(array)), 2]
    put(dataset, array[keep], [copy.deepcopy(groups[n]) for n in keep])


def _shear(dataset: Dataset) -> None:
    _, column = _cosines(dataset)
    for n, group in enumerate(_groups(dataset)):
        where = np.array(_position(group).ImagePositionPatient, float)
        _position(group).ImagePositionPatient = [f"{v:.6f}" for v in where + 0.4 * n * column]


def _uneven(dataset: Dataset) -> None:
    row, column = _cosines(dataset)
    for n, group in enumerate(_groups(dataset)):
        where = np.array(_position(group).ImagePositionPatient, float)
        _position(group).ImagePositionPatient = [f"{v:.6f}" for v in where + 0.05 * n * n * np.cross(row, column)]


def _no_place(dataset: Dataset, only: int | None = None) -> None:
    for n, group in enumerate(_groups(dataset)):
        if only in (None, n):
            del group.PlanePositionSequence


def _mixed(dataset: Dataset) -> None:
    row, column = _cosines(dataset)
    from pydicom.dataset import Dataset as Item

    for shared in dataset.get("SharedFunctionalGroupsSequence", []):
        if "PlaneOrientationSequence" in shared:
            del shared.PlaneOrientationSequence
    for n, group in enumerate(_groups(dataset)):
        item = Item()
        one, two = (row, column) if n % 2 else (column, np.cross(row, column))
        item.ImageOrientationPatient = [f"{v:.6f}" for v in (*one, *two)]
        group.PlaneOrientationSequence = [item]


def _fewer_groups(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence = _groups(dataset)[:-2]


def _fewer_pixels(dataset: Dataset) -> None:
    dataset.PixelData = frames(dataset)[:-2].tobytes()


def _two_moments(dataset: Dataset) -> None:
    from pydicom.dataset import Dataset as Item

    array, groups = frames(dataset), _groups(dataset)
    both = []
    for moment in (1, 2):
        for group in groups:
            group = copy.deepcopy(group)
            content = (group.get("FrameContentSequence") or [Item()])[0]
            content.TemporalPositionIndex = moment
            group.FrameContentSequence = [content]
            both.append(group)
    put(dataset, np.concatenate([array, array // 2]), both)


RIGHT: dict[str, Change] = {
    "frames shuffled": partial(_order, order=_shuffle),
    "frames reversed": partial(_order, order=_reverse),
    "a rescale per frame": _own_rescale,
    "geometry in the shared groups": _shared_orientation,
    "as breast tomosynthesis": _tomosynthesis,
}
WRONG: dict[str, tuple[str, Change]] = {
    "a frame missing": ("missing", _drop_one),
    "a frame twice": ("duplicate|twice", _repeat_one),
    "frames sheared": ("tilt|shear", _shear),
    "frames unevenly spaced": ("uniform|spacing", _uneven),
    "a frame without position": ("position|place", partial(_no_place, only=3)),
    "frames of two orientations": ("orientation", _mixed),
    "fewer functional groups than frames": ("frames|groups", _fewer_groups),
    "fewer pixels than frames": ("truncated|claims|bytes|frames", _fewer_pixels),
}


def _compressed(dataset: Dataset, syntax: str) -> None:
    dataset.compress(syntax, generate_instance_uid=False)


for _name, _syntax in (("RLE", "1.2.840.10008.1.2.5"), ("JPEG-LS", "1.2.840.10008.1.2.4.80")):
    RIGHT[_name] = partial(_compressed, syntax=_syntax)


def enhanced_cases(data: Path, bases: list[Base], work: Path) -> Iterator[Case]:
    root = data / "dicom" / "dicom2nifti"
    for vendor in ("philips_enhanced", "siemens_multiframe"):
        for source in sorted((root / vendor / "anatomical" / "001").glob("*.dcm")):
            original = read(source)
            for name, change in RIGHT.items():
                path = _saved(original, change, work / vendor / f"{name}.dcm")
                yield Case(f"{vendor}: {name}", FRAMES, path, partial(_truth, path), must=True)
            for name, (words, change) in WRONG.items():
                path = _saved(original, change, work / vendor / f"{name}.dcm")
                yield Case(f"{vendor}: {name}", FAULT, path, partial(_repaired, source, name), fault=words)
            path = _saved(original, _two_moments, work / vendor / "moments.dcm")
            yield Case(f"{vendor}: two moments", FOURD, path, partial(_truth, path))
    for base in bases:
        yield from _legacy(base, work)


def _saved(original: Dataset, change: Change, path: Path) -> Path:
    dataset = copy.deepcopy(original)
    change(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


def _truth(path: Path) -> list[Truth]:
    return [frames_truth(path)]


def _repaired(source: Path, name: str) -> list[Truth]:
    """A frame that is there twice may be dropped; nothing else can be mended."""
    return [frames_truth(source)] if name == "a frame twice" else []


def _legacy(base: Base, work: Path) -> Iterator[Case]:
    """The series as one Legacy Converted Enhanced object, made by highdicom; a PET with a rescale per slice."""
    import warnings

    from highdicom.legacy import (
        LegacyConvertedEnhancedCTImage,
        LegacyConvertedEnhancedMRImage,
        LegacyConvertedEnhancedPETImage,
    )

    kinds = {"CT": LegacyConvertedEnhancedCTImage, "MR": LegacyConvertedEnhancedMRImage, "PT": LegacyConvertedEnhancedPETImage}
    for modality in (base.name, "PT"):
        slices = base.copy()
        for n, dataset in enumerate(slices):
            dataset.Modality = modality
            if modality == "PT":
                dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.128"
                dataset.RescaleSlope, dataset.RescaleIntercept = f"{0.5 + 0.125 * (n % 5)}", "0"
            dataset.setdefault("AccessionNumber", "")
            dataset.setdefault("Manufacturer", "made")
            dataset.SeriesNumber = dataset.get("SeriesNumber") or 1
        shuffled = [slices[n] for n in np.random.default_rng(7).permutation(len(slices))]
        path = work / "legacy" / f"{base.name}-{modality}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made = kinds[modality](
                    legacy_datasets=shuffled,
                    series_instance_uid=uid("legacy", base.name, modality),
                    series_number=7,
                    sop_instance_uid=uid("legacy", base.name, modality, 1),
                    instance_number=1,
                )
            except (AttributeError, KeyError, ValueError):  # the series lacks what its module asks for
                continue
            made.save_as(path)
        truth = base_truth(slices)
        yield Case(f"legacy converted enhanced {modality} of {base.name}", FRAMES, path, partial(_given, truth), must=True)


def _given(truth: Truth) -> list[Truth]:
    return [truth]
