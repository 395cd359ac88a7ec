"""Heat maps: on the image's own grid, highest where the planted spot is, in files with its affine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from rich.console import Console

from medfm.config.resolve import resolve
from medfm.errors import ConfigError, DataError, WeightsError
from medfm.evaluation import heatmap
from medfm.evaluation.config import HeatmapConfig
from medfm.evaluation.heatmap import heat_map, in_image, patch_places
from medfm.evaluation.montage import chosen_slices, slices_of, strip
from medfm.io.nifti import read_nifti
from medfm.io.write import save_image
from medfm.transforms.grid import extent
from medfm.types import Image
from medfm.weights.load import load_model


def ct(spot: tuple[int, int, int] = (30, 12, 9)) -> Image:
    """A CT in LPS-like storage with a dense spot of 8 voxels a side."""
    array = np.full((40, 36, 20), -900, np.int16)
    i, j, k = spot
    array[i - 4 : i + 4, j - 4 : j + 4, k - 4 : k + 4] = 900
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[:3, 3] = (50.0, 30.0, -100.0)
    return Image(array, affine, "CT", "HU", "ct")


@pytest.fixture
def model_3d(density: type) -> Any:
    return density((4, 4, 4), size=(16, 20, 20), spacing=(4.0, 4.0, 4.0), window="hu", orientation="RAS")


def test_heat_map__lies_on_the_images_own_grid(model_3d: Any, tmp_path: Path) -> None:
    image = ct()
    heat = heat_map(model_3d, image, "bright", "dark")
    assert heat.array.shape == image.shape
    peak = np.unravel_index(np.nanargmax(heat.array), heat.array.shape)
    assert np.abs(np.array(peak) - (30, 12, 9)).max() <= 4  # half a patch of 16 mm
    assert np.abs(np.array(heat.peak) - (29.5, 11.5, 8.5)).max() <= 4
    np.testing.assert_allclose(heat.peak_mm, (image.affine @ [*heat.peak, 1])[:3])
    whole = heat_map(model_3d, image, "bright").cosine - heat_map(model_3d, image, "dark").cosine
    assert heat.cosine == pytest.approx(whole)
    # The file: the image's grid and affine, and the values, with NaN where the network saw nothing.
    files = heat.save(tmp_path)
    assert [file.name for file in files] == ["montage.png", "heatmap.nii.gz"]
    import nibabel

    written = nibabel.load(files[1])
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(written.dataobj), heat.array)
    assert np.isnan(heat.array).any() == (40 * 2 > 20 * 4 or 36 * 2 > 20 * 4 or 20 * 3 > 16 * 4)
    assert Pillow.open(files[0]).size[0] > 800


def test_heat_map__a_nan_marks_what_the_network_does_not_see(density: type) -> None:
    model = density((4, 4, 4), size=(8, 8, 8), spacing=(4.0, 4.0, 4.0), window="hu")
    heat = heat_map(model, ct((20, 18, 10)), "bright")
    seen = np.isfinite(heat.array)
    assert seen.sum(axis=0).max() == 16  # 32 of 80 mm, in voxels of 2 mm
    assert seen.sum(axis=1).max() == 16
    assert seen.sum(axis=2).max() in (10, 11)


def test_heat_map__what_a_contract_crops_is_not_seen(density: type) -> None:
    """Around the body's box the network gets padding, though the file goes on there."""
    model = density((4, 4, 4), size=(16, 20, 20), spacing=(4.0, 4.0, 4.0), window="hu", foreground_threshold=-500.0)
    image = ct((20, 18, 10))
    heat = heat_map(model, image, "bright")
    seen = np.isfinite(heat.array)
    assert np.argwhere(seen).min(axis=0).tolist() == [16, 14, 6]  # the spot is all the foreground
    assert np.argwhere(seen).max(axis=0).tolist() == [23, 21, 13]
    outside = image.array.copy()
    outside[~seen] = -700
    again = heat_map(model, Image(outside, image.affine, "CT", "HU", "ct"), "bright")
    np.testing.assert_array_equal(again.array, heat.array)
    dark = heat_map(model, image, "dark")  # the padding is darker still
    assert seen[dark.peak]


def test_heat_map__of_a_film_and_of_phrases(density: type, tmp_path: Path) -> None:
    array = np.full((60, 80, 1), 40, np.uint8)
    array[44:52, 8:16] = 250
    image = Image(array, np.eye(4), "DX", "display", "film", oriented=False, spaced=False)
    model = density((4, 4), size=(40, 40), window="none")
    heat = heat_map(model, image, ["bright", "bright spot"])
    assert heat.array.shape == (60, 80, 1)
    assert np.abs(np.array(heat.peak[:2]) - (47.5, 11.5)).max() <= 4
    assert [file.name for file in heat.save(tmp_path)] == ["overlay.png"]
    with pytest.raises(ConfigError, match="text: give the words"):
        heat_map(model, image, "")


