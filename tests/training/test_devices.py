"""Training on two devices is training on one: every objective, DDP and FSDP2, and runs resumed on another number of devices.

Three processes (one alone, two of a gloo group) go through all recipes of devices.py once; the tests compare what they wrote.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medfm.training.checkpoint import read_checkpoint
from medfm.weights.load import load_model

_spec = importlib.util.spec_from_file_location("devices", Path(__file__).with_name("devices.py"))
assert _spec is not None
assert _spec.loader is not None
devices = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(devices)


@pytest.fixture(scope="module")
def runs(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a run folder a recipe under `1/` (one device) and `2/` (two)."""
    folder = tmp_path_factory.mktemp("devices")
    devices.recipe(folder, tiny_manifest)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "SLURM_PROCID")}
    processes = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        command = [sys.executable, devices.__file__, str(rank), str(world), port, str(folder), str(tiny_manifest)]
        log = (folder / f"log-{world}-{rank}").open("w")
        processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    try:
        codes = [process.wait(timeout=280) for process in processes]
    except subprocess.TimeoutExpired:
        codes = [-1]
    finally:
        for process in processes:
            process.kill()
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("log-*")))
    assert not any(codes), logs
    return folder


def _state(run: Path, step: int) -> dict[str, Tensor]:
    """Weights and buffers of a checkpoint, and what its optimiser remembers."""
    checkpoint: dict[str, Any] = read_checkpoint(run / "checkpoints" / f"step={step:08d}.ckpt")
    moments = {
        f"optimizer.{number}.{name}": value
        for number, values in checkpoint["optimizer_states"][0]["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    return {**checkpoint["state_dict"], **moments}


def _assert_same(a: Path, b: Path, step: int) -> None:
    left, right = _state(a, step), _state(b, step)
    assert left.keys() == right.keys()
    for name, value in left.items():
        # The sum over a batch is taken in another order; what is zero but for rounding (a bias before a norm) stays so.
        atol = 1e-6 + 1e-4 * float(value.abs().max())
        torch.testing.assert_close(right[name], value, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("objective", devices.OBJECTIVES)
def test_ddp__two_devices_are_one(runs: Path, objective: str) -> None:
    _assert_same(runs / "1" / objective, runs / "2" / objective, 3)


@pytest.mark.parametrize("objective", devices.SHARDED)
def test_fsdp2__two_devices_are_one(runs: Path, objective: str) -> None:
    _assert_same(runs / "1" / objective, runs / "2" / f"{objective} shards", 3)


@pytest.mark.parametrize("run", ["2/one on two", "2/one on two shards", "1/two shards on one"])
def test_resume__on_another_number_of_devices(runs: Path, run: str) -> None:
    """Stopped after step 3 and gone on with elsewhere, AdamW's moments and the schedules included: as if never stopped."""
    _assert_same(runs / "1" / "whole", runs / run, 6)


def test_training__moves_what_the_others_compare(runs: Path) -> None:
    third, sixth = (_state(runs / "1" / "whole", step) for step in (3, 6))
    moved = [name for name in third if not torch.allclose(third[name], sixth[name], atol=1e-4)]
    assert len(moved) > len(third) / 2


def test_fsdp2__weight_files_are_whole(runs: Path) -> None:
    one, two = (load_model(runs / name).network.state_dict() for name in ("1/dino", "2/dino shards"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-6, rtol=1e-4)
