"""Features are computed once: a second run decodes nothing, what changed is computed again, and nothing tells a patient."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medfm.errors import ConfigError, DataError, WeightsError
from medfm.evaluation.encode import ImageFiles
from medfm.evaluation.features import Product, fill, manifest_features
from medfm.evaluation.row_cache import RowCache, row_key
from medfm.weights.load import load_model


@pytest.fixture
def own(manifest: Any, tmp_path: Path) -> Any:
    """`manifest` with files of its own, which a test may change."""
    shutil.copytree(manifest.root, tmp_path / "data")
    manifest.root = tmp_path / "data"
    return manifest


ROWS = np.arange(0, 48, 2)


def test_manifest_features__are_the_models_and_come_from_files_the_second_time(
    tiny_run: Path, own: Any, tmp_path: Path
) -> None:
    model = load_model(tiny_run)
    random = model.random_like(0)
    first = manifest_features([model, random], own, ROWS, tmp_path / "f", batch_size=5)
    paths = [own.root / name for name in own.frame["image"].iloc[ROWS]]
    np.testing.assert_array_equal(first.values[0], model.features(paths, batch_size=5).numpy())
    np.testing.assert_array_equal(first.values[1], random.features(paths, batch_size=5).numpy())
    assert first.read == len(ROWS)
    again = manifest_features([model, random], own, ROWS[::-1].copy(), tmp_path / "f")
    assert again.read == 0
    np.testing.assert_array_equal(again.values[0], first.values[0][::-1])
    # Another model, another pool: others' features do not serve, the known ones stay.
    other = manifest_features([model, model.random_like(2)], own, ROWS, tmp_path / "f")
    assert other.read == len(ROWS)
    np.testing.assert_array_equal(other.values[0], first.values[0])
    assert np.abs(other.values[1] - first.values[1]).max() > 0.1
    mean = manifest_features([model], own, ROWS, tmp_path / "f", pool="mean")
    np.testing.assert_allclose(mean.values[0], model.features(paths, "mean").numpy(), atol=1e-6)


def test_manifest_features__a_changed_file_is_read_again(tiny_run: Path, own: Any, tmp_path: Path) -> None:
    model = load_model(tiny_run)
    before = manifest_features([model], own, ROWS, tmp_path / "f")
    changed, source = (own.root / own.frame["image"].iloc[row] for row in (ROWS[3], 1))
    shutil.copyfile(source, changed)
    os.utime(changed, ns=(1, 1))
    after = manifest_features([model], own, ROWS, tmp_path / "f")
    assert after.read == 1
    same = np.isclose(before.values[0], after.values[0]).all(axis=1)
    assert same.tolist() == [n != 3 for n in range(len(ROWS))]
    np.testing.assert_allclose(after.values[0][3], model.features([source]).numpy()[0], atol=1e-6)


def test_manifest_features__another_data_set_with_the_same_names_and_times_is_read(
    tiny_run: Path, own: Any, tmp_path: Path
) -> None:
    model = load_model(tiny_run)
    first, second = (own.root / own.frame["image"].iloc[row] for row in ROWS[:2])
    size = max(first.stat().st_size, second.stat().st_size)
    for path in (first, second):  # as raw volumes are: of one size; unpacked from an archive: of one time
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, ns=(0, 0))
    manifest_features([model], own, ROWS[:1], tmp_path / "f")
    shutil.copytree(own.root, tmp_path / "other")
    shutil.copy2(second, tmp_path / "other" / own.frame["image"].iloc[ROWS[0]])
    own.root = tmp_path / "other"
    made = manifest_features([model], own, ROWS[:1], tmp_path / "f")
    assert made.read == 1
    np.testing.assert_allclose(made.values[0], model.features([second]).numpy(), atol=1e-6)


def test_manifest_features__names_no_patient_and_no_path(tiny_run: Path, own: Any, tmp_path: Path) -> None:
    manifest_features([load_model(tiny_run)], own, ROWS, tmp_path / "f")
    files = [path for path in (tmp_path / "f").rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        content = path.read_bytes() + str(path.relative_to(tmp_path)).encode()
        assert b"SECRET" not in content
        assert b"images/" not in content
        assert b".png" not in content


def test_manifest_features__a_stopped_run_loses_no_finished_shard(
    tiny_run: Path, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_run)
    monkeypatch.setattr("medfm.evaluation.row_cache._SHARD", 1)  # a shard a batch
    read = ImageFiles.__call__

    def stops(self: ImageFiles, position: int) -> Any:
        if position == 12:
            raise KeyboardInterrupt
        return read(self, position)

    monkeypatch.setattr(ImageFiles, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        manifest_features([model], own, ROWS, tmp_path / "f", batch_size=5)
    monkeypatch.setattr(ImageFiles, "__call__", read)
    assert manifest_features([model], own, ROWS, tmp_path / "f", batch_size=5).read == len(ROWS) - 10


def test_manifest_features__unreadable_images(tiny_run: Path, own: Any, tmp_path: Path) -> None:
    model = load_model(tiny_run)
    (own.root / own.frame["image"].iloc[ROWS[2]]).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"images/04\.png.*data\.on_error=skip"):
        manifest_features([model], own, ROWS, tmp_path / "f")
    made = manifest_features([model], own, ROWS, tmp_path / "f", on_error="skip")
    assert made.positions.tolist() == [n for n in range(len(ROWS)) if n != 2]
    assert [failure.position for failure in made.failures] == [2]
    assert len(made.values[0]) == len(ROWS) - 1


def test_manifest_features__refuse_what_is_not_finite(tiny_run: Path, own: Any, tmp_path: Path) -> None:
    model = load_model(tiny_run)
    with torch.no_grad():
        model.network.image_encoder.norm.bias.fill_(float("nan"))
    with pytest.raises(WeightsError, match="not finite"):
        manifest_features([model], own, ROWS, tmp_path / "f")


def test_row_cache__broken_and_foreign_shards_are_left_out(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, np.float32)
    keys = [row_key("a", n) for n in range(3)]
    cache.add(keys, np.arange(6, dtype=np.float32).reshape(3, 2))
    cache.flush()
    (shard,) = tmp_path.glob("*.npy")
    (tmp_path / "half.npy").write_bytes(shard.read_bytes()[:-9])
    np.save(tmp_path / "other.npy", np.zeros(3))
    (tmp_path / "empty.npy").touch()
    again = RowCache(tmp_path, np.float32)
    np.testing.assert_array_equal(again.take([keys[2], keys[0]]), [[4, 5], [0, 1]])
    assert row_key("b") not in again
    assert row_key("a", 1) != row_key("a\x001", "")


def test_fill__one_reading_serves_all_products(tmp_path: Path) -> None:
    asked: list[int] = []

    def read(position: int) -> tuple[torch.Tensor, ...]:
        asked.append(position)
        return (torch.full((2,), float(position)),)

    keys = [row_key(n) for n in range(6)]
    plain = Product(RowCache(tmp_path / "a", np.float32), keys, lambda got: got[0].numpy())
    square = Product(RowCache(tmp_path / "b", np.float32), keys, lambda got: got[0].numpy() ** 2)
    fill([plain], read, ["x"] * 3, batch_size=2)
    done: list[int] = []
    filled = fill([plain, square], read, ["x"] * 6, batch_size=4, advance=done.append)
    assert asked == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert filled.read == sum(done) == 6
    np.testing.assert_array_equal(square.values([5, 1])[:, 0], [25, 1])
    fill([plain, square], read, ["x"] * 6)
    assert len(asked) == 9


def test_row_cache__a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = RowCache(tmp_path / "file" / "below", np.float32)
    cache.add([row_key(1)], np.zeros((1, 2), np.float32))
    with pytest.raises(ConfigError, match="cannot be written"):
        cache.flush()
