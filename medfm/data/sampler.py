"""The order of training: a function of the seed and the step alone, so that resuming needs no saved state."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medfm.errors import ConfigError, DataError

Key = tuple[int, int]
"""(epoch, position in the data set): all that a sample's randomness depends on beside the seed."""


class StepBatchSampler:
    """Batches of (epoch, index) for steps `start_step` to `total_steps`, over consecutive epochs.

    Epoch e visits a permutation of range(n) drawn from (seed, e) alone; the incomplete last batch of an epoch is dropped, so
    every step has the same number of pairs and no index comes twice in an epoch. Step s is batch s % steps_per_epoch of epoch
    s // steps_per_epoch, whatever came before: a run resumed with `start_step=s` goes on exactly as if it had never stopped. Of
    each global batch a process takes the `rank`-th of `world` equal runs: gathered in rank order they are the one-process
    batch, row for row, which is also how `Draws` shares out random numbers.

    Args:
        n: size of the data set.
        groups: (n,) int, the place of each image, for example its shard on a disk that seeks slowly: an epoch goes through the
            groups in random order, `together` of them at a time, and mixes the images of these. Every property above holds.
        batch_size: pairs a step over all processes; where n is smaller, n (rounded down to a multiple of `world`).
        total_steps: steps of the whole run.

    Raises:
        DataError: the data set has fewer than `world` images.
        ConfigError: batch_size is no multiple of world, or rank, world or a step is out of range.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        total_steps: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        groups: np.ndarray | None = None,
        together: int = 8,
    ) -> None:
        if n < max(world, 1):
            raise DataError(f"no training step can be made of {n} images on {world} process{'es' * (world > 1)}")
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} does not lie in a world of {world}")
        if batch_size < 1 or batch_size % world:
            raise ConfigError(f"data.batch_size={batch_size} cannot be shared by {world} processes: use a multiple of {world}")
        if not 0 <= start_step <= total_steps:
            raise ConfigError(f"start step {start_step} lies outside a run of {total_steps} steps")
        self.n = n
        self.global_batch = min(batch_size, n - n % world)
        self.total_steps = total_steps
        self.seed = seed
        self.start_step = start_step
        self.rank = rank
        self.world = world
        assert groups is None or len(groups) == n
        self._groups = None if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
        self.together = together

    @property
    def steps_per_epoch(self) -> int:
        return self.n // self.global_batch

    @property
    def batch_size(self) -> int:
        """Pairs of this process."""
        return self.global_batch // self.world

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def permutation(self, epoch: int) -> np.ndarray:
        """(n,) int64, the order of an epoch."""
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        if self._groups is None:
            return rng.permutation(self.n)
        turns = rng.permutation(int(self._groups.max()) + 1) // self.together
        return np.lexsort((rng.random(self.n), turns[self._groups]))

    def __len__(self) -> int:
        return self.total_steps - self.start_step

    def __iter__(self) -> Iterator[list[Key]]:
        drawn, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.total_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != drawn:
                drawn, order = epoch, self.permutation(epoch)
            start = batch * self.global_batch + self.rank * self.batch_size
            mine = order[start : start + self.batch_size]
            yield [(epoch, int(i)) for i in mine]
