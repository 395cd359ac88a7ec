"""The contract: one film in two polarities, orientation, refusals, hash."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medfm.errors import DataError
from medfm.io.load import load_image
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess, display
from medfm.types import Image, Window


def film(pixels: np.ndarray, **fields: Any) -> Image:
    """An Image of (rows, columns) or (rows, columns, 3)."""
    array = pixels.swapaxes(0, 1)[:, :, None]
    defaults: dict[str, Any] = {
        "affine": np.eye(4),
        "modality": "DX",
        "intensity_units": "arbitrary",
        "source": "film.dcm",
        "last_axis": "colour" if pixels.ndim == 3 else None,
        "photometric": "RGB" if pixels.ndim == 3 else "MONOCHROME2",
    }
    return Image(array=array, **{**defaults, **fields})


def volume(array: np.ndarray, **fields: Any) -> Image:
    defaults: dict[str, Any] = {"affine": np.eye(4), "modality": "CT", "intensity_units": "HU", "source": "ct"}
    return Image(array=array, **{**defaults, **fields})


def run(image: Image, **config: Any) -> np.ndarray:
    return Preprocess(PreprocessConfig(**{"dtype": "float32", "window": "none", **config}))(image)


NOISE = np.random.default_rng(0).integers(0, 4096, (40, 60)).astype(np.int16)


@settings(deadline=None)
@given(
    center=st.integers(500, 3500),
    width=st.integers(2, 4000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    dtype=st.sampled_from(["uint8", "float32"]),
)
def test_call__one_film_in_both_polarities_gives_equal_output(center: int, width: int, function: str, dtype: str) -> None:
    top = 4095
    # LINEAR takes its centre at c - 0.5, so the mirrored window's centre is one higher.
    mirrored = top - center + (1 if function == "LINEAR" else 0)
    bright = film(NOISE, windows=(Window(center, width, function),))
    dark = film(top - NOISE, windows=(Window(mirrored, width, function),), photometric="MONOCHROME1")
    config = PreprocessConfig(size=(32, 32), dtype=dtype)
    first, second = Preprocess(config)(bright), Preprocess(config)(dark)
    # Half-way cases of the rounding to uint8 may fall either way.
    np.testing.assert_allclose(first.astype(np.float64), second.astype(np.float64), atol=1 if dtype == "uint8" else 1e-5)
    assert np.mean(first != second) < 0.02 or dtype == "float32"
    assert first.std() > 0


@pytest.mark.parametrize("window", ["minmax", "percentile", "none"])
def test_call__inversion_happens_once_whatever_the_window(window: str) -> None:
    pixels = np.array([[0, 1000], [3000, 4095]], np.int16)
    config = {"window": window, "size": (2, 2), "percentiles": (0, 100)}
    plain = run(film(pixels, bits_stored=12), **config)
    inverted = run(film(pixels, bits_stored=12, photometric="MONOCHROME1"), **config)
    np.testing.assert_allclose(plain[0], pixels / 4095, atol=1e-6)
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99))
def test_call__identity_config_changes_no_byte(seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (17, 23), dtype=np.uint8)
    for resize in ("pad", "stretch", "crop"):
        config = PreprocessConfig(size=(17, 23), window="none", resize=resize)
        out = Preprocess(config)(film(pixels, intensity_units="display"))
        assert out.dtype == np.uint8
        assert out.flags.c_contiguous
        np.testing.assert_array_equal(out, pixels[None])


def test_call__does_not_change_the_image() -> None:
    image = film(NOISE.astype(np.float32), photometric="MONOCHROME1")
    before = image.array.copy()
    run(image, window="minmax", size=(40, 60))
    np.testing.assert_array_equal(image.array, before)


@pytest.mark.parametrize("resize", ["pad", "stretch", "crop"])
def test_call__a_marker_stays_in_its_corner(resize: str) -> None:
    pixels = np.zeros((60, 60), np.uint8)
    pixels[5:20, 40:55] = 255  # top right
    out = run(film(pixels), size=(30, 30), resize=resize)[0]
    rows, columns = np.nonzero(out > 0.5)
    assert (rows.mean(), columns.mean()) == pytest.approx((5.75, 23.25), abs=0.5)


def test_call__pad_keeps_the_shape_of_things() -> None:
    out = run(film(np.full((100, 50), 255, np.uint8)), size=(64, 64))[0]
    assert out.shape == (64, 64)
    np.testing.assert_array_equal(out[:, :16], 0)
    np.testing.assert_array_equal(out[:, 48:], 0)
    np.testing.assert_allclose(out[:, 16:48], 1, atol=1e-6)


def test_call__crop_fills_and_cuts_the_middle() -> None:
    pixels = np.zeros((100, 50), np.uint8)
    pixels[25:75] = 255
    np.testing.assert_allclose(run(film(pixels), size=(64, 64), resize="crop"), 1, atol=1e-6)


def test_call__stretch_fills_with_everything() -> None:
    pixels = np.zeros((100, 50), np.uint8)
    pixels[:50] = 255
    out = run(film(pixels), size=(64, 64), resize="stretch")[0]
    np.testing.assert_allclose(out[:31], 1, atol=1e-6)
    np.testing.assert_array_equal(out[33:], 0)


def test_call__spacing_of_rows_and_columns() -> None:
    pixels = np.full((40, 40), 255, np.uint8)
    # Columns 1 mm apart, rows 2 mm: 80 mm high, 40 mm wide.
    out = run(film(pixels, affine=np.diag([1.0, 2.0, 1.0, 1.0])), spacing=(1, 1), size=(100, 100))[0]
    assert (out > 0.5).any(axis=1).sum() == 80
    assert (out > 0.5).any(axis=0).sum() == 40
    with pytest.raises(DataError, match=r"preprocess\.spacing"):
        run(film(pixels, spaced=False), spacing=(1, 1))


def test_call__foreground_crop_before_resize() -> None:
    pixels = np.zeros((80, 80), np.uint8)
    pixels[20:60, 20:60] = np.random.default_rng(0).integers(100, 256, (40, 40))
    out = run(film(pixels), size=(40, 40), crop_foreground=True)[0]
    np.testing.assert_allclose(out, pixels[20:60, 20:60] / 255, atol=1e-6)


def test_call__colour_to_grey_and_grey_to_three() -> None:
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[..., 1] = 255
    np.testing.assert_allclose(run(film(colour), size=(4, 4)), 0.587, atol=1e-6)
    kept = run(film(colour), size=(4, 4), channels=3)
    np.testing.assert_array_equal(kept[:, 0, 0], [0, 1, 0])
    grey = run(film(NOISE.astype(np.uint8)), size=(40, 60), channels=3)
    assert grey.shape == (3, 40, 60)
    np.testing.assert_array_equal(grey[0], grey[2])


def test_call__window_voi_takes_the_first_and_falls_back() -> None:
    pixels = np.array([[0, 50, 100, 200]], np.int16)
    windows = (Window(50, 100, "LINEAR_EXACT"), Window(0, 9))
    np.testing.assert_allclose(run(film(pixels, windows=windows), window="voi", size=(1, 4))[0, 0], [0, 0.5, 1, 1])
    fallback = run(film(pixels), window="voi", percentiles=(0, 100), size=(1, 4))
    np.testing.assert_allclose(fallback[0, 0], [0, 0.25, 0.5, 1])
    picture = film(np.array([[51, 102]], np.uint8), intensity_units="display")
    np.testing.assert_allclose(run(picture, window="voi", size=(1, 2))[0, 0], [0.2, 0.4])


def test_call__hounsfield_window() -> None:
    array = np.array([-2000, -1000, -500, 0, 1000, 3000], np.int16)[:, None, None] * np.ones((1, 2, 2), np.int16)
    out = run(volume(array), window="hu", hu_window=(-1000, 1000), size=(2, 2, 6))
    np.testing.assert_allclose(out[0, 0, 0], [0, 0, 0.25, 0.5, 1, 1])


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR", "IPL"])
def test_call__volume_axes_follow_the_orientation(orientation: str) -> None:
    rng = np.random.default_rng(0)
    array = np.zeros((6, 8, 10), np.uint8)
    affine = np.array([[0, 0, -1.0, 3], [-1, 0, 0, 4], [0, 1, 0, 5], [0, 0, 0, 1]])  # axes P, S, L
    index = rng.integers(1, 5, 3)
    array[tuple(index)] = 255
    point = (affine @ [*index, 1])[:3]
    size = {"R": 10, "L": 10, "A": 6, "P": 6, "S": 8, "I": 8}
    shape = tuple(size[letter] for letter in orientation[::-1])
    out = run(volume(array, affine=affine), orientation=orientation, size=shape)[0]
    found = np.argwhere(out == 1)[0][::-1]  # (W, H, D) = position along each letter
    corners = affine @ np.array([[0, 0, 0, 1], [5, 7, 9, 1]]).T
    low = corners[:3].min(axis=1)
    for axis, letter in enumerate(orientation):
        world = "RAS".find(letter) if letter in "RAS" else "LPI".find(letter)
        along = point[world] - low[world]
        expected = along if letter in "RAS" else size[letter] - 1 - along
        assert found[axis] == pytest.approx(expected)


def test_call__volume_spacing() -> None:
    array = np.full((20, 20, 10), 255, np.uint8)
    out = run(volume(array, affine=np.diag([1.0, 1, 3, 1])), spacing=(1.5, 1, 2), size=(30, 30, 30))[0]
    box = [int((out > 0.5).any(axis=tuple(a for a in range(3) if a != axis)).sum()) for axis in range(3)]
    assert box == [20, 20, 10]  # 30 mm / 1.5, 20 mm / 1, 20 mm / 2


@pytest.mark.parametrize(
    ("image", "config", "reason"),
    [
        (film(NOISE, modality="CT"), {"modalities": ("CR", "DX")}, "is CT; the preprocessing contract takes CR, DX"),
        (film(NOISE), {"window": "hu"}, "not Hounsfield units"),
        (film(NOISE, modality="OT", notes=("a note",)), {"window": "hu"}, r"\(a note\).*state modality CT"),
        (film(NOISE), {"size": (4, 4, 4)}, "is a single image"),
        (volume(np.zeros((4, 4, 4))), {}, "is a volume of 4 slices"),
        (volume(np.zeros((4, 4, 4, 2)), last_axis="time"), {"size": (4, 4, 4)}, r"time axis \(2 volumes\).*'ct#volume=0'"),
        (volume(np.zeros((4, 4, 1, 9, 3)), last_axis="time, colour"), {"size": (4, 4)}, r"time axis \(9 volumes\)"),
        (film(NOISE, modality="PT", intensity_units="BQML"), {"window": "fixed", "units": "SUV"}, "holds BQML.*takes SUV"),
        (
            volume(np.zeros((4, 4, 4)), photometric="MONOCHROME1"),
            {"size": (4, 4, 4), "window": "hu", "dtype": "int16"},
            "MONOCHROME1",
        ),
        (volume(np.linspace(0, 1, 64).reshape(4, 4, 4)), {"size": (4, 4, 4), "window": "hu"}, r"already scaled to \[0, 1\]"),
        (volume(np.linspace(-9000, 900, 64).reshape(4, 4, 4)), {"size": (4, 4, 4), "window": "hu"}, "rescaled twice"),
        (volume(np.linspace(-2048, -900, 64).reshape(4, 4, 4)), {"size": (4, 4, 4), "window": "hu"}, "rescaled twice"),
        (volume(np.linspace(0, 4095, 64).reshape(4, 4, 4)), {"size": (4, 4, 4), "window": "hu"}, "without their rescale"),
        (film(NOISE), {"window": "none"}, "window=none needs values in display range"),
        (film(NOISE, windows=(Window(0, 0.5),)), {"window": "voi"}, r"film\.dcm.*width 0\.5"),
        (volume(np.zeros((2, 2, 2)), affine=np.diag([1e6, 1e6, 1e6, 1])), {"size": (2, 2, 2), "spacing": (1, 1, 1)}, "right"),
    ],
)
def test_call__refuses_what_contradicts_the_contract(image: Image, config: dict, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        run(image, **config)


def test_call__unknown_modality_is_no_contradiction() -> None:
    run(film(NOISE.astype(np.uint8), modality="OT"), modalities=("CR",), size=(8, 8))


def test_to_float__is_normalise_after_to_unit() -> None:
    preprocess = Preprocess(PreprocessConfig(mean=(0.5,), std=(0.25,)))
    batch = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(preprocess.to_unit(batch), torch.tensor([[[[0, 0.2, 1]]]]))
    torch.testing.assert_close(preprocess.to_float(batch), torch.tensor([[[[-2, -1.2, 2]]]]))
    unit = preprocess.to_unit(batch)
    kept = unit.clone()
    preprocess.normalise(unit)
    torch.testing.assert_close(unit, kept)


@pytest.mark.parametrize("dims", [2, 3])
def test_normalise__a_mean_for_each_channel(dims: int) -> None:
    preprocess = Preprocess(PreprocessConfig(channels=3, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), size=(4,) * dims))
    out = preprocess.normalise(torch.zeros(2, 3, *(4,) * dims))
    torch.testing.assert_close(out[1].flatten(1)[:, 0], torch.tensor([-0.1, -0.1, -0.075]))


def test_to_unit__float_storage_stays() -> None:
    batch = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(Preprocess(PreprocessConfig(dtype="float32")).to_unit(batch), batch)


OTHER = {
    "size": (225, 224),
    "window": "minmax",
    "percentiles": (1, 99),
    "hu_window": (-100.0, 200.0),
    "crop_foreground": True,
    "spacing": (1.0, 1.0),
    "orientation": "LPS",
    "resize": "crop",
    "channels": 3,
    "dtype": "float32",
    "mean": (0.4,),
    "std": (0.3,),
    "modalities": ("CR",),
    "windows": ((-1000.0, 400.0),),
    "value_range": (0.0, 5.0),
    "zscore_range": 3.0,
    "units": "HU",
    "foreground_threshold": -500.0,
    "pad_value": 0.5,
    "tilt": "resample",
    "reduced_decode": True,
    "sequences": ("T1", "T2", "FLAIR"),
}
# What a field needs beside it.
WITH = {"windows": {"window": "hu"}, "sequences": {"window": "minmax", "channels": 3}}


def test_hash__changes_with_every_field() -> None:
    assert set(OTHER) == set(PreprocessConfig.model_fields), "a new field of PreprocessConfig belongs into OTHER"
    hashes = {
        Preprocess(PreprocessConfig(**{**WITH.get(key, {}), key: value})).hash()  # type: ignore[arg-type]
        for key, value in OTHER.items()
    }
    hashes |= {Preprocess(PreprocessConfig(**fields)).hash() for fields in ({}, {"window": "hu"})}  # type: ignore[arg-type]
    assert len(hashes) == len(OTHER) + 2
    assert all(len(h) == 12 and int(h, 16) >= 0 for h in hashes)


def test_hash__survives_json_and_pickle() -> None:
    preprocess = Preprocess(PreprocessConfig(spacing=(1, 1), mean=(0.1,)))
    again = PreprocessConfig.model_validate_json(preprocess.config.model_dump_json())
    assert Preprocess(again).hash() == preprocess.hash() == pickle.loads(pickle.dumps(preprocess)).hash()


@pytest.mark.parametrize(
    "bad",
    [
        {"orientation": "RAR"},
        {"orientation": "RA"},
        {"spacing": (1, 1), "resize": "stretch"},
        {"spacing": (1, 0)},
        {"percentiles": (-1, 50)},
        {"std": (0,)},
        {"windows": [(-1000, 400)]},
        {"windows": [(-1000, 400), (-160, 240)], "window": "hu"},
        {"windows": [(400, -1000)], "window": "hu"},
        {"channels": 2},
        {"window": "hu", "units": "SUV"},
        {"dtype": "int16", "window": "auto"},
        {"dtype": "int16", "window": "hu", "hu_window": (-2000, 400)},
        {"pad_value": -1000},
        {"foreground_threshold": 0, "crop_foreground": True},
        {"reduced_decode": True, "spacing": (1, 1)},
        {"reduced_decode": True, "size": (8, 8, 8)},
        {"value_range": (5, 5)},
    ],
)
def test_config__refuses(bad: dict) -> None:
    with pytest.raises(ValidationError):
        PreprocessConfig(**bad)


def test_display__windowed_and_upright() -> None:
    image = film(np.array([[0, 50, 100]], np.int16), windows=(Window(50, 100, "LINEAR_EXACT"),))
    np.testing.assert_allclose(display(image), [[0, 0.5, 1]])
    np.testing.assert_allclose(display(replace(image, photometric="MONOCHROME1")), [[1, 0.5, 0]])
    colour = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_allclose(display(film(colour)), colour / 255, atol=1e-6)
    assert display(volume(np.zeros((2, 3, 4), np.int16))).shape == (4, 3, 2)
    assert Preprocess(PreprocessConfig(window="minmax")).display(image).max() == 1


def test_call__real_monochrome1_film(data_dir: Path) -> None:
    image = load_image(data_dir / "dicom" / "pydicom_data" / "RG3_J2KR.dcm")
    out = Preprocess(PreprocessConfig(size=(64, 64)))(image)
    # LINEAR, centre 550, width 1024, inverted by hand.
    by_hand = 1 - np.clip((image.array[:, :, 0].T - 549.5) / 1023 + 0.5, 0, 1)
    coarse = by_hand[: 64 * 27, : 64 * 27].reshape(64, 27, 64, 27).mean((1, 3))
    assert np.corrcoef(out[0].ravel(), coarse.ravel())[0, 1] > 0.97
    assert abs(out.mean() / 255 - by_hand.mean()) < 0.01


def test_call__real_ct_slice_and_brain(data_dir: Path) -> None:
    ct = load_image(data_dir / "dicom" / "transfer_syntaxes" / "CTImage.dcm")
    assert run(ct, window="hu", size=(64, 64)).std() > 0.2
    brain = load_image(data_dir / "mr3d_stroke" / "T1.nii.gz")
    out = run(brain, window="percentile", size=(32, 40, 32))
    assert out.shape == (1, 32, 40, 32)
    assert 0 <= out.min() < out.max() <= 1


def test_hash__of_contracts_of_the_first_version_is_kept() -> None:
    assert Preprocess(PreprocessConfig()).hash() == "0929fe6253a6"
    assert (
        Preprocess(PreprocessConfig(size=(64, 64), window="hu", crop_foreground=True, resize="crop")).hash() == "69580196005d"
    )


def ct(shape: tuple[int, int, int] = (20, 24, 16), **fields: Any) -> Image:
    rng = np.random.default_rng(1)
    return volume(rng.integers(-1000, 1500, shape).astype(np.int16), **fields)


WINDOWS = ((-1000.0, 400.0), (-160.0, 240.0), (400.0, 1500.0))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_windows__make_channels_whatever_the_storage(dtype: str) -> None:
    image = ct()
    config = PreprocessConfig(size=(16, 24, 20), window="hu", windows=WINDOWS, channels=3, dtype=dtype)
    preprocess = Preprocess(config)
    stored = preprocess(image)
    assert stored.shape == preprocess.stored_shape == ((1, 16, 24, 20) if dtype == "int16" else (3, 16, 24, 20))
    assert stored.dtype == dtype
    unit = preprocess.to_unit(torch.from_numpy(stored)[None])
    assert unit.shape == (1, 3, 16, 24, 20)
    by_hand = [np.clip((image.array.transpose(2, 1, 0) - low) / (high - low), 0, 1) for low, high in WINDOWS]
    np.testing.assert_allclose(unit[0], np.stack(by_hand), atol=0.5 / 255 + 1e-6 if dtype == "uint8" else 1e-6)


def test_int16__keeps_hounsfield_units_and_pads_with_air() -> None:
    array = np.array([-3000, -1000, 40.4, 5000], np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    preprocess = Preprocess(PreprocessConfig(size=(2, 2, 6), window="hu", dtype="int16", resize="none"))
    image = volume(array)
    # Values this far apart are checked elsewhere; here they show the clipping.
    preprocess.check = lambda image: None  # type: ignore[method-assign]
    stored = preprocess(image)
    assert stored[0, 0, 0].tolist() == [-1000, -1024, -1000, 40, 3071, -1000]
    unit = preprocess.to_unit(torch.from_numpy(stored)[None])[0, 0, 0, 0]
    torch.testing.assert_close(unit, torch.tensor([0, 0, 0, 0.52, 1, 0]))


def test_int16__of_other_windows_is_fifteen_bits_of_the_unit_range() -> None:
    image = volume(
        np.random.default_rng(0).normal(300, 80, (8, 9, 10)).astype(np.float32), modality="MR", intensity_units="arbitrary"
    )
    fields: dict[str, Any] = {"size": (10, 9, 8), "window": "percentile"}
    exact = Preprocess(PreprocessConfig(**fields, dtype="float32"))(image)
    preprocess = Preprocess(PreprocessConfig(**fields, dtype="int16"))
    stored = preprocess(image)
    assert stored.dtype == np.int16
    np.testing.assert_allclose(preprocess.to_unit(torch.from_numpy(stored)), exact, atol=0.6 / 32767)


def test_window__zscore_leaves_the_background_out() -> None:
    array = np.zeros((10, 10, 10), np.float32)
    array[3:7, 3:7, 3:7] = np.random.default_rng(0).normal(500, 50, (4, 4, 4))
    image = volume(array, modality="MR", intensity_units="arbitrary")
    config = PreprocessConfig(size=(10, 10, 10), window="zscore", zscore_range=4, mean=(0.5,), std=(0.125,), dtype="float32")
    preprocess = Preprocess(config)
    out = preprocess.to_float(torch.from_numpy(preprocess(image)[None]))[0, 0, 3:7, 3:7, 3:7]
    inside = array[3:7, 3:7, 3:7]
    np.testing.assert_allclose(out, ((inside - inside.mean()) / inside.std()).transpose(2, 1, 0), atol=1e-4)


def test_window__fixed_range_of_suv() -> None:
    image = volume(np.array([[[0.0, 2.5, 10, 30]]]), modality="PT", intensity_units="SUV")
    out = run(image, window="fixed", units="SUV", size=(4, 1, 1))
    np.testing.assert_allclose(out.ravel(), [0, 0.25, 1, 1])


def test_window__auto_goes_by_what_the_image_holds() -> None:
    values = np.linspace(-1000, 3000, 48).reshape(4, 4, 3)
    fields: dict[str, Any] = {"size": (3, 4, 4), "percentiles": (10, 90)}

    def same(image: Image, window: str) -> bool:
        return np.array_equal(run(image, window="auto", **fields), run(image, window=window, **fields))

    assert same(volume(values), "hu")
    assert same(volume(values, modality="PT", intensity_units="SUV"), "fixed")
    marked: dict[str, Any] = {"intensity_units": "arbitrary", "windows": (Window(100, 200),)}
    assert same(volume(values, modality="MR", **marked), "percentile")
    assert same(volume(values, modality="DX", **marked), "voi")
    assert same(volume(values.astype(np.uint8), modality="US", intensity_units="display"), "none")


def test_foreground_threshold__cuts_to_the_body() -> None:
    array = np.full((40, 50, 30), -1000, np.int16)
    array[10:30, 15:40, 5:25] = np.random.default_rng(0).integers(0, 100, (20, 25, 20))
    fields: dict[str, Any] = {"window": "hu", "hu_window": (0, 100), "resize": "none", "foreground_threshold": -500}
    out = run(volume(array), size=(20, 25, 20), **fields)
    np.testing.assert_allclose(out[0], array[10:30, 15:40, 5:25].transpose(2, 1, 0) / 100, atol=1e-6)


def test_resize__none_keeps_every_pixel() -> None:
    image = ct((6, 7, 5))
    fields: dict[str, Any] = {"window": "hu", "resize": "none", "dtype": "int16"}
    np.testing.assert_array_equal(run(image, size=(5, 7, 6), **fields)[0], image.array.transpose(2, 1, 0))
    np.testing.assert_array_equal(run(image, size=(3, 3, 2), **fields)[0], image.array.transpose(2, 1, 0)[1:4, 2:5, 2:4])


@pytest.mark.parametrize(
    "config",
    [
        {"window": "hu", "dtype": "int16", "size": (9, 40, 11), "spacing": (2.0, 1.5, 1.0)},
        {"window": "percentile", "dtype": "uint8", "size": (12, 12, 12)},
        {"window": "hu", "dtype": "float32", "size": (12, 30, 12), "resize": "none", "pad_value": -200.0},
    ],
)
def test_whole__fitted_in_the_middle_is_what_calling_gives(config: dict) -> None:
    preprocess = Preprocess(PreprocessConfig(**config))
    image = ct(affine=np.diag([1.0, 1.5, 2.5, 1.0]))
    whole = preprocess.whole(image)
    assert whole.flags.c_contiguous
    assert whole.dtype == config["dtype"]
    np.testing.assert_array_equal(preprocess.fit(whole), preprocess(image))


def test_pad_value__is_hounsfield_units_for_ct_and_a_share_otherwise() -> None:
    size = (4, 4, 8)
    fields: dict[str, Any] = {"window": "hu", "hu_window": (-1000, 1000), "resize": "none", "size": size}
    image = volume(np.zeros((4, 4, 4), np.int16))
    for dtype in ("uint8", "int16", "float32"):
        preprocess = Preprocess(PreprocessConfig(**fields, pad_value=-500, dtype=dtype))
        unit = preprocess.to_unit(torch.from_numpy(preprocess(image))[None])
        assert float(unit[0, 0, 0, 0, 0]) == pytest.approx(0.25, abs=0.003)
    grey = film(np.zeros((2, 2), np.uint8), intensity_units="display")
    assert run(grey, size=(2, 4), resize="none", pad_value=0.5, dtype="uint8")[0, 0].tolist() == [128, 0, 0, 128]


def test_spacing__is_met_exactly_so_that_the_hash_of_the_first_version_is_not_kept() -> None:
    # 20 voxels of 1 mm at 1.5 mm: 13 voxels, 1.5 mm apart around the middle, not 13 spread over 20 mm.
    ramp = np.arange(20, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32) * 10
    preprocess = Preprocess(PreprocessConfig(size=(4, 4, 13), spacing=(1, 1, 1.5), window="hu", dtype="int16"))
    row = preprocess.whole(volume(ramp))[0, 0, 0]
    assert row.shape == (13,)
    np.testing.assert_allclose(np.diff(row[1:-1]), 15, atol=1)
    assert row[6] == 95
    assert Preprocess(PreprocessConfig(spacing=(1, 1))).hash() != "4b74636c7fae"


def test_stored_hash__leaves_out_what_comes_after_storing() -> None:
    def stored(**fields: Any) -> str:
        return Preprocess(
            PreprocessConfig(**{"window": "hu", "dtype": "int16", "size": (8, 8, 8), "spacing": (1, 1, 1), **fields})
        ).stored_hash()

    base = stored()
    assert stored(mean=(0.1,)) == stored(pad_value=-900) == stored(size=(16, 8, 8)) == base
    assert stored(windows=WINDOWS, channels=3) == stored(hu_window=(-100, 100)) == base
    others = [
        stored(spacing=(1, 1, 2)),
        stored(orientation="LPS"),
        stored(spacing=None),
        stored(spacing=None, size=(16, 8, 8)),
        stored(dtype="uint8"),
        stored(dtype="uint8", hu_window=(-100, 100)),
        stored(foreground_threshold=-500),
        stored(crop_foreground=True),
        stored(crop_foreground=True, hu_window=(-100, 100)),
        stored(modalities=("CT",)),
        stored(size=(8, 8), spacing=(1, 1)),
    ]
    assert len({base, *others}) == len(others) + 1


def test_load__passes_the_options_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple] = []
    monkeypatch.setattr("medfm.io.load.load_image", lambda path, modality, **options: seen.append((path, modality, options)))
    Preprocess(PreprocessConfig()).load("a.dcm", "CT")
    Preprocess(PreprocessConfig(tilt="resample")).load("a")
    Preprocess(PreprocessConfig(reduced_decode=True)).load("a")
    Preprocess(PreprocessConfig(reduced_decode=True, crop_foreground=True)).load("a")
    assert [options for _, _, options in seen] == [
        {},
        {"tilt": "resample"},
        {"min_size": (896, 896)},
        {"min_size": (1792, 1792)},
    ]
    assert seen[0][:2] == ("a.dcm", "CT")


def test_to_unit__refuses_a_dtype_that_is_not_stored() -> None:
    with pytest.raises(ValueError, match=r"not torch\.int64"):
        Preprocess(PreprocessConfig()).to_unit(torch.zeros(1, 1, 4, 4, dtype=torch.int64))


def test_int16__finds_the_same_borders_as_other_storage() -> None:
    array = np.full((40, 40, 1), -1000, np.int16)
    array[8:30, 5:35, 0] = np.random.default_rng(0).integers(-100, 300, (22, 30))
    image = volume(array)
    fields: dict[str, Any] = {"window": "hu", "crop_foreground": True, "resize": "none", "size": (30, 22)}
    preprocess = Preprocess(PreprocessConfig(**fields, dtype="int16"))
    whole = preprocess.whole(image)
    np.testing.assert_array_equal(whole[0], array[8:30, 5:35, 0].T)
    np.testing.assert_allclose(preprocess.to_unit(torch.from_numpy(whole)[None])[0], run(image, **fields), atol=1e-6)


def test_load__reduced_decoding_stays_close_on_a_real_film(data_dir: Path) -> None:
    path = data_dir / "dicom" / "pydicom_data" / "RG3_J2KR.dcm"
    full, reduced = (Preprocess(PreprocessConfig(size=(64, 64), dtype="float32", reduced_decode=on)) for on in (False, True))
    assert reduced.load(path).shape[0] <= full.load(path).shape[0] // 4
    difference = reduced(reduced.load(path)) - full(full.load(path))
    assert np.sqrt(np.mean(difference**2)) < 2 / 255


@pytest.mark.parametrize("windows", [((-1000.0, 400.0),), ((-1000.0, 400.0), (-160.0, 240.0), (-500.0, 1500.0))])
def test_to_unit__moved_windows_by_hand(windows: tuple[tuple[float, float], ...]) -> None:
    preprocess = Preprocess(PreprocessConfig(size=(2, 3), window="hu", dtype="int16", windows=windows, channels=len(windows)))
    stored = torch.randint(-1024, 3071, (4, 1, 2, 3), dtype=torch.int16)
    shift, width = torch.rand(4, preprocess.windows) - 0.5, torch.rand(4, preprocess.windows) + 0.5
    unit = preprocess.to_unit(stored, shift, width)
    for n in range(4):
        for k, (low, high) in enumerate(windows):
            whole = (high - low) * float(width[n, k])
            middle = (low + high) / 2 + float(shift[n, k]) * (high - low)
            expected = np.clip((stored[n, 0].numpy() - middle) / whole + 0.5, 0, 1)
            np.testing.assert_allclose(unit[n, k], expected, atol=1e-5)
    nothing = torch.zeros(4, preprocess.windows), torch.ones(4, preprocess.windows)
    torch.testing.assert_close(preprocess.to_unit(stored, *nothing), preprocess.to_unit(stored), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("int16", 32767), ("float32", 1)])
def test_to_unit__moved_window_of_stored_shares(dtype: str, top: int) -> None:
    preprocess = Preprocess(PreprocessConfig(size=(1, 5), dtype=dtype))
    stored = (torch.tensor([0, 0.2, 0.5, 0.8, 1]) * top).round() if top > 1 else torch.tensor([0, 0.2, 0.5, 0.8, 1])
    stored = stored.to(getattr(torch, dtype)).view(1, 1, 1, 5)
    assert preprocess.windows == 1
    narrow = preprocess.to_unit(stored, torch.tensor([[0.1]]), torch.tensor([[0.5]]))  # from 0.35 to 0.85
    np.testing.assert_allclose(narrow.flatten(), [0, 0, 0.3, 0.9, 1], atol=0.005)
