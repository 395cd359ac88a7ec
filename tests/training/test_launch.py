"""Slurm without Slurm: `sbatch`, `srun` and `scontrol` are small scripts that do here what the cluster would do elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import medfm
from medfm.api import resolve_verb
from medfm.errors import ConfigError
from medfm.training.checkpoint import checkpoints
from medfm.training.config import SlurmConfig
from medfm.training.launch import Job, Slurm, minutes
from medfm.training.logs import read_metrics
from medfm.training.pretrain import _checkpoint
from medfm.weights.load import read_card

_SBATCH = """#!/bin/bash
cp "$1" "$SLURM_STANDIN/job.sh"; echo "Submitted batch job 4711"
"""
_SRUN = """#!/bin/bash
echo "$@" >> "$SLURM_STANDIN/srun.log"
while [[ "$1" == --* ]]; do [[ "$1" == --output ]] && shift; shift; done
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
echo $$ > "$SLURM_STANDIN/pid"; exec "$@"
"""
_SCONTROL = """#!/bin/bash
echo "$@" >> "$SLURM_STANDIN/scontrol.log"
"""
_JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "tiny",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_NODELIST": "localhost",
    "SLURM_CPUS_PER_TASK": "1",
}
_KEYS = {"launcher": "slurm", "launcher.gpus_per_node": 0, "launcher.cpus_per_task": 1, "trainer.devices": "auto"}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the cluster's commands were asked, which are on PATH."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, text in (("sbatch", _SBATCH), ("srun", _SRUN), ("scontrol", _SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "medfm").write_text(f'#!/bin/bash\nexec {sys.executable} -m medfm.cli "$@"\n')
    (folder / "medfm").chmod(0o755)
    monkeypatch.setenv("SLURM_STANDIN", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def _same(a: Path, b: Path) -> bool:
    left, right = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_slurm__saves_requeues_and_goes_on(cluster: Path, tiny_recipe: Path, tiny_run: Path, tmp_path: Path) -> None:
    """Submitted, warned of its time limit in the middle, started again as Slurm would: the weights of an undisturbed run."""
    out = tmp_path / "run"
    assert medfm.pretrain(str(tiny_recipe), {**_KEYS, "out": out, "trainer.checkpoint_every": 100}) == out
    assert not (out / "model.safetensors").exists()
    command = ["bash", str(cluster / "job.sh")]
    environment = {**os.environ, **_JOB}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not read_metrics(out / "metrics.csv") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(int((cluster / "pid").read_text()), signal.SIGUSR2)
    assert process.wait(timeout=60) == 0
    log = "".join(path.read_text() for path in (out / "slurm").glob("4711_*.out"))
    stopped = checkpoints(out / "checkpoints")
    assert stopped, log
    if stopped[-1][0] < 16:  # else the signal came after the last step
        assert (cluster / "scontrol.log").read_text().split() == ["requeue", "4711"]
        assert subprocess.run(command, env=environment, capture_output=True, timeout=200).returncode == 0
    assert _same(out, tiny_run)
    assert "--kill-on-bad-exit=1 --cpus-per-task=1" in (cluster / "srun.log").read_text()
    # What is passed on tells nothing of the cluster.
    assert "launcher" not in read_card(out / "model.safetensors")["recipe"]
    assert "slurm" not in str(read_card(out / "model.safetensors"))


def test_slurm__the_sbatch_file_says_what_the_recipe_asks(cluster: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    keys = {
        "launcher": "slurm",
        "launcher.nodes": 2,
        "launcher.gpus_per_node": 4,
        "launcher.partition": "gpu",
        "launcher.account": "radiology",
        "launcher.time": "1-02:30:00",
        "launcher.mem": "256G",
        "launcher.qos": "long",
        "launcher.constraint": "a100",
        "launcher.signal_before": 300,
        "launcher.setup": ["module load cuda"],
        "launcher.python": "/opt/medfm/bin/python",
        "launcher.extra": {"mail-type": "END", "exclusive": True},
        "trainer.devices": "auto",
        "name": "my run",
    }
    out = tmp_path / "run"
    medfm.pretrain(str(tiny_recipe), {**keys, "out": out})
    lines = (cluster / "job.sh").read_text().splitlines()
    given = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH --"))
    expected = {
        "job-name": "my_run",
        "nodes": "2",
        "ntasks-per-node": "4",
        "gpus-per-node": "4",
        "cpus-per-task": "8",
        "partition": "gpu",
        "account": "radiology",
        "time": str(26 * 60 + 30),
        "mem": "256G",
        "qos": "long",
        "constraint": "a100",
        "signal": "USR2@300",
        "requeue": "",
        "mail-type": "END",
        "exclusive": "",
        "open-mode": "append",
    }
    assert expected.items() <= given.items()
    assert lines.index("module load cuda") < next(n for n, line in enumerate(lines) if line.startswith("srun "))
    assert any("/opt/medfm/bin/python -u -m submitit.core._submit" in line for line in lines)
    job = yaml.safe_load((out / "slurm" / "recipe.yaml").read_text())
    assert job["launcher"] == {"name": "local"}
    assert (job["trainer"]["num_nodes"], job["trainer"]["devices"]) == (2, 4)
    assert Path(job["out"]) == out
    assert Path(job["data"]["manifest"]).is_absolute()


def test_slurm__says_what_is_wrong(cluster: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {**_KEYS, "out": tmp_path / "run"}

    def refuse(match: str, **more: object) -> None:
        with pytest.raises(ConfigError, match=match):
            medfm.pretrain(str(tiny_recipe), {**keys, **more})

    refuse("trainer.devices=2, but launcher.gpus_per_node=0", **{"trainer.devices": 2})
    refuse("trainer.num_nodes=3, but launcher.nodes=1", **{"trainer.num_nodes": 3})
    refuse("launcher.extra.array: medfm sets this", **{"launcher.extra": {"array": "0-3"}})
    refuse(r"launcher\.time", **{"launcher.time": "soon"})
    refuse(r"launcher\.partitoin.*did you mean 'launcher.partition'", **{"launcher.partitoin": "gpu"})
    refuse(r"did you mean 'slurm'", launcher="slrum", **{"launcher.gpus_per_node": 1})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        refuse(r"needs submitit: pip install 'medfm\[slurm\]'")
    monkeypatch.setenv("PATH", "/nowhere")
    refuse("no 'sbatch' on this machine")


def test_job__a_recipe_that_is_wrong_fails_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception, match="the run failed"):
        Job(str(tmp_path / "gone.yaml"))()
    assert "gone.yaml" in capsys.readouterr().err


def test_job__is_what_submitit_wants(tiny_recipe: Path, tmp_path: Path) -> None:
    """Run by submitit, here in this process, and asked for its successor."""
    import submitit

    config = resolve_verb("pretrain", str(tiny_recipe), {**_KEYS, "trainer.max_steps": 2}).config
    recipe = tmp_path / "job.yaml"
    job = Slurm(config.launcher).for_job(config, tmp_path / "run")
    recipe.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    executor = submitit.DebugExecutor(tmp_path / "logs")
    assert executor.submit(Job(str(recipe))).result() == "done"
    assert [step for step, _ in checkpoints(tmp_path / "run" / "checkpoints")] == [2]
    assert isinstance(Job("x").checkpoint().function, Job)


def test_template__runs_medfm_on_every_task(cluster: Path, root: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    template = root / "recipes" / "slurm" / "pretrain.sbatch"
    words = [f"recipe={tiny_recipe}", f"out={tmp_path / 'run'}", "trainer.max_steps=2", "name=with space"]
    done = subprocess.run(
        ["bash", str(template), *words], env={**os.environ, **_JOB}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()
    asked = (cluster / "srun.log").read_text()
    assert "--kill-on-bad-exit=1 --cpus-per-task=1 medfm pretrain" in asked
    assert "trainer.num_nodes=1 trainer.devices=1" in asked
    header = template.read_text()
    for option in ("--signal=USR2@", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {option}" in header


@pytest.mark.parametrize(("time", "expected"), [("24:00:00", 1440), ("2-00:00:30", 2881), ("0:05:00", 5)])
def test_minutes__rounds_up(time: str, expected: int) -> None:
    assert minutes(time) == expected


@pytest.mark.parametrize("resume", ["never", "file"])
def test_resume__of_a_requeued_job_goes_on(
    resume: str, tiny_run: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm starts a job anew with the same words, which would refuse the folder or begin at the file again."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    first = checkpoints(tiny_run / "checkpoints")[0][1]
    newest = checkpoints(run / "checkpoints")[-1][1]
    value = "never" if resume == "never" else str(first)
    config = resolve_verb("pretrain", str(tiny_recipe), {"out": run, "resume": value}).config
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    found = _checkpoint(run, config, "")
    assert found is not None
    assert found.path == newest
    shutil.rmtree(run / "checkpoints")  # preempted before the first of its own
    found = _checkpoint(run, config, "")
    assert (None if found is None else found.path) == (None if resume == "never" else first)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    if resume == "never":
        with pytest.raises(ConfigError, match="holds a run already"):
            _checkpoint(run, config, "")


def test_time__without_quotes_is_explained() -> None:
    """YAML reads 24:00:00 as 86400."""
    with pytest.raises(ValueError, match="a text in quotes"):
        SlurmConfig(time=86400)  # type: ignore[arg-type]
