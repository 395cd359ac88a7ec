"""A hospital folder with a distinct marker in every place where identity was ever found, and the search for them."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Planted:
    """Marker -> where it stands. `forms` are the byte strings that each marker is searched by, in lower case.

    `core`: those in one plain DICOM file, where any tool can be asked for them.
    """

    places: dict[str, str] = field(default_factory=dict)
    forms: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    core: set[str] = field(default_factory=set)
    in_core: bool = True

    def word(self, place: str, text: str = "") -> str:
        """A new marker for `place`; letters only, unlike any word."""
        marker = text or f"Zq{_letters(len(self.places))}kv"
        self.places[marker] = place
        if self.in_core:
            self.core.add(marker)
        codecs = ("utf-8", "latin-1", "utf-16-le", "iso2022_jp", "gb18030")
        forms = set()
        for codec in codecs:
            try:
                forms.add(marker.encode(codec).lower())
            except UnicodeEncodeError:
                continue
        self.forms[marker] = tuple(forms)
        return marker

    def left(self, blobs: Iterable[bytes]) -> dict[str, str]:
        """Markers found in any of `blobs`, and where they were planted."""
        lowered = [b.lower() for b in blobs]
        return {m: self.places[m] for m, forms in self.forms.items() if any(f in b for f in forms for b in lowered)}


def _letters(number: int) -> str:
    return "".join("abcdefghijklmnop"[(number >> shift) & 15] for shift in (8, 4, 0))


def _image() -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT", "Rows": 8, "Columns": 8, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11,
        "PixelRepresentation": 0, "RescaleSlope": 1, "RescaleIntercept": -1024, "PixelSpacing": [1, 1],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 0], "SliceThickness": 2,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "InstanceNumber": 1, "SpecificCharacterSet": "ISO_IR 192",
    }  # fmt: skip
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


_UID_ROOT = "1.2.826.0.1.3680043.9.7"

# Keywords by VR; each gets a marker of its own.
_WORDS = """
    PatientName PatientID OtherPatientNames PatientBirthName PatientMotherBirthName PatientAddress PatientTelephoneNumbers
    PatientTelecomInformation Occupation MilitaryRank EthnicGroup AdditionalPatientHistory PatientComments AccessionNumber
    StudyID InstitutionName InstitutionAddress InstitutionalDepartmentName StationName ReferringPhysicianName
    PerformingPhysicianName OperatorsName NameOfPhysiciansReadingStudy RequestingPhysician StudyDescription
    SeriesDescription ProtocolName ImageComments DeviceSerialNumber StationAETitle CurrentPatientLocation
    MedicalRecordLocator IssuerOfPatientID ReasonForVisit ContentCreatorName RetrieveURL DeidentificationMethod
    ContentDescription StorageMediaFileSetID PatientBirthDateInAlternativeCalendar
"""


_UIDS = "SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID InstanceCreatorUID IrradiationEventUID"
_DATES = """
    PatientBirthDate StudyDate SeriesDate AcquisitionDate ContentDate InstanceCreationDate LastMenstrualDate
    DateOfSecondaryCapture
