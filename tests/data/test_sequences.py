"""From files of several sequences to manifest rows, batches and a cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import medfm
from medfm.api import call
from medfm.data.dataset import StudyDataset
from medfm.data.manifest import read_manifest
from medfm.errors import DataError
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess

NAMES = ("T1.nii.gz", "T2.nii.gz", "FLAIR.nii.gz")


@pytest.fixture
def brains(data_dir: Path, tmp_path: Path) -> Path:
    """Two whole examinations of one brain, one without FLAIR, and a file that is no sequence."""
    for patient in ("p1", "p2", "p3"):
        (tmp_path / "images" / patient).mkdir(parents=True)
        for name in NAMES[: 2 if patient == "p3" else 3]:
            shutil.copy(data_dir / "mr3d_stroke" / name, tmp_path / "images" / patient / name)
    shutil.copy(data_dir / "mr3d_stroke" / "T1.nii.gz", tmp_path / "images" / "template.nii.gz")
    return tmp_path


def test_index__one_row_an_examination(brains: Path) -> None:
    medfm.index({"images": brains / "images", "sequences": list(NAMES), "out": brains / "m.csv"})
    frame = pd.read_csv(brains / "m.csv")
    assert frame["image"].str.split("/").str[-1].tolist() == ["T1.nii.gz|T2.nii.gz|FLAIR.nii.gz"] * 2
    reasons = dict(pd.read_csv(brains / "m.csv.rejected.csv").iloc[:, :2].itertuples(index=False, name=None))
    assert "FLAIR.nii.gz" in " ".join(v for k, v in reasons.items() if "p3" in k)
    assert any("none of the sequences" in v for k, v in reasons.items() if "template" in k)


def test_dataset__a_channel_a_sequence_each_with_its_window(brains: Path) -> None:
    medfm.index({"images": brains / "images", "sequences": list(NAMES), "out": brains / "m.csv", "fractions": [1, 0, 0]})
    config = PreprocessConfig(size=(32, 32, 32), window="percentile", channels=3, sequences=("T1", "T2", "FLAIR"))
    batch = StudyDataset(read_manifest(brains / "m.csv"), Preprocess(config))[0].image
    assert batch.shape == (3, 32, 32, 32)
    assert [int(c.max()) > 200 for c in batch] == [True] * 3
    assert not np.array_equal(batch[0], batch[2])


def test_cache__holds_them_and_sees_a_change(brains: Path) -> None:
    medfm.index({"images": brains / "images", "sequences": list(NAMES), "out": brains / "m.csv", "fractions": [1, 0, 0]})
    contract = {"size": [16, 16, 16], "window": "percentile", "channels": 3, "sequences": ["T1", "T2", "FLAIR"]}
    recipe = brains / "r.yaml"
    recipe.write_text(
        "name: r\ndata: {manifest: m.csv}\npreprocess: {size: [16, 16, 16], window: percentile, channels: 3, "
        "sequences: [T1, T2, FLAIR]}\nencoder: {name: vit, img_size: [16, 16, 16], patch_size: [8, 8, 8], in_channels: 3, "
        "embed_dim: 32, depth: 1, num_heads: 2}\nobjective: {name: contrastive}\n"
    )
    call("cache", None, {"manifest": brains / "m.csv", "recipe": str(recipe), "out": brains / "store"})
    made = Preprocess(PreprocessConfig.model_validate(contract))
    manifest = read_manifest(brains / "m.csv")
    direct, stored = StudyDataset(manifest, made)[0].image, StudyDataset(manifest, made, cache=str(brains / "store"))[0].image
    assert np.array_equal(direct, stored)
    shutil.copy(brains / "images/p1/T1.nii.gz", brains / "images/p1/FLAIR.nii.gz")
    with pytest.raises(DataError, match="changed"):
        StudyDataset(manifest, made, cache=str(brains / "store"))


@pytest.mark.parametrize(
    ("image", "sequences", "said"),
    [("T1.nii.gz", ("T1", "T2"), "holds no sequences"), ("T1.nii.gz|T2.nii.gz", (), "holds 2 sequences")],
)
def test_preprocess__refuses_another_number(data_dir: Path, image: str, sequences: tuple[str, ...], said: str) -> None:
    config = PreprocessConfig(size=(8, 8, 8), window="percentile", channels=max(1, len(sequences)), sequences=sequences)
    contract = Preprocess(config)
    with pytest.raises(DataError, match=said):
        contract(contract.load(data_dir / "mr3d_stroke" / image))
