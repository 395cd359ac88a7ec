"""Every shipped pre-training recipe builds; the small ones train and give weights that evaluation takes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import medfm
from medfm.config.recipes import list_recipes
from medfm.config.resolve import resolve
from medfm.objectives.base import Objective, Parts
from medfm.registry import OBJECTIVES
from medfm.training.config import PretrainConfig
from medfm.training.logs import read_metrics
from medfm.transforms.preprocess import Preprocess

RECIPES = {recipe.path.stem: str(recipe.path.resolve()) for recipe in list_recipes("pretrain")}
STEPS = {"trainer.max_steps": 2, "trainer.log_every": 1, "data.batch_size": 4, "data.cache": "none", "guard.on_collapse": "off"}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe__builds(name: str, minilm: Path) -> None:
    """On the meta device, which holds no numbers: a ViT-L takes no memory there. A text model that the recipe names and that
    is not here is replaced by a small one."""
    changes: dict[str, Any] = {"data.manifest": __file__}
    if "hf_text" in Path(RECIPES[name]).read_text(encoding="utf-8"):
        changes |= {"objective.text_encoder.path": minilm, "objective.tokenizer.path": minilm}
        # No weights on the meta device; and the small one has no more positions.
        changes |= {"objective.text_encoder.pretrained": False, "objective.tokenizer.context_length": 512}
    config = resolve(PretrainConfig, "pretrain", RECIPES[name], changes).config
    tokenizer: Any = config.objective.tokenizer_config  # type: ignore[attr-defined]
    parts = Parts(config.encoder, Preprocess(config.preprocess), config.augment, config.step_batch, tokenizer, 100_000)
    with torch.device("meta"):
        objective: Objective = OBJECTIVES.build(config.objective, parts=parts)
    assert sum(p.numel() for p in objective.parameters()) > 100_000


def test_recipes__paper_sizes() -> None:
    """Parameters of the encoders that the papers name, in millions."""
    for name, millions in (("mae_vitb16_paper", 85.8), ("dino_vits16_paper", 21.7), ("dinov2_vitl14", 303.2)):
        config = resolve(PretrainConfig, "pretrain", RECIPES[name], {"data.manifest": __file__}).config
        with torch.device("meta"):
            encoder = Parts(config.encoder, Preprocess(config.preprocess), config.augment, 1).image_encoder
        assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.6), name


@pytest.fixture(scope="module")
def manifests(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A manifest for each kind of tiny recipe: generated films and CTs, copies of a real brain."""
    root = tmp_path_factory.mktemp("recipes")
    made = {}
    for kind, card in (("chest_xray", "phantom"), ("chest_ct", "phantom_ct")):
        medfm.phantom({"kind": kind, "n": 16, "out": root / kind, "size": 64, "masks": False, "workers": 1})
        made[kind] = root / f"{kind}.parquet"
        medfm.index({"card": card, "root": root / kind, "out": made[kind]})
    for patient in range(8):
        shutil.copytree(data_dir / "mr3d_stroke", root / "brain_mr" / f"p{patient}")
    made["brain_mr"] = root / "brain_mr.parquet"
    sequences = ["T1.nii.gz", "T2.nii.gz", "FLAIR.nii.gz"]
    medfm.index({"images": root / "brain_mr", "sequences": sequences, "out": made["brain_mr"], "fractions": [0.8, 0.2, 0]})
    return made


@pytest.mark.parametrize("name", sorted(name for name in RECIPES if name.endswith("_tiny")))
def test_tiny_recipes__train(name: str, manifests: dict[str, Path], tmp_path: Path) -> None:
    kind = next(kind for kind in manifests if name.startswith(kind))
    run = medfm.pretrain(RECIPES[name], {"data.manifest": manifests[kind], "out": tmp_path / "run", **STEPS})
    losses = [value for _, key, value in read_metrics(run / "metrics.csv") if key == "train/loss"]
    assert len(losses) == 2
    model = medfm.load_model(run)
    stored = torch.zeros(2, *model.preprocess.stored_shape, dtype=getattr(torch, model.preprocess.config.dtype))
    assert model.encode_images(stored).shape == (2, model.network.embed_dim)
