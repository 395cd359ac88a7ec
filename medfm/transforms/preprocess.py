"""The preprocessing contract: `Image` -> network input. One object for training, evaluation, export and pictures.

Axes. 2D: (C, H, W) = (C, j, i), rows and columns as the file stores them. 3D: the volume is first turned to `orientation`,
then (C, D, H, W) = (C, k, j, i): with RAS, D runs from feet to head, H from back to front, W from the patient's left to right;
choose LPS for slices that look as a radiologist sees them (front up, the patient's right on the left).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch

from medfm.errors import DataError
from medfm.io.geometry import reorient
from medfm.io.values import implausible_hounsfield
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.resample import center_fit, crop_borders, resize
from medfm.transforms.window import apply_window, display_range, percentile_range, to_range
from medfm.types import Image, Window

# Raised when the same config starts to give other pixels, so that the hash tells them apart.
_VERSION = 1
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow and OpenCV


class Preprocess:
    """Apply a `PreprocessConfig`; see its docstring for the order of steps. Deterministic and picklable.

    The returned array holds [0, 1] as float32, or as uint8 0..255 (rounded). `to_float` brings a batch of it to what the
    network takes, on the batch's device; it is `normalise` after `to_unit`, and augmentation belongs between the two.
    """

    def __init__(self, config: PreprocessConfig) -> None:
        self.config = config

    def __call__(self, image: Image) -> np.ndarray:
        """(C, *size) in the storage dtype.

        Raises:
            DataError: the image contradicts the contract: modality, dimensions, Hounsfield units, spacing.
        """
        config = self.config
        self.check(image)
        array, affine = image.array, image.affine
        if len(config.size) == 3:
            array, affine = reorient(array, affine, config.orientation)
        x = to_unit_range(image, array, config)
        x = _spatial(x, image, len(config.size))
        if config.channels == 1 and x.shape[0] == 3:
            x = np.tensordot(_LUMA, x, axes=1)[None]
        if config.crop_foreground:
            x = crop_borders(x)
        x = self._resize(x, np.sqrt((affine[:3, :3] ** 2).sum(axis=0)), image)
        if config.channels == 3 and x.shape[0] == 1:
            x = np.repeat(x, 3, axis=0)
        x = np.clip(x, 0, 1)  # interpolation of values in [0, 1] may leave it by an ulp
        if config.dtype == "uint8":
            x = (x * np.float32(255) + np.float32(0.5)).astype(np.uint8)  # round half up
        return np.ascontiguousarray(x)

    def check(self, image: Image) -> None:
        """Refuse an image that contradicts the contract. Raises DataError saying what was seen and what to do."""
        config = self.config
        # "OT" is what a file says that cannot name its modality (PNG, JPEG, NIfTI): no contradiction.
        if config.modalities and image.modality not in (*config.modalities, "OT"):
            raise DataError(
                f"'{image.source}' is {image.modality}; the preprocessing contract takes {', '.join(config.modalities)} "
                "(preprocess.modalities)"
            )
        if image.last_axis == "time":
            raise DataError(
                f"'{image.source}' has a time axis ({image.shape[-1]} volumes); choose one volume and save it by itself"
            )
        if min(image.shape) < 1:
            raise DataError(f"'{image.source}' has no pixels: shape {image.shape}")
        slices = image.shape[2]
        if len(config.size) == 2 and slices > 1:
            raise DataError(
                f"'{image.source}' is a volume of {slices} slices; preprocess.size {list(config.size)} is for single images: "
                "give three numbers, or choose a slice"
            )
        if len(config.size) == 3 and slices == 1:
            raise DataError(
                f"'{image.source}' is a single image; preprocess.size {list(config.size)} is for volumes: give two numbers"
            )
        if config.spacing is not None and not image.spaced:
            raise DataError(
                f"'{image.source}' gives no pixel spacing, which preprocess.spacing needs; set preprocess.spacing=null"
            )
        if config.window == "hu":
            _check_hounsfield(image)

    def _resize(self, x: np.ndarray, spacing: np.ndarray, image: Image) -> np.ndarray:
        """Spacing, then fit to size. `spacing`: mm along (i, j, k)."""
        config = self.config
        size = config.size
        have = np.array(x.shape[1:], np.float64)
        if config.spacing is not None:
            # Spacing fixes the scale, so that the size is met by cutting and padding alone.
            along = spacing[::-1][-len(size) :] if len(size) == 3 else spacing[[1, 0]]
            shape = np.maximum(np.rint(have * along / np.array(config.spacing)), 1)
            _check_shape(shape, image)
            return center_fit(resize(x, tuple(int(n) for n in shape)), size)
        if config.resize == "stretch":
            return resize(x, size)
        ratios = np.array(size) / have
        scale = ratios.min() if config.resize == "pad" else ratios.max()
        if config.resize == "crop":
            # Cut first, so that only pixels that stay are resized.
            keep = np.minimum(np.rint(np.array(size) / scale), have).astype(int)
            return resize(center_fit(x, tuple(int(n) for n in keep)), size)
        fitted = np.clip(np.rint(have * scale), 1, np.array(size))
        return center_fit(resize(x, tuple(int(n) for n in fitted)), size)

    def to_unit(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, C, *size) in storage dtype -> float32 in [0, 1], on the batch's device."""
        if batch.dtype == torch.uint8:
            return batch.to(torch.float32).div_(255)
        return batch.to(torch.float32)

    def normalise(self, unit: torch.Tensor) -> torch.Tensor:
        """(x - mean) / std of (B, C, *size) in [0, 1]; a new tensor."""
        mean, std = self.config.mean, self.config.std
        if len(mean) == len(std) == 1:
            return unit.sub(mean[0]).div_(std[0])  # plain numbers: nothing is copied to the device
        shape = (-1, *[1] * (unit.ndim - 2))
        return unit.sub(unit.new_tensor(mean).view(shape)).div_(unit.new_tensor(std).view(shape))

    def to_float(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, C, *size) in storage dtype -> what the network takes."""
        return self.normalise(self.to_unit(batch))

    def display(self, image: Image) -> np.ndarray:
        """`display` with this contract's window."""
        return display(image, self.config)

    def hash(self) -> str:
        """12 hexadecimal digits of the canonical JSON of the config: equal hashes, equal pixels."""
        content: dict[str, Any] = {"version": _VERSION, **self.config.model_dump(mode="json")}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def display(image: Image, config: PreprocessConfig | None = None) -> np.ndarray:
    """The image as a person sees it: windowed, MONOCHROME1 inverted, float32 in [0, 1]; nothing is resized.

    Returns:
        (H, W) or (H, W, 3) of a single image; (D, H, W) or (D, H, W, 3) of a volume, axes as stored.
    """
    if image.last_axis == "time":
        raise DataError(
            f"'{image.source}' has a time axis ({image.shape[-1]} volumes); choose one volume and save it by itself"
        )
    x = to_unit_range(image, image.array, config or PreprocessConfig())
    x = _spatial(x, image, 2 if image.shape[2] == 1 else 3)
    return np.moveaxis(x, 0, -1) if image.last_axis == "colour" else x[0]


