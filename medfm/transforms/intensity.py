"""Physical values -> [0, 1] by the contract: which window an image gets, and the polarity of MONOCHROME1, here alone."""

from __future__ import annotations

import numpy as np

from medfm.errors import DataError
from medfm.io.values import implausible_distribution, implausible_hounsfield
from medfm.transforms.config import Pair, PreprocessConfig
from medfm.transforms.window import apply_window, display_range, percentile_range, to_range
from medfm.types import Image, Window

# Radiographs come with a VOI that was made for reading them; that of MR is a matter of the last viewer.
_RADIOGRAPHS = frozenset({"CR", "DX", "MG", "RG", "XA", "RF", "IO", "PX"})


def window_of(image: Image, config: PreprocessConfig) -> str:
    """`config.window`; what it stands for, where it is auto."""
    if config.window != "auto":
        return config.window
    if image.intensity_units == "HU":
        return "hu"
    if image.intensity_units == "SUV":
        return "fixed"
    return "voi" if image.modality in _RADIOGRAPHS or image.intensity_units == "display" else "percentile"


def to_unit_range(image: Image, array: np.ndarray, config: PreprocessConfig, hu_window: Pair | None = None) -> np.ndarray:
    """`array` (the image's own, perhaps turned or cut) -> float32 in [0, 1], windowed and then, for MONOCHROME1, inverted: here
    and nowhere else.

    Args:
        hu_window: one of several HU windows; default: the contract's first.
    """
    # DICOM arrays are views of (k, j, i) memory; working on that order keeps every pass sequential.
    values = array.transpose()
    window = window_of(image, config)
    if image.last_axis == "colour":
        x = to_range(values, *display_range(image))
    elif window == "hu":
        x = to_range(values, *(hu_window or config.hu_windows[0]))
    elif window == "fixed":
        x = to_range(values, *config.value_range)
    elif window == "zscore":
        x = to_range(values, *zscore_range(values, config.zscore_range))
    elif window == "voi" and image.windows:
        x = _apply(values, image.windows[0], image)
    elif window == "none" or (window == "voi" and image.intensity_units == "display"):
        x = to_range(values, *display_range(image))
    elif window == "minmax":
        x = to_range(values, float(values.min()), float(values.max()))
    else:
        x = to_range(values, *percentile_range(values, *config.percentiles))
    if image.photometric == "MONOCHROME1":
        np.subtract(1, x, out=x)
    return x.transpose()


def unit_channels(image: Image, array: np.ndarray, config: PreprocessConfig) -> np.ndarray:
    """`to_unit_range` with channels first: (C, k, j, i). C is 3 for colour, the number of HU windows for CT, else 1."""
    if image.last_axis == "colour":
        return to_unit_range(image, array, config).transpose(3, 2, 1, 0)
    if image.last_axis == "sequence":  # each has a scale of its own
        layers = np.moveaxis(array, -1, 0)
        return np.stack([to_unit_range(image, layer, config).transpose(2, 1, 0) for layer in layers])
    windows = config.hu_windows if window_of(image, config) == "hu" else (None,)
    if len(windows) == 1:
        return to_unit_range(image, array, config).transpose(2, 1, 0)[None]
    return np.stack([to_unit_range(image, array, config, window).transpose(2, 1, 0) for window in windows])


def zscore_range(values: np.ndarray, z: float) -> Pair:
    """mean - z * std and mean + z * std of the values that are not 0: a stripped brain's background is exactly 0."""
    inside = values[values != 0]
    if not inside.size:
        return 0.0, 0.0
    mean, std = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
    return mean - z * std, mean + z * std


def _apply(values: np.ndarray, window: Window, image: Image) -> np.ndarray:
    try:
        return apply_window(values, window)
    except DataError as error:
        raise DataError(f"'{image.source}': {error}") from None


def check_units(image: Image, config: PreprocessConfig) -> None:
    """Refuse units that contradict the contract, and values that cannot be Hounsfield units. Raises DataError."""
    if config.units and image.intensity_units != config.units:
        raise DataError(
            f"'{image.source}' holds {image.intensity_units} values; the preprocessing contract takes {config.units} "
            "(preprocess.units)"
        )
    if config.window != "hu" and (config.window != "auto" or image.intensity_units != "HU"):
        return
    if image.intensity_units != "HU":
        reason = "; ".join(image.notes)
        raise DataError(
            f"'{image.source}' holds {image.intensity_units} values, not Hounsfield units, which preprocess.window=hu needs"
            + (f" ({reason})" if reason else "")
            + ("; state modality CT in the manifest, or modality=CT, if it is CT" if image.modality == "OT" else "")
        )
    if config.keeps_hounsfield and image.photometric == "MONOCHROME1":
        raise DataError(f"'{image.source}' is a CT in MONOCHROME1, which preprocess.dtype=int16 cannot keep; use uint8")
    # A coarse sample finds a wrong scale as well as all voxels would.
    sample = image.array[tuple(slice(None, None, max(1, n // 64)) for n in image.shape)]
    low, high = float(sample.min()), float(sample.max())
    problem = (implausible_hounsfield(low, high) or implausible_distribution(sample)) if high > low else ""
    if problem:
        raise DataError(
            f"'{image.source}' is marked as Hounsfield units, but its {problem}; give the CT as the scanner wrote it"
        )
