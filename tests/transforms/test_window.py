"""VOI arithmetic, by hand from PS3.3 C.11.2 and against pydicom."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm.errors import DataError
from medfm.transforms.window import apply_window, percentile_range, to_range
from medfm.types import Window


def test_linear__the_standards_examples() -> None:
    # C.11.2.1.2.1: centre 2048, width 4096 maps 0..4095 to the whole range; centre 0, width 1 is a step above -0.5.
    x = np.array([-1, 0, 1, 2047, 2048, 4095, 4096], np.int16)
    expected = [0, 0, 1 / 4095, 2047 / 4095, 2048 / 4095, 1, 1]
    np.testing.assert_allclose(apply_window(x, Window(2048, 4096)), expected, atol=1e-6)
    np.testing.assert_array_equal(apply_window(np.array([-1, 0, 1]), Window(0, 1)), [0, 1, 1])


def test_linear_exact__and_sigmoid_by_hand() -> None:
    x = np.array([-50.0, 0.0, 25.0, 50.0, 80.0])
    np.testing.assert_allclose(apply_window(x, Window(0, 100, "LINEAR_EXACT")), [0, 0.5, 0.75, 1, 1], atol=1e-6)
    np.testing.assert_allclose(apply_window(x, Window(0, 100, "SIGMOID")), 1 / (1 + np.exp(-4 * x / 100)), rtol=1e-5)


def test_sigmoid__far_values_do_not_overflow() -> None:
    values = apply_window(np.array([-(2**15), 2**15], np.int32), Window(0, 4, "SIGMOID"))
    np.testing.assert_array_equal(values, [0, 1])


def test_lut__clips_and_scales() -> None:
    table = Window(function="LUT", lut=np.array([0, 100, 255], np.float32), first=-1, lut_max=255)
    np.testing.assert_allclose(apply_window(np.array([-9, -1, 0, 1, 7]), table), [0, 0, 100 / 255, 1, 1])


@settings(deadline=None)
@given(
    center=st.floats(-2000, 2000),
    width=st.floats(2, 4000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    seed=st.integers(0, 99),
)
def test_apply_window__equals_pydicom(center: float, width: float, function: str, seed: int) -> None:
    from pydicom.dataset import Dataset
    from pydicom.pixels import apply_windowing

    stored = np.random.default_rng(seed).integers(-2048, 2047, 200).astype(np.int16)
    dataset = Dataset()
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelRepresentation = 1
    dataset.BitsStored = 12
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = round(center, 4), round(width, 4), function
    expected = (apply_windowing(stored, dataset) + 2048) / 4095
    window = Window(float(dataset.WindowCenter), float(dataset.WindowWidth), function)
    np.testing.assert_allclose(apply_window(stored, window), expected, atol=2e-4 if width < 10 else 1e-5)


@pytest.mark.parametrize("order", ["C", "F", "strided"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize(
    "window", [Window(30, 400, "SIGMOID"), Window(function="LUT", lut=np.arange(300, dtype=np.float32), first=-20, lut_max=299)]
)
def test_apply_window__large_films_by_table_equal_small_ones(window: Window, dtype: type, order: str) -> None:
    film = np.random.default_rng(0).integers(0 if dtype == np.uint16 else -500, 1000, (1100, 700)).astype(dtype)
    film = film[::2] if order == "strided" else np.asarray(film, order=order)  # type: ignore[call-overload]
    found = apply_window(film, window)
    np.testing.assert_array_equal(found[:40], apply_window(film[:40].copy(), window))
    assert found.shape == film.shape
    assert found.flags.f_contiguous == (order == "F")


@pytest.mark.parametrize(
    "window",
    [Window(0, 0.5), Window(0, 0, "SIGMOID"), Window(0, -1, "LINEAR_EXACT"), Window(0, 9, "CUBIC"), Window(function="LUT")],
)
def test_apply_window__refuses(window: Window) -> None:
    with pytest.raises(DataError):
        apply_window(np.zeros(3), window)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_percentile_range__near_numpys(dtype: type) -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(100, 20, (300, 200)).clip(0, 255).astype(dtype)
    expected = np.percentile(array, (1, 99))
    np.testing.assert_allclose(percentile_range(array, 1, 99), expected, atol=1)
    assert percentile_range(array, 0, 100) == (array.min(), array.max())


def test_percentile_range__negative_integers() -> None:
    array = np.arange(-1000, 1001, dtype=np.int16)
    assert percentile_range(array, 25, 75) == pytest.approx((-500, 500), abs=1)


def test_to_range__one_value_is_black() -> None:
    np.testing.assert_array_equal(to_range(np.full((2, 2), 7), 7, 7), np.zeros((2, 2)))
