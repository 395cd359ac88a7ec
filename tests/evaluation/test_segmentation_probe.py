"""Segmentation probe: a convex fit with the right gradient, Dice as defined, masks on the network's grid, in 2D and 3D."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as Pillow
from rich.console import Console

from medfm.data.manifest import Manifest, read_manifest, write_manifest
from medfm.encoders.image import ImageModel
from medfm.errors import ConfigError, DataError
from medfm.evaluation import segmentation_probe
from medfm.evaluation.config import SegmentationProbeConfig
from medfm.evaluation.segmentation_card import chosen_images
from medfm.evaluation.segmentation_fit import MaskProbe, Patches, choose_probe, dice_scores, enlarged, fit_masks
from medfm.registry import ENCODERS
from medfm.weights.load import load_model
from medfm.weights.save import save_model


def patches_of(tokens: np.ndarray, masks: np.ndarray, grid: tuple[int, ...]) -> Patches:
    return Patches(lambda p: tokens[list(p)], lambda p: masks[list(p)], len(tokens), grid, masks.shape[2:])


@pytest.fixture(params=[((4, 6), (16, 12)), ((2, 4, 3), (8, 8, 12))], ids=["2d", "3d"])
def world(request: pytest.FixtureRequest) -> tuple[Patches, np.ndarray]:
    """Tokens of 8 numbers on a grid, masks that a linear layer of them gives once enlarged; and the true layer (2, 9)."""
    grid, size = request.param
    rng = np.random.default_rng(0)
    tokens = rng.normal(3, 2, size=(10, int(np.prod(grid)), 8)).astype(np.float32)
    layer = rng.normal(size=(2, 9)).astype(np.float32)
    layer[:, 8] = -3 * layer[:, :8].sum(1) - 0.5  # tokens are about 3
    x = torch.from_numpy(tokens) @ torch.from_numpy(layer[:, :8].T) + torch.from_numpy(layer[:, 8])
    covered = torch.sigmoid(enlarged(x, grid, size)).mul(255).round().to(torch.uint8).numpy()
    return patches_of(tokens, covered, grid), layer


def test_fit_masks__finds_the_layer_that_made_the_masks(world: tuple[Patches, np.ndarray]) -> None:
    patches, layer = world
    weak, weaker = fit_masks(patches, (1e-9, 1e-3), iterations=100, batch_size=3)
    raw = weaker.weight / weaker.std
    # Masks of one byte are known to 1 of 255.
    np.testing.assert_allclose(raw.numpy(), layer[:, :8], atol=0.08)
    assert weak.weight.norm() < weaker.weight.norm()


def test_fit_masks__ends_where_the_gradient_of_the_stated_loss_is_zero(world: tuple[Patches, np.ndarray]) -> None:
    patches, _ = world
    (fitted,) = fit_masks(patches, (1e-3,), iterations=200)
    weight = fitted.weight.double().requires_grad_()
    bias = fitted.bias.double().requires_grad_()
    tokens = torch.from_numpy(patches.tokens(range(10))).double()
    x = (tokens - tokens.flatten(0, 1).mean(0)) / tokens.flatten(0, 1).std(0, correction=0)
    points = tuple(min(n, 4 * g) for n, g in zip(patches.size, patches.grid, strict=True))
    assert points == patches.size  # nothing is averaged here, so that the loss is over all pixels
    logits = enlarged(x @ weight.T + bias, patches.grid, patches.size)
    target = torch.from_numpy(patches.masks(range(10))).double() / 255
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target) + 1e-3 / 2 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert float(weight.grad.abs().max()) < 2e-5
    assert float(bias.grad.abs().max()) < 2e-5


def test_logits__of_tokens_that_lie_off_the_middle() -> None:
    """A strided convolution's token stands for its kernel's centre: a pixel there has the token's own logit."""
    probe = MaskProbe(torch.ones(1, 1), torch.zeros(1), torch.zeros(1), torch.ones(1))
    tokens = torch.tensor([[[1.0], [5.0], [-2.0], [3.0]]])  # a 2 x 2 grid of patches of 4 pixels
    at = probe.logits(tokens, (2, 2), (8, 8), (0.125, 0.125))[0, 0]
    torch.testing.assert_close(at[::4, ::4].flatten(), tokens[0, :, 0])
    middle = probe.logits(tokens, (2, 2), (8, 8))[0, 0]
    assert not torch.allclose(middle[::4, ::4].flatten(), tokens[0, :, 0])


