from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medfm.data.engine import Done
from medfm.data.manifest import write_manifest
from medfm.data.store.records import RECORD, read_records, shard_path
from medfm.data.store.run import render
from medfm.data.store.writer import ShardWriter
from medfm.errors import ConfigError, DataError
from medfm.transforms.config import PreprocessConfig

Bench = Any  # of conftest.py


@pytest.mark.parametrize("kind", ["films", "volumes"])
def test_run_cache__stores_what_the_contract_makes_and_only_once(kind: str, request: pytest.FixtureRequest) -> None:
    bench: Bench = request.getfixturevalue(kind)
    report = bench.cache()
    assert (report.images, report.stored, report.decoded, report.recognised) == (6, 6, 6, 0)
    assert report.bytes == sum(bench.whole(row).nbytes for row in range(6))
    bench.check()
    before = sorted((p.name, p.stat().st_mtime_ns) for p in bench.inside.iterdir())
    again = bench.cache()
    assert (again.stored, again.decoded, again.recognised) == (6, 0, 0)
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in bench.inside.iterdir())


def test_run_cache__on_processes_in_small_shards(volumes: Bench) -> None:
    report = volumes.cache(workers=2, shard_gb=1e-5)
    assert report.decoded == 6
    assert len(list(volumes.inside.glob("*.bin"))) == 6
    volumes.check()


def test_run_cache__an_edited_manifest_and_another_one_use_what_is_there(films: Bench) -> None:
    films.cache()
    # One more row, one row less.
    (films.folder / "new.png").write_bytes((films.folder / "images/3.png").read_bytes() + b"\0")
    frame = films.manifest.frame.drop(index=0).reset_index(drop=True)
    frame.loc[0, "image"] = "new.png"
    write_manifest(replace(films.manifest, frame=frame), films.path)
    films.manifest.frame = frame
    report = films.cache()
    assert (report.images, report.stored, report.decoded) == (5, 5, 1)
    films.check()
    # Moved, touched, copied: known by content.
    shutil.move(films.folder / "images", films.folder / "elsewhere")
    os.utime(films.folder / "elsewhere/2.png", (1, 1))
    frame["image"] = frame["image"].str.replace("images", "elsewhere")
    write_manifest(replace(films.manifest, frame=frame), films.path)
    report = films.cache()
    assert (report.stored, report.decoded, report.recognised) == (5, 0, 4)
    films.check()


def test_run_cache__a_changed_file_is_stored_anew(films: Bench, png: Callable[..., Path]) -> None:
    films.cache()
    png(films.folder / "images/2.png", value=99)
    assert films.cache().decoded == 1
    films.check()


def test_run_cache__contracts_live_side_by_side(films: Bench) -> None:
    films.cache()
    first = films.contract
    films.contract = PreprocessConfig(size=(6, 6), window="none")
    assert films.cache().decoded == 6
    films.check()
    films.contract = first
    assert films.cache().decoded == 0
    films.check()


def test_run_cache__the_crop_size_of_volumes_is_free(volumes: Bench) -> None:
    volumes.cache()
    volumes.contract = volumes.contract.model_copy(update={"size": (4, 4, 4), "windows": ((-100.0, 100.0),), "channels": 1})
    assert volumes.cache().decoded == 0


def test_run_cache__lists_what_fails_and_keeps_the_rest(films: Bench) -> None:
    (films.folder / "images/1.png").write_bytes(b"nothing")
    (films.folder / "images/4.png").unlink()
    with pytest.raises(DataError, match=r"2 of 6 images cannot be cached, first: 'images/1\.png'.*the other 4 are stored"):
        films.cache()
    report = films.cache(on_error="skip")
    assert (report.stored, report.decoded, len(report.failed)) == (4, 0, 2)
    assert report.listing is not None
    lines = report.listing.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["image", "images/1.png", "images/4.png"]
    assert "does not exist" in lines[2]
    assert str(films.folder) not in report.listing.read_text()
    films.check([0, 2, 3, 5])
    films.manifest = replace(films.manifest, frame=films.manifest.frame.drop(index=[1, 4]))
    write_manifest(films.manifest, films.path)
    assert films.cache().listing is None
    assert not report.listing.exists()


def test_run_cache__a_row_without_an_image_does_not_read_the_whole_root(films: Bench) -> None:
    films.manifest.frame.loc[2, "image"] = ""
    write_manifest(films.manifest, films.path)
    assert films.cache(on_error="skip").failed == [("", "the row names no image")]


