"""Several manifests as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medfm.api import call
from medfm.data.manifest import Manifest, read_manifest, write_manifest
from medfm.data.merge import render
from medfm.errors import DataError


def write(folder: Path, name: str, rows: dict[str, list[object]], **meta: str) -> Path:
    (folder / name).mkdir(parents=True)
    return write_manifest(Manifest(pd.DataFrame(rows), folder / name, meta), folder / name / "manifest.csv")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    one = {"image": ["a.png", "b.png"], "patient_id": ["p1", "p2"], "split": ["train", "test"], "label:Edema": [1.0, 0.0]}
    other = {"image": ["x/t1.nii|t2.nii"], "patient_id": ["p1"], "study_id": ["s1"], "split": ["val"], "mask": ["m/1.nii"]}
    return (
        write(tmp_path, "films", one, card="films", licence="CC0", text_kind="report"),
        write(tmp_path, "brains", other, card="brains", licence="MIT", text_kind="none"),
    )


def test_merge__patients_stay_apart_and_paths_lead_there(two: tuple[Path, Path], tmp_path: Path) -> None:
    call("merge", None, {"manifests": list(two), "out": tmp_path / "all.parquet"})
    merged = read_manifest(tmp_path / "all.parquet")
    assert merged.root.resolve() == tmp_path.resolve()
    assert merged.frame["image"].tolist() == ["films/a.png", "films/b.png", "brains/x/t1.nii|t2.nii"]
    assert merged.frame["mask"].tolist() == ["", "", "brains/m/1.nii"]
    assert merged.frame["patient_id"].tolist() == ["films/p1", "films/p2", "brains/p1"]
    assert merged.frame["study_id"].tolist() == ["", "", "brains/s1"]
    assert merged.frame["split"].tolist() == ["train", "test", "val"]
    assert merged.frame["label:Edema"].isna().tolist() == [False, False, True]
    assert merged.meta["licence"] == "CC0 + MIT"
    assert merged.meta["text_kind"] == "report"


def test_merge__the_same_images_twice_are_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 images are in two .* first: 'a\.png'"):
        call("merge", None, {"manifests": [two[0], two[0]], "out": tmp_path / "all.csv"})


def test_merge__hounsfield_units_stay_by_themselves(tmp_path: Path) -> None:
    rows: dict[str, list[object]] = {"image": ["a"], "patient_id": ["p"], "split": ["train"]}
    paths = [write(tmp_path, unit, rows, intensity_units=unit) for unit in ("HU", "arbitrary")]
    with pytest.raises(DataError, match="HU and arbitrary"):
        call("merge", None, {"manifests": paths, "out": tmp_path / "all.csv"})


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        (({"1": "liver"}, {"1": "liver", "2": "tumour"}), {"1": "liver", "2": "tumour"}),
        (({"1": "liver"}, {"1": "lung"}), None),
        (({"1": "liver"}, {}), None),
        (({}, {}), {}),
    ],
)
def test_merge__names_of_masks_stay_or_their_masks_go(labels: Any, kept: dict[str, str] | None, tmp_path: Path) -> None:
    paths = []
    for name, named in zip("ab", labels, strict=True):
        rows: dict[str, list[object]] = {"image": ["i.nii"], "patient_id": ["p"], "split": ["train"], "mask": ["m.nii"]}
        (tmp_path / name).mkdir()
        made = Manifest(pd.DataFrame(rows), tmp_path / name, {"mask_labels": named, "card": name})
        paths.append(write_manifest(made, tmp_path / name / "m.parquet"))
    # A set without masks has no say.
    paths.append(write(tmp_path, "films", {"image": ["c.png"], "patient_id": ["p"], "split": ["test"]}, card="films"))
    report = call("merge", None, {"manifests": paths, "out": tmp_path / "all.parquet"})
    merged = read_manifest(tmp_path / "all.parquet")
    assert merged.frame["mask"].tolist() == (["", "", ""] if kept is None else ["a/m.nii", "b/m.nii", ""])
    assert merged.meta.get("mask_labels") == (kept or None)
    assert ("left out" in str(render(report).caption)) == (kept is None)


def test_merge__one_hospitals_patients_must_not_leak(tmp_path: Path) -> None:
    one: dict[str, list[object]] = {"image": ["a", "b"], "patient_id": ["m7", "m8"], "split": ["train", "test"]}
    other: dict[str, list[object]] = {"image": ["a"], "patient_id": ["m7"], "split": ["test"]}
    paths = [write(tmp_path, "ct", one), write(tmp_path, "mr", other)]
    with pytest.raises(DataError, match="1 patients are in different splits"):
        call("merge", None, {"manifests": paths, "same_patients": True, "out": tmp_path / "all.csv"})
    other["split"] = ["train"]
    paths[1] = write(tmp_path / "again", "mr", other)
    call("merge", None, {"manifests": paths, "same_patients": True, "out": tmp_path / "all.csv"})
    assert read_manifest(tmp_path / "all.csv").frame["patient_id"].tolist() == ["m7", "m8", "m7"]