def test_logits__a_layer_of_enlarged_tokens_is_the_enlarged_layer(world: tuple[Patches, np.ndarray]) -> None:
    patches, layer = world
    tokens = torch.from_numpy(patches.tokens([0, 4]))
    probe = MaskProbe(
        torch.from_numpy(layer[:, :8]), torch.from_numpy(layer[:, 8]), torch.full((8,), 3.0), torch.full((8,), 2.0)
    )
    full = enlarged((tokens - 3) / 2, patches.grid, patches.size)  # (n, E, *size)
    expected = torch.einsum("ne...,se->ns...", full, probe.weight) + probe.bias.view(1, 2, *[1] * len(patches.size))
    torch.testing.assert_close(probe.logits(tokens, patches.grid, patches.size), expected, atol=1e-4, rtol=1e-4)


def test_dice_scores__as_defined(world: tuple[Patches, np.ndarray]) -> None:
    patches, layer = world
    masks = patches.masks(range(10)).copy()
    masks[3, 1] = 100  # under half covered: the structure is not there
    patches = patches_of(patches.tokens(range(10)), masks, patches.grid)
    rng = np.random.default_rng(1)
    noisy = layer + rng.normal(0, 0.3, layer.shape).astype(np.float32)
    probe = MaskProbe(torch.from_numpy(noisy[:, :8]), torch.from_numpy(noisy[:, 8]), torch.zeros(8), torch.ones(8))
    thresholds = (0.2, 0.5, 0.9)
    dice, marked = dice_scores(probe, patches, thresholds, batch_size=4)
    tokens = torch.from_numpy(patches.tokens(range(10)))
    probability = probe.logits(tokens, patches.grid, patches.size).sigmoid().numpy()
    truth = masks >= 128
    assert np.isnan(dice[3, 1]).all()
    for image, structure, number in np.ndindex(dice.shape):
        called = probability[image, structure] >= thresholds[number]
        assert marked[image, structure, number] == called.sum()
        if truth[image, structure].any():
            both = (called & truth[image, structure]).sum()
            assert dice[image, structure, number] == pytest.approx(2 * both / (called.sum() + truth[image, structure].sum()))
    own, _ = dice_scores(probe, patches, np.array([[0.9], [0.2]]))
    np.testing.assert_array_equal(own[:, 0, 0], dice[:, 0, 2])
    np.testing.assert_array_equal(own[:, 1, 0], dice[:, 1, 0])


def test_choose_probe__takes_the_best_layer_and_a_threshold_for_each_structure(world: tuple[Patches, np.ndarray]) -> None:
    patches, layer = world

    def probe(shift: float, scale: float = 1.0) -> MaskProbe:
        bias = torch.from_numpy(layer[:, 8]) * scale + torch.tensor([shift, 0.0])
        return MaskProbe(torch.from_numpy(layer[:, :8]) * scale, bias, torch.zeros(8), torch.ones(8))

    # The right layer, its first structure shifted by the logit of 0.2: so far must the threshold fall.
    found = choose_probe([probe(0.0, scale=-1.0), probe(float(np.log(0.2 / 0.8)))], patches)
    assert found.number == 1
    assert found.thresholds.tolist() == pytest.approx([0.2, 0.5], abs=0.051)


def test_chosen_images__from_the_worst_to_the_best() -> None:
    dice = np.array([[0.9, 0.7], [0.1, np.nan], [np.nan, np.nan], [0.5, 0.5], [0.3, 0.2]])
    assert chosen_images(dice, 3) in ([1, 4, 0], [1, 3, 0])
    assert chosen_images(dice, 9) == [1, 4, 3, 0]
    assert chosen_images(dice, 0) == []


SIZES = {2: (24, 32), 3: (8, 16, 12)}


def save_run(folder: Path, axes: int, depth: int = 1, size: Sequence[int] = (), **contract: Any) -> Path:
    grid = list(size or SIZES[axes])
    encoder = {
        "name": "vit",
        "img_size": grid,
        "patch_size": [2 if size else 4] * axes,
        "embed_dim": 24,
        "depth": depth,
        "num_heads": 2,
    }
    preprocess = {"size": grid, "window": "none" if axes == 2 else "minmax", "resize": "none", **contract}
    torch.manual_seed(5)
    recipe = {"encoder": encoder, "objective": {"name": "mae"}, "preprocess": preprocess}
    save_model(folder, ImageModel(ENCODERS.build(ENCODERS.parse(encoder))), recipe, None, {"data_cards": ["made"]})
    return folder


