"""A case: what is handed to a reader and what must come of it; the real ones of the data folder and installed packages."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.conformance.space import Truth, difference, named
from benchmarks.conformance.truth import dcm2niix, frames_truth, image_truths, nifti_truth, read, stack_truth

STACK, FRAMES, SINGLE = "regular stack", "enhanced multi-frame", "single image"
FAULT, FOURD, OTHER, NIFTI = "geometry fault", "mosaic, 4D, cine", "other object", "NIfTI"
CATEGORIES = (STACK, FRAMES, SINGLE, FAULT, FOURD, OTHER, NIFTI)
# Categories that medfm must return, not only never get wrong.
MUST = (STACK, FRAMES, SINGLE, NIFTI)


@dataclass(frozen=True)
class Case:
    """One thing to read.

    Attributes:
        name: short, for the table.
        category: one of CATEGORIES.
        path: what the reader gets.
        truth: makes the truths; a result that equals any of them is right. None: there is nothing right but a refusal.
        fault: words (a regular expression, any case) by which the refusal of a fault names it.
            must: the reader must return it; else it may refuse.
        free: any result passes (a mask read as an image: what its values should be is a matter of taste).
    """

    name: str
    category: str
    path: Path
    truth: Callable[[], list[Truth]] | None = None
    fault: str = ""
    must: bool = False
    free: bool = False


def agreed(first: Truth, others: list[Truth]) -> Truth:
    """The header's truth, with the names of all who say the same; those who do not are named too."""
    words = [first.made_by]
    for other in others:
        words.append(other.made_by if not difference(other.array, other.affine, first) else f"not {other.made_by}")
    return named(first, ", ".join(words))


def _stack(folder: Path, times: int = 1, shipped: Path | None = None) -> list[Truth]:
    files = files_of(folder)
    truth = stack_truth(files, times)
    others = [nifti_truth(shipped, "shipped NIfTI")] if shipped is not None and shipped.is_file() else []
    made = dcm2niix(files, truth)
    return [agreed(truth, [*others, *([made] if made is not None else [])])]


def _frames(path: Path, shipped: Path | None = None) -> list[Truth]:
    truth = frames_truth(path)
    others = [nifti_truth(shipped, "shipped NIfTI")] if shipped is not None and shipped.is_file() else []
    made = dcm2niix([path], truth)
    return [agreed(truth, [*others, *([made] if made is not None else [])])]


def _oracle(files: list[Path], shipped: Path | None) -> list[Truth]:
    """dcm2niix and the shipped NIfTI alone: what the header does not say in public tags (a mosaic)."""
    made = dcm2niix(files)
    others = [nifti_truth(shipped, "shipped NIfTI")] if shipped is not None else []
    if made is None:
        return others
    return [agreed(made, others)]


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that have DICOM's prefix."""

    def prefix(path: Path) -> bytes:
        with open(path, "rb") as file:
            return file.read(132)[128:]

    return sorted(p for p in folder.iterdir() if p.is_file() and prefix(p) == b"DICM")


# --- dicom2nifti's own test series: folder -> category, fault -----------------------------------------------------------
_FAILING = {
    "gantrytilting/001": "tilt",
    "notavolume/001": "one position|same position|not a volume|time series|at each",
    "sliceincrement/001": "missing|spacing|uniform",
    "sliceincrement/002": "missing|spacing|uniform|tilt",
    "sliceorientation/001": "orientation|series",
}


def _dicom2nifti(root: Path) -> Iterator[Case]:
    for folder in sorted(p for p in root.glob("*/*/*") if p.is_dir()):
        name = f"dicom2nifti {folder.relative_to(root).as_posix()}"
        shipped = folder.with_name(f"{folder.name}_ground_truth.nii.gz")
        fault = next((words for key, words in _FAILING.items() if folder.match(f"failing/{key}")), "")
        files = files_of(folder)
        if fault:
            yield Case(name, FAULT, folder, fault=fault)
        elif len(files) > 1:
            times = 2 if "fmri" in folder.parent.name else 1
            yield Case(name, FOURD if times > 1 else STACK, folder, partial(_stack, folder, times, shipped), must=times == 1)
        elif read(files[0]).get("NumberOfFrames"):
            yield Case(name, FRAMES, files[0], partial(_frames, files[0], shipped), must=True)
        else:
            yield Case(name, SINGLE, files[0], partial(_oracle, files, shipped), must=True)


