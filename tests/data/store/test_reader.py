from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm.data.manifest import write_manifest
from medfm.data.store import reader, source
from medfm.data.store.reader import StoredImages, find_rows, open_rows
from medfm.data.store.records import RECORD, RecordLog, read_records, seal
from medfm.data.store.source import content_key
from medfm.errors import ConfigError, DataError
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess

Bench = Any  # of conftest.py


def opened(bench: Bench) -> StoredImages:
    frame = bench.manifest.frame
    return open_rows(bench.out, bench.preprocess, frame["image"].tolist(), frame["modality"].tolist(), bench.folder)[0]


def test_getitem__is_a_view_of_the_file_that_a_change_does_not_reach(volumes: Bench) -> None:
    volumes.cache()
    stored = opened(volumes)
    first = stored[2]
    assert first.shape == (1, 14, 22, 20)
    assert np.shares_memory(first, stored[2])
    first[:] = 0  # torch wants it writable; the pages are this process's own
    np.testing.assert_array_equal(opened(volumes)[2], volumes.whole(2))


def test_getitem__of_single_images_has_no_depth(films: Bench) -> None:
    films.cache()
    assert opened(films)[0].shape == (1, 8, 7)  # 12 x 10 pixels fitted into 8 x 8, not yet padded


def test_stored_images__travel_to_another_process_without_their_maps(volumes: Bench) -> None:
    volumes.cache(shard_gb=1e-5)
    stored = opened(volumes)
    before = stored[0].copy()
    assert len(stored._maps) == 1
    again = pickle.loads(pickle.dumps(stored))
    assert not again._maps
    np.testing.assert_array_equal(again[0], before)


