from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfm.data.sampler import StepBatchSampler
from medfm.errors import ConfigError, DataError


@given(n=st.integers(1, 40), batch=st.integers(1, 50), total=st.integers(0, 40), seed=st.integers(0, 3), cut=st.integers(0, 40))
def test_iter__resuming_anywhere_goes_on_exactly(n: int, batch: int, total: int, seed: int, cut: int) -> None:
    whole = list(StepBatchSampler(n, batch, total, seed))
    assert len(whole) == total
    cut = min(cut, total)
    assert list(StepBatchSampler(n, batch, total, seed, start_step=cut)) == whole[cut:]


@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 3))
def test_iter__no_index_twice_in_an_epoch_and_full_batches(n: int, batch: int, seed: int) -> None:
    sampler = StepBatchSampler(n, batch, 7, seed)
    epochs: dict[int, list[int]] = {}
    for keys in sampler:
        assert len(keys) == min(batch, n)
        assert len({epoch for epoch, _ in keys}) == 1
        epochs.setdefault(keys[0][0], []).extend(i for _, i in keys)
    assert list(epochs) == list(range(len(epochs)))
    for indices in epochs.values():
        assert len(set(indices)) == len(indices)
        assert set(indices) <= set(range(n))


@pytest.mark.parametrize("world", [2, 3, 6])
def test_iter__ranks_partition_the_one_process_batch(world: int) -> None:
    one = list(StepBatchSampler(50, 12, 9, seed=1))
    parts = [list(StepBatchSampler(50, 12, 9, seed=1, rank=r, world=world)) for r in range(world)]
    for step, whole in enumerate(one):
        assert [key for part in parts for key in part[step]] == whole


def test_iter__a_small_set_gives_one_batch_an_epoch_that_ranks_share() -> None:
    sampler = StepBatchSampler(7, 64, 2, seed=0, rank=1, world=2)
    assert (sampler.global_batch, sampler.batch_size, sampler.steps_per_epoch) == (6, 3, 1)
    assert [len(keys) for keys in sampler] == [3, 3]


def test_iter__epochs_and_seeds_differ() -> None:
    sampler = StepBatchSampler(100, 100, 2, seed=0)
    first, second = ([i for _, i in keys] for keys in sampler)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(100))
    assert [i for _, i in next(iter(StepBatchSampler(100, 100, 1, seed=1)))] != first


def test_init__errors_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        StepBatchSampler(100, 10, 5, seed=0, world=4)
    with pytest.raises(DataError, match="of 0 images"):
        StepBatchSampler(0, 10, 5, seed=0)
    with pytest.raises(ConfigError, match="outside a run of 5"):
        StepBatchSampler(10, 2, 5, seed=0, start_step=6)
    with pytest.raises(ConfigError, match="rank 2"):
        StepBatchSampler(10, 2, 5, seed=0, rank=2, world=2)


def test_permutation__by_shard_mixes_a_few_shards_at_a_time() -> None:
    groups = np.repeat(np.arange(10) * 7, 20)[np.random.default_rng(0).permutation(200)]
    sampler = StepBatchSampler(200, 10, 40, seed=1, groups=groups, together=2)
    orders = [sampler.permutation(epoch) for epoch in range(2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(200))
        windows = [set(groups[order[i : i + 40]].tolist()) for i in range(0, 200, 40)]
        assert [len(window) for window in windows] == [2] * 5
        assert all(len(set(groups[order[i : i + 10]].tolist())) == 2 for i in range(0, 200, 40))  # mixed, not one by one
    assert orders[0].tolist() != orders[1].tolist()
    assert list(StepBatchSampler(200, 10, 40, seed=1, groups=groups, together=2, start_step=23)) == list(sampler)[23:]
