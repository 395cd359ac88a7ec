"""The phantom's chest CTs, a training on them, and all scores of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import medfm
from medfm.io.files import atomic_write

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


def scores(run: Path, manifest: Path, split: str = "test", quick: bool = False, random: bool = True) -> dict[str, Any]:
    """The results of a run on a split, and of each headline made of them that of the model and that of random weights, where
    `random` asks for them. `quick`: without intervals, Dice, pictures and the pointing without a tolerance."""
    focal: dict[str, Any] = {"prompts": "phantom_ct", "findings": FOCAL}
    cached = {"data.cache": stored(manifest)}
    options: dict[str, tuple[str, dict[str, Any]]] = {
        "zero_shot": ("zero_shot", {"prompts": "phantom_ct", **cached}),
        "grounding": ("grounding", focal),
        "near": ("grounding", {**focal, "tolerance": NEAR}),
        "compositional": ("compositional", {"report": {"sections": ["impression"]}, **cached}),
    }
    data: dict[str, Any] = {"model": run, "data.manifest": manifest, "data.split": split, "random_baseline": random}
    val_split = "none" if quick else "val" if split == "test" else "test"
    found: dict[str, Any] = {}
    for name, (task, more) in options.items():
        if quick and name == "grounding":
            continue
        hurried: dict[str, Any] = {"bootstrap": 0} if quick else {}
        if task != "compositional":
            hurried |= {"data.val_split": val_split} | ({"pictures": False} if quick else {})
        found[name] = medfm.evaluate(task, {**data, **more, **hurried, "out": run / name})
    findings = [e for e in found["zero_shot"]["findings"] if e["auroc"] is not None]
    found["mean_auroc"] = _mean([_values(e, "auroc") for e in findings])
    for name in {"grounding", "near"} & found.keys():
        found[f"mean_{name}"] = _mean([_values(e, "pointing") for e in found[name]["findings"]])
    for entry in found["compositional"]["scores"]:
        found[f"{entry['kind']} {entry['level']}"] = _values(entry, "accuracy")
    return found


def measured(
    manifest: Path, folder: Path, overrides: dict[str, Any], headlines: Sequence[str], **options: Any
) -> tuple[list[list[float]], float]:
    """`scores` of a training at `headlines`, and its minutes: kept in `folder`, so that what is there is not done again."""
    kept = folder / "headlines.json"
    if not kept.is_file():
        run, minutes = train(manifest, folder / "run", overrides)
        found = scores(run, manifest, **options)
        text = json.dumps({"scores": [found[key] for key in headlines], "minutes": minutes})
        with atomic_write(kept) as temporary:
            temporary.write_text(text, encoding="utf-8")
    values = json.loads(kept.read_text(encoding="utf-8"))
    return values["scores"], values["minutes"]


def _values(entry: dict[str, Any], metric: str) -> list[float]:
    beside = entry.get("random")
    return [entry[metric]["value"], *([beside[metric]["value"]] if beside else [])]


def _mean(several: list[list[float]]) -> list[float]:
    return [sum(column) / len(several) for column in zip(*several, strict=True)]
