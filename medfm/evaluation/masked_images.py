"""Images with their masks on the network's grid, and patch tokens, kept for a second run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfm.data.store.records import io_words
from medfm.data.store.source import states_of
from medfm.errors import ConfigError, DataError, MedfmError
from medfm.evaluation.encode import Failure, unreadable
from medfm.evaluation.features import Product, fill, image_keys, open_cache
from medfm.evaluation.row_cache import RowCache, row_key
from medfm.evaluation.segmentation_fit import Patches
from medfm.io.files import atomic_write
from medfm.io.masks.load import load_mask
from medfm.io.nifti import is_nifti_name
from medfm.transforms.mask import with_mask
from medfm.transforms.preprocess import Preprocess
from medfm.weights.model import finite

if TYPE_CHECKING:
    from medfm.data.manifest import Manifest
    from medfm.types import Image, Mask
    from medfm.weights.model import Model

# How many images are looked at for the names of structures where nothing else says them.
LOOK = 16
# Covered shares below this are rounding of the resampling filter.
_TOUCHED = 1e-5


def full_resolution(preprocess: Preprocess) -> Preprocess:
    """The contract without reduced decoding: a mask lies on the whole image."""
    if not preprocess.config.reduced_decode:
        return preprocess
    return Preprocess(preprocess.config.model_copy(update={"reduced_decode": False}))


class MaskedFiles:
    """position -> (image (C, *size) in storage dtype, masks (S, *size) uint8: 255 where a structure covers all of a pixel)."""

    def __init__(
        self,
        paths: Sequence[Path],
        masks: Sequence[Path],
        modalities: Sequence[str],
        preprocess: Preprocess,
        structures: Sequence[str],
        labels: Mapping[int, str],
    ) -> None:
        self.paths, self.masks, self.modalities = paths, masks, modalities
        self.preprocess = preprocess
        self.structures, self.labels = tuple(structures), dict(labels)

    def read(self, position: int) -> tuple[Image, Mask]:
        """The image as stored and all of its masks."""
        image = self.preprocess.load(self.paths[position], self.modalities[position])
        path = self.masks[position]
        only: tuple[str, ...] = ()
        if self.structures and path.is_dir():  # one file a structure: the others need not be opened
            names = [file.name for file in path.iterdir() if is_nifti_name(file.name)]
            only = tuple(name for name in self.structures if f"{name}.nii" in names or f"{name}.nii.gz" in names)
        elif is_nifti_name(path.name) and set(self.structures) <= set(self.labels.values()):
            only = self.structures  # a label map of a hundred structures would be as many layers
        return image, load_mask(path, image, self.labels, only)

    def __call__(self, position: int) -> tuple[Tensor, ...]:
        image, mask = self.read(position)
        layers = np.zeros((len(self.structures), *image.shape[:3]), bool)
        for number, name in enumerate(self.structures):
            if name in mask.names:
                layers[number] = mask.array[mask.names.index(name)]
        stored, covered = with_mask(self.preprocess, image, layers)
        # A structure of which the grid shows next to nothing is not absent: it is told from one that is not there.
        shares = np.where(covered > _TOUCHED, np.maximum(np.rint(covered * 255), 1), 0)
        return torch.from_numpy(stored), torch.from_numpy(shares.astype(np.uint8))


def found_structures(
    files: MaskedFiles, keys: Sequence[tuple[int, int]], folder: Path, on_error: str = "fail"
) -> tuple[str, ...]:
    """The names in the masks of the first images, in alphabetical order; kept, so that a second run need not look.

    Args:
        on_error: "skip" passes over an image or mask that cannot be read.

    Raises:
        DataError: none of them holds any, or one cannot be read. ConfigError: `folder` cannot be written.
    """
    place = folder / "structures" / f"{row_key(*keys[:LOOK])[0]:016x}.json"
    if place.is_file():
        return tuple(json.loads(place.read_text(encoding="utf-8")))
    names: dict[str, None] = {}
    for position in range(min(LOOK, len(keys))):
        try:
            names.update(dict.fromkeys(files.read(position)[1].names))
        except (MedfmError, OSError) as error:
            if on_error == "fail":
                raise unreadable(Failure.of(position, error), [path.name for path in files.paths], "data.on_error") from None
    if not names:
        raise DataError(f"none of the first {min(LOOK, len(keys))} masks marks anything; is the mask column the right one?")
    try:
        with atomic_write(place) as temporary:
            Path(temporary).write_text(json.dumps(sorted(names)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"features '{folder}' cannot be written: {io_words(error)}; set features=DIR") from None
    return tuple(sorted(names))


@dataclass(frozen=True, eq=False)
class MaskedImages:
    """Attributes:
    patches: of each model; positions among them are places in `positions`.
    positions: (n,) which of the asked rows they are.
    failures: rows that could not be read, by their place among those asked.
    read: images decoded this time.
    """

    patches: list[Patches]
    positions: NDArray[np.int64]
    failures: list[Failure]
    read: int


def mask_keys(manifest: Manifest, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Keys of rows with their masks: both files' path, size and time."""
    masks = manifest.frame["mask"].to_numpy()[rows]
    states = states_of([manifest.root / name for name in masks])
    return [row_key(*key, name, *s) for key, name, s in zip(image_keys(manifest, rows), masks, states, strict=True)]


