"""Small sound files whose content is known: what the damage is done to."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.conformance.space import Truth
from benchmarks.conformance.truth import LPS_TO_RAS, frames_truth, image_truths, plane_affine

if TYPE_CHECKING:
    from pydicom import Dataset

ROWS, COLUMNS = 40, 36  # JPEG 2000 as pydicom writes it needs 32
EXPLICIT, IMPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{tail}" for tail in (".1", "", ".2", ".1.99"))
JPEG, JPEG_LS, J2K, RLE = (f"1.2.840.10008.1.2.{tail}" for tail in ("4.50", "4.80", "4.90", "5"))


@dataclass(frozen=True)
class Seed:
    """A sound input: its files, what it holds, and for DICOM the data set to change tags in."""

    name: str
    files: dict[str, bytes] = field(repr=False)
    truth: Truth = field(repr=False)
    dataset: Callable[[], Dataset] | None = field(repr=False, default=None)

    @property
    def raw(self) -> bytes:
        return next(iter(self.files.values()))


def save(dataset: Dataset) -> bytes:
    """Bytes of a file with preamble, as pydicom writes it."""
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def picture(seed: int, shape: tuple[int, ...] = (ROWS, COLUMNS), top: int = 3000) -> np.ndarray:
    """A smooth picture with some noise, so that lossless encodings have work to do: int64 from 0 to below `top`."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape).astype(float)
    wave = sum(np.sin(axis / (3.0 + n)) for n, axis in enumerate(grid))
    wave = (wave - wave.min()) / np.ptp(wave)
    return np.clip(wave * 0.9 * top + rng.normal(0, top / 60, shape), 0, top - 1).astype(np.int64)


