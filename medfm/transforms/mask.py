"""Masks on the network's grid: every step that moves an image's pixels moves its masks along."""

from __future__ import annotations

import numpy as np

from medfm.io.geometry import reorient
from medfm.transforms.crop import fit
from medfm.transforms.preprocess import Preprocess
from medfm.types import Image


def with_mask(preprocess: Preprocess, image: Image, layers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image as the contract makes it, and what share of each of its pixels a structure covers.

    Orientation, cropping (decided by the image), resampling with the same filter, cutting and padding are the image's; nothing
    is covered around it. A pixel belongs to a structure where half of it or more is covered.

    Args:
        image: as `preprocess.load` gives it.
        layers: (S, i, j, k) bool on the image's grid, as `medfm.io.masks.load.load_mask` gives them.

    Returns:
        ((C, *size) in storage dtype, (S, *size) float32 in [0, 1]).

    Raises:
        DataError: the image contradicts the contract. ValueError: the layers are not on the image's grid.
    """
    if layers.shape[1:] != image.shape[:3]:
        raise ValueError(f"layers of {layers.shape[1:]} are not on the image's grid {image.shape[:3]}")
    whole, boxes = preprocess.whole_and_boxes(image)
    size = preprocess.config.size
    covered = np.empty((len(layers), *size), np.float32)
    for layer, target in zip(layers, covered, strict=True):
        turned, affine = layer, image.affine
        if len(size) == 3:
            turned, affine = reorient(layer, affine, preprocess.config.orientation)
        if boxes.foreground is not None:
            turned = turned[boxes.foreground]
        x = turned.transpose(2, 1, 0).astype(np.float32)
        x = x[0] if len(size) == 2 else x
        if boxes.border is not None:
            x = x[boxes.border]
        made = np.asarray(preprocess.resample(x[None], affine, image), np.float32)
        np.clip(fit(made, size)[0], 0, 1, out=target)
    return np.ascontiguousarray(preprocess.fit(whole)), covered
