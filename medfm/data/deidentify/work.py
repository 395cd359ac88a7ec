"""One file of `in` -> one file of `out`, or the reason why not. Runs in a worker process."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medfm.data.deidentify.codes import Codes, read_secret
from medfm.data.deidentify.rules import Rules
from medfm.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

PICTURES = (".png", ".jpg", ".jpeg")
NIFTI = (".nii", ".nii.gz")
# Endings worth counting by; any other could be part of a name.
_KNOWN_ENDINGS = re.compile(
    r"\.(?:json|bval|bvec|csv|tsv|txt|xml|html?|pdf|docx?|xlsx?|zip|tar|gz|hdr|img|mha|mhd|nrrd|tiff?|bmp|gif|mp4|avi|npy|npz|db|md)$"
)


@dataclass(frozen=True)
class Job:
    """What a worker needs to know. The secret travels as the path of its file, not as bytes."""

    source: Path
    out: Path
    quarantine: Path
    secret: Path
    rules: Rules
    burned_in: Literal["quarantine", "copy", "skip"]
    version: str


def key(codes: Codes, source: Path, relative: str) -> str:
    """A file's name in the journal: a code of its path, size and time, so that a changed file is done again."""
    try:
        found = (source / relative).stat()
        state = f"{found.st_size}|{found.st_mtime_ns}"
    except OSError:
        state = "missing"
    return codes.name("file", f"{relative}|{state}", 26)


def process(relative: str, job: Job) -> dict[str, Any]:
    """De-identify `job.source / relative`.

    Returns:
        {"skipped": reason} or {"kind", "output" (path below out or quarantine), "place" ("out" or "quarantine"), "patient",
        "study", "series" (codes), "alike" (a code that ids of other case, spaces or zeros share), "actions" ([keyword, what was
        done]), "burned_in", "face" (reasons, "" for none), "mosaic" (a Siemens mosaic without its count of tiles)}; no patient
        data either way.
    """
    codes = read_secret(job.secret)
    path = job.source / relative
    name = path.name.lower()
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return {"skipped": "no file to read, but a pipe, socket or device"}  # opening one may wait for ever
        if name.endswith(PICTURES):
            return _plain(path, relative, job, codes, "picture")
        if name.endswith(NIFTI):
            return _plain(path, relative, job, codes, "nifti")
        return _dicom(path, relative, job, codes)
    except DataError as error:
        # medfm's readers name the file, whose name may be a patient's.
        return {"skipped": reason_of(error, path)}
    except OSError as error:
        if error.filename is not None and str(error.filename) == str(path):
            return {"skipped": "cannot be read"}
        raise


def reason_of(error: DataError, path: Path) -> str:
    text = str(error).replace(f"'{path}'", "").replace(str(path), "").strip(" :")
    return text or "cannot be read"


def folder_codes(relative: str, codes: Codes) -> tuple[str, str]:
    """(code of the topmost folder, code of the whole folder) of a file that holds no patient id."""
    parents = Path(relative).parts[:-1]
    return codes.name("top", parents[0] if parents else "", 12), codes.name("folder", "/".join(parents), 10)


def _plain(path: Path, relative: str, job: Job, codes: Codes, kind: str) -> dict[str, Any]:
    from medfm.data.deidentify.nifti import clean_nifti
    from medfm.data.deidentify.pictures import clean_picture

    top, folder = folder_codes(relative, codes)
    ending = next(e for e in (*NIFTI[::-1], *PICTURES) if path.name.lower().endswith(e))
    output = f"F{top}/{folder}/{codes.name('file name', relative, 16)}{ending}"
    clean = clean_picture if kind == "picture" else clean_nifti
    removed = clean(path, job.out / output)
    return {
        "kind": kind,
        "output": output,
        "place": "out",
        "patient": "",
        "study": "",
        "series": "",
        "actions": [[name, "removed"] for name in removed],
        "burned_in": "",
        "face": "",
    }


