"""Two gloo processes against one, in float64: the same loss, logs and parameter gradients of masked autoencoding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

SCRIPT = Path(__file__).with_name("devices_mae.py")
Results = list[dict[str, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Results:
    """Of one process alone, and of two together."""
    folder = tmp_path_factory.mktemp("devices_mae")
    places = [(0, 1), (0, 2), (1, 2)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    calls = [[sys.executable, str(SCRIPT), str(rank), str(world), str(folder)] for rank, world in places]
    ranks = [subprocess.Popen(call, env=environment, stderr=subprocess.PIPE) for call in calls]
    try:
        for process in ranks:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error.decode()
    finally:
        for process in ranks:
            process.kill()
    return [torch.load(folder / f"{rank}-of-{world}.pt", weights_only=True) for rank, world in places]


@pytest.mark.parametrize("case", ["mae", "block", "foreground", "channels", "simmim"])
def test_two_devices__equal_one(results: Results, case: str) -> None:
    one, *two = results
    for device in two:
        assert set(device[case]) == set(one[case])
        for name, expected in one[case].items():
            torch.testing.assert_close(device[case][name], expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
