"""Two gloo processes against one, in float64, over three steps: losses, logs, weights, teachers, queues, batch statistics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

SCRIPT = Path(__file__).with_name("devices_ssl.py")
Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, root: Path) -> tuple[Results, Results, Results]:
    """Of one process alone, and of two together."""
    folder = tmp_path_factory.mktemp("devices_ssl")
    places = [(0, 1), (0, 2), (1, 2)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(world), str(folder)], env=environment, stderr=subprocess.PIPE
        )
        for rank, world in places
    ]
    try:
        for process in ranks:
            _, error = process.communicate(timeout=150)
            assert process.returncode == 0, error.decode()
    finally:
        for process in ranks:
            process.kill()
    one, first, second = (torch.load(folder / f"{rank}-of-{world}.pt", weights_only=True) for rank, world in places)
    return one, first, second


CASES = ["simclr", "moco", "moco queue", "byol", "barlow", "distill masked patches", "distill similarity", "m3ae", "sum"]


@pytest.mark.parametrize("case", CASES)
def test_two_devices__equal_one(results: tuple[Results, Results, Results], case: str) -> None:
    one, *two = results
    moved = [name for name, value in one[case].items() if name.endswith("running_var") and bool((value != 1).all())]
    assert bool(moved) == (case in CASES[:5] or case == "sum")
    for device in two:
        assert set(one[case]) == set(device[case])
        for name, expected in one[case].items():
            torch.testing.assert_close(device[case][name], expected, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
