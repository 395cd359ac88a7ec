"""What stored values mean: modality LUT or rescale, padding, VOI windows, units. Applied once, here and nowhere else.

Source: DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT), C.7.5.1.1.2 (pixel padding).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from medfm.errors import DataError
from medfm.io.geometry import floats, is_empty
from medfm.types import IntensityUnits, Window

if TYPE_CHECKING:
    from pydicom import Dataset


# ImageType values of maps computed from CT: perfusion, and materials of spectral CT.
_CT_MAPS = frozenset(
    {"PERFUSION", "RCBF", "RCBV", "CBF", "CBV", "MTT", "TTP", "TMAX", "PBV", "PERMEABILITY", "ELECTRON_DENSITY", "RHO_Z"}
    | {"EFF_ATOMIC_NUM", "EFF_Z", "Z_EFF", "ZEFF", "MAT_FRACTIONAL", "IODINE", "MATERIAL_SPECIFIC", "MAT_SPECIFIC"}
)


def smallest_integer(array: np.ndarray) -> np.ndarray:
    """The same integers as int16, uint16 or int32, the first that holds them all; 8-bit arrays stay.

    Raises:
        OverflowError: a value needs more than 32 bits.
    """
    if array.dtype == np.uint8 or not array.size:
        return array
    low, high = int(array.min()), int(array.max())
    for dtype in (np.int16, np.uint16, np.int32):
        info = np.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return array.astype(dtype, copy=False)
    raise OverflowError(f"values from {low} to {high} do not fit 32 bits")


def linear(array: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """slope * array + intercept, in the smallest integer dtype where that is exact, else float32."""
    if array.dtype.kind not in "iub":
        array = array.astype(np.float32, copy=False)
        return array if (slope, intercept) == (1.0, 0.0) else array * np.float32(slope) + np.float32(intercept)
    identity = (slope, intercept) == (1.0, 0.0)
    exact = (
        slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) <= 2**30 and array.dtype.itemsize < 8
    )
    if not identity and not exact:
        # float64 for the product: a 16-bit value times a slope of 1e-3 would lose its last digits in float32.
        return (array * slope + intercept).astype(np.float32)
    if identity:
        try:
            return smallest_integer(array)
        except OverflowError:
            return array.astype(np.float32)
    if not array.size:
        return array.astype(np.int16)
    ends = [int(array.min()) * int(slope) + int(intercept), int(array.max()) * int(slope) + int(intercept)]
    for dtype in (np.int16, np.uint16, np.int32):
        if np.iinfo(dtype).min <= min(ends) and max(ends) <= np.iinfo(dtype).max:
            # The result fits, so that sums modulo 2^16 (or 2^32) end up right and nothing wider is needed on the way.
            array = array.astype(dtype)
            if slope != 1:
                array *= _modulo(int(slope), dtype)
            array += _modulo(int(intercept), dtype)
            return array
    return (array * slope + intercept).astype(np.float32)


def _modulo(value: int, dtype: type) -> np.generic:
    """`value` modulo the dtype's range, as a scalar of it."""
    bits = 8 * np.dtype(dtype).itemsize
    return np.array([value % (1 << bits)], f"u{bits // 8}").view(dtype)[0]


def to_physical(stored: np.ndarray, dataset: Dataset, path: str) -> np.ndarray:
    """Stored values -> physical values through the Modality LUT Sequence or the rescale slope and intercept.

    Raises:
        DataError: the slope is zero, or empty beside an intercept; or the look-up table is broken.
    """
    if not is_empty(dataset, "ModalityLUTSequence"):
        table, first, _ = _table(dataset.ModalityLUTSequence[0], dataset, int(stored.min(initial=0)) < 0, path)
        return smallest_integer(table[np.clip(stored.astype(np.int32) - first, 0, len(table) - 1)])
    slope, intercept = _rescale(dataset, "RescaleSlope", 1.0, path), _rescale(dataset, "RescaleIntercept", 0.0, path)
    if intercept and "RescaleSlope" in dataset and is_empty(dataset, "RescaleSlope"):
        raise DataError(f"'{path}': RescaleSlope is empty beside a RescaleIntercept, so its values cannot be known")
    if slope == 0:
        raise DataError(f"'{path}': RescaleSlope is 0, so that every pixel would be the same")
    return linear(stored, slope, intercept)


def _rescale(dataset: Dataset, keyword: str, default: float, path: str) -> float:
    """The number; its default where it is absent or empty.

    Raises:
        DataError: what the header says is no finite number. The default would then give wrong values.
    """
    if keyword not in dataset:
        return default
    numbers = floats(dataset, keyword)
    if len(numbers) == 1:
        return numbers[0]
    value = dataset[keyword].value
    if value is None or value == "" or value == b"":
        return default
    raise DataError(f"'{path}': {keyword} is not one finite number, so its values cannot be known")