def dicom(pixels: np.ndarray, syntax: str = EXPLICIT, bits: int = 0, **tags: Any) -> Dataset:
    """A data set of one grey or colour picture (rows, columns[, 3]); `tags` are keywords, None leaves one out."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    size = 8 * pixels.itemsize
    colour = pixels.ndim == 3
    values: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
        "SOPInstanceUID": "1.2.826.0.1.3680043.10.1",
        "StudyDate": "20200102",
        "Modality": "CT",
        "PatientName": "Secret^Person",
        "PatientID": "SECRET-ID",
        "SliceThickness": "2.5",
        "StudyInstanceUID": "1.2.826.0.1.3680043.10.2",
        "SeriesInstanceUID": "1.2.826.0.1.3680043.10.3",
        "StudyID": "1",
        "SeriesNumber": "1",
        "InstanceNumber": "1",
        "FrameOfReferenceUID": "1.2.826.0.1.3680043.10.4",
        "ImagePositionPatient": ["-10.5", "20.25", "33"],
        "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "PlanarConfiguration": 0 if colour else None,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "PixelSpacing": ["0.8", "0.6"],
        "BitsAllocated": size,
        "BitsStored": bits or size,
        "HighBit": (bits or size) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "RescaleIntercept": None if colour else "-1024",
        "RescaleSlope": None if colour else "1",
        **tags,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    little = syntax != BIG
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes()
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 and syntax != IMPLICIT else "OW"
    return dataset


def _grey(syntax: str = EXPLICIT, **tags: Any) -> Dataset:
    return dicom(picture(1).astype(np.int16), syntax, **tags)


def _film() -> Dataset:
    unplaced = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "RescaleIntercept", "RescaleSlope"))
    tags = {"Modality": "CR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "PhotometricInterpretation": "MONOCHROME1"}
    return dicom(picture(2, top=4000).astype(np.uint16), bits=12, **tags, **unplaced)


def _bytes() -> Dataset:
    return dicom(picture(3, top=250).astype(np.uint8), Modality="US", RescaleIntercept=None, RescaleSlope=None)


def _rgb() -> Dataset:
    colours = np.stack([picture(n, top=250) for n in (4, 5, 6)], axis=-1).astype(np.uint8)
    return dicom(colours, Modality="US", ImagePositionPatient=None, ImageOrientationPatient=None)


def _palette() -> Dataset:
    indices = picture(7, top=200).astype(np.uint8)
    tags = {"Modality": "US", "PhotometricInterpretation": "PALETTE COLOR", "RescaleIntercept": None, "RescaleSlope": None}
    dataset = dicom(indices, ImagePositionPatient=None, ImageOrientationPatient=None, **tags)
    for n, name in enumerate(("Red", "Green", "Blue")):
        table = ((np.arange(256) * (n + 2)) % 256 * 257).astype("<u2")
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{name}PaletteColorLookupTableData", table.tobytes())
    return dataset


def _compressed(syntax: str) -> Dataset:
    dataset = _grey()
    dataset.compress(syntax, generate_instance_uid=False)
    return dataset


def _jpeg() -> Dataset:
    from PIL import Image
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    dataset = _bytes()
    out = BytesIO()
    Image.fromarray(picture(3, top=250).astype(np.uint8)).save(out, "JPEG", quality=92)
    dataset.file_meta.TransferSyntaxUID = UID(JPEG)
    dataset.PixelData = encapsulate([out.getvalue()])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    return dataset


def _lossless(folder: Path) -> Dataset:
    """JPEG lossless of 16 bits. gdcm compresses it, as pydicom cannot; its header changes each time, so it is left."""
    import gdcm
    from pydicom import dcmread
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.uid import UID

    (folder / "plain.dcm").write_bytes(save(_grey()))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(folder / "plain.dcm"))
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    writer.SetFileName(str(folder / "lossless.dcm"))
    done = reader.Read()
    change.SetInput(reader.GetImage())
    done = done and change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not (done and writer.Write()):
        raise RuntimeError("gdcm does not compress the grey seed")
    frame = get_frame(dcmread(folder / "lossless.dcm").PixelData, 0, number_of_frames=1)
    dataset = _grey()
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.70")
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    return dataset


def _enhanced() -> Dataset:
    """Five frames of an Enhanced MR, stored from the far end, with a slope for each."""
    from pydicom.dataset import Dataset

    planes = picture(8, (5, ROWS, COLUMNS)).astype(np.uint16)
    gone = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope")
    tags = {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1", "RescaleIntercept": None, **dict.fromkeys(gone)}
    dataset = dicom(planes[0], bits=12, **tags)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.NumberOfFrames, dataset.PixelData = 5, planes.astype("<u2").tobytes()

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for keyword, value in values.items():
            setattr(made, keyword, value)
        return made

    measures = item(PixelSpacing=["0.8", "0.6"], SliceThickness="2.5", SpacingBetweenSlices="2.5")
    turned = item(ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])
    dataset.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[turned])]
    groups = []
    for n in range(5):
        values = item(RescaleSlope=str(1 + n % 2), RescaleIntercept="0", RescaleType="US")
        place = item(ImagePositionPatient=["-10.5", "20.25", str(40 - 2.5 * n)])
        content = item(StackID="1", InStackPositionNumber=5 - n, DimensionIndexValues=[1, 5 - n])
        groups.append(
            item(FrameContentSequence=[content], PlanePositionSequence=[place], PixelValueTransformationSequence=[values])
        )
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


def _truth_of(raw: bytes, folder: Path, frames: bool = False) -> Truth:
    path = folder / "seed.dcm"
    path.write_bytes(raw)
    return frames_truth(path) if frames else image_truths(path)[0]


_SINGLE: dict[str, Callable[[], Dataset]] = {
    "grey": _grey,
    "implicit": lambda: _grey(IMPLICIT),
    "big endian": lambda: _grey(BIG),
    "deflated": lambda: _grey(DEFLATED),
    "film": _film,
    "8 bits": _bytes,
    "rgb": _rgb,
    "palette": _palette,
    "rle": lambda: _compressed(RLE),
    "jpeg-ls": lambda: _compressed(JPEG_LS),
    "jpeg 2000": lambda: _compressed(J2K),
    "jpeg": _jpeg,
}


def dicom_seeds(folder: Path) -> dict[str, Seed]:
    """Single images in every encoding, an enhanced object, and four of pydicom's real ones."""
    import pydicom.data

    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, make in _SINGLE.items():
        raw = save(make())
        found[name] = Seed(name, {"image.dcm": raw}, _truth_of(raw, folder), make)
    raw = save(_enhanced())
    found["enhanced"] = Seed("enhanced", {"image.dcm": raw}, _truth_of(raw, folder, frames=True), _enhanced)
    raw = save(_lossless(folder))
    found["jpeg lossless"] = Seed("jpeg lossless", {"image.dcm": raw}, found["grey"].truth)
    for name in ("MR_small.dcm", "SC_rgb_jpeg_gdcm.dcm", "JPGExtended.dcm", "JPEG2000.dcm"):
        raw = Path(str(pydicom.data.get_testdata_file(name, download=False))).read_bytes()
        found[name] = Seed(name, {"image.dcm": raw}, _truth_of(raw, folder))
    return found


