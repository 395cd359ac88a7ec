"""Two gloo processes against one, in float64, over three steps: losses, logs, weights, teachers, queues, batch statistics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Results = tuple[dict[str, dict[str, Tensor]], ...]


@pytest.fixture(scope="module")
def results(run_ranks: Callable[[str], Results]) -> Results:
    """Of one process alone, and of two together."""
    return run_ranks("devices_ssl.py")


CASES = ["simclr", "moco", "moco queue", "byol", "barlow", "distill masked patches", "distill similarity", "m3ae", "sum"]


@pytest.mark.parametrize("case", CASES)
def test_two_devices__equal_one(results: Results, case: str) -> None:
    one, *two = results
    moved = [name for name, value in one[case].items() if name.endswith("running_var") and bool((value != 1).all())]
    assert bool(moved) == (case in CASES[:5] or case == "sum")
    for device in two:
        assert set(one[case]) == set(device[case])
        for name, expected in one[case].items():
            torch.testing.assert_close(device[case][name], expected, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
