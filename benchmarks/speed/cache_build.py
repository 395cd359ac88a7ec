"""Building a cache: images a second, and a run killed with SIGKILL again and again against one that was not.

    python -m benchmarks.speed.cache_build

Writes benchmarks/results/cache_build.md. Films are uncompressed 12-bit DICOM files, resized to 512 x 512; volumes are .nii.gz
CTs, resampled to 1.5 mm. The killed runs' store must hold the same bytes for every image, none lost and none decoded twice.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import bar, table, write
from benchmarks.speed.cache import manifest_of
from medfm.data.manifest import Manifest, read_manifest
from medfm.data.store.config import CacheConfig
from medfm.data.store.reader import open_rows
from medfm.data.store.records import read_records
from medfm.data.store.run import CacheReport, run_cache
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess

KILLS = 3
FILMS = PreprocessConfig(size=(512, 512), window="voi")
VOLUMES = PreprocessConfig(size=(96, 96, 96), window="hu", dtype="int16", spacing=(1.5, 1.5, 1.5))


def make_films(folder: Path, n: int, side: int) -> Manifest:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    rng = np.random.default_rng(0)
    for number in range(n):
        film = Dataset()
        film.file_meta = FileMetaDataset()
        film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
        film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
        film.Modality, film.PhotometricInterpretation = "DX", "MONOCHROME2"
        film.Rows, film.Columns, film.SamplesPerPixel = side, side * 4 // 5, 1
        film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
        film.WindowCenter, film.WindowWidth = 2048, 4096
        pixels = rng.integers(0, 4096, (film.Rows // 8, film.Columns // 8), dtype=np.uint16).repeat(8, 0).repeat(8, 1)
        film.Rows, film.Columns = pixels.shape
        film.PixelData = pixels.tobytes()
        film["PixelData"].VR = "OW"
        film.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return manifest_of(folder, [f"{number}.dcm" for number in range(n)], "DX")


def make_volumes(folder: Path, n: int, side: int) -> Manifest:
    import nibabel

    rng = np.random.default_rng(0)
    for number in range(n):
        coarse = rng.integers(-1000, 1500, (side // 4, side // 4, side // 4)).astype(np.int16)
        array = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([0.8, 0.8, 1.0, 1.0])), folder / f"{number}.nii.gz")
    return manifest_of(folder, [f"{number}.nii.gz" for number in range(n)], "CT")


def build(folder: Path, contract: PreprocessConfig, out: str, workers: int) -> CacheReport:
    config = CacheConfig(manifest=folder / "manifest.parquet", recipe="-", out=folder / out, workers=workers)
    return run_cache(config, contract, progress=False)


def killed(folder: Path, contract: PreprocessConfig, n: int, workers: int) -> tuple[list[int], CacheReport]:
    """Records at each SIGKILL of a run and its processes, and the report of the run that ended."""
    inside = folder / "killed" / Preprocess(contract).stored_hash()
    words = [
        sys.executable,
        "-m",
        "benchmarks.speed.cache_build",
        "--run",
        str(folder),
        contract.model_dump_json(),
        str(workers),
    ]
    kept: list[int] = []
    for kill in range(KILLS):
        process = subprocess.Popen(words, start_new_session=True)
        while process.poll() is None and len(read_records(inside)) < (kill + 1) * n // (KILLS + 1):
            time.sleep(0.005)
        assert process.poll() is None, "the run ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kept.append(len(read_records(inside)))
    return kept, build(folder, contract, "killed", workers)


def same_bytes(folder: Path, manifest: Manifest, contract: PreprocessConfig) -> bool:
    names, kinds = manifest.frame["image"].tolist(), manifest.frame["modality"].tolist()
    one, other = (open_rows(folder / out, Preprocess(contract), names, kinds, folder)[0] for out in ("whole", "killed"))
    return all(one[row].shape == other[row].shape and bool((one[row] == other[row]).all()) for row in range(len(names)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="a minute, to see that it works")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        folder, contract, workers = options.run
        build(Path(folder), PreprocessConfig.model_validate(json.loads(contract)), "killed", int(workers))
        return
    rows, equal, exact = [], True, True
    with tempfile.TemporaryDirectory() as name:
        for kind, make, n, side, contract in (
            ("films", make_films, 200 if options.small else 600, 1024 if options.small else 2048, FILMS),
            ("volumes", make_volumes, 24 if options.small else 60, 96 if options.small else 256, VOLUMES),
        ):
            folder = Path(name) / kind
            folder.mkdir()
            make(folder, n, side)
            manifest = read_manifest(folder / "manifest.parquet", folder)
            for workers in (1, 2):
                out = "whole" if workers == 2 else f"workers{workers}"
                report = build(folder, contract, out, workers)
                again = build(folder, contract, out, workers)
                rows.append(
                    [
                        kind,
                        n,
                        workers,
                        f"{n / report.seconds:,.1f}",
                        f"{report.bytes / 1e6 / report.seconds:,.0f}",
                        f"{again.seconds:.2f}",
                    ]
                )
                assert again.decoded == 0
            kept, report = killed(folder, contract, n, 2)
            exact = exact and report.decoded == n - kept[-1]
            equal = equal and same_bytes(folder, manifest, contract)
            rows.append([kind, n, f"2, killed at {', '.join(map(str, kept))} images", "", "", ""])
    write(
        "cache_build" if not options.small else "cache_build_small",
        "Building a cache, and a killed run",
        "Seconds include the start of the worker processes.",
        table(["kind", "images", "workers", "images/s", "MB/s stored", "seconds to find all of it there"], rows),
        "\n".join(
            [
                bar("after SIGKILL, every image has the same bytes as in a store made in one go", equal),
                bar("no record was lost by a SIGKILL, and no image decoded twice", exact),
            ]
        ),
    )


if __name__ == "__main__":
    main()
