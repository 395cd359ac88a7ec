"""Pixel values per header case, each computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medfm.errors import DataError
from medfm.io.load import load_image
from medfm.io.values import implausible_hounsfield, linear

Writer = Callable[..., Path]
PIXELS = np.array([[0, 1, 2], [1000, 2000, 4095]], np.uint16)


def plane(path: Path) -> np.ndarray:
    """(rows, columns) of a loaded single image."""
    return load_image(path).array[:, :, 0].T


def test_load__axes_are_column_row_slice(write_dicom: Writer) -> None:
    image = load_image(write_dicom(PIXELS, bits=12))
    assert image.array.shape == (3, 2, 1)
    assert image.array[2, 0, 0] == 2  # column 2, row 0
    assert image.array[0, 1, 0] == 1000
    assert image.array.dtype == np.int16
    assert image.bits_stored == 12


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_load__polarity_is_recorded_not_applied(write_dicom: Writer, photometric: str) -> None:
    image = load_image(write_dicom(PIXELS, bits=12, PhotometricInterpretation=photometric, WindowCenter=100, WindowWidth=50))
    assert image.photometric == photometric
    np.testing.assert_array_equal(image.array[:, :, 0].T, PIXELS)
    assert (image.windows[0].center, image.windows[0].width, image.windows[0].function) == (100.0, 50.0, "LINEAR")


def test_rescale__integral_stays_int16(write_dicom: Writer) -> None:
    path = write_dicom(PIXELS, bits=12, RescaleSlope=1, RescaleIntercept=-1024)
    assert plane(path).dtype == np.int16
    np.testing.assert_array_equal(plane(path), [[-1024, -1023, -1022], [-24, 976, 3071]])


def test_rescale__integral_beyond_16_bits_is_int32(write_dicom: Writer) -> None:
    path = write_dicom(np.array([[0, 65535]], np.uint16), RescaleSlope=3, RescaleIntercept=-1)
    assert plane(path).dtype == np.int32
    np.testing.assert_array_equal(plane(path), [[-1, 196604]])


def test_rescale__fraction_is_float32(write_dicom: Writer) -> None:
    path = write_dicom(PIXELS, bits=12, RescaleSlope="0.5", RescaleIntercept="-0.25")
    assert plane(path).dtype == np.float32
    np.testing.assert_array_equal(plane(path), [[-0.25, 0.25, 0.75], [499.75, 999.75, 2047.25]])


def test_rescale__16_bit_unsigned_stays_exact(write_dicom: Writer) -> None:
    path = write_dicom(np.array([[0, 40000, 65535]], np.uint16))
    assert plane(path).dtype == np.uint16
    np.testing.assert_array_equal(plane(path), [[0, 40000, 65535]])


def test_signed__negative_values(write_dicom: Writer) -> None:
    path = write_dicom(np.array([[-2048, -1, 2047]], np.int16), bits=12, RescaleSlope=2, RescaleIntercept=1)
    np.testing.assert_array_equal(plane(path), [[-4095, -1, 4095]])


def test_signed__12_bits_in_unused_high_bits(write_dicom: Writer) -> None:
    # 0x0FFF in 12 signed bits is -1, whatever the four unused bits hold (PS3.5 8.1.1).
    path = write_dicom(np.array([[0x0FFF, 0x07FF, 0x0800]], np.int16), bits=12)
    np.testing.assert_array_equal(plane(path), [[-1, 2047, -2048]])


def test_rescale__zero_slope_is_refused(write_dicom: Writer) -> None:
    with pytest.raises(DataError, match="RescaleSlope is 0"):
        load_image(write_dicom(PIXELS, RescaleSlope=0, RescaleIntercept=0))


def lut_item(values: list[int], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(values), first, bits])
    item.add_new("LUTData", "US", values)
    return item


def test_modality_lut__clips_at_both_ends(write_dicom: Writer) -> None:
    item = lut_item([100, 200, 300], first=1, bits=16)
    path = write_dicom(np.array([[0, 1, 2, 3, 9]], np.uint16), ModalityLUTSequence=[item], RescaleSlope=5, RescaleIntercept=0)
    np.testing.assert_array_equal(plane(path), [[100, 100, 200, 300, 300]])


def test_voi_lut__recorded_first_and_not_applied(write_dicom: Writer) -> None:
    item = lut_item([0, 10, 255], first=2, bits=8)
    image = load_image(write_dicom(PIXELS, bits=12, VOILUTSequence=[item], WindowCenter=[40, 300], WindowWidth=[400, 1500]))
    np.testing.assert_array_equal(image.array[:, :, 0].T, PIXELS)
    table, first, second = image.windows
    assert table.function == "LUT"
    assert table.lut is not None
    assert (table.lut.tolist(), table.first, table.lut_max) == ([0, 10, 255], 2, 255)
    assert [(w.center, w.width) for w in (first, second)] == [(40, 400), (300, 1500)]


def test_voi_lut__first_value_is_signed_where_values_are(write_dicom: Writer) -> None:
    item = lut_item([0, 1], first=64512, bits=8)  # -1024 written as unsigned
    image = load_image(write_dicom(PIXELS, bits=12, VOILUTSequence=[item], RescaleSlope=1, RescaleIntercept=-1024))
    assert image.windows[0].first == -1024


def test_windows__function_and_broken_width(write_dicom: Writer) -> None:
    image = load_image(write_dicom(PIXELS, bits=12, WindowCenter=[1, 2], WindowWidth=[0, 0.5], VOILUTFunction="LINEAR_EXACT"))
    assert [(w.width, w.function) for w in image.windows] == [(0.5, "LINEAR_EXACT")]
    assert any("width 0" in note for note in image.notes)


def test_padding__becomes_the_lowest_other_value(write_dicom: Writer) -> None:
    stored = np.array([[-2000, 0, 10], [-2000, 500, 20]], np.int16)
    image = load_image(
        write_dicom(stored, Modality="CT", PixelPaddingValue=-2000, RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    )
    np.testing.assert_array_equal(image.array[:, :, 0].T, [[-1024, -1024, -1014], [-1024, -524, -1004]])
    assert any("padding (33 %" in note for note in image.notes)


def test_padding__of_monochrome1_becomes_the_highest(write_dicom: Writer) -> None:
    stored = np.array([[0, 5], [9, 7]], np.uint16)
    image = load_image(write_dicom(stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0))
    np.testing.assert_array_equal(image.array[:, :, 0].T, [[9, 5], [9, 7]])


def test_padding__range_and_values_inside_the_image(write_dicom: Writer) -> None:
    stored = np.array([[0, 1, 2, 3, 50, 60]], np.uint16)
    image = load_image(write_dicom(stored, PixelPaddingValue=0, PixelPaddingRangeLimit=2))
    np.testing.assert_array_equal(image.array[:, 0, 0], [3, 3, 3, 3, 50, 60])
    inside = load_image(write_dicom(stored, PixelPaddingValue=50))
    np.testing.assert_array_equal(inside.array[:, 0, 0], stored[0])
    assert any("ignored" in note for note in inside.notes)


@pytest.mark.parametrize(
    ("tags", "stored", "units"),
    [
        ({"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}, [0, 1000, 2000], "HU"),
        ({"RescaleSlope": 1, "RescaleIntercept": -1024}, [0, 1000, 2000], "HU"),
        ({"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU_MOD"}, [0, 1000, 2000], "arbitrary"),
        ({}, [0, 1000, 1400], "arbitrary"),  # never rescaled
        ({"RescaleSlope": 1, "RescaleIntercept": 0}, [0, 1024, 4095], "arbitrary"),  # no air
        ({"RescaleSlope": 1, "RescaleIntercept": -8192}, [0, 1000, 2000], "arbitrary"),
        (
            {"RescaleSlope": 1, "RescaleIntercept": -1024, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
            [0, 9, 2000],
            "arbitrary",
        ),
    ],
)
def test_units__hounsfield_only_where_they_can_be(write_dicom: Writer, tags: dict, stored: list[int], units: str) -> None:
    image = load_image(write_dicom(np.array([stored], np.uint16), Modality="CT", **tags))
    assert image.intensity_units == units
    assert bool(image.notes) == (units != "HU")


def test_units__other_modalities(write_dicom: Writer) -> None:
    grey = np.array([[0, 200]], np.uint8)
    assert load_image(write_dicom(grey, Modality="US")).intensity_units == "display"
    assert load_image(write_dicom(grey, Modality="CR", WindowCenter=9, WindowWidth=4)).intensity_units == "arbitrary"
    assert load_image(write_dicom(PIXELS, Modality="PT", Units="BQML", RescaleSlope=2)).intensity_units == "BQML"
    stored = load_image(write_dicom(PIXELS, Modality="PT", Units="BQML"))
    assert stored.intensity_units == "arbitrary"
    assert "without RescaleSlope" in stored.notes[0]
    assert load_image(write_dicom(PIXELS, Modality="MR")).intensity_units == "arbitrary"


def test_colour__rgb_and_ybr(write_dicom: Writer) -> None:
    rgb = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], np.uint8)
    image = load_image(write_dicom(rgb, Modality="US"))
    assert (image.photometric, image.last_axis, image.array.shape) == ("RGB", "colour", (2, 2, 1, 3))
    np.testing.assert_array_equal(image.array[:, :, 0].swapaxes(0, 1), rgb)
    # Pure red is Y 76, Cb 85, Cr 255 in YBR_FULL (PS3.3 C.7.6.3.1.2).
    ybr = np.array([[[76, 85, 255], [128, 128, 128]]], np.uint8)
    image = load_image(write_dicom(ybr, Modality="US", PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_allclose(image.array[:, 0, 0], [[255, 0, 0], [128, 128, 128]], atol=2)


def test_colour__palette(write_dicom: Writer) -> None:
    tables = {}
    for name, values in (("Red", [0, 255, 16]), ("Green", [0, 0, 32]), ("Blue", [0, 128, 48])):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = np.array([v * 257 for v in values], "<u2").tobytes()
    path = write_dicom(np.array([[0, 1, 2, 1]], np.uint8), PhotometricInterpretation="PALETTE COLOR", Modality="US", **tables)
    image = load_image(path)
    assert image.photometric == "RGB"
    np.testing.assert_array_equal(image.array[:, 0, 0], [[0, 0, 0], [255, 0, 128], [16, 32, 48], [255, 0, 128]])


def test_linear__equals_float64_for_every_dtype() -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64):
        info = np.iinfo(dtype)
        array = rng.integers(info.min, info.max, 1000, dtype=dtype, endpoint=True)
        for slope, intercept in ((1, 0), (1, -40000), (-1, 0), (3, 7), (0.25, 1.5), (1e6, -1e9), (1, 1e30)):
            expected = array.astype(np.float64) * slope + intercept
            np.testing.assert_allclose(linear(array, float(slope), float(intercept)), expected, rtol=1e-6)


def test_implausible_hounsfield__chest_ct_is_plausible() -> None:
    assert implausible_hounsfield(-1024, 3071) == ""
    assert implausible_hounsfield(-3024, 1400) == ""
    assert "[0, 1]" in implausible_hounsfield(0, 1)
    assert "twice" in implausible_hounsfield(-2048, -900)


def test_to_physical__an_empty_slope_beside_an_intercept(write_dicom: Writer) -> None:
    with pytest.raises(DataError, match="RescaleSlope is empty"):
        load_image(write_dicom(PIXELS, Modality="CT", RescaleSlope="", RescaleIntercept=-1024))
    assert load_image(write_dicom(PIXELS, Modality="MR", RescaleSlope="", RescaleIntercept="")).array.max() == PIXELS.max()


def test_physical__a_lut_beside_a_rescale_is_noted(write_dicom: Writer) -> None:
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [4, 0, 16], "US", [10, 20, 30, 40]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    image = load_image(
        write_dicom(np.array([[0, 3]], np.uint16), ModalityLUTSequence=[table], RescaleSlope=2, RescaleIntercept=5)
    )
    np.testing.assert_array_equal(image.array[:, 0, 0], [10, 40])
    assert "a modality LUT and a rescale" in image.notes[0]


@pytest.mark.parametrize(
    ("shape", "photometric", "noted"),
    [
        ("INVERSE", "MONOCHROME2", True),
        ("IDENTITY", "MONOCHROME1", True),
        ("INVERSE", "MONOCHROME1", False),
        ("IDENTITY", "MONOCHROME2", False),
    ],
)
def test_physical__presentation_shape(write_dicom: Writer, shape: str, photometric: str, noted: bool) -> None:
    image = load_image(write_dicom(PIXELS, PhotometricInterpretation=photometric, PresentationLUTShape=shape))
    assert image.photometric == photometric
    assert bool(image.notes) == noted