def series_datasets() -> list[Dataset]:
    """Six slices, 2.5 mm apart."""
    slices = []
    for n in range(6):
        dataset = dicom(picture(20 + n).astype(np.int16), SOPInstanceUID=f"1.2.826.0.1.3680043.10.9.{n + 1}")
        dataset.ImagePositionPatient = ["-10.5", "20.25", f"{33 + 2.5 * n:g}"]
        dataset.InstanceNumber = str(6 - n)
        slices.append(dataset)
    return slices


def series_seed() -> Seed:
    slices = series_datasets()
    affine, _ = plane_affine(slices[0])
    affine[:3, 2] = LPS_TO_RAS[:3, :3] @ np.array([0, 0, 2.5])
    values = np.stack([picture(20 + n) - 1024.0 for n in range(6)])
    files = {f"{(5 * n) % 6}.dcm": save(d) for n, d in enumerate(slices)}
    return Seed("series", files, Truth(values.transpose(2, 1, 0), affine))


# --- NIfTI ----------------------------------------------------------------------------------------------------------------
SHAPE = (10, 12, 8)
AFFINE = np.array([[-0.9, 0.1, 0.0, 40.0], [0.1, 0.9, 0.0, -30.0], [0.0, 0.0, 2.0, 12.5], [0, 0, 0, 1.0]])


def nifti(
    array: np.ndarray, order: str = "<", two: bool = False, forms: str = "sq", slope: float = 1.0, inter: float = 0.0
) -> bytes:
    """A .nii whose stored voxels are `array`. `forms`: which of sform and qform it has."""
    import nibabel

    header = (nibabel.Nifti2Header if two else nibabel.Nifti1Header)(endianness=order)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units("mm", "sec")
    rigid = AFFINE.copy()
    rigid[:3, :3] /= np.linalg.norm(rigid[:3, :3], axis=0)
    rigid[:3, :3] *= [0.9, 0.9, 2.0]
    header.set_qform(rigid, code=1 if "q" in forms else 0)
    header.set_sform(rigid, code=2 if "s" in forms else 0)
    if "s" not in forms:
        header.set_sform(None, code=0)
    header.set_slope_inter(slope, inter)
    header["vox_offset"] = 544 if two else 352
    header["magic"] = header["magic"] if two else b"n+1"
    stored = array if array.dtype.names else array.astype(array.dtype.newbyteorder(order))
    return bytes(header.binaryblock) + bytes(4) + stored.tobytes(order="F")


def pack(raw: bytes) -> bytes:
    return gzip.compress(raw, 6, mtime=0)


def nifti_seeds(folder: Path) -> dict[str, Seed]:
    """int16, float32, bytes, time, colour, scaled; NIfTI-1 and -2, both byte orders, with one form alone, packed."""
    from benchmarks.conformance.truth import nifti_truth

    folder.mkdir(parents=True, exist_ok=True)
    volume = (picture(30, SHAPE) - 1000).astype(np.int16)
    colour = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    for n, name in enumerate("RGB"):
        colour[name] = picture(31 + n, SHAPE, 250)
    raw = {
        "int16": nifti(volume),
        "float32": nifti(volume.astype(np.float32) / 7),
        "uint8": nifti(picture(34, SHAPE, 250).astype(np.uint8)),
        "time": nifti(np.stack([volume, volume // 2, volume // 3], axis=-1)),
        "colour": nifti(colour),
        "scaled": nifti(volume, slope=0.5, inter=3.0),
        "nifti-2": nifti(volume, two=True),
        "big endian": nifti(volume, order=">"),
        "sform alone": nifti(volume, forms="s"),
        "qform alone": nifti(volume, forms="q"),
    }
    found = {}
    for name, data in raw.items():
        (folder / "seed.nii").write_bytes(data)
        truth = nifti_truth(folder / "seed.nii", "nibabel")
        truth = Truth(np.array(truth.array), truth.affine)
        found[name] = Seed(name, {"image.nii": data}, truth)
    packed = found["int16"]
    found["packed"] = Seed("packed", {"image.nii.gz": pack(packed.raw)}, packed.truth)
    return found


def patch(raw: bytes, offset: int, form: str, *values: Any) -> bytes:
    """`raw` with a struct packed over it."""
    data = struct.pack(form, *values)
    return raw[:offset] + data + raw[offset + len(data) :]
