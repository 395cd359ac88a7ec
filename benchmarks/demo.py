"""`make demo` on a fresh clone, from nothing: minutes with the installation, and the scores on unseen generated patients.

python -m benchmarks.demo
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.common import ROOT, bar, table, write

SIDES = ("Left ", "Right ")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "medfm"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        start = time.perf_counter()
        done = subprocess.run(["make", "demo"], cwd=clone, capture_output=True, text=True)
        minutes = (time.perf_counter() - start) / 60
        if done.returncode:
            raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
        result = json.loads((clone / "demo" / "zero_shot" / "result.json").read_text())
    whole = [e for e in result["findings"] if not e["name"].startswith(SIDES)]
    sides = [e for e in result["findings"] if e["name"].startswith(SIDES)]
    mean = sum(e["auroc"]["value"] for e in whole) / len(whole)
    side = min(e["auroc"]["value"] for e in sides)
    side_mean = sum(e["auroc"]["value"] for e in sides) / len(sides)
    rows = [
        [e["name"], f"{e['positives']}/{e['images']}", _interval(e["auroc"]), f"{e['random']['auroc']['value']:.3f}"]
        for e in result["findings"]
    ]
    bars = [
        bar(
            f"`make demo` from an empty folder on 2 cores, installation included, at most 10 minutes: {minutes:.1f}",
            minutes <= 10,
        ),
        bar(f"mean zero-shot AUROC over the phantom's findings on unseen patients >= 0.90: {mean:.3f}", mean >= 0.90),
        bar(
            f"left and right told apart, AUROC >= 0.85 on side-specific prompts: mean {side_mean:.3f}, lowest {side:.3f}",
            side >= 0.85,
        ),
    ]
    note = "A generated world with known answers: these figures say that the machinery works, nothing about patients."
    write(
        "demo",
        "The demo",
        note,
        table(["finding", "positive/n", "AUROC [95 % interval]", "random weights"], rows),
        "\n".join(bars),
    )


def _interval(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    main()
