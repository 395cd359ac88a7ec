"""The phantom's chest CTs, a training on them, and all scores of a run."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import medfm

RECIPE = "chest_ct_tiny"
FOCAL = ("Pleural Effusion", "Pneumothorax", "Consolidation", "Nodule")
"""Findings with a place: what the pointing game is about."""
NEAR = 22.0
"""mm, a token's side, 6 % of the field of view: the published game's tolerance is 15 pixels, 7 % of an image of 224."""


def phantom(out: Path, studies: int) -> Path:
    """The manifest of `studies` generated CTs; what is there already is kept."""
    medfm.phantom({"kind": "chest_ct", "n": studies, "seed": 0, "out": out / "phantom"})
    manifest = out / "manifest.parquet"
    medfm.index({"card": "phantom_ct", "root": out / "phantom", "out": manifest})
    return manifest


@cache
def stored(manifest: Path) -> Path:
    """A cache of the manifest's images under the recipe's contract, for many runs."""
    out = manifest.parent / "store"
    medfm.cache({"manifest": manifest, "recipe": RECIPE, "out": out})
    return out


def train(manifest: Path, run: Path, overrides: dict[str, Any], recipe: str = RECIPE) -> tuple[Path, float]:
    """The run and how many minutes it took: one that has ended is not trained again, its time is that of then."""
    clock = run.with_name(f"{run.name}_minutes.txt")
    start = time.perf_counter()
    medfm.pretrain(recipe, {"data.manifest": manifest, "out": run, **overrides})
    if not clock.is_file():
        clock.write_text(f"{(time.perf_counter() - start) / 60:.2f}", encoding="utf-8")
    return run, float(clock.read_text(encoding="utf-8"))


def scores(run: Path, manifest: Path, split: str = "test", random: bool = True) -> dict[str, Any]:
    """The three results of a run, and of each headline what is made of them: that of the model, and with `random` that of
    random weights."""
    data: dict[str, Any] = {
        "model": run,
        "random_baseline": random,
        "data.manifest": manifest,
        "data.split": split,
        "data.val_split": "val" if split == "test" else "test",
    }
    focal: dict[str, Any] = {"prompts": "phantom_ct", "findings": FOCAL}
    options: dict[str, tuple[str, dict[str, Any]]] = {
        "zero_shot": ("zero_shot", {"prompts": "phantom_ct"}),
        "grounding": ("grounding", focal),
        "near": ("grounding", {**focal, "tolerance": NEAR}),
        "compositional": ("compositional", {"report": {"sections": ["impression"]}}),
    }
    found = {name: medfm.evaluate(task, {**data, **more, "out": run / name}) for name, (task, more) in options.items()}
    findings = [e for e in found["zero_shot"]["findings"] if e["auroc"] is not None]
    found["mean_auroc"] = _mean([_values(e, "auroc") for e in findings])
    found["mean_pointing"] = _mean([_values(e, "pointing") for e in found["grounding"]["findings"]])
    found["mean_near"] = _mean([_values(e, "pointing") for e in found["near"]["findings"]])
    for entry in found["compositional"]["scores"]:
        if entry["level"] == "sentence":
            found[entry["kind"]] = _values(entry, "accuracy")
    return found


def _values(entry: dict[str, Any], metric: str) -> list[float]:
    beside = entry.get("random")
    return [entry[metric]["value"], *([beside[metric]["value"]] if beside else [])]


def _mean(several: list[list[float]]) -> list[float]:
    return [sum(column) / len(several) for column in zip(*several, strict=True)]
