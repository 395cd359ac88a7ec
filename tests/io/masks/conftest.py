"""Images with a known grid, and small RTSTRUCT files whose every contour is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm.types import Image

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def oblique() -> np.ndarray:
    """A turned affine with three spacings, RAS+ mm."""
    a, b, c = 0.4, -0.3, 0.2
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = x @ y @ z @ np.diag([-0.9, -1.1, 2.5])
    affine[:3, 3] = 40.0, 55.0, -120.0
    return affine


@pytest.fixture
def blank() -> Callable[..., Image]:
    """blank(shape, affine, source="") -> an Image of zeros."""

    def make(shape: tuple[int, ...], affine: np.ndarray, source: str | Path = "", **more: Any) -> Image:
        more = {"modality": "CT", "intensity_units": "HU", **more}
        return Image(np.zeros(shape, np.int16), np.asarray(affine, float), source=str(source), **more)

    return make


@pytest.fixture
def write_rtstruct(tmp_path: Path) -> Callable[..., Path]:
    """write_rtstruct({name: [(n, 3) LPS mm, ...]}, name="rt.dcm", kind="CLOSED_PLANAR", frame="1.2.3.9") -> path.

    A contour may be a pair (points, kind of its own).
    """

    def write(
        regions: dict[str, Sequence[Any]], name: str = "rt.dcm", kind: str = "CLOSED_PLANAR", frame: str = "1.2.3.9"
    ) -> Path:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import RTStructureSetStorage, generate_uid

        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.Modality = "RTSTRUCT"
        dataset.PatientName = "SECRET^NAME"
        dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
        for number, (label, contours) in enumerate(regions.items(), start=1):
            roi, drawn = Dataset(), Dataset()
            roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, label, frame
            drawn.ReferencedROINumber, drawn.ContourSequence = number, []
            for contour in contours:
                points, shape = contour if isinstance(contour, tuple) else (contour, kind)
                item = Dataset()
                item.ContourGeometricType, item.NumberOfContourPoints = shape, len(points)
                item.ContourData = [f"{value:.10g}" for value in np.ravel(points)]
                drawn.ContourSequence.append(item)
            dataset.StructureSetROISequence.append(roi)
            dataset.ROIContourSequence.append(drawn)
        dataset.save_as(tmp_path / name, enforce_file_format=True)
        return tmp_path / name

    return write
