"""Two gloo processes against one, in float64: the same loss, logs and parameter gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medfm.objectives.gather import SingleDevice, current_gather

SCRIPT = Path(__file__).with_name("devices.py")
Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, root: Path) -> tuple[Results, Results, Results]:
    """Of one process alone, and of two together."""
    folder = tmp_path_factory.mktemp("devices")
    places = [(0, 1), (0, 2), (1, 2)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(world), str(folder)], env=environment, stderr=subprocess.PIPE
        )
        for rank, world in places
    ]
    for process in ranks:
        try:
            _, error = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            for other in ranks:
                other.kill()
            raise
        assert process.returncode == 0, error.decode()
    one, first, second = (torch.load(folder / f"{rank}-of-{world}.pt", weights_only=True) for rank, world in places)
    return one, first, second


@pytest.mark.parametrize(
    "case", ["convirt", "siglip", "unmasked", "convirt cached", "siglip cached", "one device without text"]
)
def test_two_devices__equal_one(results: tuple[Results, Results, Results], case: str) -> None:
    one, *two = results
    assert set(one[case]) == set(two[0][case])
    assert any("image_encoder" in name for name in one[case])
    for device in two:
        for name, expected in one[case].items():
            torch.testing.assert_close(device[case][name], expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_caching__changes_nothing(results: tuple[Results, Results, Results]) -> None:
    for device in results:
        for name, expected in device["convirt"].items():
            torch.testing.assert_close(device["convirt cached"][name], expected, rtol=1e-9, atol=1e-12)


def test_rows__gradient_is_summed_over_devices(results: tuple[Results, Results, Results]) -> None:
    _, first, second = results
    everyone = torch.tensor([[0.0, 1], [2, 3], [10, 11], [12, 13], [14, 15]])
    torch.testing.assert_close(first["gathered"]["everyone"], everyone)
    torch.testing.assert_close(second["gathered"]["everyone"], everyone)
    weights = torch.arange(10.0).reshape(5, 2) * (1 + 2)
    torch.testing.assert_close(first["gathered"]["grad"], weights[:2])
    torch.testing.assert_close(second["gathered"]["grad"], weights[2:])


def test_current_gather__is_alone_without_a_group() -> None:
    gather = current_gather()
    assert isinstance(gather, SingleDevice)
    x = torch.ones(2, 3)
    assert gather.rows(x, gather.sizes(2, x.device)) is x
