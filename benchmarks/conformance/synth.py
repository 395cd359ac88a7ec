"""Series made from real ones: other orders and encodings that must be read, and faults that must not be read wrongly.

A base is a part of a real series (CT of 12 slices, MR of 10), cropped to 96 x 80 so that a case costs little; its truth is
worked out from its own header.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.conformance.cases import FAULT, FOURD, STACK, Case, files_of
from benchmarks.conformance.space import Truth, difference, named
from benchmarks.conformance.truth import LPS_TO_RAS, dcm2niix, plane_affine, read, stack_truth

if TYPE_CHECKING:
    from pydicom import Dataset

Slices = list["Dataset"]
_ROWS, _COLUMNS = 80, 96
_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}


@dataclass(frozen=True)
class Base:
    name: str
    slices: Slices  # sorted along the normal, uncompressed

    def copy(self) -> Slices:
        return copy.deepcopy(self.slices)


def uid(*words: object) -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[str(w) for w in words]))


def pixels(dataset: Dataset) -> np.ndarray:
    """(rows, columns) stored values, uncompressed little endian; writable."""
    kind = "i" if dataset.PixelRepresentation else "u"
    dtype = np.dtype(f"<{kind}{dataset.BitsAllocated // 8}")
    return np.frombuffer(dataset.PixelData, dtype).reshape(dataset.Rows, dataset.Columns).copy()


def set_pixels(dataset: Dataset, array: np.ndarray) -> None:
    dataset.Rows, dataset.Columns = array.shape
    dataset.BitsAllocated = 8 * array.itemsize
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    if dataset.BitsStored > dataset.BitsAllocated or array.dtype.kind == "i":
        dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    dataset.PixelData = np.ascontiguousarray(array).tobytes()
    dataset["PixelData"].VR = "OB" if array.itemsize == 1 else "OW"


def position(dataset: Dataset) -> np.ndarray:
    return np.array(dataset.ImagePositionPatient, float)


def place(dataset: Dataset, where: np.ndarray) -> None:
    dataset.ImagePositionPatient = [f"{v:.8f}"[:16] for v in where]


def cosines(dataset: Dataset) -> np.ndarray:
    return np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)


def normal(dataset: Dataset) -> np.ndarray:
    return np.cross(*cosines(dataset))


def make_base(folder: Path, name: str, count: int) -> Base:
    """`count` slices from the middle of a real series, cropped."""
    datasets = [read(p) for p in files_of(folder)]
    datasets.sort(key=lambda d: float(position(d) @ normal(d)))
    start = (len(datasets) - count) // 2
    chosen = datasets[start : start + count]
    for n, dataset in enumerate(chosen):
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            dataset.decompress(generate_instance_uid=False)
        array = pixels(dataset)
        top, left = (array.shape[0] - _ROWS) // 2, (array.shape[1] - _COLUMNS) // 2
        row, column = cosines(dataset)
        spacing = [float(v) for v in dataset.PixelSpacing]
        place(dataset, position(dataset) + row * spacing[1] * left + column * spacing[0] * top)
        set_pixels(dataset, array[top : top + _ROWS, left : left + _COLUMNS])
        dataset.InstanceNumber = n + 1
        if not dataset.SOPClassUID:
            dataset.SOPClassUID = _CLASSES[dataset.Modality]
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid(name, n)
        for keyword in ("PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue"):
            if keyword in dataset:
                del dataset[keyword]
    return Base(name, chosen)


def write(slices: Slices, folder: Path, names: list[str] | None = None, **options: Any) -> Path:
    """Write slices as 001.dcm, ... or under `names`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for n, dataset in enumerate(slices):
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / (names[n] if names else f"{n:03d}.dcm"), **options)
    return folder


def base_truth(slices: Slices) -> Truth:
    """The volume of uncompressed slices that are sorted and evenly spaced."""
    affine, _ = plane_affine(slices[0])
    planes = [
        pixels(d).astype(float) * float(d.get("RescaleSlope", 1)) + float(d.get("RescaleIntercept", 0) or 0) for d in slices
    ]
    steps = np.stack([position(d) for d in slices])
    affine[:3, 2] = LPS_TO_RAS[:3, :3] @ np.diff(steps, axis=0).mean(axis=0)
    return Truth(np.stack(planes).transpose(2, 1, 0), affine, "space", 0.0, None, "made")


# --- orders and encodings: the same volume -----------------------------------------------------------------------------


def _shuffled(base: Base, folder: Path) -> Truth:
    order = np.random.default_rng(1).permutation(len(base.slices))
    write([base.copy()[n] for n in order], folder)
    return base_truth(base.slices)


def _numbers(base: Base, folder: Path, number: Callable[[int], int | None]) -> Truth:
    slices = base.copy()
    for n, dataset in enumerate(slices):
        dataset.InstanceNumber = number(n)
    write(slices, folder)
    return base_truth(base.slices)


