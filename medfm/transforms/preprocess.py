"""The preprocessing contract: `Image` -> network input. One object for training, evaluation, export and pictures.

Axes. 2D: (C, H, W) = (C, j, i), rows and columns as the file stores them. 3D: the volume is first turned to `orientation`,
then (C, D, H, W) = (C, k, j, i): with RAS, D runs from feet to head, H from back to front, W from the patient's left to right;
choose LPS for slices that look as a radiologist sees them (front up, the patient's right on the left).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medfm.errors import DataError
from medfm.io.geometry import reorient
from medfm.transforms.config import HU_STORED, PreprocessConfig
from medfm.transforms.crop import border_box, fit, foreground_box
from medfm.transforms.intensity import check_units, to_unit_range, unit_channels
from medfm.transforms.resample import resample_to_spacing, resize
from medfm.transforms.window import to_range
from medfm.types import Image

# Raised when the same config starts to give other pixels, so that the hash tells them apart. 2: resampling to `spacing` meets
# it exactly, where 1 rounded the field of view to whole pixels.
_VERSION, _SPACING_VERSION = 1, 2
# Fields of the first version. A later one counts in a hash only where it is set, so that older contracts keep theirs.
_FIRST_FIELDS = frozenset({"size", "window", "percentiles", "hu_window", "crop_foreground", "spacing", "orientation", "resize",
                           "channels", "dtype", "mean", "std", "modalities"})  # fmt: skip
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow and OpenCV
_TOP = 32767  # int16 storage of [0, 1]
_AIR = -1000.0
# How much larger than `size` a film decoded at reduced resolution stays. Measured on a real film made 64 to 224 pixels, rms
# difference from full decoding: at least 4 times as large 0.6 to 1.6 of 255, 2 times 0.7 to 3.8, 1 time 2.2 to 7.8.
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Boxes:
    """Attributes:
    foreground: of the oriented array, (i, j, k); None where `foreground_threshold` is not set.
    border: of (*spatial) in the network's axes, within the former; None without `crop_foreground`.
    """

    foreground: tuple[slice, ...] | None
    border: tuple[slice, ...] | None


class Preprocess:
    """Apply a `PreprocessConfig`; see its docstring for the order of steps. Deterministic and picklable.

    `whole` makes the image as a cache stores it, `fit` cuts or pads it to `size`; calling does both. Stored values are float32
    in [0, 1], uint8 0..255, or int16: Hounsfield units for window=hu, else 0..32767. `to_float` brings a batch of them to what
    the network takes, on the batch's device; it is `normalise` after `to_unit`, and augmentation belongs between the two.
    """

    def __init__(self, config: PreprocessConfig) -> None:
        self.config = config
        self._around = self._fill()

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """(C, *size) of what calling returns."""
        return (self.config.stored_channels, *self.config.size)

    def load(self, path: str | Path, modality: str = "") -> Image:
        """`medfm.io.load.load_image` with the contract's options of reading.

        Args:
            path: file, folder or reference.
            modality: what a manifest says of files that cannot say it themselves.
        """
        from medfm.io.load import load_image

        options: dict[str, Any] = {}
        if self.config.tilt != "refuse":
            options["tilt"] = self.config.tilt
        if self.config.reduced_decode:
            # A border crop may leave half of each axis.
            times = _OVERSAMPLING * (2 if self.config.crop_foreground else 1)
            options["min_size"] = tuple(times * n for n in self.config.size)
        return load_image(path, modality, **options)

    def __call__(self, image: Image) -> np.ndarray:
        """(C, *size) in the storage dtype.

        Raises:
            DataError: the image contradicts the contract: modality, dimensions, units, spacing.
        """
        return np.ascontiguousarray(self.fit(self.whole(image)))

    def whole(self, image: Image) -> np.ndarray:
        """(C, *spatial) in the storage dtype, C-contiguous, at the contract's spacing, not yet cut or padded to `size`.

        Raises:
            DataError: the image contradicts the contract.
        """
        return self.whole_and_boxes(image)[0]

    def whole_and_boxes(self, image: Image) -> tuple[np.ndarray, Boxes]:
        """`whole`, and which part of the image it was made of, for masks that must follow (`medfm.transforms.mask`)."""
        config = self.config
        self.check(image)
        array, affine = image.array, image.affine
        foreground = border = None
        if len(config.size) == 3:
            array, affine = reorient(array, affine, config.orientation)
        if config.foreground_threshold is not None:
            shown = array.max(axis=-1) if image.last_axis in ("colour", "sequence") else array
            foreground = foreground_box(shown, config.foreground_threshold)
            array = array[foreground]
        keeps = config.keeps_hounsfield
        x = _clip_hounsfield(array.transpose(2, 1, 0))[None] if keeps else unit_channels(image, array, config)
        x = x[:, 0] if len(config.size) == 2 else x
        if image.last_axis == "colour" and config.channels != 3:
            x = np.tensordot(_LUMA, x, axes=1)[None]
        if config.crop_foreground:
            border = border_box(self._shown(x))
            x = x[(slice(None), *border)]
        x = self.resample(x, affine, image)
        if x.shape[0] == 1 < config.stored_channels:
            x = np.repeat(x, config.stored_channels, axis=0)
        return np.ascontiguousarray(self._store(x)), Boxes(foreground, border)

    def fit(self, whole: np.ndarray, start: Sequence[int] | None = None) -> np.ndarray:
        """Cut `whole`'s box of `size` at `start` (default: its middle), or pad it to `size`. A view where nothing is padded."""
        return fit(whole, self.config.size, self._around, start)

    def check(self, image: Image) -> None:
        """Refuse an image that contradicts the contract. Raises DataError saying what was seen and what to do."""
        config = self.config
        # "OT" is what a file says that cannot name its modality (PNG, JPEG, NIfTI): no contradiction.
        if config.modalities and image.modality not in (*config.modalities, "OT"):
            raise DataError(
                f"'{image.source}' is {image.modality}; the preprocessing contract takes {', '.join(config.modalities)} "
                "(preprocess.modalities)"
            )
        _refuse_time(image)
        if min(image.shape) < 1:
            raise DataError(f"'{image.source}' has no pixels: shape {image.shape}")
        sequences = image.shape[3] if image.last_axis == "sequence" else 0
        if sequences != len(config.sequences):
            wanted = f"{len(config.sequences)} ({', '.join(config.sequences)})" if config.sequences else "none"
            raise DataError(
                f"'{image.source}' holds {sequences or 'no'} sequences; preprocess.sequences names {wanted}; index with "
                "sequences=[...] in the order of the contract"
            )
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
        if len(config.size) == 3 and image.intensity_units == "HU" and not image.oriented:
            raise DataError(
                f"'{image.source}' does not say how it lies (no sform or qform), so that left and right, or head and feet, "
                "may be exchanged; convert it from its DICOM series again, or write the orientation into its header"
            )
        if config.spacing is not None and not image.spaced:
            raise DataError(
                f"'{image.source}' gives no pixel spacing, which preprocess.spacing needs; set preprocess.spacing=null"
            )
        check_units(image, config)

    def _shown(self, x: np.ndarray) -> np.ndarray:
        """(C, *spatial) in [0, 1] of HU that are kept; everything else is in [0, 1] already."""
        if not self.config.keeps_hounsfield:
            return x
        return to_range(x, min(low for low, _ in self.config.hu_windows), max(high for _, high in self.config.hu_windows))

    def resample(self, x: np.ndarray, affine: np.ndarray, image: Image) -> np.ndarray:
        """(C, *spatial) to the contract's spacing, or by `resize` to within `size`."""
        config = self.config
        size = config.size
        if config.spacing is None and config.resize == "none":
            return x
        if config.spacing is not None:
            return _to_spacing(x, affine, config.spacing, image)
        x = x.astype(np.float32, copy=False)
        have = np.array(x.shape[1:], np.float64)
        if config.resize == "stretch":
            return resize(x, size)
        ratios = np.array(size) / have
        scale = ratios.min() if config.resize == "pad" else ratios.max()
        if config.resize == "crop":
            # Cut first, so that only pixels that stay are resized.
            keep = np.minimum(np.rint(np.array(size) / scale), have).astype(int)
            return resize(fit(x, keep.tolist()), size)
        fitted = np.clip(np.rint(have * scale), 1, np.array(size))
        return resize(x, tuple(int(n) for n in fitted))

    def _store(self, x: np.ndarray) -> np.ndarray:
        config = self.config
        if config.keeps_hounsfield:
            return x if x.dtype == np.int16 else np.rint(x).astype(np.int16)
        x = np.clip(x, 0, 1)  # interpolation of values in [0, 1] may leave it by an ulp
        if config.dtype == "float32":
            return x
        top = 255 if config.dtype == "uint8" else _TOP
        return (x * np.float32(top) + np.float32(0.5)).astype(config.dtype)  # round half up

    def _fill(self) -> np.ndarray:
        """(1,) or (C,) in the storage dtype: what is put around."""
        config, value = self.config, self.config.pad_value
        if config.keeps_hounsfield:
            return self._store(_clip_hounsfield(np.array([_AIR if value is None else value], np.float32)))
        if value is None:
            return self._store(np.zeros(1, np.float32))
        if config.window == "hu":
            return self._store(np.concatenate([to_range(np.array([value]), *window) for window in config.hu_windows]))
        return self._store(np.array([value], np.float32))

    @property
    def windows(self) -> int:
        """Intensity windows that `to_unit` applies: those of stored HU, else one, [0, 1]."""
        return len(self.config.hu_windows) if self.config.keeps_hounsfield else 1

    @property
    def black(self) -> float:
        """The lowest stored value."""
        return HU_STORED[0] if self.config.keeps_hounsfield else 0.0

    def to_unit(
        self, batch: torch.Tensor, shift: torch.Tensor | None = None, width: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, C, *size) in storage dtype -> float32 in [0, 1] with the network's channels, on the batch's device.

        Args:
            batch: stored pixels.
            shift: (B, `windows`), moves each image's windows, in widths of theirs; given with `width`.
            width: (B, `windows`), makes them wider. Of stored HU this is the choice of another window, from before anything is
                clipped. Where [0, 1] is stored, the contract's window has clipped already, and [0, 1] is the window.

        Raises:
            ValueError: the batch has a dtype that is not stored.
        """
        return self.unit_of(batch.to(torch.float32), batch.dtype, shift, width)

    def unit_of(
        self,
        values: torch.Tensor,
        dtype: torch.dtype,
        shift: torch.Tensor | None = None,
        width: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`to_unit` of stored values that are float32 already, for example interpolated; `dtype` is that of storage. Values of
        integer storage are overwritten."""
        config = self.config
        if dtype == torch.uint8:
            top = 255.0
        elif dtype == torch.int16:
            top = float(_TOP)
        elif dtype.is_floating_point:
            top = 1.0
        else:
            raise ValueError(f"stored pixels are uint8, int16 or float, not {dtype}")
        hounsfield = config.keeps_hounsfield and dtype == torch.int16
        if not hounsfield and shift is None:
            return values if top == 1 else values.div_(top)
        windows = config.hu_windows if hounsfield else ((0.0, top),)
        if shift is None and len(windows) == 1:
            low, high = windows[0]
            unit = values.sub_(low).mul_(1 / (high - low)).clamp_(0, 1)
        else:
            lows, widths = (values.new_tensor(v)[None] for v in ([w[0] for w in windows], [w[1] - w[0] for w in windows]))
            if shift is not None and width is not None:
                middle = lows + widths * (0.5 + shift)
                widths = widths * width
                lows = middle - widths / 2
            shape = (-1, len(windows), *[1] * (values.ndim - 2))
            unit = values.sub(lows.view(shape)).mul_((1 / widths).view(shape)).clamp_(0, 1)
        return unit.expand(-1, config.channels, *[-1] * (unit.ndim - 2)) if hounsfield else unit

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
        """`display` with this contract's window, the first where it has several."""
        return display(image, self.config)

    def hash(self) -> str:
        """12 hexadecimal digits of the canonical JSON of the config: equal hashes, equal pixels."""
        return _digest({"version": _version(self.config), **_counted(self.config)})

    def stored_fields(self) -> dict[str, Any]:
        """The fields that decide what `whole` gives, as plain data: contracts that agree in them may share a cache.

        Left out is what is applied afterwards: mean, std, padding; with a spacing (or resize=none) the size of crops; for int16
        HU the windows.
        """
        config = self.config
        fields = _counted(config)
        for name in ("mean", "std", "pad_value"):
            fields.pop(name, None)
        if config.spacing is not None or config.resize == "none":
            fields["size"] = ["any"] * len(config.size)
        if config.spacing is not None:
            fields.pop("resize")
        if config.keeps_hounsfield and not config.crop_foreground:
            for name in ("hu_window", "windows", "channels", "percentiles"):
                fields.pop(name, None)
        return fields

    def stored_hash(self) -> str:
        """12 hexadecimal digits of `stored_fields`: equal hashes, equal whole images."""
        return _digest({"stored": _version(self.config), **self.stored_fields()})


