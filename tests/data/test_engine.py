"""The engine: local processes and Dask give the same, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest

from medfm.data.engine import Done, run
from medfm.data.engine_config import EngineConfig
from medfm.errors import ConfigError, DataError

LOCAL = EngineConfig(workers=2)


def square(number: int) -> int:
    return number * number


def troubled(number: int, folder: Path | None = None) -> int:
    """Each kind of trouble at its own number; leaves a mark of each run."""
    if folder is not None:
        with open(folder / f"{number}.ran", "a") as file:
            file.write("x")
    if number == 3:
        raise DataError("'3.dcm' is truncated")
    if number == 5:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 7:
        raise KeyError("DOE^JANE")
    if number == 9:
        time.sleep(60)
    return number * number


def by_key(done: list[Done[int]]) -> dict[str, Done[int]]:
    return {d.key: d for d in done}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_run__every_item_once(workers: int) -> None:
    done = list(run(square, range(50), EngineConfig(workers=workers)))
    assert sorted(d.item for d in done) == list(range(50))
    assert all(d.result == d.item**2 and not d.failure and not d.again for d in done)


def test_run__trouble_costs_its_own_item_only() -> None:
    done = by_key(list(run(troubled, range(12), LOCAL, limit_s=3)))
    assert len(done) == 12
    assert done["3"].failure == "'3.dcm' is truncated"
    assert "SIGSEGV" in done["5"].failure
    assert "unexpected KeyError" in done["7"].failure
    assert "DOE" not in done["7"].failure
    assert "3 s" in done["9"].failure
    assert all(done[str(n)].result == n * n for n in (0, 1, 2, 4, 6, 8, 10, 11))


def test_run__goes_on_from_its_journal(tmp_path: Path) -> None:
    journal, marks = tmp_path / "work" / "journal", tmp_path / "marks"
    marks.mkdir()
    work = partial(troubled, folder=marks)
    for d in run(work, range(8), EngineConfig(workers=0), journal=journal):
        if d.item == 3:
            break  # the caller stops in the middle
    assert sorted(p.stem for p in marks.iterdir()) == ["0", "1", "2", "3"]
    with open(journal, "ab") as file:
        file.write(b'["4",{"resu')  # and the machine stopped in the middle of a line
    done = list(run(work, [0, 1, 2, 3, 4, 6], EngineConfig(workers=0), journal=journal))
    assert [(d.item, d.again) for d in done] == [(0, True), (1, True), (2, True), (3, True), (4, False), (6, False)]
    assert done[3].failure == "'3.dcm' is truncated"
    assert all((marks / f"{n}.ran").read_text() == "x" for n in (0, 1, 2, 3, 4, 6))


def test_run__another_fingerprint_starts_anew(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    list(run(square, [1, 2], EngineConfig(workers=0), journal=journal, fingerprint="a"))
    assert not any(d.again for d in run(square, [1, 2], EngineConfig(workers=0), journal=journal, fingerprint="b"))


def test_run__the_journal_holds_what_may_be_kept(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    list(run(square, [11], EngineConfig(workers=0), journal=journal, kept=lambda result: result % 10))
    assert "121" not in journal.read_text()
    again = list(run(square, [11], EngineConfig(workers=0), journal=journal))
    assert [(d.result, d.again) for d in again] == [(1, True)]


def test_run__a_strange_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_text("id,report\n")
    with pytest.raises(DataError, match="is not a journal"):
        list(run(square, [1], LOCAL, journal=path))
    assert path.read_text() == "id,report\n"


def test_run__survives_being_killed(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from medfm.data.engine import run
        from medfm.data.engine_config import EngineConfig

        def slow(number):
            time.sleep(0.02)
            return number

        if __name__ == "__main__":
            for done in run(slow, range(2000), EngineConfig(workers=2), journal=Path({str(journal)!r})):
                pass
        """
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    process = subprocess.Popen([sys.executable, str(path)], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.stat().st_size > 500) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = len(journal.read_bytes().splitlines()) - 1
    done = list(run(square, range(60), EngineConfig(workers=0), journal=journal))
    kept = sum(d.again for d in done)
    assert 10 < kept <= before + 1
    assert len(done) == 60


def test_run__from_a_script_on_a_pipe_and_without_a_main_guard() -> None:
    script = """
from functools import partial
from medfm.data.engine import run
from medfm.data.engine_config import EngineConfig
print("ran")
print(sum(d.result for d in run(partial(round, ndigits=0), [1.0, 2.0], EngineConfig(workers=2))))
"""
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["ran", "3.0"], done.stderr


@pytest.mark.skipif(os.name != "posix", reason="a fork server")
def test_run__interrupted_while_workers_are_being_prepared_says_nothing_of_them(tmp_path: Path) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import os, signal, time\nos.killpg(0, signal.SIGINT)\ntime.sleep(0.3)\n", encoding="utf-8"
    )
    script = """
from functools import partial
from medfm.data.engine import run
from medfm.data.engine_config import EngineConfig
try:
    list(run(partial(round, ndigits=0), [1.0, 2.0], EngineConfig(workers=2), preload=["slow_to_import"]))
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.split() == ["interrupted"], done.stderr
    assert "Traceback" not in done.stderr


def test_run__two_items_of_one_name() -> None:
    with pytest.raises(ValueError, match="distinct"):
        list(run(square, [1, 1], LOCAL))


def test_config__dask_needs_its_scheduler() -> None:
    with pytest.raises(ValueError, match="go together"):
        EngineConfig(engine="dask")
    with pytest.raises(ValueError, match="go together"):
        EngineConfig(scheduler="tcp://localhost:8786")


def test_run__no_scheduler_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(ConfigError, match="no Dask scheduler answers"):
        list(run(square, [1], EngineConfig(engine="dask", scheduler="tcp://localhost:1")))


def slow_mark(number: int, folder: Path) -> int:
    time.sleep(0.05)
    with open(folder / f"{number}.done", "a") as file:
        file.write("x")
    return number


def test_run__dask_loses_a_worker_and_nothing_else(tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        config = EngineConfig(engine="dask", scheduler=cluster.scheduler_address)
        done = []
        for d in run(partial(slow_mark, folder=tmp_path), range(80), config, journal=tmp_path / "journal"):
            done.append(d)
            if len(done) == 10:
                os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        assert sorted(d.item for d in done) == list(range(80))
        assert all(d.result == d.item and not d.failure for d in done)
        again = list(run(partial(slow_mark, folder=tmp_path), range(80), config, journal=tmp_path / "journal"))
    assert all(d.again for d in again)
    # Only what ran or lay unfetched on the killed worker may have been done a second time.
    twice = [p for p in tmp_path.glob("*.done") if len(p.read_text()) > 1]
    assert len(twice) <= 8