def test_values__that_are_not_finite_are_refused(ct_run: Path) -> None:
    """NaN compares false, so that it would rank first: a diverged model would have a perfect retrieval."""
    model = load_model(ct_run)
    stored = np.zeros((1, *model.preprocess.stored_shape), np.int16)
    image = Image(stored[0, 0].transpose(2, 1, 0), np.diag([4.0, 4, 4, 1]), "CT", "HU", "ct")
    with torch.no_grad():
        model.network.image_encoder.norm.bias.fill_(torch.nan)
    calls = [lambda: model.encode_images(stored), lambda: model.features(stored), lambda: model.patch_features(stored)]
    for call in (*calls, lambda: model.similarity_map(stored[0], "effusion"), lambda: heat_map(model, image, "effusion")):
        with pytest.raises(WeightsError, match="not finite"):
            call()
    with torch.no_grad():
        model.dual.text_encoder.ln_final.bias.fill_(torch.nan)
    with pytest.raises(WeightsError, match="not finite"):
        model.encode_texts(["effusion"])


def test_peak__is_never_in_the_padding(density: type) -> None:
    # A dark image in a bright frame of padding: the brightest patches are padding.
    model = density((4, 4), size=(40, 40), window="none", pad_value=1.0)
    array = np.full((40, 16, 1), 30, np.uint8)
    array[28:32, 4:8] = 90
    heat = heat_map(model, Image(array, np.eye(4), "DX", "display", "film", oriented=False), "bright")
    assert np.abs(np.array(heat.peak[:2]) - (29.5, 5.5)).max() <= 2


def test_patch_places__in_the_order_of_tokens() -> None:
    places = patch_places(np.eye(4), (4, 6), (2, 3))
    np.testing.assert_allclose(
        places, [[0.5, 0.5, 0], [2.5, 0.5, 0], [4.5, 0.5, 0], [0.5, 2.5, 0], [2.5, 2.5, 0], [4.5, 2.5, 0]]
    )
    seen = extent((4, 3, 1))
    assert in_image(places, seen).tolist() == [True, True, False, True, True, False]
    assert in_image(places + 100, seen).all()  # nothing lies in it: then all count


def test_slices_of__as_a_radiologist_sees_them() -> None:
    # A mark at the patient's right, in front, at the head.
    mark = np.zeros((6, 5, 4), bool)
    mark[0, 4, 3] = True
    image = Image(mark.astype(np.int16), np.diag([-1.0, 1.0, 1.0, 1.0]), "CT", "HU", "x")  # i runs to the left
    cut = slices_of(image, [mark])
    assert cut.plane == "axial"
    assert np.argwhere(cut.arrays[0]).tolist() == [[3, 0, 0]]  # the patient's right is on the left of the picture, the front up
    thick = Image(mark.astype(np.int16), np.diag([4.0, 1.0, 1.0, 1.0]), "MR", "arbitrary", "x")
    cut = slices_of(thick, [mark])
    assert cut.plane == "sagittal"
    assert cut.arrays[0].shape == (6, 4, 5)
    at, row, column = np.argwhere(cut.arrays[0])[0]
    assert (row, column) == (0, 0)  # head up, front on the left
    assert (at, cut.place[at], cut.place[0]) == (5, "R 0 mm", "R 20 mm")  # from right to left


def test_chosen_slices() -> None:
    assert chosen_slices(10, 3, 7) == [1, 5, 7]
    assert chosen_slices(12, 12, 3) == list(range(12))
    assert len(chosen_slices(12, 11, 3)) == 11
    assert 0 in chosen_slices(10, 3, 0)
    assert chosen_slices(2, 5, 1) == [0, 1]
    within = np.zeros(30, bool)
    within[10:20] = True
    assert all(10 <= n < 20 for n in chosen_slices(30, 4, 12, within))


def test_strip__shows_the_slice_of_the_peak() -> None:
    shown, heat = np.zeros((9, 8, 8)), np.zeros((9, 8, 8))
    heat[0, 0, 0] = 1.0
    made = strip(shown, heat, "RAS", slices=3, height=8)
    assert made.shape == (16, 3 * 8 + 2 * 3, 3)
    bright = np.argwhere(made[8:].sum(-1) > 1)
    assert bright.tolist() == [[7, 7]]  # slice 0 comes first; its back left corner is below on the right


def test_run_heatmap__from_the_command_line(ct_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "ct.nii.gz"
    save_image(ct(), file)
    keys = {"model": str(ct_run), "image": str(file), "text": "a, b: [c]", "out": str(tmp_path / "out")}
    config = resolve(HeatmapConfig, "heatmap", None, keys).config
    assert config.text == ("a, b: [c]",)
    with pytest.raises(DataError, match=r"not Hounsfield units.*modality=CT"):
        heatmap.run_heatmap(config, progress=False)
    config = config.model_copy(update={"modality": "CT"})
    result = heatmap.run_heatmap(config, progress=False)
    assert [Path(name).name for name in result["files"]] == ["montage.png", "heatmap.nii.gz"]
    values = read_nifti(result["files"][1]).array
    i, j, k = result["peak"]["voxel"]
    assert values[i, j, k] == pytest.approx(result["peak"]["value"])
    console = Console(width=200)
    with console.capture() as shown:
        console.print(heatmap.render(result))
    assert "highest" in shown.get()
    with pytest.raises(ConfigError, match="text"):
        resolve(HeatmapConfig, "heatmap", None, {**keys, "text": " "})
