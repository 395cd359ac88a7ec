"""Cached crops and images to a batch: medfm's store against MONAI's CacheDataset and mosaic's MDS, on one thread.

    python -m benchmarks.speed.cache

Writes benchmarks/results/cache.md. Every reader gives random items and each is copied into a batch, so that all touch the same
bytes; they take turns, and the median of the ratios within a turn counts. Files are in the page cache for all; MONAI's volumes
lie in the process's memory. Before anything is timed, what the readers give is compared value by value.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import bar, table, write
from medfm.data.datamodule import build_loader
from medfm.data.dataset import StudyDataset
from medfm.data.manifest import Manifest, complete, write_manifest
from medfm.data.sampler import StepBatchSampler
from medfm.data.store.config import CacheConfig
from medfm.data.store.run import run_cache
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess

CROP, BATCH = 96, 4
WINDOWS = ((-1000.0, 400.0), (-160.0, 240.0))
Take = Callable[[int, torch.Tensor], None]
"""Copy a random item, the n-th of a turn, into a slot of the batch."""


def manifest_of(folder: Path, names: list[str], modality: str) -> Manifest:
    import pandas as pd

    rows = {"image": names, "patient_id": [f"p{n}" for n in range(len(names))], "split": "train", "modality": modality}
    manifest = Manifest(complete(pd.DataFrame(rows)), folder)
    write_manifest(manifest, folder / "manifest.parquet")
    return manifest


def stored(folder: Path, manifest: Manifest, contract: PreprocessConfig, **options: Any) -> StudyDataset:
    """A data set over a store of the manifest, made first."""
    out = folder / "store"
    run_cache(CacheConfig(manifest=folder / "manifest.parquet", recipe="-", out=out, workers=0), contract, progress=False)
    return StudyDataset(manifest, Preprocess(contract), train=True, cache=str(out), **options)


def make_volumes(folder: Path, n: int, shape: tuple[int, int, int]) -> Manifest:
    """CT-like int16 volumes as NIfTI."""
    import nibabel

    rng = np.random.default_rng(0)
    for number in range(n):
        array = rng.integers(-1000, 1500, shape).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{number}.nii")
    return manifest_of(folder, [f"{number}.nii" for number in range(n)], "CT")


def make_images(folder: Path, n: int) -> Manifest:
    """512 x 512 grey pictures."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(n):
        small = rng.integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(small).resize((512, 512)).save(folder / f"{number}.png", compress_level=1)
    return manifest_of(folder, [f"{number}.png" for number in range(n)], "OT")


def race(readers: dict[str, Take], slots: torch.Tensor, items: int, turns: int) -> tuple[dict[str, float], dict[str, float]]:
    """(items a second, each reader's median; the median over turns of the first reader's rate over each other's)."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(turns + 1):
        for name, take in readers.items():
            start = time.perf_counter()
            for number in range(items):
                take(turn * items + number, slots[number % len(slots)])
            if turn:  # the first turn brings files and code into memory
                rates[name].append(items / (time.perf_counter() - start))
    first = next(iter(rates.values()))
    return (
        {name: median(values) for name, values in rates.items()},
        {name: median(a / b for a, b in zip(first, values, strict=True)) for name, values in rates.items()},
    )


def crops(folder: Path, n: int, shape: tuple[int, int, int], items: int, turns: int) -> tuple[list[list[str]], float]:
    """Random 96^3 int16 crops; the ratio to MONAI's CacheDataset."""
    from monai.data import CacheDataset
    from monai.transforms import Compose, LoadImaged, RandSpatialCropd

    manifest = make_volumes(folder, n, shape)
    contract = PreprocessConfig(size=(CROP,) * 3, window="hu", windows=WINDOWS, channels=2, dtype="int16", resize="none")
    data = stored(folder, manifest, contract, crop="random")
    steps = [
        LoadImaged("image", ensure_channel_first=True, dtype=np.int16),
        RandSpatialCropd("image", (CROP,) * 3, random_size=False),
    ]
    files = [{"image": str(folder / name)} for name in manifest.frame["image"]]
    cached = {copied: CacheDataset(files, Compose(steps), copy_cache=copied, progress=False) for copied in (True, False)}

    # The same voxels: whole volumes, and our crop where a box of the volume begins.
    for number in range(n):
        theirs = np.asarray(cached[True]._cache[number]["image"])[0].transpose(2, 1, 0)
        assert data._stored is not None
        assert np.array_equal(data._stored[number][0], theirs)
        mine = data.image(number, 7)[0].numpy()
        corner = np.argwhere(theirs[: 1 + shape[2] - CROP, : 1 + shape[1] - CROP, : 1 + shape[0] - CROP] == mine[0, 0, 0])
        assert any(np.array_equal(theirs[a : a + CROP, b : b + CROP, c : c + CROP], mine) for a, b, c in corner)
    order = np.random.default_rng(1).integers(0, n, 100_000)

    def ours(number: int, slot: torch.Tensor) -> None:
        slot.copy_(data[(number, int(order[number]))].image)

    def monai(copied: bool) -> Take:
        def take(number: int, slot: torch.Tensor) -> None:
            slot.copy_(cached[copied][int(order[number])]["image"])

        return take

    slots = torch.empty(BATCH, 1, CROP, CROP, CROP, dtype=torch.int16)
    readers = {"medfm store": ours, "MONAI CacheDataset": monai(True), "MONAI CacheDataset, copy_cache=False": monai(False)}
    rates, ratios = race(readers, slots, items, turns)
    rows = [[name, f"{rates[name]:,.0f}", "" if name == "medfm store" else f"{ratios[name]:.2f}"] for name in readers]
    return rows, ratios["MONAI CacheDataset"]


