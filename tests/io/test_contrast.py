"""Slices that lie on one grid and do not mean the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io.load import load_image, peek

Writer = Callable[..., Path]
CT = {"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "RescaleSlope": 1, "RescaleIntercept": -100}
PT = {"Modality": "PT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128", "Units": "BQML", "RescaleSlope": 2, "RescaleIntercept": 0}


def ramp(count: int) -> np.ndarray:
    return (np.arange(count)[:, None, None] * 100 + np.arange(6).reshape(2, 3)).astype(np.uint16)


def line(count: int) -> list[list[float]]:
    return [[0.0, 0.0, 5.0 * n] for n in range(count)]


@pytest.mark.parametrize(
    ("tags", "change", "reason"),
    [
        (CT, {"RescaleSlope": None, "RescaleIntercept": None}, "whether they have a rescale"),
        (CT, {"RescaleType": "OD"}, "RescaleType"),
        (PT, {"Units": "CNTS"}, "Units"),
        ({"EchoTime": 10}, {"EchoTime": 80}, "EchoTime: from 10 to 80"),
        ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}, "b-value: from 0 to 1000"),
    ],
)
def test_disagreement__values_of_two_kinds(write_series: Writer, tags: dict[str, Any], change: dict, reason: str) -> None:
    folder = write_series(ramp(4), line(4), change={2: change, 3: change}, **tags)
    with pytest.raises(DataError, match=reason):
        load_image(folder)
    assert reason in peek(folder).problem


def test_disagreement__one_scale_in_two_spellings(write_series: Writer) -> None:
    image = load_image(write_series(ramp(4), line(4), change={2: {"RescaleType": "HU"}}, **CT))
    assert (image.intensity_units, image.notes) == ("HU", ())


@pytest.mark.parametrize(
    ("tags", "change", "word"),
    [
        (CT, {"ConvolutionKernel": "B70f"}, "ConvolutionKernel"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, "ImageType"),
        ({"RescaleSlope": 1}, {"RescaleSlope": None}, "whether they have a rescale"),
    ],
)
def test_disagreement__noted(write_series: Writer, tags: dict[str, Any], change: dict, word: str) -> None:
    image = load_image(write_series(ramp(4), line(4), change={2: change, 3: change}, **tags))
    assert image.shape == (3, 2, 4)
    assert [note for note in image.notes if word in note]


def test_disagreement__kernels_at_the_same_places_are_two_stacks(write_series: Writer) -> None:
    from medfm.io.group import find_series

    change = {n: {"ConvolutionKernel": "B70f", "InstanceNumber": n} if n > 2 else {"InstanceNumber": n} for n in range(6)}
    folder = write_series(ramp(6), line(3) + line(3), change=change, **{**CT, "ConvolutionKernel": "B30f"})
    found = find_series(sorted(folder.iterdir()))
    assert [s.header.shape for s in found] == [(3, 2, 3), (3, 2, 3)]
    means = sorted(float(load_image(s.path).array.mean()) for s in found)
    np.testing.assert_allclose(means, [2.5, 302.5])


def test_grid_notes__strays_and_even_gaps(write_series: Writer) -> None:
    image = load_image(write_series(ramp(4), [[0, 0, z] for z in (0, 5, 10.3, 15)]))
    assert [note for note in image.notes if "stray by up to 0.3 mm" in note]
    image = load_image(write_series(ramp(4), line(4), folder="b", SpacingBetweenSlices=2.5))
    assert [note for note in image.notes if "5 mm apart and SpacingBetweenSlices says 2.5" in note]
    assert load_image(write_series(ramp(4), line(4), folder="c", SpacingBetweenSlices=5)).notes == ()
