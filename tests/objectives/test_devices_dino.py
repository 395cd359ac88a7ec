"""Two gloo processes against one, in float64, over three steps: losses, logs, gradients, weights, teachers, centres."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

SCRIPT = Path(__file__).with_name("devices_dino.py")
Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, root: Path) -> tuple[Results, Results, Results]:
    """Of one process alone, and of two together."""
    folder = tmp_path_factory.mktemp("devices_dino")
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


@pytest.mark.parametrize("case", ["dino", "ibot", "dinov2", "random masks"])
def test_two_devices__equal_one(results: tuple[Results, Results, Results], case: str) -> None:
    one, *two = results
    assert ("centre" in one[case]) == (case != "dinov2")
    assert ("patch_centre" in one[case]) == (case in ("ibot", "random masks"))
    assert any(name.startswith("gradient of student.network") for name in one[case])
    for device in two:
        assert set(one[case]) == set(device[case])
        for name, expected in one[case].items():
            torch.testing.assert_close(device[case][name], expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_centre__follows_all_devices_rows(results: tuple[Results, Results, Results]) -> None:
    one, *_ = results
    assert bool((one["ibot"]["centre"] != 0).all())
    assert bool((one["ibot"]["patch_centre"] != 0).all())
