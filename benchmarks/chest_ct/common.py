"""The phantom's chest CTs, a training on them, and all scores of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import medfm

RECIPE = "chest_ct_tiny"
FOCAL = ("Pleural Effusion", "Pneumothorax", "Consolidation", "Nodule")
"""Findings with a place: what the pointing game is about."""


def phantom(out: Path, studies: int) -> Path:
    """The manifest of `studies` generated CTs; what is there already is kept."""
    medfm.phantom({"kind": "chest_ct", "n": studies, "seed": 0, "out": out / "phantom"})
    manifest = out / "manifest.parquet"
    medfm.index({"card": "phantom_ct", "root": out / "phantom", "out": manifest})
    return manifest


def train(manifest: Path, run: Path, overrides: dict[str, Any], recipe: str = RECIPE) -> tuple[Path, float]:
    """The run and how many minutes it took: one that has ended is not trained again, its time is that of then."""
    clock = run.with_name(f"{run.name}_minutes.txt")
    start = time.perf_counter()
    medfm.pretrain(recipe, {"data.manifest": manifest, "out": run, **overrides})
    if not clock.is_file():
        clock.write_text(f"{(time.perf_counter() - start) / 60:.2f}", encoding="utf-8")
    return run, float(clock.read_text(encoding="utf-8"))


def scores(run: Path, manifest: Path, split: str = "test") -> dict[str, Any]:
    """The three results of a run, and what is made of them: (model, random weights) of each headline."""
    data = {
        "model": run,
        "data.manifest": manifest,
        "data.split": split,
        "data.val_split": "val" if split == "test" else "test",
    }
    options: dict[str, dict[str, Any]] = {
        "zero_shot": {"prompts": "phantom_ct"},
        "grounding": {"prompts": "phantom_ct", "findings": FOCAL},
        "compositional": {"report": {"sections": ["impression"]}},
    }
    found = {name: medfm.evaluate(name, {**data, **more, "out": run / name}) for name, more in options.items()}
    findings = [e for e in found["zero_shot"]["findings"] if e["auroc"] is not None]
    found["mean_auroc"] = _mean([(e["auroc"]["value"], e["random"]["auroc"]["value"]) for e in findings])
    found["mean_pointing"] = _mean(
        [(e["pointing"]["value"], e["random"]["pointing"]["value"]) for e in found["grounding"]["findings"]]
    )
    for entry in found["compositional"]["scores"]:
        if entry["level"] == "sentence":
            found[entry["kind"]] = (entry["accuracy"]["value"], entry["random"]["accuracy"]["value"])
    return found


def _mean(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return tuple(sum(column) / len(pairs) for column in zip(*pairs, strict=True))  # type: ignore[return-value]
