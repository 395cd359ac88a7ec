"""Images read from a cache in place of their files: the same scores, and a clear word where it lacks one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import medfm
from medfm.data.manifest import read_manifest, write_manifest
from medfm.errors import ConfigError, DataError

PROMPTS = """
name: sides
method: pair
findings:
  Left Pleural Effusion: {positive: [left pleural effusion], negative: [no pleural effusion]}
  Right Pleural Effusion: {positive: [right pleural effusion], negative: [no pleural effusion]}
"""
TASKS: dict[str, dict[str, Any]] = {
    "zero_shot": {"bootstrap": 20},
    "retrieval": {"bootstrap": 20},
    "compositional": {"bootstrap": 20},
}


@pytest.fixture(scope="module")
def world(tiny_manifest: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A copy of the pictures, a cache of them, and a model of their contract."""
    folder = tmp_path_factory.mktemp("cached") / "world"
    shutil.copytree(tiny_manifest.parent, folder)
    store = folder / "store"
    manifest = read_manifest(tiny_manifest, folder)
    write_manifest(manifest, folder / "here.parquet")
    medfm.cache({"manifest": folder / "here.parquet", "root": folder, "recipe": str(tiny_recipe), "out": store})
    run = medfm.pretrain(str(tiny_recipe), {"out": folder / "run", "trainer.max_epochs": 1})
    return folder, store, run


@pytest.mark.parametrize("task", TASKS)
def test_cache__scores_are_those_of_the_files(
    task: str, world: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store, run = world
    config = {"model": run, "data.manifest": folder / "here.parquet", "data.root": folder, "data.workers": 0, **TASKS[task]}
    if task == "zero_shot":
        (tmp_path / "sides.yaml").write_text(PROMPTS, encoding="utf-8")
        config["prompts"] = str(tmp_path / "sides.yaml")
    plain = medfm.evaluate(task, {**config, "out": tmp_path / "plain"})
    monkeypatch.setattr("medfm.evaluation.encode.ImageFiles.__call__", lambda *_: pytest.fail("a file was decoded"))
    cached = medfm.evaluate(task, {**config, "data.cache": store, "out": tmp_path / "cached"})
    for part in ("findings", "directions", "scores", "mean"):
        assert cached.get(part) == plain.get(part)
    assert str(store) not in (tmp_path / "cached" / "result.json").read_text(encoding="utf-8")


def test_cache__lacks_an_image(world: tuple[Path, Path, Path], tiny_recipe: Path, tmp_path: Path, tiny_manifest: Path) -> None:
    folder, _, run = world
    manifest = read_manifest(tiny_manifest, folder)
    manifest.frame = manifest.frame[manifest.frame["image"] != "images/47.png"]
    write_manifest(manifest, tmp_path / "fewer.parquet")
    store = tmp_path / "store"
    medfm.cache({"manifest": tmp_path / "fewer.parquet", "root": folder, "recipe": str(tiny_recipe), "out": store})
    config = {
        "model": run, "data.manifest": folder / "here.parquet", "data.root": folder, "data.cache": store, "bootstrap": 0,
        "data.workers": 0,
    }  # fmt: skip
    with pytest.raises(DataError, match=r"lacks 'images/47.png'.*medfm cache.*data.on_error=skip"):
        medfm.evaluate("retrieval", {**config, "out": tmp_path / "a"})
    result = medfm.evaluate("retrieval", {**config, "data.on_error": "skip", "out": tmp_path / "b"})
    # Row 42: the table is sorted by path, as text.
    assert result["unreadable"] == {"count": 1, "first": [{"row": 42, "kind": "DataError"}]}


def test_cache__of_another_contract(world: tuple[Path, Path, Path], tiny_recipe: Path, tmp_path: Path) -> None:
    folder, _, run = world
    store = tmp_path / "store"
    manifest = folder / "here.parquet"
    medfm.cache({"manifest": manifest, "root": folder, "recipe": str(tiny_recipe), "preprocess.dtype": "int16", "out": store})
    with pytest.raises(
        ConfigError, match=r"another preprocessing contract \(preprocess.dtype \"int16\" there, \"uint8\" here\)"
    ):
        medfm.evaluate("retrieval", {"model": run, "data.manifest": manifest, "data.root": folder, "data.cache": store})