def _without_suffix(base: Base, folder: Path) -> Truth:
    write(base.copy(), folder, [f"IM{(n * 7) % len(base.slices):04d}" for n in range(len(base.slices))])
    return base_truth(base.slices)


def _strangers(base: Base, folder: Path) -> Truth:
    write(base.copy(), folder)
    (folder / "notes.txt").write_text("not an image\n")
    (folder / ".hidden.dcm").write_bytes(b"")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(20))
    return base_truth(base.slices)


def _upside_down(base: Base, folder: Path) -> Truth:
    """Rows stored from below: the column direction, and with it the normal, points the other way."""
    slices = base.copy()
    for dataset in slices:
        row, column = cosines(dataset)
        place(dataset, position(dataset) + column * float(dataset.PixelSpacing[0]) * (dataset.Rows - 1))
        dataset.ImageOrientationPatient = [*row.tolist(), *(-column).tolist()]
        set_pixels(dataset, pixels(dataset)[::-1])
    write(slices, folder)
    return base_truth(base.slices)


def _turned(base: Base, folder: Path) -> Truth:
    """The whole series turned in space by an odd angle: an oblique one."""
    a, b = np.radians([23.0, -37.0])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    slices = base.copy()
    for dataset in slices:
        place(dataset, turn @ position(dataset))
        dataset.ImageOrientationPatient = [f"{v:.9f}"[:16] for v in (cosines(dataset) @ turn.T).ravel()]
    write(slices, folder)
    return base_truth(slices)


def _own_rescale(base: Base, folder: Path) -> Truth:
    """PET: every slice has its own slope; the truth is stored value times that slope."""
    slices = base.copy()
    for n, dataset in enumerate(slices):
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{0.31 + 0.07 * ((n * 5) % len(slices)):.6f}", "0"
    write(slices, folder)
    return base_truth(slices)


def _changed(base: Base, folder: Path, change: Callable[[Dataset, int], None], **options: Any) -> Truth:
    slices = base.copy()
    for n, dataset in enumerate(slices):
        change(dataset, n)
    write(slices, folder, **options)
    return base_truth(slices)


def _inverted(dataset: Dataset, n: int) -> None:
    dataset.PhotometricInterpretation = "MONOCHROME1"


def _padded(dataset: Dataset, n: int) -> None:
    array = pixels(dataset).astype(np.int16)
    array[:5] = -2000
    set_pixels(dataset, array)
    dataset.add_new(0x00280120, "SS", -2000)


def _with_padding(base: Base, folder: Path) -> Truth:
    truth = _changed(base, folder, _padded)
    padding = np.zeros(truth.array.shape, bool)
    padding[:, :5] = True
    return Truth(truth.array, truth.affine, "space", 0.0, padding, "made")


def _wide(dataset: Dataset, n: int) -> None:
    set_pixels(dataset, pixels(dataset).astype("<i4" if dataset.PixelRepresentation else "<u4"))


def _narrow(dataset: Dataset, n: int) -> None:
    array = pixels(dataset).astype(float)
    dataset.BitsStored, dataset.HighBit = 8, 7
    set_pixels(dataset, (255 * (array - array.min()) / max(np.ptp(array), 1)).astype(np.uint8))


def _oblong(dataset: Dataset, n: int) -> None:
    dataset.PixelSpacing = [2.5, 0.75]


def _lying_gap(dataset: Dataset, n: int) -> None:
    dataset.SpacingBetweenSlices, dataset.SliceThickness = "7.7", "9.9"
    dataset.SliceLocation = str(-3 * n)


def _jitter(dataset: Dataset, n: int) -> None:
    place(dataset, position(dataset) + np.random.default_rng(n).uniform(-2e-4, 2e-4, 3))


def _rounded(dataset: Dataset, n: int) -> None:
    dataset.ImageOrientationPatient = [f"{v + 4e-5 * ((n + k) % 3 - 1):.5f}" for k, v in enumerate(cosines(dataset).ravel())]


def _acquisitions(dataset: Dataset, n: int) -> None:
    dataset.AcquisitionNumber, dataset.InstanceNumber = n % 2 + 1, n // 2 + 1
    dataset.WindowCenter, dataset.WindowWidth = str(40 + n), str(400 + n)
    dataset.ContentTime = f"{120000 + n}"


def _tilt_tag(dataset: Dataset, n: int) -> None:
    dataset.GantryDetectorTilt = "12.0"  # the planes are turned, the stack is straight: nothing to correct


def _two(base: Base, folder: Path) -> Truth:
    write(base.copy()[:2], folder)
    return base_truth(base.slices[:2])


def _encoded(base: Base, folder: Path, syntax: str) -> Truth:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for n, dataset in enumerate(base.copy()):
        if syntax.startswith("1.2.840.10008.1.2.4") or syntax == "1.2.840.10008.1.2.5":
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            implicit, little = syntax == "1.2.840.10008.1.2", syntax != "1.2.840.10008.1.2.2"
            dataset.PixelData = dataset.PixelData if little else pixels(dataset).byteswap().tobytes()
            dataset = _bare(dataset)
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.save_as(folder / f"{n:03d}.dcm", implicit_vr=implicit, little_endian=little, enforce_file_format=True)
            continue
        dataset.save_as(folder / f"{n:03d}.dcm")
    return base_truth(base.slices)


