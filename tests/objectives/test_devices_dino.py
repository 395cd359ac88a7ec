"""Two gloo processes against one, in float64, over three steps: losses, logs, gradients, weights, teachers, centres."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Results = tuple[dict[str, dict[str, Tensor]], ...]


@pytest.fixture(scope="module")
def results(run_ranks: Callable[[str], Results]) -> Results:
    """Of one process alone, and of two together."""
    return run_ranks("devices_dino.py")


@pytest.mark.parametrize("case", ["dino", "ibot", "dinov2", "random masks"])
def test_two_devices__equal_one(results: Results, case: str) -> None:
    one, *two = results
    assert ("centre" in one[case]) == (case != "dinov2")
    assert ("patch_centre" in one[case]) == (case in ("ibot", "random masks"))
    assert any(name.startswith("gradient of student.network") for name in one[case])
    for device in two:
        assert set(one[case]) == set(device[case])
        for name, expected in one[case].items():
            torch.testing.assert_close(device[case][name], expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_centre__follows_all_devices_rows(results: Results) -> None:
    one, *_ = results
    assert bool((one["ibot"]["centre"] != 0).all())
    assert bool((one["ibot"]["patch_centre"] != 0).all())
