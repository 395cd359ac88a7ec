"""Writes films as CR and DX files, CTs as series: valid DICOM with fixed UIDs and dates, byte-identical for the same study."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from medfm.data.phantom.study import Study, View

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_CLASSES = {
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
}
_SYNTAXES = {  # compression -> transfer syntax, encoder
    "rle": ("1.2.840.10008.1.2.5", "gdcm"),
    "jpeg_ls": ("1.2.840.10008.1.2.4.80", "pyjpegls"),
    "jpeg_2000": ("1.2.840.10008.1.2.4.90", "pylibjpeg"),
}
_EXPLICIT = "1.2.840.10008.1.2.1"
_IMPLEMENTATION = "2.25.170141183460469231731687303715884105727"


def film_dataset(study: Study, view: View) -> Dataset:
    """A film with its pixels, compressed where the view says so."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    assert view.film is not None
    film, modality = view.film, study.modality
    values, (center, width) = film.values, film.window
    if view.inverted:
        # A LINEAR window is centred on c - 0.5 (PS3.3 C.11.2.1.2): mirrored at 4095 / 2, c becomes 4096 - c.
        values, center = (4095 - values).astype(np.uint16), 4096 - center
    ds = _base(study, modality, f"{view.view}/instance")
    ds.SeriesInstanceUID = study.visit.uid(f"{view.view}/series")
    ds.SeriesDescription = f"CHEST {view.view}"
    ds.SeriesNumber = 1 if view is study.views[0] else 2
    ds.InstanceNumber = 1
    lateral = view.view == "LATERAL"
    ds.ImageType = ["DERIVED" if modality == "DX" else "ORIGINAL", "PRIMARY"]
    ds.ViewPosition = "LL" if lateral else view.view
    ds.PatientOrientation = ["P", "F"] if lateral else ["L", "F"]
    # One spacing in both: at the detector, not corrected for magnification.
    spacing = [f"{film.pitch:.6f}"] * 2
    ds.ImagerPixelSpacing = spacing
    ds.PixelSpacing = spacing
    ds.BurnedInAnnotation = "NO"  # the burned-in L is a side marker, not an identity
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if view.inverted else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.LossyImageCompression = "00"
    ds.PresentationLUTShape = "INVERSE" if view.inverted else "IDENTITY"
    ds.WindowCenter, ds.WindowWidth = str(center), str(width)
    if modality == "DX":
        ds.PresentationIntentType = "FOR PRESENTATION"
        ds.ImageLaterality = "U"
        ds.DetectorType = "DIRECT"
        ds.PositionerType = "NONE"
        region = Dataset()
        region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "51185008", "SCT", "Chest"
        ds.AnatomicRegionSequence = Sequence([region])
    _pixels(ds, values, 12, 0, "MONOCHROME1" if view.inverted else "MONOCHROME2")
    if view.compression:
        syntax, plugin = _SYNTAXES[view.compression]
        ds.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    return ds


def slice_datasets(study: Study, view: View) -> list[Dataset]:
    """The slices of a CT from feet to head."""
    assert view.volume is not None
    taken = view.volume
    datasets = []
    for k in range(taken.hu.shape[2]):
        ds = _base(study, "CT", f"slice {k}")
        ds.SeriesInstanceUID = study.visit.uid("series")
        ds.SeriesDescription = "CHEST CT"
        ds.SeriesNumber = 1
        ds.InstanceNumber = k + 1
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.FrameOfReferenceUID = study.visit.uid("frame")
        ds.PositionReferenceIndicator = ""
        x, y, z = taken.origin
        z += k * taken.spacing[2]
        ds.ImagePositionPatient = [f"{v:.5f}" for v in (x, y, z)]
        ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        ds.PixelSpacing = [f"{taken.spacing[1]:.6f}", f"{taken.spacing[0]:.6f}"]
        ds.SliceThickness = f"{taken.spacing[2]:.6f}"
        ds.SliceLocation = f"{z:.5f}"
        ds.KVP = "120"
        ds.AcquisitionNumber = 1
        ds.PatientPosition = "HFS"
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
        ds.WindowCenter, ds.WindowWidth = ["-600", "40"], ["1500", "400"]
        _pixels(ds, (taken.hu[:, :, k].T.astype(np.int32) + 1024).astype(np.uint16), 12, 0, "MONOCHROME2")
        datasets.append(ds)
    return datasets


def encode(ds: Dataset) -> bytes:
    """The file's bytes."""
    from pydicom import dcmwrite

    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def _base(study: Study, modality: str, role: str) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    visit = study.visit
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = UID(_CLASSES[modality])
    ds.file_meta.MediaStorageSOPInstanceUID = UID(visit.uid(role))
    ds.file_meta.TransferSyntaxUID = UID(_EXPLICIT)
    ds.file_meta.ImplementationClassUID = UID(_IMPLEMENTATION)
    ds.file_meta.ImplementationVersionName = "MEDFM_PHANTOM"
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = UID(_CLASSES[modality])
    ds.SOPInstanceUID = UID(visit.uid(role))
    date = study.date.strftime("%Y%m%d")
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = date
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = f"{8 + visit.index % 10:02d}{visit.index % 60:02d}00"
    ds.AccessionNumber = visit.study_id
    ds.Modality = modality
    ds.Manufacturer = "medfm phantom"
    ds.ManufacturerModelName = "generated, no patient"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "CHEST CT" if modality == "CT" else "CHEST RADIOGRAPH"
    ds.PatientName = f"PHANTOM^{visit.patient:06d}"
    ds.PatientID = visit.patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = study.patient.sex
    ds.PatientAge = f"{study.age:03d}Y"
    ds.BodyPartExamined = "CHEST"
    ds.StudyInstanceUID = visit.uid("study")
    ds.StudyID = f"{visit.index}"
    return ds


def _pixels(ds: Dataset, values: np.ndarray, bits: int, signed: int, photometric: str) -> None:
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = photometric
    ds.Rows, ds.Columns = values.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits, bits - 1
    ds.PixelRepresentation = signed
    ds.PixelData = np.ascontiguousarray(values).astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