"""


def plant_dicom(planted: Planted) -> Any:
    """The core: one CT slice with a marker in every kind of place a DICOM file has."""
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    dataset = _image()
    for keyword in _WORDS.split():
        setattr(dataset, keyword, planted.word(keyword))
    for number, keyword in enumerate(_UIDS.split()):
        setattr(dataset, keyword, planted.word(keyword, f"{_UID_ROOT}.{7301 + number}.55"))
    # Eleven years apart: dates are shifted by up to ten, and one must not land on another by chance.
    for number, keyword in enumerate(_DATES.split()):
        setattr(dataset, keyword, planted.word(keyword, f"{1890 + 11 * number}0417"))
    dataset.AcquisitionDateTime = planted.word("AcquisitionDateTime", "19780418") + "101112"
    dataset.PatientBirthTime = planted.word("PatientBirthTime", "031337.424242")
    dataset.PatientAge = planted.word("PatientAge above 89", "093Y")
    dataset.GPSLatitude = planted.word("GPSLatitude (DS)", "48.1371547")
    # Technique that holds what is known of the patient.
    dataset.WindowCenterWidthExplanation = f"preset {dataset.PatientName}"
    dataset.SoftwareVersions = f"V1 {dataset.PatientID}"
    planted.places[str(dataset.PatientName)] += ", repeated in WindowCenterWidthExplanation"
    planted.places[str(dataset.PatientID)] += ", repeated in SoftwareVersions"

    deep = Dataset()
    deep.PatientName, deep.CodeMeaning = planted.word("nested PatientName, depth 3"), "plain"
    middle = Dataset()
    middle.ReferencedSOPInstanceUID = planted.word("nested ReferencedSOPInstanceUID", f"{_UID_ROOT}.9911.1")
    middle.PurposeOfReferenceCodeSequence = Sequence([deep])
    middle.InstitutionName = planted.word("nested InstitutionName, depth 2")
    dataset.ReferencedImageSequence = Sequence([middle])
    request = Dataset()
    request.ScheduledProcedureStepDescription = planted.word("RequestAttributesSequence")
    dataset.RequestAttributesSequence = Sequence([request])
    original = Dataset()
    original.SourceOfPreviousValues = planted.word("OriginalAttributesSequence")
    dataset.OriginalAttributesSequence = Sequence([original])
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "L", "scan"
    code.add(DataElement(0x00091001, "LO", planted.word("private element in a kept sequence")))
    dataset.ProcedureCodeSequence = Sequence([code])

    block = dataset.private_block(0x0009, planted.word("private creator"), create=True)
    block.add_new(0x01, "LO", planted.word("private LO"))
    block.add_new(0x02, "UN", planted.word("private UN").encode())
    inner = Dataset()
    inner.add(DataElement(0x00100010, "PN", planted.word("PatientName in a private sequence")))
    block.add_new(0x03, "SQ", Sequence([inner]))
    dataset.add(DataElement(0x00380400, "UN", planted.word("public attribute stored as UN").encode()))
    dataset.add(DataElement(0x001000F2, "LO", planted.word("even group, not in the dictionary")))
    dataset.add(DataElement(0x60000010, "US", 8))
    dataset.add(DataElement(0x60000011, "US", 8))
    dataset.add(DataElement(0x60001500, "LO", planted.word("OverlayLabel")))
    dataset.add(DataElement(0x60003000, "OW", planted.word("OverlayData", "Zqoverlay1kv").encode()))
    dataset.add(DataElement(0x60004000, "LT", planted.word("OverlayComments")))
    dataset.add(DataElement(0x50000022, "LO", planted.word("CurveDescription")))
    dataset.add(DataElement(0x50003000, "OW", planted.word("CurveData", "Zqcurvedatkv").encode()))
    dataset.add(DataElement(0xFFFCFFFC, "OB", planted.word("DataSetTrailingPadding", "Zqtrailingkv").encode()))
    pixels = np.arange(64, dtype="<u2").tobytes()
    dataset.add(DataElement(0x7FE00010, "OW", pixels + planted.word("behind the last pixel", "Zqbehindpxkv").encode()))

    meta = dataset.file_meta
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.SourceApplicationEntityTitle = planted.word("file meta: SourceApplicationEntityTitle")
    meta.SendingApplicationEntityTitle = planted.word("file meta: SendingApplicationEntityTitle")
    meta.PrivateInformationCreatorUID = planted.word("file meta: PrivateInformationCreatorUID", f"{_UID_ROOT}.777.1")
    meta.PrivateInformation = planted.word("file meta: PrivateInformation").encode()
    meta.ImplementationVersionName = planted.word("file meta: ImplementationVersionName")
    meta.ImplementationClassUID = f"{_UID_ROOT}.1"
    dataset.preamble = planted.word("preamble").encode().ljust(128, b"\0")
    return dataset


def _save(dataset: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = dataset.file_meta
    for keyword, value in (
        ("MediaStorageSOPClassUID", dataset.SOPClassUID),
        ("MediaStorageSOPInstanceUID", dataset.SOPInstanceUID),
    ):
        if keyword not in meta:
            setattr(meta, keyword, value)
    dataset.save_as(path, enforce_file_format=True)


def plant(folder: Path) -> Planted:
    """Fill `folder`; returns what was planted. Reports lie beside it in `<folder>.csv`."""
    planted = Planted()
    core = plant_dicom(planted)
    patient, name, accession = str(core.PatientID), str(core.PatientName), str(core.AccessionNumber)
    planted.in_core = False
    home = folder / planted.word("folder name")
    _save(core, home / f"{planted.word('file name')}.dcm")
    _other_dicom(planted, home, patient)
    _no_dicom(planted, home)
    known, record = planted.word("report: known name"), planted.word("report: record number", "8675309771")
    day, doctor = planted.word("report: date", "03/17/2019"), planted.word("report: titled name")
    phone, other = planted.word("report: phone", "617-555-0199"), planted.word("report: other column")
    text = (
        f"{known} came. {name} has no effusion. MRN: {record}. Compared with {day}. "
        f"Discussed with Dr. {doctor} at {phone}. Heart size is normal."
    )
    image = (home / "us.dcm").relative_to(folder).as_posix()
    rows = [
        "patient_id,accession_number,image,report,patient_name,comment,label",
        f'{patient},{accession},{image},"{text}",{known},{other},1',
    ]
    folder.with_name(f"{folder.name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return planted


def _other_dicom(planted: Planted, home: Path, patient: str) -> None:
    """Character sets, transfer syntaxes, objects that must not be written, damage."""
    from pydicom.encaps import encapsulate
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        ImplicitVRLittleEndian,
        JPEGBaseline8Bit,
        generate_uid,
    )

    def fresh(**tags: Any) -> Any:
        dataset = _image()
        for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            setattr(dataset, keyword, generate_uid())
        dataset.PatientID, dataset.PatientName = patient, "Someone"
        dataset.PixelData = np.arange(64, dtype="<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        return dataset

    for charset, name, file in (
        ("ISO_IR 100", "Zqmüllerkv", "latin"),
        ("ISO_IR 192", "Zqmøllerkv", "utf8"),
        (["", "ISO 2022 IR 87"], "山田太郎", "japanese"),
    ):
        marker = planted.word(f"PatientName in {charset}", name)
        _save(fresh(SpecificCharacterSet=charset, PatientName=marker, PatientComments=marker), home / f"{file}.dcm")
    for syntax, file in ((ImplicitVRLittleEndian, "implicit"), (DeflatedExplicitVRLittleEndian, "deflated")):
        dataset = fresh(
            PatientName=planted.word(f"PatientName, {file}"), ReasonForStudy=planted.word(f"ReasonForStudy, {file}")
        )
        dataset.file_meta.TransferSyntaxUID = syntax
        _save(dataset, home / f"{file}.dcm")
    big = fresh(PatientAddress=planted.word("PatientAddress, big-endian"))
    big.PixelData = np.arange(64, dtype=">u2").tobytes()
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    _save(big, home / "big.dcm")
    bare = fresh(PatientAddress=planted.word("PatientAddress, no preamble"))
    del bare.file_meta
    buffer = io.BytesIO()
    bare.save_as(buffer, implicit_vr=True, little_endian=True, enforce_file_format=False)
    (home / "bare.dcm").write_bytes(buffer.getvalue())

    jpeg = _jpeg(planted, "in a DICOM stream")
    film = fresh(Modality="CR", SOPClassUID="1.2.840.10008.5.1.4.1.1.1", BitsAllocated=8, BitsStored=8, HighBit=7)
    film.PixelData = encapsulate([jpeg])
    film["PixelData"].VR, film["PixelData"].is_undefined_length = "OB", True
    film.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    _save(film, home / "jpeg.dcm")
    _save(
        fresh(Modality="US", SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1", StationName=planted.word("quarantined US")),
        home / "us.dcm",
    )
    document = fresh(SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1", Modality="DOC")
    document.EncapsulatedDocument = planted.word("encapsulated PDF", "Zqpdfmarkerkv").encode() + b"\0"
    _save(document, home / "document.dcm")
    report = fresh(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR", DocumentTitle=planted.word("structured report"))
    _save(report, home / "sr.dcm")
    # A number that is a name, twice: once in a value that is kept, once where parsing fails.
    wrong = fresh(InstanceNumber=None)
    from pydicom.dataelem import DataElement

    _save(wrong, home / "wrong.dcm")
    data = (home / "wrong.dcm").read_bytes()
    marker = planted.word("letters in a DS", "Zqinnumberkv")
    element = struct.pack("<HH2sH", 0x0018, 0x0088, b"DS", len(marker)) + marker.encode()
    at = data.find(struct.pack("<HH2s", 0x0020, 0x000D, b"UI"))
    (home / "wrong.dcm").write_bytes(data[:at] + element + data[at:])
    torn = fresh(PatientAddress=planted.word("a torn file"))
    torn.add(DataElement(0x00104000, "LT", "x" * 500))
    _save(torn, home / f"{planted.word('name of a torn file')}.dcm")
    path = next(p for p in home.iterdir() if planted.places.get(p.stem) == "name of a torn file")
    path.write_bytes(path.read_bytes()[:700])


def _jpeg(planted: Planted, where: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = planted.word(f"JPEG EXIF {where}")
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    picture.save(buffer, "JPEG", comment=planted.word(f"JPEG comment {where}"), exif=exif)
    return buffer.getvalue() + planted.word(f"behind a JPEG {where}", f"Zqbehind{len(planted.places)}kv").encode()


def _no_dicom(planted: Planted, home: Path) -> None:
    import nibabel
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    volume = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2.0, 2.0, 3.0, 1.0]))
    header = volume.header
    header["descrip"], header["aux_file"] = planted.word("NIfTI descrip"), planted.word("NIfTI aux_file")
    header["intent_name"], header["db_name"] = planted.word("NIfTI intent_name"), planted.word("NIfTI db_name")
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", planted.word("NIfTI extension").encode()))
    with gzip.GzipFile(planted.word("gzip file name"), "wb", fileobj=open(home / "brain.nii.gz", "wb")) as file:
        file.write(volume.to_bytes())
    info = PngInfo()
    info.add_text("Patient", planted.word("PNG text"))
    info.add_text("Patient2", planted.word("PNG compressed text"), zip=True)
    exif = Image.Exif()
    exif[0x010E] = planted.word("PNG EXIF")
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    picture.save(home / f"{planted.word('picture name')}.png", pnginfo=info, exif=exif)
    with open(next(home.glob("*.png")), "ab") as file:
        file.write(planted.word("behind a PNG").encode())
    (home / "photo.jpg").write_bytes(_jpeg(planted, "file"))
    (home / "notes.txt").write_text(planted.word("a text file"), encoding="utf-8")
    (home / f"odd.{planted.word('file ending')}").write_text("x", encoding="utf-8")


def everything(*folders: Path) -> list[bytes]:
    """All that can be read in `folders`: names, bytes, decompressed bytes, tables, DICOM values."""
    import pandas as pd

    blobs = []
    for folder in folders:
        for path in folder.rglob("*"):
            blobs.append(str(path.relative_to(folder.parent)).encode("utf-8", "surrogateescape"))
            if not path.is_file():
                continue
            data = path.read_bytes()
            blobs.append(data)
            if data[:2] == b"\x1f\x8b":
                blobs.append(gzip.decompress(data))
            elif data[128:132] == b"DICM":
                blobs += _dicom_blobs(path)
            elif data.startswith(b"\x89PNG"):
                blobs += _inflated(data)
            elif path.suffix == ".parquet":
                blobs.append(pd.read_parquet(path).to_csv().encode())
    return blobs


def _dicom_blobs(path: Path) -> list[bytes]:
    import pydicom

    dataset = pydicom.dcmread(path)
    text = f"{dataset.file_meta}\n{dataset}".encode("utf-8", "replace")
    if dataset.file_meta.TransferSyntaxUID.is_deflated:
        buffer = io.BytesIO()
        dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=False)
        return [text, buffer.getvalue()]
    return [text]


def _inflated(data: bytes) -> list[bytes]:
    found, at = [], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">L", data, at)
        if data[at + 4 : at + 8] == b"zTXt":
            found.append(zlib.decompress(data[at + 8 : at + 8 + length].split(b"\0", 1)[1][1:]))
        at += 12 + length
    return found
