from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medfm.data.batches import tensors_of
from medfm.data.cache import MemoryCache
from medfm.data.datamodule import build_loader
from medfm.data.dataset import StudyDataset
from medfm.data.manifest import Manifest
from medfm.data.sampler import StepBatchSampler
from medfm.errors import ConfigError, DataError
from medfm.text.config import ReportConfig
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess
from medfm.types import Batch

SMALL = PreprocessConfig(size=(8, 8), window="none")


class Letters:
    """A tokenizer with nothing to hide: code points, zero-padded to the longest."""

    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(1, *(len(t) for t in texts))
        tokens = torch.zeros(len(texts), width, dtype=torch.long)
        for i, text in enumerate(texts):
            tokens[i, : len(text)] = torch.tensor([ord(c) for c in text], dtype=torch.long)
        return tokens, (tokens > 0).long()


def read(tokens: torch.Tensor) -> list[str]:
    return ["".join(chr(c) for c in row if c) for row in tokens.tolist()]


REPORTS = [
    "No effusion. Large heart. Old fracture.",
    "Normal chest radiograph.",
    "no effusion;  LARGE heart. Old fracture",
    "No acute cardiopulmonary process.",
    "",
    "Left pneumothorax. Chest tube in place.",
]


@pytest.fixture
def manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest(6, REPORTS, **{"label:A": [1, 0, -1, math.nan, 1, 0], "label:B": [math.nan] * 6})


def dataset(manifest: Manifest, **options: Any) -> StudyDataset:
    return StudyDataset(manifest, Preprocess(SMALL), Letters(), **options)


def same(a: Batch, b: Batch) -> bool:
    return all(
        torch.equal(torch.nan_to_num(x.float(), -9), torch.nan_to_num(y.float(), -9))
        for x, y in zip(tensors_of(a), tensors_of(b), strict=True)
    )