def to_unit_range(image: Image, array: np.ndarray, config: PreprocessConfig) -> np.ndarray:
    """`array` (the image's own, perhaps turned) -> float32 in [0, 1], windowed and then, for MONOCHROME1, inverted: here
    and nowhere else.
    """
    # DICOM arrays are views of (k, j, i) memory; working on that order keeps every pass sequential.
    values = array.transpose()
    if image.last_axis == "colour":
        x = to_range(values, *display_range(image))
    elif config.window == "hu":
        x = to_range(values, *config.hu_window)
    elif config.window == "voi" and image.windows:
        x = _apply(values, image.windows[0], image)
    elif config.window == "none" or (config.window == "voi" and image.intensity_units == "display"):
        x = to_range(values, *display_range(image))
    elif config.window == "minmax":
        x = to_range(values, float(values.min()), float(values.max()))
    else:
        x = to_range(values, *percentile_range(values, *config.percentiles))
    if image.photometric == "MONOCHROME1":
        np.subtract(1, x, out=x)
    return x.transpose()


def _apply(values: np.ndarray, window: Window, image: Image) -> np.ndarray:
    try:
        return apply_window(values, window)
    except DataError as error:
        raise DataError(f"'{image.source}': {error}") from None


def _spatial(x: np.ndarray, image: Image, dims: int) -> np.ndarray:
    """(i, j, k[, colour]) -> (C, H, W) or (C, D, H, W), a view."""
    x = x.transpose(3, 2, 1, 0) if image.last_axis == "colour" else x.transpose(2, 1, 0)[None]
    return x[:, 0] if dims == 2 else x


def _check_hounsfield(image: Image) -> None:
    if image.intensity_units != "HU":
        reason = "; ".join(image.notes)
        raise DataError(
            f"'{image.source}' holds {image.intensity_units} values, not Hounsfield units, which preprocess.window=hu needs"
            + (f" ({reason})" if reason else "")
            + ("; state modality CT in the manifest if it is CT" if image.modality == "OT" else "")
        )
    # A coarse sample finds a wrong scale as well as all voxels would.
    sample = image.array[tuple(slice(None, None, max(1, n // 64)) for n in image.shape)]
    low, high = float(sample.min()), float(sample.max())
    problem = implausible_hounsfield(low, high) if high > low else ""
    if problem:
        raise DataError(
            f"'{image.source}' is marked as Hounsfield units, but its {problem}; give the CT as the scanner wrote it"
        )


def _check_shape(shape: np.ndarray, image: Image) -> None:
    if float(np.prod(shape)) > 2**31:
        sizes = " x ".join(str(int(n)) for n in shape)
        raise DataError(f"'{image.source}' would become {sizes} at preprocess.spacing; is the file's spacing right?")
