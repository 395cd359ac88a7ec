"""Index and doctor on a Dask cluster: a worker killed on the way loses nothing and repeats nothing in the result."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from medfm.data.doctor import run as doctor_run
from medfm.data.doctor.config import DoctorConfig
from medfm.data.index import index
from medfm.data.index_config import IndexConfig
from medfm.data.walk import batches

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
    ) as cluster:
        yield cluster


@pytest.fixture
def tree(tmp_path: Path, film: Write) -> Path:
    """Fifty folders of four slices, two of them with a fault, and ten films of one folder."""
    root = tmp_path / "in"
    for n in range(50):
        for i in range(4):
            film(
                root / f"{n:02d}" / f"{i}.dcm",
                Modality="MR",
                SOPClassUID="1.2.840.10008.5.1.4.1.1.4",
                PatientID=f"SECRET-{n % 7}",
                SeriesInstanceUID=f"1.2.{n}",
                ImagePositionPatient=[0, 0, 2.0 * i + (2 if n in (3, 30) and i > 1 else 0)],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                PixelSpacing=[1, 1],
            )
    for n in range(10):
        film(root / "films" / f"{n}.dcm", PatientID=f"SECRET-{n % 7}", PixelSpacing=[1, 1])
    return root


class Killer(threading.Thread):
    """Kills one worker with SIGKILL as soon as the journal holds `lines` results."""

    def __init__(self, cluster: Any, journal: Path, lines: int) -> None:
        super().__init__(daemon=True)
        self.cluster, self.journal, self.lines = cluster, journal, lines
        self.killed_at = 0

    def run(self) -> None:
        from distributed import Client

        with Client(self.cluster.scheduler_address, set_as_default=False) as client:
            pids = list(client.run(os.getpid).values())
            for _ in range(3000):
                count = self.journal.read_bytes().count(b"\n") if self.journal.exists() else 0
                if count > self.lines:
                    os.kill(pids[0], signal.SIGKILL)
                    self.killed_at = count - 1
                    return
                time.sleep(0.002)


def test_index__on_a_cluster_with_a_worker_killed(
    tmp_path: Path, tree: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfm.data.scan.batches", partial(batches, size=4))
    local = index(IndexConfig(images=tree, out=tmp_path / "local.csv", workers=0))
    out = tmp_path / "dask.csv"
    killer = Killer(cluster, out.with_name("dask.csv.journal"), 5)
    killer.start()
    far = index(IndexConfig(images=tree, out=out, engine="dask", scheduler=cluster.scheduler_address))
    killer.join(timeout=10)
    assert 5 <= killer.killed_at < 53, "the worker was not killed on the way"
    assert (tmp_path / "dask.csv").read_text() == (tmp_path / "local.csv").read_text()
    assert far.rejected == local.rejected
    assert [path for path, _ in far.rejected] == ["03", "30"]
    assert len(far.manifest) == 58
    assert not killer.journal.exists()


def test_doctor__on_a_cluster_with_a_worker_killed(
    tmp_path: Path, tree: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_run, "_BATCH", 4)
    local = doctor_run.run_doctor(DoctorConfig(path=tree, out=tmp_path / "local", workers=0))
    out = tmp_path / "dask"
    killer = Killer(cluster, out / "doctor.journal", 5)
    killer.start()
    config = DoctorConfig(path=tree, out=out, engine="dask", scheduler=cluster.scheduler_address)
    far = doctor_run.run_doctor(config)
    killer.join(timeout=10)
    assert 5 <= killer.killed_at < 53, "the worker was not killed on the way"
    assert far.files == local.files == 210
    assert [one.as_json() for one in far.judged] == [one.as_json() for one in local.judged]
    assert far.counts["rejected"] == 2
    keys = [line.split(b",", 1)[0] for line in (out / "doctor.journal").read_bytes().splitlines()]
    assert len(keys) == len(set(keys)), "an item was counted twice"
    assert doctor_run.run_doctor(config).again == 210
