"""Random numbers that do not depend on how many devices share a batch."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """Random numbers for this device's rows of a batch.

    Every device holds the same seed, draws for the rows of all devices and keeps its own: a run draws the same on one device
    and on eight, and goes on as it would have when resumed on another number of them. All devices must ask for the same things
    in the same order, with the same number of rows. Layers with dropout draw from torch's global generators instead.

    Args:
        seed: of this batch.
        device: where the numbers are made.
        rank, world: which share of the batch is here.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", rank: int = 0, world: int = 1) -> None:
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.device = torch.device(device)
        self.rank = rank
        self.world = world

    def _own(self, everyone: Tensor, rows: int) -> Tensor:
        return everyone[self.rank * rows : (self.rank + 1) * rows]

    def rand(self, rows: int, *shape: int) -> Tensor:
        """(rows, *shape) float32, uniform in [0, 1)."""
        return self._own(torch.rand(self.world * rows, *shape, generator=self.generator, device=self.device), rows)

    def randint(self, high: int, rows: int, *shape: int) -> Tensor:
        """(rows, *shape) int64 in [0, high)."""
        shape = (self.world * rows, *shape)
        return self._own(torch.randint(high, shape, generator=self.generator, device=self.device), rows)

    def noise(self, rows: int, *shape: int) -> Tensor:
        """(rows, *shape) float32, standard normal. Images of noise are made for this device's rows alone, each from a seed."""
        seeds = self.randint(2**62, rows).tolist()
        made = torch.empty(rows, *shape, device=self.device)
        generator = torch.Generator(device=self.device)
        for row, seed in zip(made, seeds, strict=True):
            row.normal_(generator=generator.manual_seed(seed))
        return made
