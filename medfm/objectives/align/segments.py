"""The texts of each row, of which rows have different numbers: padded, summed, without repetitions."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_mean(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """values (M, ...) of rows `row` (M,) -> (rows, ...) their means; 0 for a row without any."""
    total = values.new_zeros(rows, *values.shape[1:]).index_add(0, row, values)
    count = values.new_zeros(rows).index_add(0, row, values.new_ones(len(row))).clamp(min=1)
    return total / count.reshape(-1, *[1] * (values.ndim - 1))


def segment_logsumexp(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """values (M,) of rows `row` (M,) -> (rows,) log of the sum of their exponentials. Each row must have a value."""
    highest = values.detach().new_zeros(rows).scatter_reduce(0, row, values.detach(), "amax", include_self=False)
    total = values.new_zeros(rows).index_add(0, row, (values - highest[row]).exp())
    return total.log() + highest


def slots(row: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of texts of ascending rows `row` (M,): the place of each text's row in `rows`, and its number within the row.

    Args:
        rows: ascending, each once; all of `row` among them.
    """
    number = torch.arange(len(row), device=row.device)
    place = torch.searchsorted(rows, row)
    return place, number - torch.searchsorted(row, rows)[place]


def by_row(values: Tensor, row: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """values (M, D) of rows as `slots` takes them -> (len(rows), S, D) padded with zeros, (len(rows), S) true for real ones."""
    place, slot = slots(row, rows)
    width = int(slot.max()) + 1 if len(row) else 1
    padded = values.new_zeros(len(rows), width, values.shape[1]).index_put((place, slot), values)
    mask = torch.zeros(len(rows), width, dtype=torch.bool, device=row.device)
    mask[place, slot] = True
    return padded, mask


def once_a_row(row: Tensor, code: Tensor) -> Tensor:
    """The places, ascending, of texts (M,) that are the first of their `code` in their row."""
    both, back = torch.stack([row, code], dim=1).unique(dim=0, return_inverse=True)
    place = torch.arange(len(back), device=back.device)
    first = torch.full((len(both),), len(back), device=back.device).scatter_reduce_(0, back, place, "amin")
    return first.sort().values
