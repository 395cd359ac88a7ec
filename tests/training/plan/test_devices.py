"""Cards by name and by memory."""

from __future__ import annotations

import pytest

from medfm.errors import ConfigError
from medfm.training.plan.devices import GPUS, find_gpu, like


@pytest.mark.parametrize(
    ("text", "name"),
    [("h100", "h100"), ("RTX 4090", "rtx_4090"), ("NVIDIA A100-SXM4-80GB", "a100_80gb"), ("a100", "a100_80gb"), ("L4", "l4")],
)
def test_find_gpu__names(text: str, name: str) -> None:
    assert find_gpu(text) is GPUS[name]


@pytest.mark.parametrize(("text", "memory"), [("24GB", 24e9), ("24", 24e9), ("24GiB", 24 * 2**30), ("0.5e3gb", None)])
def test_find_gpu__memory(text: str, memory: float | None) -> None:
    if memory is None:
        with pytest.raises(ConfigError, match="no card"):
            find_gpu(text)
    else:
        gpu = find_gpu(text)
        assert gpu.memory == memory
        assert gpu.half is None


def test_find_gpu__unknown_says_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rtx_4090'"):
        find_gpu("rtx_4900")
    with pytest.raises(ConfigError, match="less than 1 GB"):
        find_gpu("0.2GB")


def test_like__cards_of_that_memory() -> None:
    same = like(find_gpu("24GB"))
    assert {gpu.memory for gpu in same} == {24 * 10**9}
    rates = [gpu.half for gpu in same if gpu.half]
    assert rates == sorted(rates)
    assert len(rates) >= 3


def test_table__dense_rates_and_plausible_numbers() -> None:
    for gpu in GPUS.values():
        assert gpu.half is not None
        assert gpu.full is not None
        assert gpu.bandwidth is not None
        assert gpu.source
        assert 1.5 * gpu.full <= gpu.half <= 32 * gpu.full  # a rate with sparsity in the wrong column would stand out
        assert 20 <= gpu.half / gpu.bandwidth <= 450
