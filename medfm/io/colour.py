"""Stored colour -> RGB: YCbCr and palettes (DICOM PS3.3 C.7.6.3.1.2 and C.7.6.3.1.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfm.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset


def rgb_from_ybr(array: np.ndarray, bits: int = 8) -> np.ndarray:
    """(..., 3) full-range Y, CB, CR of `bits` bits, unsigned -> RGB of the same dtype, rounded and clipped.

    The coefficients are those of PS3.3 C.7.6.3.1.2 inverted, in fixed point of 16 fractional bits, so that every machine rounds
    alike.
    """
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    wide: type[np.integer[Any]] = np.int32 if bits <= 12 else np.int64
    y: NDArray[np.integer[Any]] = array[..., 0].astype(wide)
    y <<= 16
    y += 32768
    blue, red = (array[..., n].astype(wide) - middle for n in (1, 2))
    out = np.empty_like(array)
    for channel, value in enumerate((y + 91881 * red, y - 22554 * blue - 46802 * red, y + 116130 * blue)):
        out[..., channel] = np.clip(value >> 16, 0, top)
    return out


def expand_422(samples: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Uncompressed YBR_FULL_422, Y1 Y2 CB CR for every two pixels, as (rows, columns, 3)."""
    pairs = samples.reshape(rows, columns // 2, 4)
    out = np.empty((rows, columns, 3), samples.dtype)
    out[:, 0::2, 0], out[:, 1::2, 0] = pairs[..., 0], pairs[..., 1]
    out[:, 0::2, 1:] = out[:, 1::2, 1:] = pairs[..., 2:]
    return out


def _check_entries(dataset: Dataset, count: int) -> None:
    """Raise ValueError where a plain table holds fewer entries than its descriptor claims; segmented ones unpack first."""
    for name in ("Red", "Green", "Blue"):
        table = dataset.get(f"{name}PaletteColorLookupTableData")
        if table is not None and len(table) < count:
            raise ValueError("a short table")
        bits = int(dataset[f"{name}PaletteColorLookupTableDescriptor"].value[2])
        # 8-bit entries may be packed in pairs or take 16 bits each; 16-bit ones take two bytes.
        if table is not None and bits == 16 and len(table) < 2 * count:
            raise ValueError("a short table")


def palette(dataset: Dataset, path: str) -> tuple[np.ndarray, int]:
    """(colours (n, 3) uint8, the stored value of the first one) of a palette image; other values clip to the ends.

    A table whose entries need more than 8 bits keeps their upper byte.

    Raises:
        DataError: the palette is missing or broken.
    """
    from pydicom.pixels import apply_color_lut

    try:
        descriptor = [int(v) for v in dataset.RedPaletteColorLookupTableDescriptor]
        count, first = descriptor[0] % 65536 or 65536, descriptor[1]
        _check_entries(dataset, count)
        if int(dataset.PixelRepresentation) == 0:
            first %= 65536
        # pydicom's own way through segmented tables and packed 8-bit entries, once for each entry.
        colours = apply_color_lut(np.arange(first, first + count, dtype=np.int64), dataset)[:, :3]
    except Exception as error:  # pydicom's own kinds have no common base
        raise DataError(f"'{path}': its colour palette is broken ({type(error).__name__})") from None
    if colours.shape != (count, 3):
        raise DataError(f"'{path}': its colour palette is broken")
    if colours.dtype.itemsize > 1 and colours.max(initial=0) > 255:
        colours = colours >> 8
    return colours.astype(np.uint8), first
