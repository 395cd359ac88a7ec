"""Which attribute orders volumes that share one place: time, b-value, echo.

Every position of the series must hold equally many images, and an attribute must tell them apart at every one; otherwise there
is no telling which images belong together, and the series is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import date as date_of
from typing import TYPE_CHECKING, Any

import numpy as np

from medfm.io.dataset import text
from medfm.io.geometry import floats
from medfm.io.raw import has, tag_of

if TYPE_CHECKING:
    from pydicom import Dataset

# Attributes whose values are the same numbers at every position, and those that run on from slice to slice.
LABELS = ("TemporalPositionIdentifier", "TemporalPositionIndex", "b-value", "EchoTime", "InversionTime", "FlipAngle")
CLOCKS = (
    "TemporalPositionTimeOffset",
    "TriggerTime",
    "FrameReferenceTime",
    "AcquisitionTime",
    "ContentTime",
    "AcquisitionNumber",
    "InstanceNumber",
)
# Running numbers: they order copies and re-encodings just as well as points in time.
_WEAK = ("ContentTime", "AcquisitionNumber", "InstanceNumber")
_PLAIN = {
    "TemporalPositionIdentifier": "TemporalPositionIdentifier",
    "TemporalPositionIndex": "TemporalPositionIndex",
    "DiffusionBValue": "b-value",
    "EffectiveEchoTime": "EchoTime",
    "EchoTime": "EchoTime",
    "InversionTime": "InversionTime",
    "FlipAngle": "FlipAngle",
    "TemporalPositionTimeOffset": "TemporalPositionTimeOffset",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
    "TriggerTime": "TriggerTime",
    "FrameReferenceTime": "FrameReferenceTime",
    "AcquisitionNumber": "AcquisitionNumber",
    "InstanceNumber": "InstanceNumber",
}
# b-value in private elements: (creator, group, element) of Siemens, GE and Philips; GE adds 10^9 to it.
_PRIVATE_B = (("SIEMENS MR HEADER", 0x0019, 0x0C), ("GEMS_PARM_01", 0x0043, 0x39), ("Philips Imaging DD 001", 0x2001, 0x03))


def order_values(dataset: Dataset) -> tuple[tuple[str, float], ...]:
    """The finite values of the attributes in `LABELS` and `CLOCKS` that `dataset` has, by name."""
    found: dict[str, float] = {}
    for keyword, name in _PLAIN.items():
        if has(dataset, keyword) and name not in found and (numbers := floats(dataset, keyword)):
            found[name] = numbers[0]
    for name, date, time, both in (
        ("AcquisitionTime", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime"),
        ("AcquisitionTime", "", "", "FrameAcquisitionDateTime"),
        ("ContentTime", "ContentDate", "ContentTime", ""),
    ):
        if name not in found:
            seconds = _seconds(dataset, date, time, both)
            if seconds is not None:
                found[name] = seconds
    if "b-value" not in found and (private := _private_b_value(dataset)) is not None:
        found["b-value"] = private
    return tuple(found.items())


def _seconds(dataset: Dataset, date: str, time: str, both: str) -> float | None:
    """Seconds since an arbitrary day, of a DT value or of a DA and a TM value."""
    day, clock = "", ""
    if time and has(dataset, time):
        day, clock = text(dataset, date).replace(".", ""), text(dataset, time).replace(":", "")
    elif both and has(dataset, both):
        whole = text(dataset, both).split("+")[0].split("-")[0]
        day, clock = whole[:8], whole[8:]
    try:
        hours, minutes, seconds = int(clock[:2]), int(clock[2:4] or 0), float(clock[4:] or 0)
        days = date_of(int(day[:4]), int(day[4:6]), int(day[6:8])).toordinal() if len(day) >= 8 else 0
    except ValueError:
        return None
    return float(days * 86400 + hours * 3600 + minutes * 60 + seconds)


def _private_b_value(dataset: Dataset) -> float | None:
    if text(dataset, "Modality") != "MR":
        return None
    for creator, group, element in _PRIVATE_B:
        tag = _private_tag(dataset, group, creator, element)
        if tag is None or tag not in dataset._dict:
            continue
        try:
            value = dataset[tag].value
            if isinstance(value, bytes):
                value = struct.unpack("<f", value)[0] if len(value) == 4 else value.split(b"\\")[0].decode("ascii")
            elif not isinstance(value, str | int | float):
                value = next(iter(value))
            number = float(value)
        except (KeyError, ValueError, TypeError, StopIteration, struct.error, UnicodeDecodeError):
            continue
        if np.isfinite(number) and number >= 0:
            return number % 1e9
    return None


def _private_tag(dataset: Dataset, group: int, creator: str, element: int) -> int | None:
    """The tag of a private element in its creator's block (PS3.5 7.8.1). pydicom's `private_block` walks the whole dataset."""
    for block in range(0x10, 0x20):
        found: Any = dataset._dict.get(tag_of(group << 16 | block))
        if found is None:
            continue
        value = found.value.decode("latin-1") if isinstance(found.value, bytes) else str(found.value)
        if value.strip(" \0") == creator:
            return group << 16 | block << 8 | element
    return None


def order_volumes(places: np.ndarray, values: Sequence[dict[str, float]]) -> tuple[np.ndarray, str]:
    """Which volume each image belongs to.

    Args:
        places: (n,) number of the position that each image lies at; every position occurs equally often, more than once.
        values: what could order each image, as `order_values` gives it.

    Returns:
        (n,) number of the volume, and the name of the attribute that told. ("" where none does: the array is then all zero.)
    """
    count = int(places.max()) + 1
    # At a single position nothing but the images' number would speak for a time axis.
    names = [name for name in (*LABELS, *CLOCKS) if count > 1 or name not in _WEAK]
    for name in names:
        rank = _rank(places, values, name)
        if rank is None:
            continue
        if name == "AcquisitionNumber":
            other = _rank(places, values, "InstanceNumber")
            if other is not None and (other != rank).any():
                break  # two running numbers that contradict each other tell nothing
        return rank, name
    return np.zeros(len(places), int), ""


def _rank(places: np.ndarray, values: Sequence[dict[str, float]], name: str) -> np.ndarray | None:
    """(n,) number of the volume by the attribute `name`; None where it does not tell the images of every position apart."""
    if any(name not in v for v in values):
        return None
    count = int(places.max()) + 1
    times = len(places) // count
    numbers = np.array([v[name] for v in values])
    if name in ("AcquisitionTime", "ContentTime") and np.ptp(numbers) > 43200 and np.ptp(numbers // 86400) == 0:
        return None  # half a day on one date (or none, after de-identification): more likely a scan over midnight
    by_place = np.argsort(places, kind="stable").reshape(count, times)  # row: the images at one position
    table = np.sort(numbers[by_place], axis=1)
    if (np.diff(table, axis=1) <= 0).any():
        return None
    if name in LABELS and np.ptp(table, axis=0).max() > 1e-6 + 1e-3 * np.abs(table).max():
        return None
    if name == "InstanceNumber" and not _in_blocks(places, numbers, count, times):
        return None
    rank = np.empty(len(places), int)
    rank[np.take_along_axis(by_place, np.argsort(numbers[by_place], axis=1), 1)] = np.arange(times)
    return rank


def _in_blocks(places: np.ndarray, numbers: np.ndarray, count: int, times: int) -> bool:
    """Whether running numbers go volume by volume (each position once in the same order) or position by position."""
    sequence = places[np.argsort(numbers, kind="stable")]
    by_volume = sequence.reshape(times, count)
    by_place = sequence.reshape(count, times)
    whole = bool((by_volume == by_volume[0]).all()) and len(np.unique(by_volume[0])) == count
    return whole or bool((by_place == by_place[:, :1]).all())