def images(folder: Path, n: int, items: int, turns: int) -> tuple[list[list[str]], float | None]:
    """512 x 512 uint8 images; the ratio to MDS, None where mosaicml-streaming is not installed."""
    manifest = make_images(folder, n)
    data = stored(folder, manifest, PreprocessConfig(size=(512, 512), window="none"))
    order = np.random.default_rng(1).integers(0, n, 1_000_000)

    def ours(number: int, slot: torch.Tensor) -> None:
        slot.copy_(data[(0, int(order[number]))].image)

    readers: dict[str, Take] = {"medfm store": ours}
    if find_spec("streaming"):
        from streaming import LocalDataset, MDSWriter

        with MDSWriter(out=str(folder / "mds"), columns={"image": "ndarray:uint8:1,512,512"}) as writer:
            for number in range(n):
                writer.write({"image": np.ascontiguousarray(data.image(number).numpy())})
        mds = LocalDataset(local=str(folder / "mds"))
        assert all(np.array_equal(mds[number]["image"], data.image(number)) for number in range(n))

        def theirs(number: int, slot: torch.Tensor) -> None:
            slot.copy_(torch.from_numpy(mds[int(order[number])]["image"]))

        readers["mosaic MDS"] = theirs
    slots = torch.empty(64, 1, 512, 512, dtype=torch.uint8)
    rates, ratios = race(readers, slots, items, turns)
    rows = [[name, f"{rates[name]:,.0f}", "" if name == "medfm store" else f"{ratios[name]:.2f}"] for name in readers]
    return rows, ratios.get("mosaic MDS")


def batches(folder: Path, items: int, turns: int) -> list[list[str]]:
    """Crops a second through the loader, as int16 and as float32: the batch received, and made float in [0, 1] on the CPU."""
    from medfm.data.manifest import read_manifest

    manifest = read_manifest(folder / "manifest.parquet", folder)
    sets = {}
    for dtype in ("int16", "float32"):
        contract = PreprocessConfig(size=(CROP,) * 3, window="hu", hu_window=WINDOWS[0], dtype=dtype, resize="none")
        sets[dtype] = stored(folder, manifest, contract, crop="random")
    rows = []
    for workers in (0, 1):
        rates: dict[tuple[str, bool], list[float]] = {(dtype, unit): [] for dtype in sets for unit in (False, True)}
        for _ in range(turns):
            for (dtype, unit), found in rates.items():
                found.append(_loaded(sets[dtype], workers, unit, items))
        for unit in (False, True):
            pair = [rates[dtype, unit] for dtype in sets]
            ratio = median(a / b for a, b in zip(*pair, strict=True))
            what = "float batch in [0, 1], made on the CPU" if unit else "stored batch"
            rows.append([str(workers), what, *[f"{median(found):,.0f}" for found in pair], f"{ratio:.2f}"])
    return rows


def _loaded(data: StudyDataset, workers: int, unit: bool, items: int) -> float:
    batch = min(BATCH, len(data))
    steps = items // batch
    warm = 4
    loader = iter(build_loader(data, StepBatchSampler(len(data), batch, steps + warm, seed=0), workers=workers))

    def take(count: int) -> Iterator[torch.Tensor]:
        for _ in range(count):
            images = next(loader).images
            yield data.preprocess.to_unit(images) if unit else images

    for _ in take(warm):
        pass
    start = time.perf_counter()
    for _ in take(steps):
        pass
    return steps * batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="a few seconds, to see that it works")
    small = parser.parse_args().small
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    turns = 2 if small else 9
    with tempfile.TemporaryDirectory() as name:
        ct, films = Path(name) / "ct", Path(name) / "films"
        ct.mkdir()
        films.mkdir()
        shape = (128, 128, 110) if small else (256, 256, 200)
        crop_rows, crop_ratio = crops(ct, 4 if small else 12, shape, 40 if small else 300, turns)
        batch_rows = batches(ct, 40 if small else 200, turns)
        image_rows, image_ratio = images(films, 60 if small else 1500, 200 if small else 3000, turns)
    absent = [name for name in ("blosc2", "zarr", "litdata") if not find_spec(name)]
    write(
        "cache" if not small else "cache_small",
        "Cached crops and images",
        f"Items a second into a batch, one thread, medians of {turns} turns. Whole volumes and images are equal value by value "
        f"in all readers. Not installed here: {', '.join(absent) or '-'}.",
        f"## Random {CROP}^3 int16 crops of {' x '.join(map(str, shape))} volumes",
        table(["reader", "crops/s", "medfm is faster by"], crop_rows),
        "## 512 x 512 uint8 images, random order",
        table(["reader", "images/s", "medfm is faster by"], image_rows),
        f"## Through the DataLoader, {CROP}^3 crops of the store, batches of {BATCH}",
        table(["loader processes", "until", "int16 crops/s", "float32 crops/s", "int16 is faster by"], batch_rows),
        "\n".join(
            [
                bar(f"crops: {crop_ratio:.2f}x MONAI CacheDataset, at least 4x wanted", crop_ratio >= 4),
                bar(f"images: {image_ratio:.2f}x mosaic MDS, at least 1.0x wanted", image_ratio >= 1)
                if image_ratio is not None
                else "- not measured: mosaicml-streaming is not installed (`pip install --no-deps mosaicml-streaming`)",
            ]
        ),
    )


if __name__ == "__main__":
    main()
