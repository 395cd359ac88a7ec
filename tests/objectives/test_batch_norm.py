"""Beside torch's BatchNorm1d: fused on one device, and by the sums that several devices share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfm.errors import ConfigError
from medfm.objectives.batch_norm import BatchNorm, standardise
from medfm.objectives.gather import Gather, SingleDevice


class Half(SingleDevice):
    """Says that there is another device and adds nothing for it: the path of several devices on one batch."""

    world_size = 2


def pairs(affine: bool, gather: Gather | None) -> tuple[BatchNorm, nn.BatchNorm1d]:
    mine, theirs = BatchNorm(5, affine=affine, gather=gather).double(), nn.BatchNorm1d(5, affine=affine).double()
    if affine:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    mine.load_state_dict(theirs.state_dict())  # the same names
    return mine, theirs


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("gather", [None, Half()], ids=["fused", "sums"])
def test_batch_norm__is_torchs(affine: bool, gather: Gather | None) -> None:
    mine, theirs = pairs(affine, gather)
    for step in range(3):
        x = torch.randn(9, 5, dtype=torch.float64) * (step + 1) + 1000  # far from 0: E[x^2] - E[x]^2 would fail
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        got, wanted = mine(inputs[0]), theirs(inputs[1])
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
        weight = torch.randn_like(x)
        (got * weight).sum().backward()
        (wanted * weight).sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-8, atol=1e-10)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, msg=name)
    for ours, reference in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, reference.grad)
    torch.testing.assert_close(mine.eval()(x), theirs.eval()(x))


def test_batch_norm__in_half_precision_keeps_the_dtype() -> None:
    x = torch.randn(64, 5) + 3
    results: list[Tensor] = []
    for gather in (None, Half()):
        layer: Any = BatchNorm(5, gather=gather)
        results.append(layer(x.to(torch.bfloat16)))
        assert layer.running_mean.dtype == torch.float32
        torch.testing.assert_close(layer.running_mean, 0.1 * x.mean(0), rtol=1e-2, atol=1e-2)
    assert all(result.dtype == torch.bfloat16 for result in results)
    torch.testing.assert_close(results[0], results[1], rtol=2e-2, atol=2e-2)


def test_standardise__both_ways_are_one() -> None:
    x = torch.randn(9, 5, dtype=torch.float64)
    torch.testing.assert_close(standardise(x, Half()), standardise(x, SingleDevice()), rtol=1e-12, atol=1e-12)


def test_batch_norm__of_one_image_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        BatchNorm(5)(torch.randn(1, 5))
