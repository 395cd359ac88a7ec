"""The memory of scanned folders, and references into them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io import folder as module
from medfm.io.load import load_image, peek

Writer = Callable[..., Path]


def ramp(count: int, start: int = 0) -> np.ndarray:
    return (start + np.arange(count)[:, None, None] * 100 + np.arange(6).reshape(2, 3)).astype(np.uint16)


def line(*heights: float) -> list[list[float]]:
    return [[1.0, 2.0, z] for z in heights]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose headers were read for a scan."""
    found: list[Path] = []
    real = module.read_header

    def counted(path: Path) -> object:
        found.append(path)
        return real(path)

    monkeypatch.setattr(module, "read_header", counted)
    monkeypatch.setattr(module, "_known", type(module._known)())
    monkeypatch.setattr(module, "_FRESH_NS", 0)
    return found


def test_scan_folder__reads_new_and_changed_files_only(write_series: Writer, reads: list[Path]) -> None:
    folder = write_series(ramp(4), line(0, 1, 2, 3))
    first = load_image(folder)
    assert len(reads) == 4
    second = load_image(folder)
    assert len(reads) == 4
    np.testing.assert_array_equal(first.array, second.array)
    files = sorted(folder.iterdir())
    moved = files[0].read_bytes()
    files[0].unlink()
    assert load_image(folder).shape == (3, 2, 3)  # the lowest slice: nothing tells that it is gone
    assert len(reads) == 4
    files[0].write_bytes(moved)
    os.utime(files[0], ns=(1, 1))
    assert load_image(folder).shape == (3, 2, 4)
    assert reads[4:] == [files[0]]


def test_scan_folder__a_changed_place_is_seen(write_series: Writer) -> None:
    folder = write_series(ramp(4), line(0, 1, 2, 3))
    assert load_image(folder).shape == (3, 2, 4)
    # The same names, sizes and folder, with another geometry.
    write_series(ramp(4), line(0, 1, 2, 5))
    with pytest.raises(DataError, match=r"missing slices: 2|not uniform"):
        load_image(folder)


def test_scan_folder__a_fresh_file_is_read_again(
    write_series: Writer, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FRESH_NS", 10**12)
    folder = write_series(ramp(2), line(0, 1))
    load_image(folder)
    load_image(folder)
    assert len(reads) == 4


def test_scan_folder__a_rewritten_file_of_the_same_time_and_size(write_series: Writer, reads: list[Path]) -> None:
    folder = write_series(ramp(2), line(0, 1))
    last = max(folder.iterdir(), key=lambda p: p.name[-5])
    os.utime(last, ns=(1, 1))
    assert load_image(folder).spacing[2] == 1
    data = last.read_bytes()
    assert data.count(b"1.0\\2.0\\1.0") == 1
    time.sleep(0.05)
    with open(last, "r+b") as file:
        file.write(data.replace(b"1.0\\2.0\\1.0", b"1.0\\2.0\\7.0"))
    os.utime(last, ns=(1, 1))
    assert load_image(folder).spacing[2] == 7


def test_scan_folder__forgets_the_oldest(write_series: Writer, reads: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SLICES", 5)
    first, second = write_series(ramp(3), line(0, 1, 2)), write_series(ramp(3), line(0, 1, 2), folder="b")
    for folder in (first, second, second, first):
        load_image(folder)
    assert len(reads) == 9
    assert len(module._known) == 1


def test_load_image__volume_of_what_has_no_time_axis(write_series: Writer) -> None:
    folder = write_series(ramp(3), line(0, 1, 2))
    with pytest.raises(DataError, match="no time axis"):
        load_image(f"{folder}#volume=0")
    with pytest.raises(DataError, match="no time axis"):
        load_image(f"{sorted(folder.iterdir())[0]}#volume=0")


def test_load_image__series_of_a_single_file(write_series: Writer) -> None:
    from medfm.io.group import find_series

    path = sorted(write_series(ramp(3), line(0, 1, 2)).iterdir())[1]
    (series,) = find_series([path])
    assert load_image(f"{path}#series={series.key}").shape == (3, 2, 1)
    assert peek(f"{path}#series={series.key}").image_id == series.header.image_id
