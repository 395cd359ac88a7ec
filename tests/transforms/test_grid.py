"""The network's grid on the image: a known box there and back, whatever the contract does; values brought back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medfm.encoders.patches import enlarge
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.grid import kept_extent, on_source, patch_matrix, to_source
from medfm.transforms.mask import with_mask
from medfm.transforms.preprocess import Preprocess
from medfm.types import Image

# An oblique, left-handed grid: axes towards the head, the patient's right and the front, turned a little.
TURN = np.array([[0.0, -0.98, 0.2], [0.0, 0.2, 0.98], [1.0, 0.0, 0.0]])
VOLUMES: dict[str, dict[str, Any]] = {
    "padded": {"size": (24, 32, 28)},
    "stretched": {"size": (16, 40, 24), "resize": "stretch"},
    "filled": {"size": (16, 24, 24), "resize": "crop"},
    "as_it_is": {"size": (30, 20, 64), "resize": "none", "orientation": "LPS"},
    "spacing": {"size": (24, 40, 24), "spacing": (4.0, 3.0, 3.5)},
    "spacing_cut": {"size": (12, 12, 10), "spacing": (3.0, 3.0, 5.0), "orientation": "PIL"},
    "foreground": {"size": (24, 24, 24), "foreground_threshold": -500.0},
    "borders": {"size": (24, 24, 24), "crop_foreground": True, "spacing": (3.0, 3.0, 3.0)},
}


def volume(shape: tuple[int, int, int] = (30, 44, 26)) -> tuple[Image, np.ndarray]:
    """A body in air and, within, a box; on an oblique grid of 2 x 2.5 x 4 mm."""
    rng = np.random.default_rng(0)
    array = np.full(shape, -1000, np.int16)
    array[5:26, 6:40, 4:24] = rng.integers(-150, 200, (21, 34, 20))
    box = np.zeros(shape, bool)
    box[12:18, 18:26, 10:16] = True
    affine = np.eye(4)
    affine[:3, :3] = TURN * (2.0, 2.5, 4.0)
    affine[:3, 3] = (12.0, -80.0, 300.0)
    return Image(array, affine, "CT", "HU", "volume"), box


@pytest.mark.parametrize("name", VOLUMES)
def test_to_source__a_box_comes_back_to_where_it_was(name: str) -> None:
    image, box = volume()
    config = PreprocessConfig(window="hu", dtype="uint8", **VOLUMES[name])
    preprocess = Preprocess(config)
    _, boxes = preprocess.whole_and_boxes(image)
    _, covered = with_mask(preprocess, image, box[None])
    matrix = to_source(config, image, boxes)
    weight = covered[0].transpose(2, 1, 0)
    middle = (np.indices(weight.shape).reshape(3, -1) * weight.reshape(-1)).sum(1) / weight.sum()
    np.testing.assert_allclose((matrix @ [*middle, 1.0])[:3], np.argwhere(box).mean(0), atol=0.12)
    # What is kept of the image: where the network's input hangs on it.
    kept = kept_extent(config, image, boxes)
    cropped = name in ("foreground", "borders")
    first, last = ((5, 6, 4), (25, 39, 23)) if cropped else ((0, 0, 0), np.array(image.shape) - 1)
    np.testing.assert_allclose(kept, np.stack([np.array(first) - 0.5, np.array(last) + 0.5], axis=1), atol=1e-9)
    # Nothing is sheared, and a voxel of the network's grid is as large as the contract says.
    assert (np.abs(matrix[:3, :3]) > 1e-9).sum() == 3
    if config.spacing is not None:
        edges = np.linalg.norm((image.affine @ matrix)[:3, :3], axis=0)
        np.testing.assert_allclose(edges, config.spacing[::-1], rtol=1e-6)


@pytest.mark.parametrize("name", VOLUMES)
def test_on_source__a_marked_patch_lies_on_the_box(name: str) -> None:
    """Forth to a map of patches, and back to voxels: the middle of what is bright is within half a patch of the box's."""
    image, box = volume()
    config = PreprocessConfig(window="hu", dtype="uint8", **VOLUMES[name])
    preprocess = Preprocess(config)
    _, boxes = preprocess.whole_and_boxes(image)
    _, covered = with_mask(preprocess, image, box[None])
    patch = (2, 4, 4) if name != "as_it_is" and name != "spacing_cut" else (2, 2, 2)
    grid = tuple(n // p for n, p in zip(config.size, patch, strict=True))
    patches = covered[0].reshape(grid[0], patch[0], grid[1], patch[1], grid[2], patch[2]).mean((1, 3, 5))
    matrix = to_source(config, image, boxes) @ patch_matrix(config.size, grid)
    back = on_source(patches, matrix, image.shape)
    assert back.shape == image.shape
    assert back.dtype == np.float32
    weight = np.nan_to_num(back)
    middle = (np.indices(back.shape).reshape(3, -1) * weight.reshape(-1)).sum(1) / weight.sum()
    half = np.abs(matrix[:3, :3]).sum(axis=1) / 2  # half a patch, in voxels
    assert (np.abs(middle - np.argwhere(box).mean(0)) <= half).all()
    assert np.nanargmax(back) in np.flatnonzero(box)


def test_on_source__is_a_linear_ramp_inside_and_nan_outside() -> None:
    # Patches of 4 voxels that cover voxels 8 to 27 of 40 along the first axis, backwards; the others are one patch.
    matrix = np.array([[-4.0, 0, 0, 25.5], [0, 0, 10.0, 4.5], [0, 6.0, 0, 2.5], [0, 0, 0, 1]])
    values = np.arange(5, dtype=np.float32).reshape(1, 1, 5)  # (D, H, W)
    back = on_source(values, matrix, (40, 10, 6))
    along = back[:, 3, 2]
    assert np.isnan(along[:8]).all()
    assert np.isnan(along[28:]).all()
    np.testing.assert_allclose(along[10:26], (25.5 - np.arange(10, 26)) / 4, rtol=1e-6)
    assert (along[8:10] == 4).all()  # half a patch beyond the outermost middles
    assert (along[26:28] == 0).all()
    assert not np.isnan(back[8:28]).any()


@pytest.mark.parametrize("resize", ["pad", "crop", "stretch", "none"])
def test_to_source__of_a_film(resize: str) -> None:
    array = np.full((60, 90, 1), 30, np.uint8)
    box = np.zeros(array.shape, bool)
    box[20:30, 40:56] = True
    image = Image(array, np.diag([0.5, 0.5, 1, 1]), "DX", "display", "film", oriented=False)
    config = PreprocessConfig(size=(40, 32), resize=resize, window="none")  # type: ignore[arg-type]
    preprocess = Preprocess(config)
    _, boxes = preprocess.whole_and_boxes(image)
    _, covered = with_mask(preprocess, image, box[None])
    weight = covered[0].T
    middle = (np.indices(weight.shape).reshape(2, -1) * weight.reshape(-1)).sum(1) / weight.sum()
    matrix = to_source(config, image, boxes)
    np.testing.assert_allclose((matrix @ [*middle, 0, 1])[:3], (24.5, 47.5, 0), atol=0.1)
    grid = (10, 8)
    back = on_source(covered[0].reshape(10, 4, 8, 4).mean((1, 3)), matrix @ patch_matrix(config.size, grid), array.shape)
    assert back.shape == array.shape
    assert np.nanargmax(back) in np.flatnonzero(box)


def test_to_source__a_random_cut() -> None:
    image, _ = volume()
    config = PreprocessConfig(window="hu", size=(12, 12, 12), resize="none")
    preprocess = Preprocess(config)
    whole, boxes = preprocess.whole_and_boxes(image)
    start = (3, 5, 14)
    matrix = to_source(config, image, boxes, start)
    cut = preprocess.fit(whole, start)
    values = preprocess.fit(preprocess.whole(image), start)[0]
    for z, y, x in ((0, 0, 0), (11, 2, 7)):
        i, j, k = np.rint(matrix @ [x, y, z, 1])[:3].astype(int)
        shown = np.clip((int(image.array[i, j, k]) + 1000) / 2000, 0, 1)
        assert abs(int(cut[0, z, y, x]) - 255 * shown) <= 1
        assert cut[0, z, y, x] == values[z, y, x]


def test_on_source__agrees_with_enlarged_maps_of_tokens_that_are_not_centred_in_their_patches() -> None:
    size, grid, centre = (12, 16, 20), (3, 8, 5), (0.125, 0.5, 0.3)
    maps = torch.rand(1, 1, *grid, generator=torch.Generator().manual_seed(0))
    wide = enlarge(maps, size, centre)[0, 0].numpy()
    matrix = patch_matrix(size, grid, centre)
    made = on_source(maps[0, 0].numpy(), matrix, size[::-1], centre)
    np.testing.assert_allclose(made.transpose(2, 1, 0), wide, atol=1e-6)
    # The first token's own voxel: 0.125 * 4 - 0.5 along D; its value is there.
    assert matrix[2, 3] == 0.0
    assert wide[0, 0, 0] == pytest.approx(float(maps[0, 0, 0, 0, 0]), abs=1e-6)
    # Nothing is seen beyond the network's grid, whatever the centres.
    far = on_source(maps[0, 0].numpy(), patch_matrix(size, grid, centre), (24, 20, 16), centre)
    assert np.isfinite(far).sum() == np.prod(size)


def test_enlarge__middles_are_torch_s_own() -> None:
    maps = torch.rand(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(enlarge(maps, (9, 8), (0.5, 0.5)), enlarge(maps, (9, 8), (0.5, 0.5 + 1e-12)))
