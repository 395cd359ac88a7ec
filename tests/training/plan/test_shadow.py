"""Values that decide shapes are known without data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from medfm.training.plan.shadow import ShadowDraws, ShadowMode


@pytest.fixture
def shadow() -> Iterator[ShadowMode]:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    mode = ShadowMode(fake, lambda *_: None)
    with fake, mode:
        yield mode


def test_draws__decide_shapes_as_real_ones(shadow: ShadowMode) -> None:
    drawn = ShadowDraws(shadow, seed=1).rand(64)
    chosen = (drawn < 0.25).nonzero().squeeze(1)
    real = torch.rand(64, generator=torch.Generator().manual_seed(1))
    count = int((real < 0.25).sum().item())
    assert len(chosen) == count
    assert torch.empty(64, 3)[drawn < 0.25].shape == (count, 3)
    assert shadow.guesses == 0


def test_item__of_known_and_unknown(shadow: ShadowMode) -> None:
    known = torch.arange(5)
    assert int(known.sum()) == 10
    assert known.tolist() == [0, 1, 2, 3, 4]
    known[1:3] += 10
    assert known.tolist() == [0, 11, 12, 3, 4]
    assert shadow.guesses == 0
    unknown = torch.empty(2**20 + 1)
    assert float(unknown.sum()) == 1.0
    assert shadow.guesses == 1


def test_overwritten__is_not_known_any_more(shadow: ShadowMode) -> None:
    table = torch.zeros(4)
    table.copy_(torch.empty(2**21)[:4].sin())
    assert (table > 0).nonzero().shape == (4, 1)  # the most that it can be
    assert shadow.guesses == 1