# --- single files -----------------------------------------------------------------------------------------------------
_NO_IMAGE = ("SEG", "SR", "RTSTRUCT", "RTPLAN", "PR", "KO", "REG", "ECG")
# Encodings that pydicom decodes with none of its plugins -> the same picture in one that it does. Reading them is not asked.
_EXTENDED = "CTImage.dcm_JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51.dcm"
_TWINS = {
    "CTImage.dcm_JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53.dcm": _EXTENDED,
    "CTImage.dcm_JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55.dcm": _EXTENDED,
    "JPEG-lossy.dcm": "JPGExtended.dcm",
    "JPEG2000-embedded-sequence-delimiter.dcm": "JPEG2000.dcm",
}
# Files that are cut or broken on purpose: there is nothing right but a refusal.
_BROKEN = ("MR_truncated.dcm", "rtplan_truncated.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm", "badVR.dcm")


def _single(path: Path, name: str) -> Case:
    """The category and truth of one file, from its header."""
    try:
        dataset = read(path)
        frames = int(dataset.get("NumberOfFrames") or 1)
    except Exception:
        return Case(name, OTHER, path)
    modality = str(dataset.get("Modality", ""))
    if path.name in _TWINS:
        twin = path.with_name(_TWINS[path.name])
        return Case(name, OTHER, path, partial(image_truths, twin))
    if path.name in _BROKEN or "PixelData" not in dataset or modality in _NO_IMAGE or not dataset.get("Rows"):
        return Case(name, OTHER, path, free=modality == "SEG")
    if "MOSAIC" in str(dataset.get("ImageType", "")):
        return Case(name, FOURD, path, partial(_oracle, [path], _reference(path)))
    if dataset.get("PerFrameFunctionalGroupsSequence"):
        return Case(name, FRAMES, path, partial(_frames, path), must=True)
    if modality == "RTDOSE":
        return Case(name, FRAMES if frames > 1 else SINGLE, path, partial(_dose, path), must=True)
    if frames > 1:
        return Case(name, FOURD, path, partial(image_truths, path))
    return Case(name, SINGLE, path, partial(image_truths, path), must=True)


def _reference(path: Path) -> Path | None:
    shipped = path.parent.parent / "Ref" / f"{path.stem}.nii"
    return shipped if shipped.is_file() else None


def _dose(path: Path) -> list[Truth]:
    """A dose grid: frames at GridFrameOffsetVector along the normal, values in DoseUnits (PS3.3 C.8.8.3)."""
    truths = image_truths(path)
    dataset = read(path)
    offsets = [float(v) for v in dataset.get("GridFrameOffsetVector") or [0.0]]
    found = []
    for truth in truths:
        affine = truth.affine.copy()
        array = truth.array[:, :, 0] if truth.array.ndim == 4 else truth.array
        if len(offsets) > 1:
            affine[:3, 2] *= float(np.diff(offsets).mean()) / float(np.linalg.norm(affine[:3, 2]))
            affine[:3, 3] += affine[:3, 2] / np.diff(offsets).mean() * offsets[0]
        found.append(Truth(array, affine, truth.placed, truth.tolerance, None))
    return found


