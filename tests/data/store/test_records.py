from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm.data.store.records import RECORD, Lookup, RecordLog, read_logs, read_records, root_digest, seal
from medfm.errors import DataError


def records(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = rng.integers(1, 256, n * RECORD.itemsize, dtype=np.uint8).view(RECORD)
    return seal(made)


def written(folder: Path, *parts: np.ndarray, root: Path = Path("data")) -> Path:
    log = RecordLog(folder, root)
    for part in parts:
        log.add(part)
    log.close()
    return log.path


def test_read_records__gives_back_what_every_log_holds(tmp_path: Path) -> None:
    first, second = records(5, 0), records(3, 1)
    written(tmp_path, first[:2], first[2:])
    written(tmp_path, second)
    assert {r.tobytes() for r in read_records(tmp_path)} == {r.tobytes() for r in np.concatenate([first, second])}
    assert len(read_records(tmp_path / "nothing")) == 0


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 5 * RECORD.itemsize))
def test_read_records__a_torn_end_does_not_count(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("torn")
    whole = records(5)
    path = written(folder, whole)
    path.write_bytes(path.read_bytes()[:cut])
    assert [r.tobytes() for r in read_records(folder)] == [r.tobytes() for r in whole[: cut // RECORD.itemsize]]


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 3 * RECORD.itemsize - 1), value=st.integers(0, 255))
def test_read_records__a_changed_byte_costs_its_record_alone(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    whole = records(3)
    path = written(folder, whole)
    data = bytearray(path.read_bytes())
    same = data[place] == value
    data[place] = value
    path.write_bytes(bytes(data))
    expected = [r.tobytes() for n, r in enumerate(whole) if same or n != place // RECORD.itemsize]
    assert [r.tobytes() for r in read_records(folder)] == expected


def test_read_records__zeros_are_no_record(tmp_path: Path) -> None:
    (tmp_path / "records-0.log").write_bytes(bytes(4 * RECORD.itemsize))
    assert len(read_records(tmp_path)) == 0


def test_read_records__what_was_taken_back_is_gone_under_every_name(tmp_path: Path) -> None:
    whole = records(4)
    alias = whole[1:2].copy()
    alias["name"] = 7
    gone = whole[1:2].copy()
    gone["shape"] = 0
    written(tmp_path, seal(gone))  # the order of logs plays no part
    written(tmp_path, whole, seal(alias))
    assert {r.tobytes() for r in read_records(tmp_path)} == {whole[n].tobytes() for n in (0, 2, 3)}


def test_read_logs__tell_the_folder_that_each_record_was_made_from(tmp_path: Path) -> None:
    first, second = records(5, 0), records(3, 1)
    written(tmp_path, first, root=Path("a"))
    old = written(tmp_path, second, root=Path("b"))
    old.rename(tmp_path / "records-0123456789abcdef.log")  # as logs were named before they told it
    gone = first[1:2].copy()
    gone["shape"] = 0
    written(tmp_path, seal(gone), root=Path("b"))
    made, roots = read_logs(tmp_path)
    told = {record.tobytes(): root for record, root in zip(made, roots.tolist(), strict=True)}
    a = root_digest(Path("a"))
    assert a == root_digest(Path("a").absolute()) != root_digest(Path("b"))
    assert told == {r.tobytes(): a for r in first[[0, 2, 3, 4]]} | {r.tobytes(): "0123456789abcdef" for r in second}


def test_log__makes_no_file_without_a_record_and_names_its_fault(tmp_path: Path) -> None:
    RecordLog(tmp_path, tmp_path).close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"records-.*cannot be written: No such file"):
        RecordLog(tmp_path / "gone", tmp_path).add(records(1))


def test_lookup__newest_of_equal_keys_and_both_halves_count() -> None:
    held = records(6)
    held["name"] = [(1, 1), (2, 2), (1, 9), (1, 1), (3, 3), (1, 1)]
    held["size"] = [10, 20, 30, 40, 50, 60]
    lookup = Lookup(held, "name")
    keys = np.array([(1, 1), (2, 2), (1, 9), (1, 5), (4, 4)], np.uint64)
    assert lookup.find(keys).tolist() == [5, 1, 2, -1, -1]
    sizes = np.array([40, 20, 10, 10, 10], np.uint64)
    assert lookup.find(keys, {"size": sizes}).tolist() == [3, 1, -1, -1, -1]
    assert Lookup(held[:0], "name").find(keys).tolist() == [-1] * 5


def test_lookup__of_a_million_agrees() -> None:
    held = np.zeros(1_000_000, RECORD)
    held["name"] = np.random.default_rng(0).integers(0, 2**63, (len(held), 2), dtype=np.uint64)
    order = np.random.default_rng(1).permutation(len(held))
    np.testing.assert_array_equal(Lookup(held, "name").find(held["name"][order]), order)
