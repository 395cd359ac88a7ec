from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import medfm

MAE = {
    "encoder": {"name": "vit", "img_size": [32, 32], "patch_size": [8, 8], "embed_dim": 32, "depth": 2, "num_heads": 2},
    "objective": {"name": "mae", "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
}
SUM = {"name": "sum", "terms": [{"name": "contrastive", "tokenizer": {"name": "clip", "context_length": 24}}, MAE["objective"]]}
SUM["terms"][0]["text_encoder"] = {"name": "clip_text", "embed_dim": 32, "depth": 1, "num_heads": 2}  # type: ignore[index]


@pytest.mark.parametrize("objective", [MAE["objective"], SUM], ids=["mae", "sum"])
def test_pretrain__writes_pictures_at_each_validation(tiny_recipe: Path, tmp_path: Path, objective: dict[str, Any]) -> None:
    """As PNG and to TensorBoard; the input's row holds the images' own grey values; the same images and masks each time."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"out": tmp_path / "run", "objective": objective, "encoder": MAE["encoder"], "trainer.max_epochs": 2}
    run = medfm.pretrain(str(tiny_recipe), options)
    paths = sorted((run / "reconstructions").iterdir())
    assert [path.name for path in paths] == ["step=4.png", "step=8.png"]
    first, second = (np.asarray(Image.open(path)) for path in paths)
    assert first.shape == (4 * 228, 116 + 4 * 228, 3)
    assert np.array_equal(first[: 2 * 228], second[: 2 * 228])
    assert not np.array_equal(first[2 * 228 :], second[2 * 228 :])
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("reconstructions")] == [4, 8]
    metrics = (run / "metrics.csv").read_text()
    assert "relative_error" in metrics


def test_pretrain__writes_none_without_reconstruction(tiny_run: Path) -> None:
    assert not (tiny_run / "reconstructions").exists()


def test_pretrain__without_a_validation_split_training_images_are_shown(
    tiny_recipe: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    frame = medfm.read_manifest(tiny_manifest).frame
    frame[frame["split"] == "train"].to_csv(tmp_path / "train.csv", index=False)
    options = {"out": tmp_path / "run", **MAE, "trainer.max_epochs": 2, "augment.scale": [0.8, 1]}
    options |= {"data.manifest": tmp_path / "train.csv", "data.root": tiny_manifest.parent}
    run = medfm.pretrain(str(tiny_recipe), options)
    paths = sorted((run / "reconstructions").iterdir())
    assert [path.name for path in paths] == ["step=4.png", "step=8.png"]
    first, second = (np.asarray(Image.open(path)) for path in paths)
    assert first.shape == (4 * 228, 116 + 4 * 228, 3)
    assert np.array_equal(first[: 2 * 228], second[: 2 * 228])
    assert not np.array_equal(first[2 * 228 :], second[2 * 228 :])
