"""Two gloo processes against one, in float64, over three steps with each alignment term: losses, logs, weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medfm.registry import TERMS

Results = tuple[dict[str, dict[str, Tensor]], ...]


@pytest.fixture(scope="module")
def results(run_ranks: Callable[[str], Results]) -> Results:
    """Of one process alone, and of two together."""
    return run_ranks("devices_align.py")


def test_two_devices__equal_one(results: Results) -> None:
    one, *two = results
    for case, values in one.items():
        assert torch.isfinite(values["losses"]).all()
        assert len(values["losses"].unique()) == 3
        for device in two:
            assert set(values) == set(device[case])
            for name, expected in values.items():
                what = f"{case}, {name}"
                torch.testing.assert_close(
                    device[case][name], expected, rtol=1e-9, atol=1e-11, msg=lambda m, w=what: f"{w}: {m}"
                )


def test_devices__run_every_term(results: Results) -> None:
    run = {name.removeprefix("loss_") for values in results[0].values() for name in values}
    assert set(TERMS.names()) <= run, "a term is not in devices_align.py"
