"""Series of several volumes: which attribute orders them, and when none may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io.group import find_series
from medfm.io.load import load_image, peek
from medfm.io.volume4d import order_volumes

Writer = Callable[..., Path]


def ramp(count: int) -> np.ndarray:
    return (np.arange(count)[:, None, None] * 100 + np.arange(6).reshape(2, 3)).astype(np.uint16)


def line(*heights: float) -> list[list[float]]:
    return [[1.0, 2.0, z] for z in heights]


# Volume-major: image n lies at position n % 3 and belongs to volume n // 3, told in reverse.
TWO = line(0, 3, 6, 0, 3, 6)
LATER = [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("TemporalPositionIdentifier", lambda t, n: {"TemporalPositionIdentifier": t + 1}),
        ("b-value", lambda t, n: {"DiffusionBValue": 800.0 * t}),
        ("EchoTime", lambda t, n: {"EchoTime": 5 + 10 * t}),
        ("TriggerTime", lambda t, n: {"TriggerTime": 500 * t + n % 3}),
        ("AcquisitionTime", lambda t, n: {"AcquisitionTime": f"10{t:02d}{n % 3:02d}.5"}),
        ("AcquisitionTime", lambda t, n: {"AcquisitionDate": f"2020010{t + 1}", "AcquisitionTime": f"{23 - 23 * t:02d}0000"}),
        ("ContentTime", lambda t, n: {"ContentTime": f"10{t:02d}{n % 3:02d}"}),
        ("AcquisitionNumber", lambda t, n: {"AcquisitionNumber": t + 4}),
        ("InstanceNumber", lambda t, n: {"InstanceNumber": 3 * t + n % 3 + 1}),
        ("InstanceNumber", lambda t, n: {"InstanceNumber": 2 * (n % 3) + t + 1}),
    ],
)
def test_series__each_attribute_orders(write_series: Writer, name: str, tags: Callable[[int, int], dict[str, Any]]) -> None:
    folder = write_series(ramp(6), TWO, change={n: tags(LATER[n], n) for n in range(6)})
    image = load_image(folder)
    assert (image.shape, image.last_axis) == ((3, 2, 3, 2), "time")
    np.testing.assert_array_equal(image.array[0, 0], [[300, 0], [400, 100], [500, 200]])
    np.testing.assert_allclose(image.affine[:3, 2:], [[0, -1], [0, -2], [3, 0]])
    assert f"2 volumes ordered by {name}" in image.notes
    assert peek(folder).shape == image.shape
    np.testing.assert_array_equal(load_image(f"{folder}#volume=0").array, image.array[..., 0])


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        (lambda n: {}, "2 images at each of 3 positions.* no attribute orders"),
        # Running numbers that follow neither the volumes nor the positions.
        (lambda n: {"InstanceNumber": [1, 4, 2, 3, 5, 6][n]}, "no attribute orders"),
        # Two running numbers that contradict each other.
        (lambda n: {"InstanceNumber": n, "AcquisitionNumber": 9 - n // 3}, "no attribute orders"),
        # One position has the same time twice.
        (lambda n: {"AcquisitionTime": f"1000{0 if n == 4 else n:02d}" if n != 1 else "100000"}, "no attribute orders"),
        (lambda n: {"EchoTime": n}, "no attribute orders"),  # another echo time at every position
        (lambda n: {"TemporalPositionIdentifier": n // 3, "SliceLocation": n}, "apart by SliceLocation"),
    ],
)
def test_series__no_attribute_orders(write_series: Writer, tags: Callable[[int], dict[str, Any]], reason: str) -> None:
    folder = write_series(ramp(6), TWO, change={n: tags(n) for n in range(6)})
    with pytest.raises(DataError, match=reason):
        load_image(folder)


def test_series__counts_are_uneven(write_series: Writer) -> None:
    change = {n: {"TemporalPositionIdentifier": n // 3} for n in range(5)}
    with pytest.raises(DataError, match=r"duplicate slices: 5 images lie at 3 positions, 1 to 2 at each.*not complete"):
        load_image(write_series(ramp(5), TWO[:5], change=change))


def test_series__equal_volumes_are_one_stored_twice(write_series: Writer) -> None:
    change = {n: {"TemporalPositionIdentifier": n // 3} for n in range(6)}
    with pytest.raises(DataError, match="volumes 0 and 1 of the series are equal in every voxel"):
        load_image(write_series(np.concatenate([ramp(3), ramp(3)]), TWO, change=change))


def test_series__one_position_in_time(write_series: Writer) -> None:
    change = {n: {"TriggerTime": 40 * (3 - n)} for n in range(4)}
    image = load_image(write_series(ramp(4), line(5, 5, 5, 5), change=change, SliceThickness=8))
    assert (image.shape, image.spacing[2]) == ((3, 2, 1, 4), 8)
    np.testing.assert_array_equal(image.array[0, 0, 0], [300, 200, 100, 0])


def test_series__a_running_number_at_one_position_tells_nothing(write_series: Writer) -> None:
    change = {n: {"InstanceNumber": n, "ContentTime": f"1000{n:02d}"} for n in range(3)}
    with pytest.raises(DataError, match="all 3 images lie at one position"):
        load_image(write_series(ramp(3), line(5, 5, 5), change=change))


def test_series__echoes_of_several_times_are_series_of_their_own(write_series: Writer) -> None:
    change = {n: {"EchoTime": 5 + 10 * (n // 4), "TemporalPositionIdentifier": n // 2 % 2} for n in range(8)}
    found = find_series(sorted(write_series(ramp(8), line(0, 3) * 4, change=change).iterdir()))
    assert [(s.kind, s.header.shape, s.problem) for s in found] == [("4d", (3, 2, 2, 2), "")] * 2


def test_order_volumes__private_b_value_of_siemens(write_series: Writer) -> None:
    folder = write_series(ramp(6), TWO)
    import pydicom

    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0C, "IS", str(1000 * LATER[int(path.stem.split("-")[1])]))
        dataset.save_as(path)
    image = load_image(folder)
    assert "2 volumes ordered by b-value" in image.notes
    np.testing.assert_array_equal(image.array[0, 0, 0], [300, 0])


def test_order_volumes__by_hand() -> None:
    places = np.array([0, 1, 1, 0])
    rank, name = order_volumes(places, [{"TriggerTime": t} for t in (8.0, 1.0, 9.0, 2.0)])
    assert (rank.tolist(), name) == ([1, 0, 1, 0], "TriggerTime")
    rank, name = order_volumes(places, [{"TriggerTime": t} for t in (8.0, 1.0, 1.0, 2.0)])
    assert name == ""


def test_order_volumes__clock_over_midnight() -> None:
    places = np.array([0, 0, 0, 1, 1, 1])
    for day, name in ((0.0, ""), (86400.0, "AcquisitionTime")):
        # 23:59:58, 23:59:59 and 00:00:01, of an unknown date and of the next day.
        values = [{"AcquisitionTime": time} for time in (86398.0, 86399.0, day + 1.0)] * 2
        rank, found = order_volumes(places, values)
        assert found == name
        if name:
            assert rank.tolist() == [0, 1, 2, 0, 1, 2]
