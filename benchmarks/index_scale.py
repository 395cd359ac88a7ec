"""`medfm index` on a synthesised export: files a second by headers alone, and the memory that each file costs.

python -m benchmarks.index_scale [--files 8000] [--workers 2]
"""

from __future__ import annotations

import argparse
import io
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import table, write


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--child", nargs=2, metavar=("ROOT", "WORKERS"), help="measure one tree in this process")
    options = parser.parse_args()
    if options.child:
        _measure(Path(options.child[0]), int(options.child[1]))
        return
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as name:
        for what, layout in (
            ("films, 8 to a folder", "films"),
            ("CT, 100 slices to a folder", "series"),
            ("CT, one flat folder", "flat"),
        ):
            root = Path(name) / layout
            for n in (options.files // 4, options.files):
                shutil.rmtree(root, ignore_errors=True)
                make(root, n, layout)
                for workers in (1, options.workers):
                    rows.append([what, f"{n:,}", workers, *_in_child(root, workers)])
    write(
        "index_scale",
        "Indexing at scale",
        "Uncompressed DICOM files of 16 x 16 pixels with headers of about 2 kB, headers only, the page cache warm, manifest "
        "written. Memory is the peak of the main process above what an index of one file takes; what a file costs is the "
        "difference between the two sizes. A row of a volume costs no more than that of a film, so series are cheap.",
        table(["tree", "files", "processes", "seconds", "files/s", "rows", "peak MiB above start"], rows),
        _per_file(rows),
    )


def _per_file(rows: list[list[object]]) -> str:
    parts = []
    for small, large in zip(rows[0::4], rows[2::4], strict=True):
        more = int(str(large[1]).replace(",", "")) - int(str(small[1]).replace(",", ""))
        parts.append(f"{small[0]}: {(float(str(large[6])) - float(str(small[6]))) * 2**20 / more:,.0f} bytes a file")
    return "; ".join(parts) + "."


def make(root: Path, count: int, layout: str) -> None:
    """`count` files: the same header but for patient, ids, position and number."""
    import numpy as np
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    rng = np.random.default_rng(0)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film = layout == "films"
    values = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1" if film else "1.2.840.10008.5.1.4.1.1.2",
        "Modality": "DX" if film else "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "StudyDate": "20200101",
        "PatientSex": "F",
        "PatientAge": "050Y",
        "Manufacturer": "made",
        "SeriesDescription": "made for measuring",
        "BodyPartExamined": "CHEST",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 16,
        "Columns": 16,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelSpacing": [1, 1],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SliceThickness": 1,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "ImageComments": "x" * 1024,
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = rng.integers(0, 4096, (16, 16), dtype=np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"
    for n in range(count):
        group, place = divmod(n, 8 if film else 100)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.{group}.{place}"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.SeriesInstanceUID = f"1.2.826.0.2.{n if film else group}"
        dataset.StudyInstanceUID, dataset.PatientID = f"1.2.826.0.3.{group}", f"P{group:06d}"
        dataset.ImagePositionPatient, dataset.InstanceNumber = [0, 0, place], place + 1
        path = root / (f"{n % 977:03d}-{n:07d}.dcm" if layout == "flat" else f"{group:06d}/{place:03d}.dcm")
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        path.write_bytes(buffer.getvalue())


def _in_child(root: Path, workers: int) -> list[str]:
    words = [sys.executable, "-m", "benchmarks.index_scale", "--child", str(root), str(workers)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1].split("\t")


def _measure(root: Path, workers: int) -> None:
    from medfm.data.index import index
    from medfm.data.index_config import IndexConfig

    with tempfile.TemporaryDirectory() as name:
        make(Path(name) / "one", 1, "films")
        index(IndexConfig(images=Path(name) / "one", out=Path(name) / "one.parquet", fractions=(1, 0, 0), workers=1))
        before = _peak()
        start = time.perf_counter()
        report = index(IndexConfig(images=root, out=Path(name) / "m.parquet", workers=workers))
        seconds = time.perf_counter() - start
    print(f"{seconds:.2f}\t{report.files / seconds:,.0f}\t{len(report.manifest):,}\t{_peak() - before:.1f}")


def _peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
