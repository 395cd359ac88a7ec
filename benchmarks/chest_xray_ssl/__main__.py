"""Masked autoencoding and self-distillation on real radiographs: what frozen features know of pneumonia, on held-out patients.

python -m benchmarks.chest_xray_ssl
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import medfm
from benchmarks.common import ROOT, bar, index, interval, table, write

HERE = Path(__file__).parent
OBJECTIVES = ("mae", "dino")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "chest_xray_ssl", help="folder of what is made")
    parser.add_argument("--only", choices=OBJECTIVES, help="one of the two; the table is written for both alone")
    parser.add_argument("--set", nargs="*", default=[], help="recipe overrides, key=value")
    arguments = parser.parse_args()
    out: Path = arguments.out
    both, kermany = manifests(out)
    overrides = dict(word.split("=", 1) for word in arguments.set)
    rows, bars = [], []
    for name in [arguments.only] if arguments.only else OBJECTIVES:
        run, minutes = train(name, both, out / name, overrides)
        bars.append(bar(f"{name}: training at most 30 minutes on 2 cores: {minutes:.1f} min", minutes <= 30))
        for probe in ("linear_probe", "knn"):
            result = medfm.evaluate(
                probe, {"model": run, "data.manifest": kermany, "findings": ["pneumonia"], "out": out / f"{name}_{probe}"}
            )
            (entry,) = result["findings"]
            score, random = entry["auroc"], entry["random"]["auroc"]
            counts = f"{entry['positives']}/{entry['images']}"
            rows.append([name, probe.replace("_", " "), counts, interval(score), interval(random)])
            said = f"{name}, {probe}: lower end {score['low']:.3f} above the score of random weights {random['value']:.3f}"
            bars.append(bar(said, score["low"] > random["value"]))
    if arguments.only:
        print(table(_HEAD, rows), *bars, sep="\n")
        return
    write(
        "chest_xray_ssl",
        "Frozen features of self-supervised encoders: pneumonia on held-out children",
        "Trained without labels on the train patients of two sets (paediatric, Guangzhou; adult, Hannover); probes fitted on "
        "the train patients' labels, their strength chosen on val patients, scored on test patients. Random weights: the same "
        "encoder, untrained, probed in the same way. Intervals: 1,000 resamples of test patients.",
        table(_HEAD, rows),
        "\n".join(bars),
    )


_HEAD = ["objective", "probe", "positive/n", "AUROC [95 % interval]", "random weights"]


def train(name: str, manifest: Path, run: Path, overrides: dict[str, str]) -> tuple[Path, float]:
    """The run and how many minutes it took: one that has ended is not trained again, its time is that of then."""
    clock = run.with_name(f"{name}_minutes.txt")
    start = time.perf_counter()
    medfm.pretrain(str(HERE / f"{name}.yaml"), {"data.manifest": manifest, "out": run, **overrides})
    if not clock.is_file():
        clock.write_text(f"{(time.perf_counter() - start) / 60:.2f}", encoding="utf-8")
    return run, float(clock.read_text(encoding="utf-8"))


def manifests(out: Path) -> tuple[Path, Path]:
    """Both sets as one manifest to train on, and the labelled one."""
    kermany, hannover, both = (out / f"{name}.parquet" for name in ("kermany", "hannover", "both"))
    index("cxr_kermany", kermany, view="view", text_kind="none", labels="labels")
    index("cxr_hannover", hannover, view="view", text_kind="none")
    medfm.merge({"manifests": [kermany, hannover], "out": both})
    return both, kermany


if __name__ == "__main__":
    main()
