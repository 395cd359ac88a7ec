"""Small images on disk, and manifests of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def write_png(path: Path, value: int = 128, size: tuple[int, int] = (12, 10)) -> Path:
    """A grey PNG of (rows, columns), `value` but for a corner."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full(size, value, np.uint8)
    array[0, 0] = 255 - value
    Image.fromarray(array).save(path)
    return path


def write_film(path: Path, **tags: Any) -> Path:
    """A tiny DICOM file; `tags` are DICOM keywords."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    pixels = np.arange(120, dtype=np.uint16).reshape(12, 10)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": generate_uid(),
        "Modality": "DX",
        "PatientID": "SECRET-1",
        "PatientName": "SECRET^NAME",
        "Rows": 12,
        "Columns": 10,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        **tags,
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def png() -> Callable[..., Path]:
    return write_png


@pytest.fixture
def jpg() -> Callable[..., Path]:
    return write_png  # Pillow chooses the format by the suffix


@pytest.fixture
def film() -> Callable[..., Path]:
    return write_film


@pytest.fixture
def make_manifest(tmp_path: Path) -> Callable[..., Any]:
    """make_manifest(n=6, reports=[...], **columns) -> Manifest of n PNG files below tmp_path; patient i // 2; all train."""

    def make(n: int = 6, reports: Sequence[str] = (), write: bool = True, **columns: Any) -> Any:
        import pandas as pd

        from medfm.data.manifest import Manifest, complete

        names = [f"images/{i}.png" for i in range(n)]
        if write:
            for i, name in enumerate(names):
                write_png(tmp_path / name, value=i)
        table = {
            "image": names,
            "patient_id": [f"p{i // 2}" for i in range(n)],
            "split": ["train"] * n,
            "report": list(reports) or [f"Report number {i}." for i in range(n)],
        }
        return Manifest(complete(pd.DataFrame({**table, **columns})), tmp_path, {"text_kind": "report"}, tmp_path / "m.parquet")

    return make