def masked_images(
    models: Sequence[Model],
    manifest: Manifest,
    rows: NDArray[np.int64],
    files: MaskedFiles,
    folder: Path,
    batch_size: int = 64,
    workers: int = 0,
    on_error: str = "fail",
    advance: Callable[[int], None] = lambda n: None,
    blocks: int = 1,
) -> MaskedImages:
    """Patch tokens (float16) of the last `blocks` blocks and masks of some rows of a manifest, from `folder` where they are
    there already.

    Both stay on disk and are read as they are needed: 1,000 images of 196 patches of 768 numbers take 300 MB a block.
    """
    keys = image_keys(manifest, rows)
    contract = files.preprocess
    what = row_key(contract.hash(), _TOUCHED, *files.structures, json.dumps(files.labels, sort_keys=True))
    shape = (len(files.structures), *contract.config.size)
    masks = Product(
        RowCache(folder / f"masks-{what[0]:016x}", np.uint8, shape), mask_keys(manifest, rows), lambda read: read[1].numpy()
    )

    def compute(model: Model) -> Callable[[tuple[Tensor, ...]], NDArray]:
        def tokens(read: tuple[Tensor, ...]) -> NDArray:
            return finite(model.patch_features(read[0], batch_size, blocks)[0].numpy().astype(np.float16), model)

        return tokens

    products = [
        Product(open_cache(folder, model, np.float16, tokens="patches", blocks=blocks, decode="full"), keys, compute(model))
        for model in models
    ]
    names = manifest.frame["image"].to_numpy()[rows].tolist()
    done = fill([masks, *products], files, names, batch_size, workers, on_error, advance)
    blank = torch.zeros(1, *contract.stored_shape, dtype=getattr(torch, contract.config.dtype))

    def of(product: Product) -> Callable[[Sequence[int]], NDArray]:
        return lambda places: product.values(done.positions[list(places)].tolist())

    patches = [
        Patches(
            of(product),
            of(masks),
            len(done.positions),
            model.patch_features(blank)[1],
            tuple(contract.config.size),
            getattr(model.network.image_encoder, "token_centre", None),
        )
        for product, model in zip(products, models, strict=True)
    ]
    return MaskedImages(patches, done.positions, done.failures, done.read)


def part(patches: Patches, places: NDArray[np.int64]) -> Patches:
    """Some of the images."""
    return Patches(
        lambda chosen: patches.tokens(places[list(chosen)].tolist()),
        lambda chosen: patches.masks(places[list(chosen)].tolist()),
        len(places),
        patches.grid,
        patches.size,
        patches.centre,
    )
