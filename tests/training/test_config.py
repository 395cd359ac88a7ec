"""What a pre-training recipe may not ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from medfm.training.config import PretrainConfig


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.csv"
    path.write_text("image\n", encoding="utf-8")
    return path


def recipe(manifest: Path, **changes: Any) -> PretrainConfig:
    tree = {"data": {"manifest": str(manifest)}, "preprocess": {"size": [224, 224]}, **changes}
    return PretrainConfig.model_validate(tree)


def test_flip__is_refused_where_reports_are_read(manifest: Path) -> None:
    with pytest.raises(ValidationError, match=r"left and right of the reports.*flip_with_text"):
        recipe(manifest, augment={"flip": 0.5})
    assert recipe(manifest, augment={"flip": 0.5, "flip_with_text": True}).augment.flip == 0.5
    assert recipe(manifest, augment={"flip": 0.5}, objective={"name": "mae"}).augment.flip == 0.5
    terms = [{"name": "mae"}, {"name": "contrastive"}]
    with pytest.raises(ValidationError, match="flip_with_text"):
        recipe(manifest, augment={"flip": 0.5}, objective={"name": "sum", "terms": terms})


def test_flip_axes__single_images_have_no_slices(manifest: Path) -> None:
    mae = {"name": "mae"}
    with pytest.raises(ValidationError, match="no D"):
        recipe(manifest, augment={"flip": 0.5, "flip_axes": ["D"]}, objective=mae)


def test_colour__needs_colour_images(manifest: Path) -> None:
    with pytest.raises(ValidationError, match="channels=3"):
        recipe(manifest, augment={"hue": 0.1})
    colour = recipe(manifest, augment={"hue": 0.1}, preprocess={"channels": 3}, encoder={"name": "vit", "in_channels": 3})
    assert colour.augment.colours


def test_encoder__of_other_axes_than_the_images_is_refused(manifest: Path) -> None:
    """Also where views are cut, whose size may differ from the images'."""
    for objective in ("dino", "simclr"):
        with pytest.raises(ValidationError, match="2 axes"):
            recipe(manifest, preprocess={"size": [32, 32, 32]}, objective={"name": objective})


def test_preprocess_size__fits_whole_patches_where_views_are_cut_from_it(manifest: Path) -> None:
    """Training sees views of the encoder's size; evaluation would be the first to find that the whole image does not fit."""
    values = {
        "data": {"manifest": manifest},
        "preprocess": {"size": (112, 112)},
        "encoder": {"name": "vit", "img_size": (96, 96), "patch_size": (12, 12)},
        "objective": {"name": "dino"},
    }
    with pytest.raises(
        ValidationError, match=r"preprocess.size \[112, 112\] is not a multiple of encoder.patch_size \[12, 12\]"
    ):
        PretrainConfig.model_validate(values)
    PretrainConfig.model_validate(values | {"preprocess": {"size": (108, 108)}})


def test_patch_dropout__needs_attention_over_all_patches(manifest: Path) -> None:
    encoder = {"name": "vit", "img_size": [224, 224], "patch_size": [16, 16], "window": [7, 7]}
    with pytest.raises(ValidationError, match=r"set encoder.window=null"):
        recipe(manifest, encoder=encoder, objective={"name": "contrastive", "patch_dropout": 0.5})
    recipe(manifest, encoder=encoder, objective={"name": "contrastive"})


def test_bfloat16_weights__are_refused_where_a_teacher_follows(manifest: Path) -> None:
    precision = {"precision": "bf16-true"}
    aligned = {"name": "contrastive", "terms": ["intra_modal"]}
    sums = [{"name": "sum", "terms": [{"name": "mae"}, term]} for term in ({"name": "moco"}, aligned)]
    for objective in ({"name": "dino"}, {"name": "byol"}, aligned, *sums):
        with pytest.raises(ValidationError, match="use bf16-mixed"):
            recipe(manifest, trainer=precision, objective=objective)
    assert recipe(manifest, trainer=precision, objective={"name": "mae"}).trainer.precision == "bf16-true"
