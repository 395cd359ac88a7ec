"""Small volumes and films, and stores of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm.data.manifest import Manifest, write_manifest
from medfm.data.store.config import CacheConfig
from medfm.data.store.reader import open_rows
from medfm.data.store.run import CacheReport, run_cache
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess


class Bench:
    """A manifest on disk, a contract, and the store that belongs to them."""

    def __init__(self, folder: Path, manifest: Manifest, contract: PreprocessConfig) -> None:
        self.folder, self.manifest, self.contract = folder, manifest, contract
        self.out = folder / "store"
        self.path = write_manifest(manifest, folder / "m.parquet")
        manifest.path = self.path

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(self.contract)

    def config(self, **options: Any) -> CacheConfig:
        return CacheConfig(**{"manifest": self.path, "recipe": "r", "out": self.out, "workers": 0, **options})

    def cache(self, **options: Any) -> CacheReport:
        return run_cache(self.config(**options), self.contract, progress=False)

    def whole(self, row: int) -> np.ndarray:
        """What the store must hold."""
        frame = self.manifest.frame
        image = self.preprocess.load(self.manifest.root / frame.at[row, "image"], frame.at[row, "modality"])
        return self.preprocess.whole(image)

    @property
    def inside(self) -> Path:
        """The store's folder for the contract."""
        return self.out / self.preprocess.stored_hash()

    def check(self, rows: list[int] | None = None) -> None:
        """The store holds exactly what the contract makes of each row."""
        frame = self.manifest.frame if rows is None else self.manifest.frame.loc[rows]
        stored, found = open_rows(self.out, self.preprocess, frame["image"].tolist(), frame["modality"].tolist(), self.folder)
        assert found.usable.all()
        for position, row in enumerate(frame.index):
            expected = self.whole(row)
            assert stored[position].dtype == expected.dtype
            np.testing.assert_array_equal(stored[position], expected)


@pytest.fixture
def make_bench(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Callable[..., Bench]:
    """make_bench(n, contract) -> Bench of n PNG files."""
    return lambda n, contract: Bench(tmp_path, make_manifest(n), contract)


@pytest.fixture
def films(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Bench:
    """Six PNG files of 12 x 10 pixels."""
    return Bench(tmp_path, make_manifest(6), PreprocessConfig(size=(8, 8), window="none"))


VOLUMES = PreprocessConfig(
    size=(6, 8, 8), window="hu", windows=((-1000, 400), (-160, 240)), channels=2, dtype="int16", resize="none"
)


@pytest.fixture
def make_volumes(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Callable[..., Bench]:
    """make_volumes(n=6, side=20) -> Bench of NIfTI CTs of different depths, in HU; the first voxel tells them apart."""
    import nibabel

    def make(n: int = 6, side: int = 20) -> Bench:
        rng = np.random.default_rng(0)
        names = [f"ct/{i}.nii" for i in range(n)]
        (tmp_path / "ct").mkdir()
        for i, name in enumerate(names):
            array = rng.integers(-1000, 1500, (side, side + 2, 12 + i)).astype(np.int16)
            array[0, 0, 0] = i
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / name)
        return Bench(tmp_path, make_manifest(n, write=False, image=names, modality=["CT"] * n), VOLUMES)

    return make


@pytest.fixture
def volumes(make_volumes: Callable[..., Bench]) -> Bench:
    return make_volumes()