def real_cases(data: Path, work: Path) -> list[Case]:
    """Every DICOM file of the data folder and of pydicom's and nibabel's own tests is in a case of its own or in its series."""
    found: list[Case] = []
    dicom = data / "dicom"
    if dicom.is_dir():
        found += _dicom2nifti(dicom / "dicom2nifti")
        sagittal, ge = dicom / "mr_sag_mprage", dicom / "dcm_qa_ct_ge" / "In" / "GE"
        found.append(Case("mr_sag_mprage", STACK, sagittal, partial(_stack, sagittal), must=True))
        found.append(Case("dcm_qa_ct_ge", FAULT, ge, fault="tilt|spacing"))
        for folder in sorted((dicom / "ct_slices_ny_sbu").iterdir()):
            if folder.is_dir():
                found.append(Case(f"ny_sbu {folder.name}", FAULT, folder, fault="series"))
        for group in ("dcm_qa_ts/In", "transfer_syntaxes", "pydicom_data", "ct_slices_ny_sbu/*"):
            for path in sorted(dicom.glob(f"{group}/*.dcm")):
                found.append(_single(path, f"{group.split('/')[0]} {_short(path.name)}"))
    series = data / "ct3d_totalsegmentator" / "exampleCTdicom"
    if series.is_dir():
        found.append(Case("totalsegmentator CT", STACK, series, partial(_stack, series), must=True))
    return found + list(_packaged(work))


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:20]}...{name[-20:]}"


def _packaged(work: Path) -> Iterator[Case]:
    import nibabel
    import pydicom.data

    done = set()
    for path in map(Path, sorted(pydicom.data.get_testdata_files())):
        if not path.is_file() or path.name.startswith("DICOMDIR") or path.name in done:
            continue
        in_folder = "dicomdirtests" in path.parts
        if not in_folder and path.suffix == ".dcm":
            done.add(path.name)
            yield _single(path, f"pydicom {path.name}")
    tests = Path(pydicom.data.__file__).parent / "test_files" / "dicomdirtests"
    yield from _dicomdirtests(tests)
    for path in sorted((Path(nibabel.__file__).parent / "nicom" / "tests" / "data").glob("*.dcm*")):
        target = path
        if path.suffix == ".gz":
            target = work / "nibabel" / path.stem
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(gzip.decompress(path.read_bytes()))
        yield _single(target, f"nibabel {target.name}")


def _dicomdirtests(root: Path) -> Iterator[Case]:
    """Small real series: two CT stacks, a rotating MR projection, folders that mix series."""
    for name, words in (("98892003/MR1", "series"), ("98892003/MR2", "series"), ("98892003/MR700", "orientation|one position")):
        if (root / name).is_dir():
            yield Case(f"pydicom {name}", FAULT, root / name, fault=words)
    for name in ("77654033/CT2", "98892001/CT5N"):
        if (root / name).is_dir():
            yield _small_stack(root / name, f"pydicom {name}")
    if (root / "98892001/CT2N").is_dir():
        yield Case("pydicom 98892001/CT2N (two scouts)", FAULT, root / "98892001/CT2N", fault="orientation|spacing|position")
    for path in sorted(p for p in root.glob("*/*/*") if p.is_file() and p.parent.name != "PT000000"):
        yield _single(path, f"pydicom {path.relative_to(root).as_posix()}")


def _small_stack(folder: Path, name: str) -> Case:
    try:
        stack_truth(files_of(folder))
    except ValueError:
        return Case(name, FAULT, folder, fault="missing|uniform|spacing|tilt")
    return Case(name, STACK, folder, partial(_stack, folder), must=True)


def nifti_cases(data: Path) -> list[Case]:
    """NIfTI files of the data folder and of nibabel's tests; nibabel itself is the truth."""
    import nibabel

    tests = Path(nibabel.__file__).parent / "tests" / "data"
    files = [(f"nibabel {p.name}", p) for p in sorted(tests.glob("*.nii*"))]
    files += [
        (p.relative_to(data).as_posix(), p)
        for group in ("ct3d_totalsegmentator", "mr3d_stroke", "mixed3d_pyradiomics")
        for p in sorted((data / group).glob("*.nii*"))
    ]
    files += [(p.relative_to(data).as_posix(), p) for p in sorted((data / "mr3d_hippocampus").rglob("*.nii*"))[::20]]
    files += [(p.relative_to(data).as_posix(), p) for p in sorted((data / "dicom").rglob("*.nii*"))]
    cases = []
    for name, path in files:
        odd = "dconn" in path.name  # a CIFTI matrix of 6 dimensions: no image
        cases.append(Case(name, OTHER if odd else NIFTI, path, partial(_nifti, path), must=not odd))
    return cases


def _nifti(path: Path) -> list[Truth]:
    return [nifti_truth(path, "nibabel")]
