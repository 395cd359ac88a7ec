"""Image files -> embeddings, in order, a batch at a time, with what could not be read beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medfm.errors import DataError, MedfmError

if TYPE_CHECKING:
    from medfm.transforms.preprocess import Preprocess
    from medfm.weights.model import Model


@dataclass(frozen=True)
class Failure:
    """An image that could not be read: its position among the paths, why, and the kind of error.

    The reason names the file, whose path may name a patient: it is for who runs the command, and in no result. The kind may be.
    """

    position: int
    reason: str
    kind: str = ""

    @classmethod
    def of(cls, position: int, error: Exception) -> Failure:
        return cls(position, str(error), (getattr(error, "strerror", None) or type(error).__name__))


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """Attributes:
    positions: of the images among the paths, ascending.
    embeddings: one (B, D) float32 CPU tensor per model, L2-normalised.
    failures: images of this stretch that could not be read.
    """

    positions: list[int]
    embeddings: list[Tensor]
    failures: list[Failure]


@dataclass(frozen=True, eq=False)
class ReadBatch:
    """Attributes:
    positions: of the items that could be read, ascending.
    tensors: what was read of them, stacked: each (B, ...). Empty where nothing could be read.
    failures: items of this stretch that could not be read.
    """

    positions: list[int]
    tensors: tuple[Tensor, ...]
    failures: list[Failure]


class ImageFiles:
    """position -> (image (C, *size) in storage dtype,): decodes and preprocesses."""

    def __init__(self, paths: Sequence[Path], modalities: Sequence[str], preprocess: Preprocess) -> None:
        self.paths = paths
        self.modalities = modalities
        self.preprocess = preprocess

    def __call__(self, position: int) -> tuple[Tensor, ...]:
        image = self.preprocess.load(self.paths[position], self.modalities[position] if self.modalities else "")
        return (torch.from_numpy(self.preprocess(image)),)


class StoredFiles:
    """position -> (image (C, *size) in storage dtype,): from a cache that `medfm cache` made under the model's contract, whose
    pixels are those of the files.

    Raises:
        ConfigError: `cache` is no cache, or was made under another contract. DataError, when asked for it: it lacks an image,
            or the file has changed since.
    """

    def __init__(
        self, cache: Path, root: Path, names: Sequence[str], modalities: Sequence[str], preprocess: Preprocess
    ) -> None:
        from medfm.data.store.reader import open_rows

        self.cache, self.names, self.preprocess = cache, names, preprocess
        self.stored, found = open_rows(cache, preprocess, names, modalities, root.resolve())
        self.places = np.where(found.usable, np.cumsum(found.usable) - 1, -1)

    def __call__(self, position: int) -> tuple[Tensor, ...]:
        place = int(self.places[position])
        if place < 0:
            raise DataError(
                f"data.cache '{self.cache}' lacks '{self.names[position]}', or the file has changed since; add it with "
                f"`medfm cache manifest=... recipe=... out={self.cache}`"
            )
        return (torch.from_numpy(self.preprocess.fit(self.stored[place])),)


class _Items(Dataset[tuple[int, "tuple[Tensor, ...] | Failure"]]):
    """An unreadable item becomes a Failure, so that a worker process survives it."""

    def __init__(self, read: Callable[[int], tuple[Tensor, ...]], positions: Sequence[int]) -> None:
        self.read = read
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> tuple[int, tuple[Tensor, ...] | Failure]:
        position = self.positions[number]
        try:
            return position, self.read(position)
        except (MedfmError, OSError) as error:
            return position, Failure.of(position, error)


def read_batches(
    read: Callable[[int], tuple[Tensor, ...]], positions: Sequence[int], batch_size: int = 64, workers: int = 0
) -> Iterator[ReadBatch]:
    """What `read` gives for each of `positions`, in their order, a batch at a time.

    Args:
        read: picklable where there are workers; may raise MedfmError and OSError.
        workers: loader processes; 0 reads in this one.
    """
    loader = DataLoader(
        _Items(read, positions),
        batch_size=batch_size,
        num_workers=min(workers, max(1, len(positions) // batch_size)) if workers else 0,
        collate_fn=list,
    )
    for items in loader:
        good = [(position, tensors) for position, tensors in items if not isinstance(tensors, Failure)]
        failures = [failure for _, failure in items if isinstance(failure, Failure)]
        stacked = tuple(torch.stack(parts) for parts in zip(*(tensors for _, tensors in good), strict=True))
        yield ReadBatch([position for position, _ in good], stacked, failures)


def encode_files(
    models: Sequence[Model], read: Callable[[int], tuple[Tensor, ...]], count: int, batch_size: int = 64, workers: int = 0
) -> Iterator[EncodedBatch]:
    """Embeddings of images, in their order. Every image is read once, whatever the number of models.

    Args:
        models: share their preprocessing contract.
        read: position -> (image,), as `ImageFiles` and `StoredFiles`.
        count: of the images.
        batch_size: images a batch.
        workers: loader processes; 0 reads in this one.
    """
    for batch in read_batches(read, range(count), batch_size, workers):
        embeddings = [model.encode_images(images, batch_size).float().cpu() for images in batch.tensors for model in models]
        yield EncodedBatch(batch.positions, embeddings, batch.failures)


def encode_all(
    models: Sequence[Model],
    root: Path,
    names: Sequence[str],
    modalities: Sequence[str] = (),
    batch_size: int = 64,
    workers: int = 0,
    on_error: str = "fail",
    advance: Callable[[int], None] = lambda n: None,
    cache: Path | None = None,
) -> tuple[list[Tensor], list[int], list[Failure]]:
    """Embeddings of all readable images of a manifest.

    Args:
        models: share their preprocessing contract.
        root, names: the data's folder, and the images' paths below it, as an error calls them.
        modalities: what the manifest says of each file, for files that cannot say it themselves; empty: nothing is said.
        cache: read images from this cache in place of their files.
        on_error: "fail" stops at the first unreadable file, "skip" leaves it out.
        advance: told the number of files just done.

    Returns:
        One (n, D) tensor per model, the positions (n) of its rows among `names`, and the failures.

    Raises:
        DataError: a file cannot be read and `on_error` is "fail", or no file can be read. ConfigError: see `StoredFiles`.
    """
    preprocess = models[0].preprocess
    read: Callable[[int], tuple[Tensor, ...]]
    if cache is None:
        read = ImageFiles([root / name for name in names], modalities, preprocess)
    else:
        read = StoredFiles(cache, root, names, modalities, preprocess)
    parts: list[list[Tensor]] = [[] for _ in models]
    positions: list[int] = []
    failures: list[Failure] = []
    for batch in encode_files(models, read, len(names), batch_size, workers):
        if batch.failures and on_error == "fail":
            raise unreadable(batch.failures[0], names, "data.on_error")
        for part, embedding in zip(parts, batch.embeddings, strict=False):
            part.append(embedding)
        positions += batch.positions
        failures += batch.failures
        advance(len(batch.positions) + len(batch.failures))
    if not positions:
        raise DataError(
            f"none of the {len(names)} images can be read; the first: {failures[0].reason}" if failures else "no images"
        )
    return [torch.cat(part) for part in parts], positions, failures


def unreadable(failure: Failure, names: Sequence[str], key: str) -> DataError:
    """The error for a file that stops the work; `key` is the knob that would let it go on."""
    name = names[failure.position]
    reason = failure.reason if name in failure.reason else f"'{name}': {failure.reason}"
    return DataError(f"{reason}. Set {key}=skip to go on without unreadable images")


def pick_device(device: str) -> str:
    """ "auto" -> "cuda" where there is one, else "cpu"."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


@contextmanager
def progress_bar(title: str, total: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A rich progress bar on standard error; yields a function that is told the number of items done."""
    if not show:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)