def _clip_hounsfield(values: np.ndarray) -> np.ndarray:
    """Of a new array: int16 stays what it is, so that a volume which is not resampled takes one pass; all else is float32."""
    low, high = HU_STORED
    if values.dtype == np.int16:
        return np.clip(values, int(low), int(high))
    return np.clip(values, low, high, dtype=np.float32)


def _version(config: PreprocessConfig) -> int:
    return _VERSION if config.spacing is None else _SPACING_VERSION


def _counted(config: PreprocessConfig) -> dict[str, Any]:
    fields, usual = config.model_dump(mode="json"), PreprocessConfig().model_dump(mode="json")
    return {name: value for name, value in fields.items() if name in _FIRST_FIELDS or value != usual[name]}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def _to_spacing(x: np.ndarray, affine: np.ndarray, spacing: Sequence[float], image: Image) -> np.ndarray:
    """(C, *spatial) resampled to mm along (H, W) or (D, H, W), antialiased where it shrinks."""
    flat = x.ndim == 3
    voxels = (x[:, None] if flat else x).transpose(3, 2, 1, 0)  # (i, j, k, c)
    have = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    i, j, k = (spacing[1], spacing[0], float(have[2])) if flat else (spacing[2], spacing[1], spacing[0])
    _check_shape(np.array(voxels.shape[:3]) * have / np.array([i, j, k]), image)
    made, _ = resample_to_spacing(voxels, affine, (i, j, k), antialias=True)
    made = made.transpose(3, 2, 1, 0)
    return made[:, 0] if flat else made


def display(image: Image, config: PreprocessConfig | None = None) -> np.ndarray:
    """The image as a person sees it: windowed, MONOCHROME1 inverted, float32 in [0, 1]; nothing is resized.

    Returns:
        (H, W) or (H, W, 3) of a single image; (D, H, W) or (D, H, W, 3) of a volume, axes as stored.
    """
    _refuse_time(image)
    x = to_unit_range(image, image.array, config or PreprocessConfig())
    x = x.transpose(2, 1, 0, *range(3, x.ndim))
    return x[0] if image.shape[2] == 1 else x


def _refuse_time(image: Image) -> None:
    if image.last_axis is not None and image.last_axis.startswith("time"):
        raise DataError(
            f"'{image.source}' has a time axis ({image.shape[3]} volumes); choose one volume, for example "
            f"'{Path(image.source).name}#volume=0'"
        )


def _check_shape(shape: np.ndarray, image: Image) -> None:
    if float(np.prod(np.maximum(shape, 1))) > 2**31:
        sizes = " x ".join(str(round(float(n))) for n in shape)
        raise DataError(f"'{image.source}' would become {sizes} at preprocess.spacing; is the file's spacing right?")
