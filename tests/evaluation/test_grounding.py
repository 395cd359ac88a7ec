"""Grounding: planted maps hit or miss planted masks as they must; Dice as defined; the card on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from medfm.data.manifest import Manifest, read_manifest, write_manifest
from medfm.errors import ConfigError, DataError
from medfm.evaluation import grounding
from medfm.evaluation.config import GroundingConfig
from medfm.evaluation.grounded_images import GroundedFiles, Packed, image_box, source_box
from medfm.evaluation.grounding import Grounded, best_threshold, enlarged, overlaps, patch_maps, structures_of
from medfm.evaluation.grounding_card import chosen_cases
from medfm.evaluation.masked_images import MaskedFiles
from medfm.io.write import save_image, save_mask
from medfm.text.prompts import load_prompts, parse_prompts
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess
from medfm.types import Image

SIZE = (16, 20, 20)  # (D, H, W), 4 mm
AFFINE = np.diag([-4.0, -4.0, 4.0, 1.0])


def world(folder: Path, count: int = 18) -> Path:
    """CTs of as many patients with a dense box in one of two places; the mask is the box, called by its side."""
    rng = np.random.default_rng(0)
    rows = []
    (folder / "ct").mkdir(parents=True)
    for number in range(count):
        array = rng.integers(-950, -850, (20, 20, 16)).astype(np.int16)
        left = number % 2 == 0
        box = np.zeros(array.shape, bool)
        box[(12 if left else 2) : (18 if left else 8), 5:11, 4:10] = True
        array[box] = 800
        image = Image(array, AFFINE, "CT", "HU", "ct")
        save_image(image, folder / "ct" / f"{number}.nii.gz")
        names = ["Left Bright", "Right Bright"]
        layers = np.stack([box & left, box & (not left)])
        save_mask(layers, folder / "ct" / f"{number}_mask.nii.gz", image, names)
        split = "test" if number < 12 else "val"
        rows.append(
            {
                "image": f"ct/{number}.nii.gz",
                "mask": f"ct/{number}_mask.nii.gz",
                "modality": "CT",
                "patient_id": f"p{number}",
                "study_id": f"s{number}",
                "view": "",
                "split": split,
                "report": "",
                "label:Bright": 1,
                "label:Left Bright": int(left),
            }
        )
    frame = pd.DataFrame(rows)
    write_manifest(Manifest(frame, folder, {}), folder / "manifest.parquet")
    return folder / "manifest.parquet"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("world"))


PROMPTS = {
    "name": "bright",
    "method": "pair",
    "findings": {
        "Bright": {"positive": ["bright"], "negative": ["dark"]},
        "Left Bright": {"positive": ["bright left"], "negative": ["dark"]},
        "Dark": {"positive": ["dark"], "negative": ["bright"]},
    },
}


CONTRACT = PreprocessConfig(size=SIZE, spacing=(4.0, 4.0, 4.0), window="hu")


def files_of(manifest: Path, tolerance: float = 0.0) -> GroundedFiles:
    table = read_manifest(manifest)
    paths = [table.root / name for name in table.frame["image"]], [table.root / name for name in table.frame["mask"]]
    groups = [("Left Bright", "Right Bright"), ("Left Bright",)]
    return GroundedFiles(*paths, ["CT"] * len(paths[0]), Preprocess(CONTRACT), groups, {}, (4, 5, 5), tolerance)


def test_grounded_files__say_which_patches_hit(manifest: Path) -> None:
    image, masks, distance, inside, voxels, box = files_of(manifest)(0)
    assert masks.shape == (2, *SIZE)
    assert torch.equal(masks[0], masks[1])  # the box is on the left
    assert int(masks[0].sum()) == 216 == int(voxels[0, 0])
    assert voxels[:, 1].tolist() == [0, 0]
    assert inside.all()
    assert box.tolist() == [[0, 16], [0, 20], [0, 20]]
    # A patch hits where its middle lies on the box: computed here from the mask on the network's grid.
    middles = masks[0].numpy()[np.ix_(*(np.arange(n // 4) * 4 + 2 for n in SIZE))]
    edge = masks[0].numpy()[np.ix_(*(np.arange(n // 4) * 4 + 1 for n in SIZE))]
    hit = (distance[0] == 0).numpy().reshape(4, 5, 5)
    assert (hit <= (middles | edge)).all()
    assert (hit >= (middles & edge)).all()
    assert not files_of(manifest)(1)[1][1].any()  # no left box in the second
    assert image.shape == (1, *SIZE)


def test_grounded_files__tolerance_is_in_mm(manifest: Path) -> None:
    near = files_of(manifest, 7.0)(0)[2][0].numpy().reshape(4, 5, 5)
    exact = files_of(manifest)(0)[2][0].numpy().reshape(4, 5, 5)
    assert ((near <= 7) >= (exact == 0)).all()
    assert (near <= 7).sum() > (exact == 0).sum()
    # From patch middles (half voxels) to voxels of the box, brute force.
    masks = np.argwhere(files_of(manifest)(0)[1][0].numpy())
    for index in np.ndindex(4, 5, 5):
        middle = np.array(index) * 4 + 1.5
        mm = 4 * np.linalg.norm(masks - middle, axis=1).min()
        if exact[index] != 0 and mm <= 7:
            assert near[index] == pytest.approx(mm, abs=1e-4)


def test_overlaps__is_dice_at_every_threshold() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((8, 8, 8)) < 0.2
    grid, size = (4, 4, 4), (8, 8, 8)
    maps = rng.normal(size=64).astype(np.float32)
    case = Grounded(0, 0, Packed.of(mask), 30.0, (slice(1, 8), slice(0, 6), slice(0, 8)), 0.1, [maps], [False], [0])
    thresholds = np.linspace(-2, 2, 9)
    heat, part = enlarged(maps, grid, size)[1:, :6], mask[1:, :6]
    for dice, cut in zip(overlaps(case, 0, grid, size, thresholds), thresholds, strict=True):
        called = heat >= cut
        # The 30 pixels that the network does not see are missed.
        assert dice == pytest.approx(2 * (called & part).sum() / (called.sum() + part.sum() + 30))
    chosen = best_threshold([case], 0, grid, size)
    assert chosen is not None
    assert overlaps(case, 0, grid, size, np.array([chosen]))[0] >= overlaps(case, 0, grid, size, thresholds).max() - 0.02
    assert best_threshold([], 0, grid, size) is None


def test_packed__gives_the_mask_back() -> None:
    mask = np.zeros((5, 6, 7), bool)
    mask[2:4, 1, 3:6] = True
    np.testing.assert_array_equal(Packed.of(mask).full(mask.shape), mask)
    assert not Packed.of(np.zeros((3, 3), bool)).full((3, 3)).any()


def test_boxes__of_image_and_network() -> None:
    matrix = np.array([[-2.0, 0, 0, 30], [0, 0, 1.0, -3], [0, 4.0, 0, 1], [0, 0, 0, 1]])  # (x, y, z) -> (i, j, k)
    size = (16, 10, 18)  # (D, H, W)
    kept = np.array([[1.5, 19.5], [-0.5, 6.5], [3.5, 29.5]])  # of a shape of (20, 9, 30)
    box, seen = image_box(matrix, kept, size), source_box(matrix, kept, size)
    for index in np.ndindex(16, 10, 18):
        i, j, k, _ = matrix @ [*index[::-1], 1]
        inside = 1.5 <= i <= 19.5 and -0.5 <= j <= 6.5 and 3.5 <= k <= 29.5
        assert inside == all(first <= n < last for n, (first, last) in zip(index, box, strict=True))
    inverse = np.linalg.inv(matrix)
    for voxel in np.ndindex(20, 9, 30):
        x, y, z, _ = inverse @ [*voxel, 1]
        inside = -0.5 <= x <= 17.5 and -0.5 <= y <= 9.5 and -0.5 <= z <= 15.5
        inside &= all(low <= n <= high for n, (low, high) in zip(voxel, kept, strict=True))
        assert inside == all(part.start <= n < part.stop for n, part in zip(voxel, seen, strict=True))


def test_structures_of__by_name_and_by_side() -> None:
    nodule = next(f for f in load_prompts("phantom_ct").findings if f.name == "Nodule")
    names = ("Left Nodule", "right_nodule", "Heart", "Nodule")
    assert structures_of(nodule, names, {}) == ("Left Nodule", "right_nodule", "Nodule")
    assert structures_of(nodule, names, {"Nodule": ("Heart",)}) == ("Heart",)
    with pytest.raises(ConfigError, match=r"no mask is called 'Hart'.*did you mean 'Heart'"):
        structures_of(nodule, names, {"Nodule": ("Hart",)})


def test_pointing__a_planted_model_hits_and_its_opposite_misses(manifest: Path, density: type) -> None:
    """The right answer scores 1 and its reverse 0, through all that the verb does but the loading of weights."""
    model = density((4, 4, 4), **CONTRACT.model_dump())
    table = read_manifest(manifest)
    prompts = parse_prompts(PROMPTS)
    config = GroundingConfig.model_validate({"model": ".", "data": {"manifest": str(manifest), "workers": 0}})
    rows = np.arange(len(table.frame))
    findings = list(prompts.select(("Bright", "Dark")).findings)
    files = files_of(manifest)
    files.groups = (("Left Bright", "Right Bright"),) * 2
    cases, failures = grounding._cases([model], table, rows, findings, files, config, False)
    assert not failures
    assert len(cases["Bright"]) == len(cases["Dark"]) == 18
    assert all(case.hit == [True] for case in cases["Bright"])
    assert all(case.hit == [False] for case in cases["Dark"])
    cut = best_threshold(cases["Bright"], 0, files.grid, SIZE)
    assert cut is not None
    dice = [overlaps(case, 0, files.grid, SIZE, np.array([cut]))[0] for case in cases["Bright"]]
    assert min(dice) > 0.6
    maps = patch_maps(model, files(0)[0][None], torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    assert maps.shape == (1, 1, 100)


def settings(ct_run: Path, manifest: Path, prompts: Path, **more: Any) -> GroundingConfig:
    data = {"manifest": str(manifest), "workers": 0}
    return GroundingConfig.model_validate(
        {"model": str(ct_run), "data": data, "prompts": str(prompts), "bootstrap": 50, **more}
    )


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "bright.yaml").write_text(json.dumps(PROMPTS), encoding="utf-8")
    return tmp_path / "bright.yaml"


def test_run_grounding__card_and_result(
    ct_run: Path, manifest: Path, prompts: Path, tmp_path: Path, page_of: Callable[[Path], Any]
) -> None:
    result = grounding.run_grounding(
        settings(ct_run, manifest, prompts, out=str(tmp_path / "out"), tolerance=4.0), progress=False
    )
    assert [entry["name"] for entry in result["findings"]] == ["Bright", "Left Bright"]
    bright, left = result["findings"]
    assert (bright["images"], bright["patients"], bright["val_images"], left["images"]) == (12, 12, 6, 6)
    assert bright["structures"] == ["Left Bright", "Right Bright"]
    assert 0 < bright["chance"] < 0.3
    assert bright["ceiling"] == 1.0
    for entry in (bright, left, result["mean"]):
        for metric in ("pointing", "dice"):
            assert 0 <= entry[metric]["low"] <= entry[metric]["value"] <= entry[metric]["high"] <= 1
            assert entry["random"][metric]["value"] is not None
            gain = entry[metric]["value"] - entry["random"][metric]["value"]
            assert entry["random"]["difference"][metric]["value"] == pytest.approx(gain)
    assert result["left_out"] == [{"name": "Dark", "reason": "no mask of its name among the first 16 masks"}]
    page = page_of(tmp_path / "out" / "card.html")
    assert not page.outside
    assert len(page.images) == 4
    assert "within 4.0 mm of it" in page.text
    assert json.loads((tmp_path / "out" / "result.json").read_text())["task"] == "grounding"
    assert "p3" not in (tmp_path / "out" / "card.html").read_text().split("base64")[0]
    console = Console(width=140)
    with console.capture() as shown:
        console.print(grounding.render(result))
    assert "tolerance of 4 mm" in shown.get()


def test_run_grounding__without_val_there_is_no_dice(ct_run: Path, manifest: Path, prompts: Path, tmp_path: Path) -> None:
    config = settings(
        ct_run, manifest, prompts, findings=["Left Bright"], random_baseline=False, pictures=0, out=str(tmp_path / "o")
    )
    config = config.model_copy(update={"data": config.data.model_copy(update={"val_split": "none"})})
    result = grounding.run_grounding(config, progress=False)
    assert result["findings"][0]["dice"] is None
    assert result["mean"]["dice"] is None
    assert "random" not in result["mean"]
    console = Console(width=140)
    with console.capture() as shown:
        console.print(grounding.render(result))
    assert "Left Bright" in shown.get()


def test_run_grounding__refuses(ct_run: Path, manifest: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match="'Dark' has no mask of its name among the first 16 masks; masks are called: Left Bright, Right Bright; set",
    ):
        grounding.run_grounding(settings(ct_run, manifest, prompts, findings=["Dark"]), progress=False)
    # Masks that were not looked at may hold it: here none does, which is found when all are read.
    given = settings(ct_run, manifest, prompts, findings=["Dark"], structures={"Dark": ["dark spot"]})
    with pytest.raises(DataError, match="Dark"):
        grounding.run_grounding(given, progress=False)
    with pytest.raises(ConfigError, match="structures: prompt set 'bright' has no finding 'Drak'"):
        grounding.run_grounding(settings(ct_run, manifest, prompts, structures={"Drak": "x"}), progress=False)
    with pytest.raises(DataError, match="no finding of prompt set 'phantom' has a mask of its name"):
        grounding.run_grounding(settings(ct_run, manifest, Path("phantom")), progress=False)
    table = read_manifest(manifest)
    table.frame["mask"] = ""
    write_manifest(Manifest(table.frame, table.root, table.meta), tmp_path / "bare.parquet")
    config = settings(ct_run, tmp_path / "bare.parquet", prompts)
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": table.root})})
    with pytest.raises(DataError, match="no image of split 'test' names a mask"):
        grounding.run_grounding(config, progress=False)


def test_grounding_config__refuses_a_threshold_chosen_on_what_is_scored(manifest: Path, ct_run: Path) -> None:
    with pytest.raises(ValueError, match="both 'val'"):
        GroundingConfig(model=ct_run, data={"manifest": manifest, "split": "val"})


def test_read__a_label_map_gives_the_layers_of_asked_structures_alone(manifest: Path) -> None:
    table = read_manifest(manifest)
    paths = [table.root / table.frame[column].iloc[0] for column in ("image", "mask")]
    labels = {1: "Left Bright", 2: "Right Bright", 3: "Elsewhere"}
    files = MaskedFiles([paths[0]], [paths[1]], ["CT"], Preprocess(CONTRACT), ["Right Bright"], labels)
    assert files.read(0)[1].names == ("Right Bright",)
    every = MaskedFiles([paths[0]], [paths[1]], ["CT"], Preprocess(CONTRACT), ["Left Bright"], {})
    assert "Left Bright" in every.read(0)[1].names


def test_chosen_cases__a_hit_and_a_miss_in_turn() -> None:
    blank = Packed((0,), (0,), np.empty(0, np.uint8))
    cases = [Grounded(n, n, blank, 0.0, (), n / 10, [], [n % 3 == 0], [0]) for n in range(7)]
    assert [case.row for case in chosen_cases(cases, 3)] == [6, 5, 3]
    assert [case.row for case in chosen_cases([cases[1], cases[2]], 4)] == [2, 1]