def test_run_cache__stops_early_where_nothing_can_work(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(120, PreprocessConfig(size=(8, 8), window="hu"))
    with pytest.raises(DataError, match=r"none of the first \d\d images can be cached, first: 'images/\d+\.png': .*Hounsfield"):
        bench.cache(on_error="skip")


def test_run_cache__verify_finds_damage_and_repairs_it(volumes: Bench) -> None:
    volumes.cache(shard_gb=1e-5)
    assert volumes.cache(verify=True).damaged == 0
    shards = sorted(volumes.inside.glob("*.bin"))
    data = bytearray(shards[0].read_bytes())
    data[len(data) // 2] ^= 1
    shards[0].write_bytes(bytes(data))
    shards[1].write_bytes(shards[1].read_bytes()[:-3])
    shards[2].unlink()
    assert volumes.cache().decoded == 0  # nobody looked
    report = volumes.cache(verify=True)
    assert (report.damaged, report.decoded, report.stored) == (3, 3, 6)
    volumes.check()
    assert volumes.cache(verify=True).damaged == 0


def test_run_cache__a_disk_that_is_too_small_is_told_before_it_starts(films: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    films.contract = PreprocessConfig(size=(8, 8), window="none", resize="stretch")
    with pytest.raises(DataError, match=r"needs about 0\.0 GB more for 6 images, and the disk has 0\.0 GB free"):
        films.cache()
    assert not list(films.out.glob("*/*.bin"))


def test_run_cache__a_disk_that_fills_keeps_what_is_there(volumes: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    add, calls = ShardWriter.add, []

    def full(writer: ShardWriter, array: np.ndarray) -> tuple[int, int, int]:
        calls.append(array)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return add(writer, array)

    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(DataError, match=r"cannot be written: the disk is full. What was stored so far is kept"):
        volumes.cache()
    assert len(calls) == 4
    monkeypatch.undo()
    assert volumes.cache().decoded == 3
    volumes.check()


def test_run_cache__sizes_of_volumes_are_learned_from_the_first(
    make_volumes: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_volumes(n=24, side=8)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**28 + 5000))
    with pytest.raises(DataError, match=r"needs about .* GB more for 8 images"):
        bench.cache()
    monkeypatch.undo()
    assert bench.cache().decoded == 8


def test_run_cache__refuses_a_folder_that_holds_something_else(films: Bench) -> None:
    films.out = films.folder / "images"
    with pytest.raises(ConfigError, match="is not empty and no store"):
        films.cache()


KILLED = """
import sys
from pathlib import Path
from medfm.data.store.config import CacheConfig
from medfm.data.store.run import run_cache
from medfm.transforms.config import PreprocessConfig
folder, workers = Path(sys.argv[1]), int(sys.argv[2])
contract = PreprocessConfig.model_validate_json(sys.argv[3])
if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    run_cache(CacheConfig(manifest=folder / "m.parquet", recipe="r", out=folder / "store", workers=workers), contract, False)
"""


def start(bench: Bench, workers: int) -> subprocess.Popen:
    words = [sys.executable, "-c", KILLED, str(bench.folder), str(workers), bench.contract.model_dump_json()]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, start_new_session=True, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def go(*runs: subprocess.Popen) -> None:
    """Let runs begin, once all of them are up."""
    for process in runs:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in runs:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def test_run_cache__killed_again_and_again_loses_nothing(make_volumes: Callable[..., Bench]) -> None:
    bench = make_volumes(n=120, side=32)
    kept = 0
    for workers in (0, 2):
        process = start(bench, workers)
        go(process)
        while process.poll() is None and len(read_records(bench.inside)) < kept + 10:
            time.sleep(0.002)
        assert process.poll() is None, "the run ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kept = len(read_records(bench.inside))
        assert kept < 120
    report = bench.cache()
    assert report.decoded == 120 - kept  # none lost, none done twice
    bench.check()
    assert bench.cache(verify=True).damaged == 0


def test_run_cache__two_runs_at_once_share_a_store(make_volumes: Callable[..., Bench]) -> None:
    bench = make_volumes(n=120, side=24)
    runs = [start(bench, 0), start(bench, 0)]
    go(*runs)
    for process in runs:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    assert len(list(bench.inside.glob("records-*.log"))) == 2
    bench.check()
    assert bench.cache(verify=True).damaged == 0


def test_run_cache__a_worker_that_dies_costs_its_image_alone(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(60, PreprocessConfig(size=(8, 8), window="none"))
    lost = "images/33.png"

    def run(function: Callable, items: list, config: object, **options: Any) -> Iterator[Done]:
        """The engine, with a decoder that crashes on one image."""
        for item in items:
            dies = any(name == lost for _, name, _ in item)
            yield Done(item, "", None if dies else function(item), "the process that read it died" if dies else "")

    monkeypatch.setattr("medfm.data.store.run.run", run)
    report = bench.cache(on_error="skip")
    assert report.failed == [(lost, "the process that read it died")]
    assert (report.stored, report.decoded) == (59, 59)
    bench.check([n for n in range(60) if n != 33])


def test_run_cache__on_dask_with_a_worker_killed(make_volumes: Callable[..., Bench]) -> None:
    distributed = pytest.importorskip("distributed")
    bench = make_volumes(n=40, side=24)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        victim = next(iter(cluster.workers.values())).pid
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import os,sys,time,glob\n"
                "while not glob.glob(sys.argv[1] + '/*/records-*.log'): time.sleep(0.005)\n"
                "os.kill(int(sys.argv[2]), 9)",
                str(bench.out),
                str(victim),
            ]
        )
        report = bench.cache(engine="dask", scheduler=cluster.scheduler_address, workers=None)
        process.wait()
    assert report.stored == 40
    bench.check()
    assert bench.cache(verify=True, workers=0).damaged == 0


def test_render__tells_counts_and_how_to_train(films: Bench) -> None:
    from rich.console import Console

    (films.folder / "images/1.png").write_bytes(b"nothing")
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render(films.cache(on_error="skip")))
    text = console.export_text()
    assert "5" in text
    assert "failed-m.csv" in text
    assert f"data.cache={films.out}" in text


def test_records__of_a_batch_that_could_not_be_flushed_do_not_count(films: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(writer: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medfm.data.store.writer.ShardWriter.sync", full)
    with pytest.raises(DataError, match="the disk is full"):
        films.cache()
    assert len(read_records(films.inside)) == 0


def test_shard__holds_one_record_after_the_other_without_gaps_above_a_cache_line(films: Bench) -> None:
    films.cache()
    records = read_records(films.inside)
    assert records.dtype == RECORD
    size = sum(
        shard_path(films.inside, int(w), int(s)).stat().st_size
        for w, s in {(int(r["writer"]), int(r["shard"])) for r in records}
    )
    pixels = int(records["shape"].prod(axis=1, dtype=np.int64).sum())
    assert pixels <= size <= pixels + 64 * len(records)
