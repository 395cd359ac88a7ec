"""The picture of a run's views."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image as Pictures

from medfm.objectives.base import Parts
from medfm.registry import OBJECTIVES
from medfm.training.config import PretrainConfig
from medfm.training.views_picture import ViewsPicture, build_views_picture
from medfm.transforms.preprocess import Preprocess

VIT = {"name": "vit", "img_size": [32, 32], "patch_size": [8, 8], "embed_dim": 32, "depth": 1, "num_heads": 2}


def built(
    tmp_path: Path, objective: dict[str, Any], size: int = 40, encoder: dict[str, Any] | None = None
) -> ViewsPicture | None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("image\n", encoding="utf-8")
    config = PretrainConfig.model_validate(
        {
            "data": {"manifest": str(manifest)},
            "preprocess": {"size": [size, size]},
            "encoder": encoder or VIT,
            "objective": objective,
        }
    )
    tokenizer: Any = config.objective.tokenizer_config  # type: ignore[attr-defined]
    parts = Parts(config.encoder, Preprocess(config.preprocess), config.augment, 8, tokenizer, 100)
    return build_views_picture(OBJECTIVES.build(config.objective, parts=parts), tmp_path, 0)


def start(callback: ViewsPicture, first: bool = True, images: int = 6, size: int = 40) -> None:
    batch: Any = SimpleNamespace(images=torch.randint(0, 256, (images, 1, size, size), dtype=torch.uint8))
    trainer: Any = SimpleNamespace(is_global_zero=first)
    before = torch.get_rng_state()
    callback.on_train_batch_start(trainer, torch.nn.Module(), batch, 0)  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())


def test_views_picture__is_written_once_by_the_first_process(tmp_path: Path) -> None:
    callback = built(tmp_path, {"name": "simclr"})
    assert callback is not None
    start(callback, first=False)
    assert not (tmp_path / "views.png").exists()
    start(callback)
    with Pictures.open(tmp_path / "views.png") as picture:
        made = np.asarray(picture)
    assert made.shape == (4 * 36, 3 * 36, 3)  # four images; stored and two views of 32, white between
    written = (tmp_path / "views.png").read_bytes()
    start(callback)
    assert (tmp_path / "views.png").read_bytes() == written


def test_views_picture__a_small_batch_and_a_term_of_a_sum(tmp_path: Path) -> None:
    callback = built(tmp_path, {"name": "sum", "terms": [{"name": "simclr"}, {"name": "byol"}]}, 32)
    assert callback is not None
    start(callback, images=2, size=32)
    with Pictures.open(tmp_path / "views.png") as picture:
        assert picture.size == (3 * 36, 2 * 36)


def test_views_picture__local_views_have_the_size_that_is_trained_with(tmp_path: Path) -> None:
    """A timm encoder's patches of 16 pixels are known once it is built: 3/7 of 64 pixels are two of them."""
    tiny = {"name": "timm", "model": "test_vit", "img_size": [64, 64], "pool": "mean"}
    callback = built(tmp_path, {"name": "dino", "out_dim": 8, "hidden_dim": 8, "bottleneck_dim": 8}, 64, tiny)
    assert callback is not None
    assert callback.views.local_size == (32, 32)


def test_build_views_picture__none_without_views(tmp_path: Path) -> None:
    assert built(tmp_path, {"name": "mae", "decoder_dim": 16, "decoder_heads": 2, "decoder_depth": 1}, 32) is None