def test_stored_images__keep_few_files_open(volumes: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes.cache(shard_gb=1e-5)  # one shard an image
    monkeypatch.setattr(reader, "_MOST_MAPS", 2)
    stored = opened(volumes)
    held = [stored[i] for i in (0, 1, 2, 3, 0)]
    assert len(stored._maps) == 2
    np.testing.assert_array_equal(held[1], volumes.whole(1))  # a view outlives its place among the maps


def test_stored_images__of_a_million_rows_are_small() -> None:
    records = np.zeros(1_000_000, RECORD)
    records["shape"] = 0
    stored = StoredImages.__new__(StoredImages)
    stored.__dict__["folder"] = None
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(StoredImages, "_check_sizes", lambda self: None)
        StoredImages.__init__(stored, None, 2, "uint8", records)  # type: ignore[arg-type]
    assert stored.nbytes == 28_000_000
    rows = [v for v in vars(stored).values() if isinstance(v, list | dict | tuple) and len(v) > 1]
    assert rows == []


def test_open_rows__damaged_files_are_named(volumes: Bench) -> None:
    volumes.cache(shard_gb=1e-5)
    shard = sorted(volumes.inside.glob("*.bin"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{shard.name}' of the cache is cut short; repair it with .* verify=true"):
        opened(volumes)
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        opened(volumes)


def test_open_rows__another_contract_is_refused_by_name(volumes: Bench) -> None:
    volumes.cache()
    for change, words in (
        ({"orientation": "LPS"}, r'preprocess\.orientation "RAS" there, "LPS" here'),
        ({"foreground_threshold": -500.0}, r"preprocess\.foreground_threshold default there, -500\.0 here"),
    ):
        other = Preprocess(volumes.contract.model_copy(update=change))
        with pytest.raises(ConfigError, match=rf"another preprocessing contract \({words}\); run `medfm cache"):
            open_rows(volumes.out, other, [], [], None)


def test_open_rows__what_is_no_store_is_told(films: Bench) -> None:
    contract = Preprocess(PreprocessConfig())
    with pytest.raises(ConfigError, match="'memry' is no folder that `medfm cache` made"):
        open_rows(reader.Path("memry"), contract, [], [], None)
    films.cache()
    for part in films.out.glob("*/*"):
        part.unlink()
    with pytest.raises(ConfigError, match="holds no images yet"):
        open_rows(films.out, contract, [], [], None)
    (films.out / "medfm-store.json").write_text('{"medfm_store": 99}')
    with pytest.raises(ConfigError, match=r"another version of medfm \(99\)"):
        open_rows(films.out, contract, [], [], None)


def test_find_rows__missing_changed_and_unclear(films: Bench) -> None:
    films.cache()
    names, kinds = films.manifest.frame["image"].tolist(), films.manifest.frame["modality"].tolist()
    (films.folder / names[1]).write_bytes(b"another")
    (films.folder / names[2]).unlink()
    found = find_rows(films.inside, [*names, "new.png"], [*kinds, ""], films.folder)
    assert found.missing.tolist() == [False] * 6 + [True]
    assert found.changed.tolist() == [False, True, True, False, False, False, False]
    assert found.usable.tolist() == [True, False, False, True, True, True, False]
    # By names alone the files need not be there, unless a name stands for two images.
    trusted = find_rows(films.inside, names, kinds, None)
    assert trusted.usable.all()
    other = read_records(films.inside)[:1].copy()
    other["content"] += np.uint64(1)
    log = RecordLog(films.inside, films.folder)
    log.add(seal(other))
    log.close()
    assert find_rows(films.inside, names, kinds, None).unclear.sum() == 1
    assert find_rows(films.inside, names[:1], ["MR"], None).missing.all()  # read under another modality


def twin(bench: Bench, folder: Path, same: bool = False) -> None:
    """`bench` turned to another data set below `folder`: files of the same names, sizes and times, of other content."""
    for name in bench.manifest.frame["image"]:
        source, path = bench.folder / name, folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = bytearray(source.read_bytes())
        data[-3] ^= 0 if same else 1
        path.write_bytes(data)
        os.utime(path, ns=(0, source.stat().st_mtime_ns))
    bench.manifest = replace(bench.manifest, root=folder)
    bench.folder = folder
    write_manifest(bench.manifest, bench.path)


def test_find_rows__a_data_set_with_the_same_names_sizes_and_times_is_another(volumes: Bench, tmp_path: Path) -> None:
    volumes.cache()
    first, where = volumes.manifest, volumes.folder
    twin(volumes, tmp_path / "b")
    names, kinds = first.frame["image"].tolist(), first.frame["modality"].tolist()
    found = find_rows(volumes.inside, names, kinds, tmp_path / "b")
    assert found.foreign.all()
    assert not (found.usable | found.changed | found.missing).any()
    report = volumes.cache()
    assert (report.stored, report.decoded) == (6, 6)
    volumes.check()
    volumes.manifest, volumes.folder = first, where
    volumes.check()  # and the first one has its own still
    assert volumes.cache().decoded == 0


def test_find_rows__a_moved_data_set_is_known_beside_its_twin(
    volumes: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes.cache()
    first = volumes.manifest
    twin(volumes, tmp_path / "b")
    volumes.cache()
    volumes.manifest, volumes.folder = first, tmp_path
    for log in volumes.inside.glob("records-*.log"):  # also where logs do not tell their folder
        log.rename(log.with_name("-".join(log.stem.split("-")[:2]) + ".log"))
    twin(volumes, tmp_path / "c", same=True)
    volumes.check()
    read: list[str] = []
    monkeypatch.setattr(source, "content_key", lambda path, kind: read.append(path) or content_key(path, kind))
    monkeypatch.setattr(source, "SAMPLE", 3)
    assert volumes.cache().decoded == 0
    assert [Path(path).name for path in read[-3:]] == ["0.nii", "2.nii", "5.nii"]


def test_open_rows__a_store_can_be_moved(volumes: Bench) -> None:
    volumes.cache()
    shutil.move(volumes.out, volumes.folder / "moved")
    volumes.out = volumes.folder / "moved"
    volumes.check()
