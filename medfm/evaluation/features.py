"""Frozen features of a manifest's images, computed once: a second run decodes nothing, a changed file is read again.

What is kept is found by content: the encoder's weights and configuration, the preprocessing contract and what is taken of the
encoder decide the folder; an image's whole path, size and time of modification decide the row. The root counts: two data sets
that name files alike (`0001/t1.nii`), of one size and unpacked with one time, are not each other's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfm.data.store.source import states_of
from medfm.errors import DataError
from medfm.evaluation.encode import Failure, ImageFiles, read_batches, unreadable
from medfm.evaluation.row_cache import RowCache, row_key
from medfm.io.files import atomic_write
from medfm.weights.load import without_weights

if TYPE_CHECKING:
    from medfm.data.manifest import Manifest
    from medfm.encoders.pooling import Pool
    from medfm.weights.model import Model

Key = tuple[int, int]
# Raised when the same weights and images start to give other features.
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Product:
    """One array that is computed of every item, and kept.

    Attributes:
        cache: where.
        keys: of every item.
        compute: what was read of a batch, (B, ...) each -> values (B, *shape).
    """

    cache: RowCache
    keys: Sequence[Key]
    compute: Callable[[tuple[Tensor, ...]], NDArray]

    def values(self, positions: Iterable[int]) -> NDArray:
        """(n, *shape) of some items."""
        return self.cache.take([self.keys[position] for position in positions])


@dataclass(frozen=True, eq=False)
class Filled:
    """Attributes:
    positions: (n,) of the items that there are values of, ascending.
    failures: items that could not be read.
    read: how many were read this time; the others were there already.
    """

    positions: NDArray[np.int64]
    failures: list[Failure]
    read: int


def fill(
    products: Sequence[Product],
    read: Callable[[int], tuple[Tensor, ...]],
    names: Sequence[str],
    batch_size: int = 64,
    workers: int = 0,
    on_error: str = "fail",
    advance: Callable[[int], None] = lambda n: None,
) -> Filled:
    """Read the items that any of `products` has no value of, once for all of them, and compute what is missing.

    Args:
        read: position -> tensors; see `read_batches`.
        names: what each item is called in an error.
        on_error: "fail" stops at the first unreadable item, "skip" leaves it out.
        advance: told the number of items just done.

    Raises:
        DataError: an item cannot be read and `on_error` is "fail", or none can be read.
    """
    missing = [n for n in range(len(names)) if any(product.keys[n] not in product.cache for product in products)]
    advance(len(names) - len(missing))
    failures: list[Failure] = []
    try:
        for batch in read_batches(read, missing, batch_size, workers):
            if batch.failures and on_error == "fail":
                raise unreadable(batch.failures[0], names, "data.on_error")
            failures += batch.failures
            for product in products if batch.positions else ():
                wanted = [i for i, n in enumerate(batch.positions) if product.keys[n] not in product.cache]
                if wanted:
                    part = tuple(tensor[wanted] for tensor in batch.tensors)
                    product.cache.add([product.keys[batch.positions[i]] for i in wanted], product.compute(part))
            advance(len(batch.positions) + len(batch.failures))
    finally:
        for product in products:
            product.cache.flush()
    failed = {failure.position for failure in failures}
    if len(failed) == len(names):
        raise DataError(
            f"none of the {len(names)} images can be read; the first: {failures[0].reason}" if names else "no images"
        )
    kept = np.array([n for n in range(len(names)) if n not in failed], np.int64)
    return Filled(kept, failures, len(missing) - len(failed))


def image_keys(manifest: Manifest, rows: Sequence[int] | NDArray) -> list[Key]:
    """Keys of rows (positions in the manifest's table): whole path, stated modality, size and time of the file."""
    names, modalities = manifest.frame["image"].to_numpy()[rows], manifest.frame["modality"].to_numpy()[rows]
    states = states_of([manifest.root / name for name in names])
    root = manifest.root.resolve()
    return [row_key(root, name, kind, *state) for name, kind, state in zip(names, modalities, states, strict=True)]


def encoder_digest(model: Model) -> str:
    """16 hexadecimal digits over the image encoder's tensors, its configuration and the preprocessing contract."""
    digest = hashlib.sha256(json.dumps([_VERSION, model.preprocess.hash()]).encode())
    config = without_weights(model.encoder_config.model_dump(mode="json"))
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name, tensor in model.network.image_encoder.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def open_cache(folder: Path, model: Model, dtype: Any, **what: Any) -> RowCache:
    """The cache of `what` is taken of a model's encoder, in a folder of its own below `folder`, which says what it is."""
    content = {"encoder and contract": encoder_digest(model), **what}
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / name
    cache = RowCache(place, dtype)
    if not (place / "about.json").is_file():
        about = {
            **content,
            "preprocess": model.preprocess.hash(),
            "random weights": model.card.get("random_weights_seed"),
            "note": "features kept by medfm evaluate; may be deleted at any time",
        }
        try:
            with atomic_write(place / "about.json") as temporary:
                Path(temporary).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        except OSError:
            return cache  # what cannot be written is reported with the first features
    return cache


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Attributes:
    values: of each model (n, E') float32.
    positions: (n,) which of the asked rows they are.
    failures: rows that could not be read, by their place among those asked.
    read: images decoded this time.
    """

    values: list[NDArray[np.float32]]
    positions: NDArray[np.int64]
    failures: list[Failure]
    read: int


def manifest_features(
    models: Sequence[Model],
    manifest: Manifest,
    rows: Sequence[int] | NDArray,
    folder: Path,
    pool: Pool | None = None,
    blocks: int = 1,
    batch_size: int = 64,
    workers: int = 0,
    on_error: str = "fail",
    advance: Callable[[int], None] = lambda n: None,
) -> ImageFeatures:
    """`Model.features` of some rows of a manifest, from `folder` where they are there already.

    Args:
        models: share their preprocessing contract, so that an image is decoded once.
        rows: positions in the manifest's table.
        folder: of the kept features; holds digests, no paths and no patient ids.
        pool, blocks: see `Model.features`.

    Raises:
        DataError: as `fill`. WeightsError: a feature is not finite. ConfigError: the encoder does not offer them, or `folder`
            cannot be written.
    """
    keys = image_keys(manifest, rows)
    names, modalities = (manifest.frame[column].to_numpy()[rows].tolist() for column in ("image", "modality"))

    def compute(model: Model) -> Callable[[tuple[Tensor, ...]], NDArray]:
        return lambda read: model.features(read[0], pool, blocks, batch_size).numpy()

    products = []
    for model in models:
        chosen = pool or model.network.image_encoder.pool
        products.append(Product(open_cache(folder, model, np.float32, pool=chosen, blocks=blocks), keys, compute(model)))
    read = ImageFiles([manifest.root / name for name in names], modalities, models[0].preprocess)
    done = fill(products, read, names, batch_size, workers, on_error, advance)
    return ImageFeatures([product.values(done.positions) for product in products], done.positions, done.failures, done.read)
