"""Small DICOM files, written by pydicom, whose every pixel is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def make_dicom(
    path: Path, pixels: np.ndarray, bits: int | None = None, syntax: str = "1.2.840.10008.1.2.1", **tags: Any
) -> Path:
    """Write (rows, columns) or (rows, columns, 3), uncompressed. `tags` are DICOM keywords; None leaves a tag out."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    defaults = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1",
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "Modality": "CR",
        "PatientID": "SECRET-ID",
        "PatientName": "SECRET^NAME",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 3 if pixels.ndim == 3 else 1,
        "PhotometricInterpretation": "RGB" if pixels.ndim == 3 else "MONOCHROME2",
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": bits or 8 * pixels.itemsize,
        "HighBit": (bits or 8 * pixels.itemsize) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    if pixels.ndim == 3:
        defaults["PlanarConfiguration"] = 0
    for keyword, value in {**defaults, **tags}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "1.2")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW" if pixels.itemsize > 1 else "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def write_dicom(tmp_path: Path) -> Callable[..., Path]:
    """write_dicom(pixels, name="x.dcm", **tags) -> path inside tmp_path."""

    def write(pixels: np.ndarray, name: str = "image.dcm", **tags: Any) -> Path:
        return make_dicom(tmp_path / name, pixels, **tags)

    return write


@pytest.fixture
def write_series(tmp_path: Path) -> Callable[..., Path]:
    """write_series(volume, positions, folder="s", change=None, **tags) -> folder of slices, shuffled by name."""

    def write(
        volume: np.ndarray,
        positions: list[list[float]],
        folder: str = "series",
        change: dict[int, dict[str, Any]] | None = None,
        **tags: Any,
    ) -> Path:
        common: dict[str, Any] = {
            "Modality": "MR",
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [2.0, 1.0],
            **tags,
        }
        for n, (plane, position) in enumerate(zip(volume, positions, strict=True)):
            name = f"{(n * 7) % len(positions):03d}-{n}.dcm"
            extra = {**common, "ImagePositionPatient": position, **(change or {}).get(n, {})}
            make_dicom(tmp_path / folder / name, plane, **extra)
        return tmp_path / folder

    return write


@pytest.fixture
def write_enhanced(tmp_path: Path) -> Callable[..., Path]:
    """write_enhanced(volume, frames, name="e.dcm", shared={...}, **tags) -> an Enhanced MR object.

    `frames` holds one dict a frame, {macro sequence: {keyword: value}}; so does `shared`.
    """
    from pydicom.dataset import Dataset

    def item(macros: dict[str, dict[str, Any]]) -> Dataset:
        group = Dataset()
        for name, values in macros.items():
            macro = Dataset()
            for keyword, value in values.items():
                setattr(macro, keyword, value)
            setattr(group, name, [macro])
        return group

    def write(
        volume: np.ndarray,
        frames: list[dict[str, dict[str, Any]]],
        name: str = "enhanced.dcm",
        shared: dict[str, dict[str, Any]] | None = None,
        **tags: Any,
    ) -> Path:
        common = {
            "PixelMeasuresSequence": {"PixelSpacing": [2.0, 1.0], "SliceThickness": 3},
            "PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            **(shared or {}),
        }
        extra = {
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1",
            "Modality": "MR",
            "NumberOfFrames": len(frames),
            "SharedFunctionalGroupsSequence": [item(common)],
            "PerFrameFunctionalGroupsSequence": [item(frame) for frame in frames],
            **tags,
        }
        # Rows and columns are those of one frame; the pixels of all follow each other.
        flat = volume.reshape(-1, *volume.shape[2:])
        return make_dicom(tmp_path / name, flat, **{"Rows": volume.shape[1], "Columns": volume.shape[2], **extra})

    return write