def make_data(folder: Path, axes: int, name: str = "bright") -> Path:
    """Images with a bright box at a random place, whose mask is that box; 24 patients."""
    import nibabel

    rng = np.random.default_rng(0)
    rows = []
    shape = SIZES[axes][::-1]  # (i, j, k) of (D, H, W)
    for number in range(24):
        array = rng.integers(0, 60, shape).astype(np.uint8)
        mask = np.zeros(shape, np.uint8)
        start = [int(rng.integers(0, n - n // 2)) for n in shape]
        mask[tuple(slice(s, s + n // 2) for s, n in zip(start, shape, strict=True))] = 1
        array[mask > 0] += 150
        ending = "png" if axes == 2 else "nii.gz"
        for kind, values in (("images", array), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            path = folder / kind / f"{number}.{ending}"
            if axes == 2:
                Pillow.fromarray(values.T * (255 if kind == "masks" else 1)).save(path)
            else:
                nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
        split = "train" if number < 12 else "val" if number < 17 else "test"
        rows.append(
            {
                "image": f"images/{number}.{ending}",
                "mask": f"masks/{number}.{ending}",
                "patient_id": f"SECRET{number}",
                "split": split,
            }
        )
    meta = {"mask_labels": {"1": name}, "card": "made"} if name else {"card": "made"}
    write_manifest(Manifest(pd.DataFrame(rows), folder, meta), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def settings(run: Path, manifest: Path, tmp_path: Path, **changes: Any) -> SegmentationProbeConfig:
    data = {"manifest": manifest, "workers": 0, **changes.pop("data", {})}
    return SegmentationProbeConfig(model=run, data=data, bootstrap=50, out=tmp_path / "out", **changes)


@pytest.mark.parametrize("axes", [2, 3])
def test_run__finds_what_patches_show_and_repeats_itself_without_decoding(
    axes: int, tmp_path: Path, page_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, manifest = save_run(tmp_path / "run", axes), make_data(tmp_path / "data", axes)
    config = settings(run, manifest, tmp_path, pictures=2)
    result = segmentation_probe.run_segmentation_probe(config, progress=False)
    (entry,) = result["structures"]
    assert entry["name"] == "bright"
    assert entry["images"] == result["images"] == 7
    assert (result["train_images"], result["val_images"]) == (12, 5)
    # Brightness is in every linear projection of a patch, random or not; marking all of the image gives 0.40 and 0.22. In 3D
    # the boxes are as fine as two patches.
    assert entry["dice"]["value"] > {2: 0.75, 3: 0.5}[axes]
    assert entry["dice"]["low"] <= entry["dice"]["value"] <= entry["dice"]["high"]
    assert entry["random"]["difference"]["value"] == pytest.approx(entry["dice"]["value"] - entry["random"]["dice"]["value"])
    assert result["grid"] == {"patches": [n // 4 for n in SIZES[axes]], "image": list(SIZES[axes])}
    assert result["mean"]["dice"] == entry["dice"]
    written = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert written["row"].tolist() == list(range(17, 24))
    assert written["bright"].mean() == pytest.approx(entry["dice"]["value"])
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result

    page = page_of(tmp_path / "out" / "card.html")
    assert page.open == []
    assert page.outside == []
    assert sum(source.startswith("data:image/jpeg") for source in page.images) == 4
    for said in ("bright", "Random weights", "This page embeds images", result["command"]):
        assert said in page.text
    console = Console(record=True, width=100)
    console.print(segmentation_probe.render(result))
    assert "difference" in console.export_text()
    for path in [*(tmp_path / "out").iterdir(), *(run / "features").rglob("*.*")]:
        assert b"SECRET" not in path.read_bytes(), path.name

    monkeypatch.setattr("medfm.evaluation.masked_images.load_mask", lambda *_: pytest.fail("decoded again"))
    again = segmentation_probe.run_segmentation_probe(settings(run, manifest, tmp_path, pictures=0), progress=False)
    assert again["structures"] == result["structures"]
    assert not re.search("data:image/jpeg", (tmp_path / "out" / "card.html").read_text())


def test_run__names_come_from_the_masks_where_nothing_says_them(tmp_path: Path) -> None:
    run, manifest = save_run(tmp_path / "run", 3), make_data(tmp_path / "data", 3, name="")
    config = settings(run, manifest, tmp_path, iterations=5, random_baseline=False)
    result = segmentation_probe.run_segmentation_probe(config, progress=False)
    assert [entry["name"] for entry in result["structures"]] == ["label 1"]
    assert "random" not in result["mean"]
    named = settings(run, manifest, tmp_path, iterations=5, random_baseline=False, mask_labels={1: "box", 7: "nothing"})
    result = segmentation_probe.run_segmentation_probe(named, progress=False)
    assert [entry["name"] for entry in result["structures"]] == ["box"]
    assert result["left_out"] == [{"name": "nothing", "reason": "no image of the scored split holds it"}]


@pytest.mark.parametrize("axes", [2, 3])
def test_run__structures_too_small_for_the_grid_are_listed(axes: int, tmp_path: Path, page_of: Any) -> None:
    """One voxel in the corner of each image, on a grid of half as many: a quarter (2D) or an eighth (3D) of a voxel."""
    import nibabel

    size = [n // 2 for n in SIZES[axes]]
    half: dict[str, Any] = {"resize": "stretch"} if axes == 2 else {"spacing": [2, 2, 2]}
    run, path = save_run(tmp_path / "run", axes, size=size, **half), make_data(tmp_path / "data", axes, name="")
    for number in range(24):
        dot = number % 2 or number < 17  # of the test images the ones with even numbers have none
        if axes == 2:
            file = tmp_path / "data" / "masks" / f"{number}.png"
            values = np.array(Pillow.open(file)) // 255
            values[0, 0] = 2 if dot else 0
            values[0, 6:10] = values[6:10, 0] = 0
            values[6:10, 6:10] = 3 if number == 17 else 0  # large in one image
            Pillow.fromarray(values).save(file)
        else:
            file = tmp_path / "data" / "masks" / f"{number}.nii.gz"
            values = np.asarray(nibabel.load(file).dataobj).copy()
            values[0, 0, 0] = 2 if dot else 0
            values[4:8, 4:8, 2:6] = 3 if number == 17 else 0
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), file)
        if number == 19:
            values[(slice(0, 1),) * axes] = 3  # and a dot in another
            if axes == 2:
                Pillow.fromarray(values).save(file)
            else:
                nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), file)
    names = {1: "box", 2: "dot", 3: "rare", 4: "none"}
    config = settings(run, path, tmp_path, iterations=5, random_baseline=False, mask_labels=names)
    result = segmentation_probe.run_segmentation_probe(config, progress=False)
    assert [entry["name"] for entry in result["structures"]] == ["box", "rare"]
    assert result["structures"][1]["images"] == 1
    assert result["structures"][1]["without"]["images"] == 5  # of 7; in one it is too small to be called absent
    reason = "too small, it covers half of no pixel of the network's grid"
    assert result["left_out"] == [
        {"name": "dot", "reason": f"all of its 3 images: {reason}"},
        {"name": "rare", "reason": f"1 of its 2 images: {reason}"},
        {"name": "none", "reason": "no image of the scored split holds it"},
    ]
    console = Console(record=True, width=200)
    console.print(segmentation_probe.render(result))
    for text in (page_of(tmp_path / "out" / "card.html").text, console.export_text()):
        assert "dot (all of its 3 images: too small" in text
        assert "rare (1 of its 2 images: too small" in text
    alone = settings(run, path, tmp_path, iterations=5, random_baseline=False, mask_labels=names, structures=("dot",))
    with pytest.raises(DataError, match=r"no structure can be scored on split 'test' \(dot: all of its 3 images: too small"):
        segmentation_probe.run_segmentation_probe(alone, progress=False)


def test_run__a_structure_called_row_keeps_its_column(tmp_path: Path) -> None:
    run, manifest = save_run(tmp_path / "run", 2), make_data(tmp_path / "data", 2, name="row")
    config = settings(run, manifest, tmp_path, iterations=5, random_baseline=False)
    result = segmentation_probe.run_segmentation_probe(config, progress=False)
    written = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert written.columns.tolist() == ["row", "split", "label:row"]
    assert written["row"].tolist() == list(range(17, 24))
    assert written["label:row"].mean() == pytest.approx(result["mean"]["dice"]["value"])


def test_run__names_are_looked_for_past_a_broken_mask_on_request(tmp_path: Path) -> None:
    run, manifest = save_run(tmp_path / "run", 2), make_data(tmp_path / "data", 2, name="")
    (tmp_path / "data" / "masks" / "0.png").write_bytes(b"no mask")
    config = settings(run, manifest, tmp_path, iterations=5, random_baseline=False)
    with pytest.raises(DataError, match=r"0\.png.*data\.on_error=skip"):
        segmentation_probe.run_segmentation_probe(config, progress=False)
    (tmp_path / "file").touch()
    skip = {"iterations": 5, "random_baseline": False, "data": {"on_error": "skip"}}
    with pytest.raises(ConfigError, match=r"cannot be written.*set features=DIR"):
        segmentation_probe.run_segmentation_probe(
            settings(run, manifest, tmp_path, features=tmp_path / "file" / "f", **skip), progress=False
        )
    result = segmentation_probe.run_segmentation_probe(
        settings(run, manifest, tmp_path, structures=("label 1", "label 1"), **skip), progress=False
    )
    assert [entry["name"] for entry in result["structures"]] == ["label 1"]
    named = segmentation_probe.run_segmentation_probe(settings(run, manifest, tmp_path, **skip), progress=False)
    assert named["structures"] == result["structures"]
    assert named["unreadable"]["count"] == 1


@pytest.mark.parametrize("axes", [2, 3])
def test_run__blocks_fits_on_the_tokens_of_the_last_blocks_side_by_side(axes: int, tmp_path: Path) -> None:
    run, manifest = save_run(tmp_path / "run", axes, depth=2), make_data(tmp_path / "data", axes)
    fit_for_real = segmentation_probe.fit_masks
    seen: list[np.ndarray] = []

    def fit(train: Patches, *rest: Any) -> Any:
        seen.append(np.array(train.tokens([0, 3])))
        return fit_for_real(train, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation_probe, "fit_masks", fit)
        for blocks in (2, 1, 2):  # the second asks for less, in the same folder of features
            config = settings(run, manifest, tmp_path, iterations=5, random_baseline=False, blocks=blocks)
            assert segmentation_probe.run_segmentation_probe(config, progress=False)["settings"]["blocks"] == blocks
    two, one, again = seen
    model = load_model(run)
    names = [read_manifest(manifest).frame["image"][row] for row in (0, 3)]
    images = [model.preprocess.load(manifest.parent / name) for name in names]
    x = model.preprocess.to_float(torch.from_numpy(np.stack([model.preprocess(image) for image in images])))
    with torch.no_grad():
        tokens = torch.cat([output.patch_tokens for output in model.network.image_encoder.forward_blocks(x, 2)], dim=2)
    np.testing.assert_allclose(two, tokens.numpy(), atol=2e-3)
    np.testing.assert_array_equal(again, two)
    np.testing.assert_array_equal(one, two[:, :, 24:])
    with pytest.raises(ConfigError, match="blocks=3: the encoder has 2 blocks"):
        segmentation_probe.run_segmentation_probe(settings(run, manifest, tmp_path, blocks=3), progress=False)


def test_run__without_val_a_fifth_of_the_training_patients_stands_in(tmp_path: Path) -> None:
    run, manifest = save_run(tmp_path / "run", 2), make_data(tmp_path / "data", 2)
    config = settings(run, manifest, tmp_path, iterations=5, random_baseline=False, data={"val_split": ""})
    result = segmentation_probe.run_segmentation_probe(config, progress=False)
    assert result["chosen"]["model"]["by"] == "a fifth of the training patients"
    assert (result["train_images"], result["val_images"]) == (10, 2)


def test_run__rows_without_a_mask_are_not_used_and_a_broken_one_is_named(tmp_path: Path) -> None:
    run, path = save_run(tmp_path / "run", 2), make_data(tmp_path / "data", 2)
    manifest = read_manifest(path)
    manifest.frame.loc[[0, 20], "mask"] = ""
    write_manifest(manifest, path)
    (tmp_path / "data" / "masks" / "5.png").write_bytes(b"no mask")
    config = settings(run, path, tmp_path, iterations=5, random_baseline=False)
    with pytest.raises(DataError, match=r"masks/5\.png.*data\.on_error=skip"):
        segmentation_probe.run_segmentation_probe(config, progress=False)
    skip = settings(run, path, tmp_path, iterations=5, random_baseline=False, data={"on_error": "skip"})
    result = segmentation_probe.run_segmentation_probe(skip, progress=False)
    assert (result["train_images"], result["images"], result["unreadable"]["count"]) == (10, 6, 1)
    manifest.frame["mask"] = ""
    write_manifest(manifest, path)
    with pytest.raises(DataError, match="no image of split 'train' names a mask; index with mask=COLUMN"):
        segmentation_probe.run_segmentation_probe(config, progress=False)
