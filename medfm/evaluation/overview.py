"""One page of all that was scored of a model: `evaluation.html` beside the folders of the single evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TITLES = {
    "zero_shot": "Zero-shot findings",
    "retrieval": "Image–report retrieval",
    "grounding": "Grounding",
    "compositional": "Compositional score",
    "linear_probe": "Linear probe",
    "knn": "Nearest neighbours",
    "segmentation_probe": "Segmentation probe",
}


def headlines(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The scores that stand for an evaluation: name, value with its interval, that of random weights, chance; each or None."""

    def row(name: str, value: Any, random: Any = None, chance: float | None = None) -> dict[str, Any]:
        return {"name": name, "value": value, "random": random, "chance": chance}

    task, mean = result["task"], result.get("mean", {})
    random = mean.get("random", {})
    if task == "grounding":
        count = len(mean["findings"])
        return [
            row(f"pointing game, mean of {count}", mean["pointing"], random.get("pointing"), mean["chance"]),
            row(f"Dice, mean of {count}", mean["dice"], random.get("dice")),
        ]
    if task == "compositional":
        return [
            row(f"{s['kind']}, {s['level']}: accuracy", s["accuracy"], s.get("random", {}).get("accuracy"), 0.5)
            for s in result["scores"]
        ]
    if task == "retrieval":
        return [
            row(f"{d['name']}: recall at {k}", value, d.get("random", {}).get("recall", {}).get(k), d["chance"][k])
            for d in result["directions"]
            for k, value in list(d["recall"].items())[:2]
        ]
    if task == "segmentation_probe":
        return [row(f"Dice, mean of {len(result['structures'])}", mean["dice"], random.get("dice"))]
    return [row(f"AUROC, mean of {len(mean['findings'])}", mean["auroc"], random.get("auroc"), 0.5)]


def write_overview(result: dict[str, Any]) -> Path | None:
    """Write `evaluation.html` beside the folder of a result, from its `result.json` and those of its neighbours that are about
    the same weights. None where it cannot be written there."""
    from medfm.evaluation.card import write_html

    folder = Path(result["folder"]).resolve().parent
    found = []
    for path in sorted(folder.glob("*/result.json")):
        try:
            other = json.loads(path.read_text(encoding="utf-8"))
            if other["model"]["sha256"] != result["model"]["sha256"] or other["task"] not in TITLES:
                continue
            found.append({"title": TITLES[other["task"]], "link": path.parent.name, "result": other, "rows": headlines(other)})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not ours, or of a version that counted otherwise
    order = list(TITLES)
    found.sort(key=lambda item: (order.index(item["result"]["task"]), item["link"]))
    try:
        write_html(folder / "evaluation.html", "overview.html.j2", result=result, evaluations=found)
    except OSError:
        return None
    return folder / "evaluation.html"
