"""The data set over a store: equal to decoding, exact under every number of processes, and lean."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medfm.data.datamodule import build_loader
from medfm.data.dataset import StudyDataset
from medfm.data.sampler import StepBatchSampler
from medfm.errors import ConfigError, DataError
from medfm.transforms.config import PreprocessConfig

Bench = Any  # of conftest.py


def dataset(bench: Bench, cache: str | None = None, **options: Any) -> StudyDataset:
    return StudyDataset(bench.manifest, bench.preprocess, train=True, cache=cache or str(bench.out), **options)


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("kind", ["films", "volumes"])
def test_image__from_the_store_equals_decoding(kind: str, crop: str, request: pytest.FixtureRequest) -> None:
    bench = request.getfixturevalue(kind)
    bench.cache()
    stored, decoded = dataset(bench, crop=crop, seed=3), dataset(bench, "none", crop=crop, seed=3)
    for position in range(6):
        for epoch in range(3):
            image = stored.image(position, epoch)
            assert image.shape == bench.preprocess.stored_shape
            assert torch.equal(image, decoded.image(position, epoch))


def test_image__random_crops_depend_on_seed_epoch_and_row_alone(volumes: Bench) -> None:
    volumes.cache()
    data = dataset(volumes, crop="random", seed=1)
    crops = [data.image(2, epoch).clone() for epoch in range(8)]
    assert len({c.numpy().tobytes() for c in crops}) > 5
    whole = volumes.whole(2)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (1, *volumes.contract.size))
    assert all((windows == crop.numpy()).all(axis=(-4, -3, -2, -1)).any() for crop in crops)
    assert all(torch.equal(dataset(volumes, crop="random", seed=1).image(2, e), crops[e]) for e in (5, 0))
    assert not torch.equal(dataset(volumes, crop="random", seed=2).image(2, 0), crops[0])
    middle = StudyDataset(volumes.manifest, volumes.preprocess, cache=str(volumes.out), crop="random")
    np.testing.assert_array_equal(
        middle.image(2, 5), volumes.preprocess(volumes.preprocess.load(volumes.folder / "ct/2.nii", "CT"))
    )


def test_image__is_made_float_on_the_device_as_without_a_store(volumes: Bench) -> None:
    volumes.cache()
    batch = next(iter(build_loader(dataset(volumes), batch_size=6)))
    assert batch.images.dtype == torch.int16
    assert batch.images.shape == (6, 1, 6, 8, 8)
    unit = volumes.preprocess.to_unit(batch.images)
    assert unit.shape == (6, 2, 6, 8, 8)
    images = [volumes.preprocess.load(volumes.folder / f"ct/{n}.nii", "CT") for n in range(6)]
    exact = volumes.contract.model_copy(update={"dtype": "float32"})
    whole = [type(volumes.preprocess)(exact)(image) for image in images]
    np.testing.assert_allclose(unit, np.stack(whole), atol=1e-6)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader__same_batches_in_loader_processes(volumes: Bench, context: str) -> None:
    volumes.cache()
    data = dataset(volumes, crop="random")
    sampler = StepBatchSampler(len(data), 2, 6, seed=1)
    here = [b.images for b in build_loader(data, sampler)]
    loader = build_loader(data, sampler, workers=1)
    loader.multiprocessing_context = context
    there = [b.images for b in loader]
    assert len(here) == len(there) == 6
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("shuffle", ["global", "shard"])
def test_loader__resumes_mid_epoch_exactly_also_in_another_world(volumes: Bench, shuffle: str) -> None:
    volumes.cache(shard_gb=1e-5)
    data = dataset(volumes, crop="random")
    groups = data.shards if shuffle == "shard" else None

    def steps(start: int, rank: int, world: int) -> list[list[tuple[int, torch.Tensor]]]:
        sampler = StepBatchSampler(len(data), 4, 5, seed=1, start_step=start, rank=rank, world=world, groups=groups, together=2)
        return [list(zip(b.index.tolist(), b.images, strict=True)) for b in build_loader(data, sampler)]

    one = steps(0, 0, 1)
    for world in (1, 2, 4):
        for start in (0, 2, 3):
            parts = [steps(start, rank, world) for rank in range(world)]
            for step, whole in enumerate(one[start:]):
                together = [pair for rank in range(world) for pair in parts[rank][step]]
                assert sorted(i for i, _ in together) == sorted(i for i, _ in whole)  # disjoint and complete
                expected = dict(whole)
                assert all(torch.equal(image, expected[i]) for i, image in together)


def test_dataset__missing_images_are_counted_with_the_command(films: Bench) -> None:
    films.cache()
    frame = films.manifest.frame.copy()
    frame.loc[[1, 4], "image"] = ["x.png", "y.png"]
    films.manifest.frame = frame
    with pytest.raises(
        DataError, match=r"lacks 2 of 6 images \(2 not stored\), first: row 1, 'x\.png'\. Run `medfm cache manifest=.*"
    ):
        dataset(films)
    kept = dataset(films, on_error="skip")
    assert kept.rows.tolist() == [0, 2, 3, 5]
    assert [int(kept.image(p)[0, 4, 4]) for p in range(4)] == [0, 2, 3, 5]
    frame["image"] = "z.png"
    with pytest.raises(DataError, match="lacks 6 of 6"):
        dataset(films, on_error="skip")


def test_dataset__changed_files_are_no_silent_match(films: Bench, png: Callable[..., Path]) -> None:
    films.cache()
    png(films.folder / "images/3.png", value=77)
    with pytest.raises(
        DataError, match=r"lacks 1 of 6 images \(1 stored from files that have changed or are gone since\), first: row 3"
    ):
        dataset(films)
    assert len(dataset(films, check_files=False)) == 6


def test_dataset__another_folders_files_are_no_silent_match(films: Bench, png: Callable[..., Path], tmp_path: Path) -> None:
    films.cache()
    for row in range(6):
        old = films.folder / f"images/{row}.png"
        new = png(tmp_path / "b" / f"images/{row}.png", value=row + 1)
        new.write_bytes(new.read_bytes().ljust(old.stat().st_size, b"\0"))
        old.write_bytes(old.read_bytes().ljust(new.stat().st_size, b"\0"))
        os.utime(new, (9, 9))
        os.utime(old, (9, 9))
    films.cache()
    films.manifest = replace(films.manifest, root=tmp_path / "b")
    with pytest.raises(
        DataError,
        match=r"\(6 stored from files of the same names, sizes and times in another folder, but of other content\), first: "
        r"row 0, 'images/0\.png'\. Run `medfm cache",
    ):
        dataset(films)


def test_dataset__trains_without_the_files_where_names_are_trusted(films: Bench) -> None:
    films.cache()
    expected = [dataset(films).image(p).clone() for p in range(6)]
    for path in (films.folder / "images").iterdir():
        path.unlink()
    data = dataset(films, check_files=False)
    assert all(torch.equal(data.image(p), expected[p]) for p in range(6))


def test_dataset__random_crops_and_the_memory_cache_exclude_each_other(volumes: Bench) -> None:
    with pytest.raises(ConfigError, match=r"data\.cache=memory keeps finished crops"):
        dataset(volumes, "memory", crop="random")


GROWTH = """
import json, multiprocessing, sys
from pathlib import Path
from medfm.data.datamodule import build_loader
from medfm.data.dataset import StudyDataset
from medfm.data.manifest import read_manifest
from medfm.data.sampler import StepBatchSampler
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess

def resident(pid):
    lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return {line[0]: 1024 * int(line[1]) for line in lines if line and line[0].startswith("Rss")}

folder, contract = Path(sys.argv[1]), PreprocessConfig.model_validate_json(sys.argv[2])
data = StudyDataset(read_manifest(folder / "m.parquet"), Preprocess(contract), train=True, cache=str(folder / "store"))
steps, seen = len(data) // 4, []
for step, _ in enumerate(build_loader(data, StepBatchSampler(len(data), 4, 7 * steps, seed=0), workers=2)):
    if step + 1 in (steps, 2 * steps, 5 * steps, 6 * steps):  # while the processes live
        seen.append([resident(child.pid) for child in multiprocessing.active_children()])
print(json.dumps(seen))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_loader__two_epochs_do_not_grow_its_processes(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(240, PreprocessConfig(size=(160, 160), window="none", resize="stretch", dtype="float32"))
    pixels = bench.cache().bytes
    assert pixels > 20e6
    words = [sys.executable, "-c", GROWTH, str(bench.folder), bench.contract.model_dump_json()]
    out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    seen = json.loads(out.splitlines()[-1])
    assert [len(sizes) for sizes in seen] == [2] * 4
    own = [max(size["RssAnon:"] for size in sizes) for sizes in seen]
    mapped = [max(size["RssFile:"] for size in sizes) for sizes in seen]
    # The heap breathes by some megabytes; a process that kept what it read would grow by 12 MB in each of the three epochs.
    assert min(own[2:]) - max(own[:2]) < 12e6
    # What is mapped of the store is the kernel's cache, given back when memory is needed, and at most the store.
    assert max(mapped) - min(mapped) < pixels


def test_dataset__keeps_no_python_object_a_row(films: Bench) -> None:
    import pandas as pd

    from medfm.data.manifest import Manifest, complete

    films.cache()
    n = 5000
    frame = complete(
        pd.DataFrame(
            {
                "image": [f"images/{i % 6}.png" for i in range(n)],
                "patient_id": [f"p{i}" for i in range(n)],
                "split": "train",
                "report": [f"Report {i}. Another sentence." for i in range(n)],
            }
        )
    )
    manifest = Manifest(frame, films.folder, {}, films.path)
    data = StudyDataset(manifest, films.preprocess, lambda texts: (torch.zeros(1), torch.zeros(1)), cache=str(films.out))
    assert data.text(4321) == "Report 4321. Another sentence."
    data.tokenizer = None

    def objects(value: Any, depth: int = 0) -> int:
        """Python objects reachable through plain attributes and containers."""
        if isinstance(value, np.ndarray | torch.Tensor | str | bytes | int | float | type(None)) or depth > 6:
            return 1
        if isinstance(value, dict):
            return 1 + sum(objects(v, depth + 1) for v in value.values())
        if isinstance(value, list | tuple | set):
            return 1 + sum(objects(v, depth + 1) for v in value)
        return 1 + objects(getattr(value, "__dict__", None), depth + 1)

    assert objects(data) < 500
    assert len(pickle.dumps(data)) < 300 * n


def test_pretrain__from_a_store_gives_the_same_weights(tiny_recipe: Path, tiny_run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    import medfm
    from medfm.api import resolve_verb
    from medfm.data.store.config import CacheConfig
    from medfm.data.store.run import run_cache

    config = resolve_verb("pretrain", str(tiny_recipe), {}).config
    cache = CacheConfig(manifest=config.data.manifest, recipe=str(tiny_recipe), out=tmp_path / "store", workers=0)
    assert run_cache(cache, config.preprocess, progress=False).stored == 48
    run = medfm.pretrain(str(tiny_recipe), {"out": tmp_path / "run", "data.cache": str(tmp_path / "store")})
    expected, found = (load_file(folder / "model.safetensors") for folder in (tiny_run, run))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with pytest.raises(ConfigError, match=r"data\.shuffle=shard is for a cache on disk"):
        medfm.pretrain(str(tiny_recipe), {"out": tmp_path / "other", "data.shuffle": "shard"})