def replace_padding(stored: np.ndarray, dataset: Dataset, bright: bool) -> tuple[np.ndarray, str]:
    """Set padding (outside a round field of view, or masked corners) to the value that shows as black.

    Padding lies outside the image's own range, -2000 beside Hounsfield units for example, and would spoil a window fitted to
    the values. It becomes the lowest other value, or the highest for MONOCHROME1 (`bright`). A padding value within the
    image's range marks nothing and is left.

    Returns:
        the array (changed in a copy only if there is padding) and a note.
    """
    low, high = floats(dataset, "PixelPaddingValue"), floats(dataset, "PixelPaddingRangeLimit")
    if not low or stored.ndim != 2 or stored.dtype.kind not in "iu":
        return stored, ""
    first, last = sorted((int(low[0]), int((high or low)[0])))
    info = np.iinfo(stored.dtype)
    if (
        last < info.min and last + 2 ** (8 * stored.itemsize) <= info.max
    ):  # written as signed for unsigned pixels, or the reverse
        first, last = first + 2 ** (8 * stored.itemsize), last + 2 ** (8 * stored.itemsize)
    elif first > info.max:
        first, last = first - 2 ** (8 * stored.itemsize), last - 2 ** (8 * stored.itemsize)
    if last < info.min or first > info.max:
        return stored, ""
    low_end, high_end = max(first, info.min), min(last, info.max)
    padding = stored == low_end if low_end == high_end else (stored >= low_end) & (stored <= high_end)
    count = int(np.count_nonzero(padding))
    if count in (0, stored.size):
        return stored, ""
    lowest, highest = int(stored.min()), int(stored.max())
    # Only an end that is padding itself has to be looked for among the other values.
    if lowest >= low_end:
        lowest = int(np.where(padding, info.max, stored).min())
    if highest <= high_end:
        highest = int(np.where(padding, info.min, stored).max())
    if first > lowest and last < highest:
        return stored, f"PixelPaddingValue {first} lies within the image's range and was ignored"
    fill = highest if bright else lowest
    note = f"padding ({100 * count / stored.size:.0f} % of pixels, stored {first}) set to stored {fill}"
    return np.where(padding, np.array(fill, stored.dtype), stored), note


def windows_of(dataset: Dataset, path: str, signed: bool) -> tuple[tuple[Window, ...], list[str]]:
    """The VOI windows that the file offers, tables first (as pydicom and PS3.3 C.11.2.1.1 prefer), and notes on broken ones.

    `signed`: physical values go below zero, so that a table's first value is read as signed.
    """
    found: list[Window] = []
    notes: list[str] = []
    for item in dataset.get("VOILUTSequence") or []:
        try:
            table, first, top = _table(item, dataset, signed, path)
        except DataError:
            notes.append("a VOI LUT is broken and was left out")
            continue
        found.append(Window(function="LUT", lut=table.astype(np.float32), first=first, lut_max=top))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        notes.append("an unknown VOI LUT function was read as LINEAR")
        function = "LINEAR"
    for center, width in zip(floats(dataset, "WindowCenter"), floats(dataset, "WindowWidth"), strict=False):
        if width < 1 if function == "LINEAR" else width <= 0:
            notes.append(f"a VOI window of width {width:g} was left out")
            continue
        found.append(Window(center=center, width=width, function=function))
    return tuple(found), notes


