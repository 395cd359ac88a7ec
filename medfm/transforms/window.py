"""Physical values -> [0, 1]: VOI windows and their substitutes, in float32 and in place (10x pydicom's float64 path)."""

from __future__ import annotations

import numpy as np

from medfm.errors import DataError
from medfm.types import Image, Window

_MOST_SAMPLES = 2**22
# Values worked on at a time: index and result stay in the processor's cache.
_BLOCK = 2**18


def apply_window(array: np.ndarray, window: Window) -> np.ndarray:
    """Display values in [0, 1], float32, of a new array shaped as `array`.

    Source: DICOM PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.2 (LINEAR_EXACT), C.11.2.1.3.1 (SIGMOID), C.11.2.1.1 (LUT), with an
    output range from 0 to 1. LINEAR takes the centre at c - 0.5 and the width as w - 1.

    Raises:
        DataError: the width is below 1 for LINEAR, or not above 0 for the others, or the function is unknown.
    """
    if window.function == "LUT" and (window.lut is None or not len(window.lut) or window.lut_max <= 0):
        raise DataError("a VOI LUT without entries cannot be applied")
    if window.function in ("LUT", "SIGMOID") and array.dtype in (np.int16, np.uint16) and array.size > 2 * _BLOCK:
        # Any function of 16 bits is a table of 65,536 entries.
        every = np.arange(2**16, dtype=np.uint16).view(array.dtype)
        return _looked_up(array.view(np.uint16), apply_window(every, window))
    if window.function == "LUT" and window.lut is not None:
        index = np.rint(array).astype(np.int32) if array.dtype.kind == "f" else array.astype(np.int32)
        index -= window.first
        np.clip(index, 0, len(window.lut) - 1, out=index)
        return np.asarray(window.lut / window.lut_max, np.float32)[index]
    center, width = window.center, window.width
    if window.function == "LINEAR":
        center, width = center - 0.5, width - 1
    elif window.function not in ("LINEAR_EXACT", "SIGMOID"):
        raise DataError(f"unknown VOI LUT function '{window.function}'; known: LINEAR, LINEAR_EXACT, SIGMOID, LUT")
    if width < 0 or (width == 0 and window.function != "LINEAR"):
        raise DataError(f"a VOI window of width {window.width:g} cannot be applied ({window.function})")
    if width == 0:
        return (array > center).astype(np.float32)
    if window.function == "SIGMOID":
        values = array.astype(np.float32)
        values -= np.float32(center)
        values *= np.float32(-4 / width)
        with np.errstate(over="ignore"):  # exp gives infinity far below the window, and 1 / (1 + inf) is the right 0
            np.exp(values, out=values)
        values += 1
        return np.reciprocal(values, out=values)
    return to_range(array, center - width / 2, center + width / 2)


def _looked_up(array: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[array] of a uint16 array and 65,536 entries, in the array's memory order."""
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        return table[array]
    out = np.empty_like(array, table.dtype)
    flat, target = array.ravel(order="K"), out.ravel(order="K")
    for start in range(0, flat.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        # No index lies outside; "wrap" is what numpy checks fastest.
        np.take(table, flat[block].astype(np.intp), out=target[block], mode="wrap")
    return out


def to_range(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """(array - low) / (high - low) clipped to [0, 1], float32, of a new array. All 0 where high <= low: an image of one
    value.
    """
    if not high > low:
        return np.zeros(array.shape, np.float32)
    values = array.astype(np.float32)  # at once: a subtraction that also converts goes through small buffers
    values -= np.float32(low)
    values *= np.float32(1 / (high - low))
    return np.clip(values, 0, 1, out=values)


def percentile_range(array: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The `low`-th and `high`-th percentile (0..100). From a histogram for 8- and 16-bit integers, else from at most 4M
    values.
    """
    if array.dtype.kind in "iu" and array.dtype.itemsize <= 2:
        flat = array.ravel(order="K")
        least = int(flat.min())
        counts = np.bincount(flat.astype(np.int32) - least if least else flat)
        cumulative = np.cumsum(counts)
        ends = [int(np.searchsorted(cumulative, q / 100 * cumulative[-1])) + least for q in (low, high)]
        top = least + len(counts) - 1
        return float(min(ends[0], top)), float(min(ends[1], top))
    flat = array.ravel(order="K")
    first, last = np.percentile(flat[:: flat.size // _MOST_SAMPLES + 1], (low, high))
    return float(first), float(last)


def display_range(image: Image) -> tuple[float, float]:
    """The full scale of values that are meant for display as they are.

    Raises:
        DataError: the image is none of 8-bit, of known bits, or float in [0, 1].
    """
    array = image.array
    if array.dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    if image.bits_stored is not None and low >= 0 and high <= 2**image.bits_stored - 1:
        return 0.0, float(2**image.bits_stored - 1)
    raise DataError(
        f"'{image.source}': window=none needs values in display range, got {array.dtype} from {low:g} to {high:g}; use "
        "window=voi, percentile or hu"
    )