def test_batch__holds_what_the_type_promises(manifest: Manifest) -> None:
    batch = next(iter(build_loader(dataset(manifest), batch_size=6)))
    assert batch.images.shape == (6, 1, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.images[:, 0, 4, 4].tolist() == [0, 1, 2, 3, 4, 5]  # file i holds the value i
    assert batch.patient.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.labels.shape == (6, 2)
    assert batch.labels[:3, 0].tolist() == [1, 0, -1]
    assert batch.labels[3, 0].isnan()
    assert batch.index.tolist() == list(range(6))
    assert read(batch.tokens)[0] == REPORTS[0]
    assert batch.attention_mask.sum(1).tolist() == [len(t) for t in read(batch.tokens)]


def test_text_group__equal_texts_and_all_normals_share_a_code(manifest: Manifest) -> None:
    data = dataset(manifest)
    groups = data.text_groups.tolist()
    assert groups[0] == groups[2]
    assert groups[1] == groups[3]
    assert groups[4] == -1
    assert len({groups[0], groups[1], groups[5], -1}) == 4
    assert data.empty_reports == 1


def test_text__depends_on_seed_epoch_and_row_alone(manifest: Manifest) -> None:
    config = ReportConfig(sample="sentence")
    data = dataset(manifest, report=config, train=True, seed=3)
    drawn = [[data.text(i, epoch) for i in range(6)] for epoch in range(40)]
    assert {d[0] for d in drawn} == {"No effusion.", "Large heart.", "Old fracture."}
    again = dataset(manifest, report=config, train=True, seed=3)
    assert [again.text(i, 17) for i in reversed(range(6))][::-1] == drawn[17]
    assert any(dataset(manifest, report=config, train=True, seed=4).text(0, e) != drawn[e][0] for e in range(40))
    # Left-out rows change nothing for the others: the manifest's row number is what counts.
    fewer = Manifest(manifest.frame.drop(index=[1, 4]), manifest.root)
    kept = dataset(fewer, report=config, train=True, seed=3)
    assert kept.rows.tolist() == [0, 2, 3, 5]
    assert [kept.text(i, 17) for i in range(4)] == [drawn[17][i] for i in (0, 2, 3, 5)]
    assert [dataset(manifest, report=config, seed=3).text(0, e) for e in range(3)] == [REPORTS[0]] * 3


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_build_loader__same_batches_for_any_number_of_workers_and_after_a_resume(manifest: Manifest, cache: str) -> None:
    config = ReportConfig(sample="sentence")

    def batches(workers: int, start: int) -> list[Batch]:
        data = dataset(manifest, report=config, train=True, seed=1, cache=cache)
        loader = build_loader(data, StepBatchSampler(len(data), 4, 6, seed=1, start_step=start), workers=workers)
        result = list(loader)
        if cache == "memory":
            assert data._cache is not None
            # What the workers filled is seen here: the pages are shared.
            assert len(data._cache) >= 4
        return result

    plain = batches(0, 0)
    assert len(plain) == 6
    assert all(same(a, b) for a, b in zip(plain, batches(2, 0), strict=True))
    assert all(same(a, b) for a, b in zip(plain[4:], batches(0, 4), strict=True))


def test_cache__second_epoch_reads_no_file(manifest: Manifest) -> None:
    data = dataset(manifest, cache="memory")
    first = next(iter(build_loader(data, batch_size=6)))
    for name in manifest.frame["image"]:
        (manifest.root / name).unlink()
    assert same(first, next(iter(build_loader(data, batch_size=6))))


def test_cache__that_does_not_fit_says_the_size_it_needs(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"needs 15\.05 GB for 100,000 images of 3 x 224 x 224 uint8; data.cache_gb is 4"):
        MemoryCache(100_000, (3, 224, 224), "uint8", 4.0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("pathlib.Path.is_dir", lambda path: True)
    with pytest.raises(ConfigError, match=r"has 0\.00 GB free"):
        MemoryCache(6, (1, 8, 8), "uint8", 4.0)


@pytest.mark.parametrize("workers", [0, 1])
def test_build_loader__a_broken_image_is_one_clear_sentence(manifest: Manifest, workers: int) -> None:
    (manifest.root / "images/2.png").write_bytes(b"nothing")
    with pytest.raises(DataError) as error:
        list(build_loader(dataset(manifest), batch_size=2, workers=workers))
    text = str(error.value)
    assert text.startswith("row 2: image 'images/2.png' cannot be used: ")
    assert "data.on_error=skip" in text
    assert "Traceback" not in text
    assert str(manifest.root) not in text


def test_dataset__without_text(manifest: Manifest) -> None:
    data = StudyDataset(manifest, Preprocess(SMALL))
    batch = next(iter(build_loader(data, batch_size=4)))
    assert batch.tokens is None
    assert batch.attention_mask is None
    assert batch.text_group.tolist() == [-1] * 4


def test_dataset__splits_and_views(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest(6, split=["train"] * 4 + ["val"] * 2, view=["PA", "AP", "LATERAL"] * 2)
    assert dataset(manifest, split="train", views=["pa", "AP"]).rows.tolist() == [0, 1, 3]
    assert dataset(manifest, split=None).rows.tolist() == list(range(6))
    with pytest.raises(DataError, match=r"no row of split 'test'; its splits: train, val"):
        dataset(manifest, split="test")
    with pytest.raises(DataError, match="no OBLIQUE view in split 'val'; its views: AP, LATERAL"):
        dataset(manifest, split="val", views=["OBLIQUE"])


def test_dataset__volumes_and_float_storage(tmp_path: Path, make_manifest: Callable[..., Manifest]) -> None:
    import nibabel
    import numpy as np

    manifest = make_manifest(1, write=False, image=["v.nii"], modality=["MR"])
    nibabel.save(nibabel.Nifti1Image(np.arange(6 * 6 * 6, dtype=np.int16).reshape(6, 6, 6), np.eye(4)), tmp_path / "v.nii")
    config = PreprocessConfig(size=(4, 6, 6), window="minmax", dtype="float32")
    data = StudyDataset(manifest, Preprocess(config), cache="memory")
    image = data[0].image
    assert image.shape == (1, 4, 6, 6)
    assert image.dtype == torch.float32
    assert torch.equal(image, data[0].image)


def test_of_views__keeps_the_named_views_and_says_which_there_are() -> None:
    import pandas as pd

    from medfm.data.dataset import of_views
    from medfm.data.manifest import Manifest

    rows = [
        {"image": f"{n}.png", "patient_id": "p1", "view": view, "split": "test"}
        for n, view in enumerate(["PA", "AP", "LATERAL"])
    ]
    manifest = Manifest(pd.DataFrame(rows), Path("."), {})
    assert of_views(manifest, ()) is manifest
    assert of_views(manifest, ("pa", "AP")).frame["image"].tolist() == ["0.png", "1.png"]
    with pytest.raises(DataError, match=r"has no LL view; its views: AP, LATERAL, PA"):
        of_views(manifest, ("LL",))
