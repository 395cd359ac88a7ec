from __future__ import annotations

import pytest
import torch

from medfm.encoders.patches import unravel
from medfm.errors import ConfigError
from medfm.objectives.masking import (
    block_score,
    check_split,
    draw_keep,
    foreground_score,
    is_foreground,
    masks_by_score,
    split_counts,
    unit_grid,
    units_to_patches,
)
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


@pytest.mark.parametrize(
    ("patches", "ratio", "expected"),
    [
        (196, 0.75, (49, 147)),
        (216, 0.75, (54, 162)),
        (196, 0.6, (78, 118)),
        (10, 0.9, (1, 9)),
        (4, 0.99, (1, 3)),
        (4, 0.01, (3, 1)),
    ],
)
def test_split_counts__are_the_authors(patches: int, ratio: float, expected: tuple[int, int]) -> None:
    assert split_counts(patches, ratio) == expected


def test_check_split__refuses_what_leaves_nothing_to_see() -> None:
    check_split(10, 0.9, "objective.mask_ratio")
    for patches, ratio in ((10, 0.91), (4, 0.99), (1, 0.5)):
        with pytest.raises(ConfigError, match=f"objective.mask_ratio={ratio} leaves no patch to be seen of {patches};"):
            check_split(patches, ratio, "objective.mask_ratio")


def test_masks_by_score__takes_lowest_first_and_may_leave_out() -> None:
    masks = masks_by_score(torch.tensor([[0.5, 0.1, 0.9, 0.3], [0.1, 0.2, 0.3, 0.4]]), 1, 2)
    assert masks.keep.tolist() == [[1], [0]]
    assert masks.masked.tolist() == [[0, 3], [1, 2]]
    assert masks.map(4).tolist() == [[True, False, False, True], [False, True, True, False]]


@pytest.mark.parametrize("grid", [(14, 14), (4, 12, 8)])
def test_block_score__masks_boxes_up_to_an_exact_count(grid: tuple[int, ...]) -> None:
    """Masked patches have far more masked neighbours than random ones have, and every image has as many."""
    count = torch.tensor(grid).prod().item()
    _, masked = split_counts(int(count), 0.5)
    score = block_score(64, grid, 0.5, (0.05, 0.3), 0.3, draws=Draws(0))
    blocks = masks_by_score(score, int(count) - masked, masked).map(int(count)).reshape(64, *grid)
    assert bool((blocks.flatten(1).sum(1) == masked).all())
    random = masks_by_score(Draws(0).rand(64, int(count)), int(count) - masked, masked).map(int(count)).reshape(64, *grid)

    def alike(mask: torch.Tensor) -> float:
        return (mask[..., 1:] == mask[..., :-1]).float().mean().item()

    assert alike(random) < 0.55
    assert alike(blocks) > 0.75
    many = block_score(4000, grid, 0.5, (0.05, 0.3), 0.3, draws=Draws(1))
    share = masks_by_score(many, int(count) - masked, masked).map(int(count)).float().mean(0)
    assert (share - 0.5).abs().max() < 0.08  # corners are masked as often as the middle
    assert torch.equal(score, block_score(64, grid, 0.5, (0.05, 0.3), 0.3, draws=Draws(0)))


def test_block_score__one_box_is_a_box() -> None:
    """What the first box covers has the highest score: there it is filled, and has at most its share of the grid."""
    score = block_score(200, (16, 16), 0.3, (0.2, 0.2), 0.5, draws=Draws(1))
    top = score >= score.amax(1, keepdim=True).floor()
    whole = 0
    for first in top.reshape(200, 16, 16):
        rows, columns = first.any(1).sum().item(), first.any(0).sum().item()
        assert first.sum().item() == rows * columns
        assert 1 <= rows * columns < 0.2 * 256 + 17
        inner = not (first[0].any() or first[-1].any() or first[:, 0].any() or first[:, -1].any())
        whole += inner
        assert not inner or (rows * columns > 0.2 * 256 - 17 and 0.2 < rows / columns < 5)
    assert whole > 20


def test_foreground_score__keeps_the_share_in_both_kinds() -> None:
    foreground = torch.zeros(50, 40, dtype=torch.bool)
    foreground[:, :12] = True
    foreground[0] = False
    foreground[1] = True
    score = foreground_score(foreground, 40, Draws(0).rand(50, 40))
    masks = masks_by_score(score, 10, 30)
    inside = masks.map(40)[2:, :12].sum(1)
    assert bool(((inside == 9) | (inside == 8) | (inside == 10)).all())
    assert len({tuple(row) for row in masks.keep[2:].tolist()}) > 40
    share = masks.map(40)[2:].float().mean(0)
    assert (share - 0.75).abs().max() < 0.25  # no patch is favoured


def test_foreground_score__leaves_background_out_first() -> None:
    foreground = torch.zeros(3, 10, dtype=torch.bool)
    foreground[0, :4] = True  # fewer than take part
    foreground[1, :8] = True  # more
    score = foreground_score(foreground, 6, Draws(0).rand(3, 10))
    part = score < 1
    assert part.sum(1).tolist() == [6, 6, 6]
    assert bool(part[0, :4].all())
    assert not bool(part[1, 8:].any())


def test_is_foreground__measures_the_spread_of_each_channel() -> None:
    images = torch.zeros(1, 2, 4, 4)
    images[0, 0, :2, :2] = 5.0  # bright but flat
    images[0, 1, 2:, 2:] = torch.tensor([[0.0, 0.2], [0.2, 0.0]])  # deviation 0.1
    assert is_foreground(images, (2, 2), 0.05).tolist() == [[False, False, False, True]]
    assert not is_foreground(images, (2, 2), 0.05, torch.tensor([1.0, 0.4])).any()


def test_units__hold_their_patches() -> None:
    grid = (4, 6, 2)
    assert unit_grid(grid, 2) == (2, 3, 1)
    patches = units_to_patches(torch.tensor([[0], [4]]), grid, 2)
    index = torch.arange(48).reshape(grid)
    assert patches.tolist() == [sorted(index[:2, :2].flatten().tolist()), sorted(index[2:, 2:4].flatten().tolist())]
    with pytest.raises(ConfigError, match="units of 4"):
        unit_grid((4, 6), 4)
    with pytest.raises(ConfigError, match="smaller patches"):
        unit_grid((1, 1), 1)


def test_masks__two_devices_draw_what_one_draws() -> None:
    whole = block_score(4, (6, 6), 0.5, (0.1, 0.3), 0.5, draws=Draws(2))
    halves = [block_score(2, (6, 6), 0.5, (0.1, 0.3), 0.5, draws=Draws(2, rank=rank, world=2)) for rank in (0, 1)]
    assert torch.equal(whole, torch.cat(halves))


def test_unravel__is_torchs() -> None:
    index = torch.arange(24).view(2, 12)
    for mine, theirs in zip(unravel(index, (2, 3, 4)), torch.unravel_index(index, (2, 3, 4)), strict=True):
        assert torch.equal(mine, theirs)