def _bare(dataset: Dataset) -> Dataset:
    """A copy that forgot how it was read, so that it can be written in any encoding; without private and unknown tags."""
    from pydicom.dataset import Dataset, FileMetaDataset

    fresh = Dataset()
    for element in dataset:
        if not element.tag.is_private and element.VR != "UN":
            fresh.add(copy.deepcopy(element))
    fresh.file_meta = FileMetaDataset()
    for keyword in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID"):
        setattr(fresh.file_meta, keyword, dataset.file_meta[keyword].value)
    return fresh


def _no_preamble(base: Base, folder: Path) -> Truth:
    """Bare data sets, as some research archives keep them; named .dcm."""
    from pydicom import dcmwrite

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for n, dataset in enumerate(base.copy()):
        fresh = _bare(dataset)
        del fresh.file_meta
        dcmwrite(folder / f"{n:03d}.dcm", fresh, implicit_vr=True, little_endian=True)
    return base_truth(base.slices)


ORDERS: dict[str, Callable[[Base, Path], Truth]] = {
    "names shuffled": _shuffled,
    "instance numbers reversed": partial(_numbers, number=lambda n: 100 - n),
    "instance numbers all 1": partial(_numbers, number=lambda n: 1),
    "no instance numbers": partial(_numbers, number=lambda n: None),
    "names without suffix": _without_suffix,
    "DICOMDIR, text and hidden file beside": _strangers,
    "rows from below (negative normal)": _upside_down,
    "oblique": _turned,
    "a rescale per slice": _own_rescale,
    "MONOCHROME1": partial(_changed, change=_inverted),
    "signed, with padding": _with_padding,
    "32 bits": partial(_changed, change=_wide),
    "8 bits": partial(_changed, change=_narrow),
    "oblong pixels": partial(_changed, change=_oblong),
    "lying SpacingBetweenSlices and SliceLocation": partial(_changed, change=_lying_gap),
    "positions with rounding noise": partial(_changed, change=_jitter),
    "orientations with rounding noise": partial(_changed, change=_rounded),
    "interleaved acquisitions, own windows": partial(_changed, change=_acquisitions),
    "tilt tag on a straight stack": partial(_changed, change=_tilt_tag),
    "two slices": _two,
    "implicit VR": partial(_encoded, syntax="1.2.840.10008.1.2"),
    "big endian": partial(_encoded, syntax="1.2.840.10008.1.2.2"),
    "deflated": partial(_encoded, syntax="1.2.840.10008.1.2.1.99"),
    "RLE": partial(_encoded, syntax="1.2.840.10008.1.2.5"),
    "JPEG-LS": partial(_encoded, syntax="1.2.840.10008.1.2.4.80"),
    "JPEG 2000": partial(_encoded, syntax="1.2.840.10008.1.2.4.90"),
    "no preamble": _no_preamble,
}


def synthetic_stacks(bases: list[Base], work: Path) -> Iterator[Case]:
    for base in bases:
        for name, make in ORDERS.items():
            folder = work / "orders" / base.name / _slug(name)
            truth = make(base, folder)
            yield Case(f"{base.name}: {name}", STACK, folder, partial(_checked, truth, folder), must=True)


def _checked(truth: Truth, folder: Path) -> list[Truth]:
    """With dcm2niix's word on it, where it makes one volume of the folder."""
    made = dcm2niix([p for p in sorted(folder.iterdir()) if p.name not in ("DICOMDIR", "notes.txt", ".hidden.dcm")], truth)
    if made is None:
        return [truth]
    return [named(truth, "made, dcm2niix" if not difference(made.array, made.affine, truth) else "made, not dcm2niix")]


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)[:60]


def synthetic_faults(bases: list[Base], work: Path) -> Iterator[Case]:
    from benchmarks.conformance.faults import FAULTS

    for base in bases:
        for name, (words, make) in FAULTS.items():
            folder = work / "faults" / base.name / _slug(name)
            truth = make(base, folder)
            category = FOURD if words == "time" else FAULT
            truths = partial(_given, truth) if truth is not None else None
            yield Case(f"{base.name}: {name}", category, folder, truths, fault="" if category == FOURD else words)


def _given(truth: Truth) -> list[Truth]:
    return [truth]


def bases(data: Path) -> list[Base]:
    ct, mr = data / "ct3d_totalsegmentator" / "exampleCTdicom", data / "dicom" / "mr_sag_mprage"
    found = []
    if ct.is_dir():
        found.append(make_base(ct, "CT", 12))
    if mr.is_dir():
        found.append(make_base(mr, "MR", 10))
    return found


__all__ = ["Base", "bases", "stack_truth", "synthetic_faults", "synthetic_stacks"]