def _table(item: Dataset, dataset: Dataset, signed: bool, path: str) -> tuple[np.ndarray, int, float]:
    """(values int32, first mapped input, largest output) of a LUT sequence item (PS3.3 C.11.1.1.1)."""
    try:
        count, first, bits = (int(v) for v in item.LUTDescriptor)
        data = item.LUTData
        count = count % 65536 or 65536  # 0 stands for 2^16, and a signed reading of 32768 and above is negative
        if isinstance(data, bytes):
            order = ">" if dataset.file_meta.TransferSyntaxUID.is_little_endian is False else "<"
            dtype = np.dtype(np.uint8) if len(data) in (count, count + 1) else np.dtype(f"{order}u2")
            values = np.frombuffer(data, dtype, count=min(count, len(data) // dtype.itemsize))
        else:
            values = np.atleast_1d(np.asarray(data))[:count]
        values = values.astype(np.int32) % 65536
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"'{path}': a look-up table in the header is broken") from None
    if len(values) < count or not 1 <= bits <= 16:
        raise DataError(f"'{path}': a look-up table holds {len(values)} of {count} entries of {bits} bits")
    if signed and first > 32767:
        first -= 65536
    if not signed and first < 0:
        first += 65536
    return values, first, float(max(2**bits - 1, int(values.max())))


def units_of(dataset: Dataset, physical: np.ndarray, photometric: str, has_window: bool) -> tuple[IntensityUnits, str]:
    """(units, a note). Hounsfield units only for a CT that says so, or says nothing, and whose values can be."""
    modality = str(dataset.get("Modality", "")).strip().upper()
    if photometric == "RGB":
        return "display", ""
    if modality == "PT":
        if is_empty(dataset, "RescaleSlope") and physical.dtype.kind != "f":
            return "arbitrary", "a PET image without RescaleSlope: its values are stored numbers"
        kind, weight = str(dataset.get("Units") or "").strip().upper(), str(dataset.get("SUVType") or "BW").strip().upper()
        if kind == "BQML":
            return "BQML", ""
        if kind == "GML":  # standardised uptake values in g/ml, by body weight unless the file says otherwise
            return ("SUV", "") if weight == "BW" else ("arbitrary", "uptake values by another measure than body weight")
    if modality == "CT":
        return _hounsfield(dataset, physical)
    rescaled = bool(dataset.get("ModalityLUTSequence")) or floats(dataset, "RescaleSlope") not in ([], [1.0])
    if physical.dtype == np.uint8 and not rescaled and not has_window:
        return "display", ""
    return "arbitrary", ""


def _hounsfield(dataset: Dataset, physical: np.ndarray) -> tuple[IntensityUnits, str]:
    kind = str(dataset.get("RescaleType") or "").strip().upper()
    if not says_hounsfield(kind):
        return "arbitrary", f"CT with rescale type '{kind[:16]}', not HU"
    types = {str(v).strip().upper() for v in dataset.get("ImageType") or []}
    if "LOCALIZER" in types:
        return "arbitrary", "a CT localizer (scout) is a projection, not HU"
    maps = sorted(types & _CT_MAPS)
    if maps:
        return "arbitrary", f"a CT map of another quantity than attenuation (ImageType {maps[0]}), not HU"
    if dataset.get("ModalityLUTSequence"):
        return "arbitrary", "CT values come from a modality LUT, not from HU rescale"
    low, high = float(physical.min()), float(physical.max())
    problem = implausible_hounsfield(low, high)
    if not problem and low >= 0 and not floats(dataset, "RescaleIntercept"):
        problem = f"values from {low:g} to {high:g} without a rescale intercept"
    return ("arbitrary", f"not HU: {problem}") if problem else ("HU", "")


def says_hounsfield(kind: str) -> bool:
    """Whether a RescaleType (in capitals) leaves CT values Hounsfield units. US: unspecified; some scanners write the unit's
    name, in more than one spelling.
    """
    return kind in ("", "HU", "US") or re.fullmatch(r"HOU?ND?S?FIELD( UNITS?)?", kind) is not None


def implausible_distribution(sample: np.ndarray) -> str:
    """Why a sample of a CT's values looks as if the rescale intercept had been applied twice, or not at all; "" where not.

    Twice: air lies near -2000 and soft tissue near -1000, where air should be. Not at all: soft tissue lies near 1000, where
    only the densest bone is, and nothing is as thin as air, padding below -1900 aside.
    """
    values = np.asarray(sample).reshape(-1)
    if values.size < 100:
        return ""

    def share(low: float, high: float) -> float:
        return float(((values > low) & (values < high)).mean())

    if share(-np.inf, -1500) > 0.1 and share(-1350, -700) > 0.1 and share(-300, 300) < 0.02:
        return "values lie near -2000 and near -1000 and hardly any about 0: the rescale intercept was applied twice"
    if share(800, 1300) > 0.25 and share(-1900, -200) < 0.001:
        return "values lie near 1000 and none are those of air: they look like stored values without their rescale"
    return ""


def implausible_hounsfield(low: float, high: float) -> str:
    """Why values between `low` and `high` cannot be Hounsfield units; "" where they can.

    Scanners write from -1024 (with padding down to about -4100) to 3071, and to 65,000 on an extended scale over metal.
    """
    if low >= 0 and low < high <= 1:
        return f"values from {low:g} to {high:g} look already scaled to [0, 1]"
    if low < 0 and high - low <= 10:
        return f"values from {low:g} to {high:g} look already scaled, for example to [-1, 1]"
    if low < -5000 or high > 70_000:
        return f"values from {low:g} to {high:g} look rescaled twice or not HU"
    if low >= 0 and high > 1500:
        return f"values from {low:g} to {high:g} hold no air and look like stored values without their rescale"
    if high < -500:
        return f"values from {low:g} to {high:g} hold no tissue and look rescaled twice"
    return ""