def _dicom(path: Path, relative: str, job: Job, codes: Codes) -> dict[str, Any]:
    from medfm.io.dicom import has_magic, read_dataset
    from medfm.io.pixels import quiet

    if path.name.upper() == "DICOMDIR":
        return {"skipped": "a DICOMDIR: it lists names"}
    ending = _KNOWN_ENDINGS.search(path.name.lower())
    if ending is not None and not has_magic(path):
        return {"skipped": f"no image that medfm de-identifies ({ending.group()})"}
    try:
        dataset = read_dataset(path)
    except DataError as error:
        if "is not a DICOM file" in str(error) and not has_magic(path):
            return {"skipped": "no image that medfm de-identifies (other)"}
        raise
    with quiet():
        try:
            return _clean_dicom(dataset, relative, job, codes)
        except (DataError, OSError, MemoryError):
            raise
        except Exception as error:  # pydicom raises many kinds on damaged values, and quotes them
            raise DataError(f"its header is damaged ({type(error).__name__})") from None


def _clean_dicom(dataset: Dataset, relative: str, job: Job, codes: Codes) -> dict[str, Any]:
    from medfm.data.deidentify.dataset import Cleaner, mark, rebuild_meta, refusal
    from medfm.data.deidentify.pixels import clean_pixels
    from medfm.data.deidentify.siemens import is_mosaic, numbers, put_numbers
    from medfm.io.files import atomic_write
    from medfm.io.phi import burned_in, face

    problem = refusal(dataset)
    if problem:
        return {"skipped": problem}
    if not dataset.file_meta.TransferSyntaxUID.is_transfer_syntax:
        return {"skipped": "its transfer syntax is not known; convert it first"}
    suspicion, faced = burned_in(dataset), face(dataset)
    if suspicion and job.burned_in == "skip":
        return {"skipped": f"may show text: {suspicion}"}
    place = "quarantine" if suspicion and job.burned_in == "quarantine" else "out"
    output = _output(dataset, relative, codes)
    cleaner = Cleaner(dataset, job.rules, codes, relative)
    mosaic = is_mosaic(dataset)
    csa = numbers(dataset) if mosaic and job.rules.private == "safe" else {}
    pixels = clean_pixels(dataset)  # before overlays, which say where they are, are gone
    alike = spelled_alike(dataset, codes)
    cleaner.clean(dataset)
    cleaner.name_patient(dataset)
    if not dataset.get("SOPInstanceUID"):  # it was missing or no UID
        dataset.SOPInstanceUID = codes.uid(relative)
    if csa:
        put_numbers(dataset, csa)
    mark(dataset, job.rules, job.version)
    rebuild_meta(dataset, job.version)
    study, series = output
    output_path = f"{cleaner.code}/{study}/{series}/{_file_name(dataset, relative, codes)}"
    with atomic_write((job.out if place == "out" else job.quarantine) / output_path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
    return {
        "kind": "dicom",
        "output": output_path,
        "place": place,
        "patient": cleaner.code,
        "alike": alike,
        "study": study,
        "series": series,
        "actions": sorted([*map(list, cleaner.actions), *(["PixelData", f"removed {what}"] for what in pixels)]),
        "burned_in": suspicion,
        "face": faced,
        "mosaic": mosaic and not csa,
    }


def spelled_alike(dataset: Dataset, codes: Codes) -> str:
    """A code that patient ids share which differ in case, spaces, punctuation or leading zeros alone; "" without an id."""
    plain = re.sub(r"[\W_]", "", str(dataset.get("PatientID") or "")).casefold().lstrip("0")
    return codes.name("alike", plain) if plain else ""


def _output(dataset: Dataset, relative: str, codes: Codes) -> tuple[str, str]:
    """Folder names of study and series. Files of one series that lay in two folders stay apart: they may be copies."""
    study, series = (str(dataset.get(k) or "").strip() for k in ("StudyInstanceUID", "SeriesInstanceUID"))
    folder = "/".join(Path(relative).parts[:-1])
    return codes.name("study", study, 10), codes.name("series", f"{series}|{folder}", 10)


def _file_name(dataset: Dataset, relative: str, codes: Codes) -> str:
    """Instance number, for a person's eye, and a code of the original path, so that no two files share a name."""
    try:
        number = int(dataset.get("InstanceNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    shown = f"{number:05d}-" if 0 < number < 10**6 else ""
    return f"{shown}{codes.name('file name', relative, 12)}.dcm"
