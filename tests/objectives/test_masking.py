from __future__ import annotations

import pytest
import torch

from medfm.objectives.masking import draw_keep
from medfm.transforms.draws import Draws


def test_draw_keep__rows_are_ascending_and_without_repeats() -> None:
    keep = draw_keep(5, 16, 0.75, draws=Draws(0))
    assert keep.shape == (5, 4)
    assert bool((keep.diff(dim=1) > 0).all())
    assert int(keep.min()) >= 0
    assert int(keep.max()) < 16
    assert len({tuple(row.tolist()) for row in keep}) > 1  # images differ


def test_draw_keep__every_patch_is_as_likely() -> None:
    keep = draw_keep(20_000, 8, 0.5, draws=Draws(0))
    share = keep.flatten().bincount(minlength=8) / 20_000
    torch.testing.assert_close(share, torch.full((8,), 0.5), atol=0.02, rtol=0)


def test_draw_keep__is_decided_by_the_draws_alone() -> None:
    first = draw_keep(3, 9, 0.5, draws=Draws(7))
    torch.rand(3)
    assert torch.equal(first, draw_keep(3, 9, 0.5, draws=Draws(7)))


def test_draw_keep__one_patch_always_stays() -> None:
    assert draw_keep(2, 4, 0.99).shape == (2, 1)
    assert draw_keep(2, 4, 0.0).tolist() == [[0, 1, 2, 3]] * 2


def test_draw_keep__refuses_to_drop_all() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1.0"):
        draw_keep(2, 4, 1.0)
