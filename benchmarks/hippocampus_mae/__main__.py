"""3D masked autoencoding on real MR volumes: reconstruction and a frozen-feature segmentation probe, on held-out volumes.

python -m benchmarks.hippocampus_mae
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import medfm
from benchmarks.common import ROOT, bar, index, interval, table, write
from medfm.training.logs import read_metrics

HERE = Path(__file__).parent
LABELS = {1: "anterior hippocampus", 2: "posterior hippocampus"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "hippocampus_mae", help="folder of manifest, run and card")
    parser.add_argument("--set", nargs="*", default=[], help="recipe overrides, key=value")
    arguments = parser.parse_args()
    out: Path = arguments.out
    manifest = out / "manifest.parquet"
    index("mr3d_hippocampus", manifest, modality="modality", mask="mask", text_kind="none")
    overrides = dict(word.split("=", 1) for word in arguments.set)
    start = time.perf_counter()
    run = medfm.pretrain(str(HERE / "recipe.yaml"), {"data.manifest": manifest, "out": out / "run", **overrides})
    clock = out / "minutes.txt"  # a run that has ended is not trained again: its time is that of then
    if not clock.is_file():
        clock.write_text(f"{(time.perf_counter() - start) / 60:.2f}", encoding="utf-8")
    minutes = float(clock.read_text(encoding="utf-8"))
    error = [value for _, name, value in read_metrics(run / "metrics.csv") if name == "val/relative_error"][-1]
    result = medfm.evaluate(
        "segmentation_probe", {"model": run, "data.manifest": manifest, "out": out / "probe", "mask_labels": LABELS}
    )

    rows, met = [], []
    for entry in result["structures"]:
        score, random = entry["dice"], entry["random"]["dice"]
        rows.append([entry["name"], interval(score), interval(random), interval(entry["random"]["difference"])])
        met.append(score["low"] > random["value"])
    bars = [
        bar(f"training at most 30 minutes on 2 cores: {minutes:.1f} min", minutes <= 30),
        bar(
            f"squared error on masked patches of held-out volumes at most 0.70 of each patch's mean's: {error:.3f}",
            error <= 0.70,
        ),
        bar("segmentation probe: each lower end above the score of random weights", all(met)),
    ]
    write(
        "hippocampus_mae",
        "3D masked autoencoding on MR of the hippocampus",
        "150 volumes to train on, 28 val, 23 test, of different patients. Reconstruction: val volumes, half of the patches "
        "masked; the mean is each masked patch's own, which is more than a blind guess could know. Probe: one linear layer on "
        "frozen patch features, fitted on the train volumes' masks, Dice on test volumes; intervals: 1,000 resamples of "
        "patients. Settings were chosen on val volumes.",
        table(["structure", "Dice [95 % interval]", "random weights", "difference, paired"], rows),
        "\n".join(bars),
    )


if __name__ == "__main__":
    main()
