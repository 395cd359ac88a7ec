"""The same few images again and again: what a run's features are judged by while it trains."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.data.dataset import StudyDataset
from medfm.encoders.pooling import image_features
from medfm.errors import MedfmError
from medfm.transforms.preprocess import Preprocess

log = logging.getLogger(__name__)


def as_judged(dataset: StudyDataset) -> StudyDataset:
    """A data set's images and texts as evaluation takes them: random crops become middle ones, no text is drawn."""
    made = copy.copy(dataset)
    made.crop, made.train = "center", False
    return made


class FixedImages:
    """Images of a data set, read once when first asked for, kept as stored in host memory, without augmentation.

    Every device reads and encodes every `world`-th of them.

    Args:
        dataset: where they come from; random crops become middle ones.
        positions: of the images.
        rank, world: of this device.
        threads: that read.
    """

    def __init__(self, dataset: StudyDataset, positions: Sequence[int], rank: int, world: int, threads: int) -> None:
        self._dataset = as_judged(dataset)
        self.positions = list(positions)
        self.labels = dataset.labels[self.positions]
        self.world = world
        # Padded, so that all devices do the same number of forward passes: with fsdp2 they wait for one another in each.
        padded = self.positions + self.positions[:1] * (-len(self.positions) % world)
        self._mine = padded[rank::world]
        self._threads = threads
        self._images: list[Tensor | None] = []

    def __len__(self) -> int:
        return len(self.positions)

    def mine(self, count: int) -> tuple[Tensor, Tensor]:
        """This device's share of the first `count`: (m, C, *size) as stored, and (m,) whether each could be read."""
        wanted = -(-count // self.world)
        new = self._mine[len(self._images) : wanted]
        with ThreadPoolExecutor(self._threads) as pool:
            self._images += pool.map(self._read, new)
        unread = sum(image is None for image in self._images[wanted - len(new) : wanted])
        if unread:
            log.warning("guard: %d of %d images cannot be read and are left out of its checks", unread, len(new))
        images = self._images[:wanted]
        blank = torch.zeros(self._dataset.preprocess.stored_shape, dtype=getattr(torch, self._dataset.preprocess.config.dtype))
        valid = torch.tensor([image is not None for image in images])
        return torch.stack([blank if image is None else image for image in images]), valid

    def _read(self, position: int) -> Tensor | None:
        try:
            return self._dataset.image(position)
        except MedfmError:
            return None  # a device that raised would leave the others waiting


def prepare(stored: Tensor, preprocess: Preprocess, img_size: Sequence[int] | None) -> Tensor:
    """Stored pixels to what the encoder takes; resized where the objective cuts views of another size out of them."""
    x = preprocess.to_float(stored)
    if img_size is not None and tuple(img_size) != tuple(x.shape[2:]):
        if x.ndim == 4:
            return F.interpolate(x, size=tuple(img_size), mode="bilinear", antialias=True)
        # torch has no antialiasing in 3D; area averages do for features that are only compared with one another.
        return F.interpolate(x, size=tuple(img_size), mode="area")
    return x


@torch.no_grad()
def encode(
    encoders: Sequence[nn.Module],
    images: FixedImages,
    count: int,
    to_input: Callable[[Tensor], Tensor],
    device: torch.device,
    batch_size: int,
    all_gather: Callable[[Tensor], Tensor] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Features of the first `count` images, in eval mode, random generators as they were.

    Args:
        encoders: each gives an EncoderOutput and has `pool`.
        all_gather: (m, ...) of this device -> (world, m, ...); None for one device.

    Returns:
        For each encoder (n, E) float32 on the CPU, n the readable images; and which these are, (n,) int64 in 0..count-1. The
        same on every device.
    """
    stored, valid = images.mine(count)
    with eval_mode(encoders), _same_generators(device):
        parts: list[list[Tensor]] = [[] for _ in encoders]
        for chunk in stored.split(batch_size):
            x = to_input(chunk.to(device, non_blocking=True))
            for place, encoder in enumerate(encoders):
                parts[place].append(image_features(encoder, x).float())
    features = [torch.cat(part) for part in parts]
    valid = valid.to(device)
    if all_gather is not None:
        # (world, m, ...) -> (m * world, ...), in the order of the positions.
        features = [all_gather(f.contiguous()).transpose(0, 1).flatten(0, 1) for f in features]
        valid = all_gather(valid.to(torch.uint8)).transpose(0, 1).flatten() > 0
    kept = valid[:count].nonzero().flatten()
    return [f[kept].cpu() for f in features], kept.cpu()


@contextmanager
def eval_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, dropout is off and batch norms keep their averages; afterwards every submodule has the mode that it had."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def _same_generators(device: torch.device) -> Iterator[None]:
    devices: list[Any] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def chosen(dataset: StudyDataset, count: int, seed: int) -> list[int]:
    """Up to `count` positions, drawn by `seed`; those with a stated finding first."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(dataset)))
    stated = ((dataset.labels == 0) | (dataset.labels == 1)).any(dim=1)[order]
    return torch.cat([order[stated], order[~stated]])[:count].tolist()


def split_patients(patients: Tensor, seed: int) -> list[int]:
    """Places in `patients` (n,) of a third of them, drawn by `seed`: to score on what is fitted on the others."""
    people = patients.unique()
    held = people[torch.from_numpy(np.random.default_rng(seed).permutation(len(people)))[: len(people) // 3]]
    return torch.isin(patients, held).nonzero().flatten().tolist()
