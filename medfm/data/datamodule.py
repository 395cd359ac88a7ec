"""Loaders: batches out of a data set, the same whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from medfm.data.dataset import Failure, StudyDataset
from medfm.data.sampler import Key, StepBatchSampler


class StudyLoader(DataLoader):
    """A DataLoader that raises a loader process's DataError as it was, one sentence without that process's traceback."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, Failure):
                raise batch.kind(batch.message)
            yield batch


def _one_thread(worker: int) -> None:
    # Loader processes share the cores: one thread each, or they slow one another and the trainer.
    torch.set_num_threads(1)


def build_loader(
    dataset: StudyDataset,
    sampler: StepBatchSampler | Iterable[list[Key]] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    pin: bool = False,
    prefetch: int = 4,
) -> StudyLoader:
    """A loader of `Batch`.

    Args:
        sampler: a batch sampler for training; None goes through the data set once, in order, in batches of `batch_size`, the
            last of which may be smaller.
        workers: loader processes; they live on between epochs.
        pin: page-locked batches, for a GPU.
        prefetch: batches each process works ahead.
    """
    options: dict[str, Any] = (
        {"batch_sampler": sampler} if sampler is not None else {"batch_size": batch_size, "shuffle": False}
    )
    if workers > 0:
        options |= {"persistent_workers": True, "prefetch_factor": prefetch, "worker_init_fn": _one_thread}
    # An explicit generator keeps the loader from drawing its base seed out of the global one, which a resumed run would notice.
    generator = torch.Generator().manual_seed(dataset.seed)
    return StudyLoader(dataset, num_workers=workers, pin_memory=pin, collate_fn=dataset.collate, generator=generator, **options)
