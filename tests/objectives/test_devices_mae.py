"""Two gloo processes against one, in float64: the same loss, logs and parameter gradients of masked autoencoding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Results = tuple[dict[str, dict[str, Tensor]], ...]


@pytest.fixture(scope="module")
def results(run_ranks: Callable[[str], Results]) -> Results:
    """Of one process alone, and of two together."""
    return run_ranks("devices_mae.py")


@pytest.mark.parametrize("case", ["mae", "block", "foreground", "channels", "simmim"])
def test_two_devices__equal_one(results: Results, case: str) -> None:
    one, *two = results
    for device in two:
        assert set(device[case]) == set(one[case])
        for name, expected in one[case].items():
            torch.testing.assert_close(device[case][name], expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_validation__is_of_a_devices_own_batch(results: Results) -> None:
    """Every device goes through the whole split; nothing is waited for, and nothing of another device's batch is counted."""
    one, *two = results
    for rank, device in enumerate(two):
        case = f"validation of {2 + rank}"
        for name, expected in one[case].items():
            torch.testing.assert_close(device[case][name], expected, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")
