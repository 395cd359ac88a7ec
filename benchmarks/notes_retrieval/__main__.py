"""Image-report retrieval on real clinical notes of held-out patients, beside random weights and chance.

python -m benchmarks.kermany_zero_shot   (its weights are where this starts)
python -m benchmarks.notes_retrieval
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import medfm
from benchmarks.common import ROOT, data_dir, table, write

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init", type=Path, default=ROOT / "runs" / "kermany_zero_shot" / "run", help="weights to start from")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "notes_retrieval")
    arguments = parser.parse_args()
    source = data_dir() / "cxr_ieee8023_nc"
    manifest = arguments.out / "manifest.parquet"
    medfm.index(
        {
            "images": source / "images",
            "root": source,
            "reports": source / "manifest.csv",
            "on": "image",
            "patient": "patient_id",
            "view": "view",
            "split": "split",
            "text": "text",
            "out": manifest,
        }
    )
    run = medfm.pretrain(
        str(HERE / "recipe.yaml"),
        {"data.manifest": manifest, "out": arguments.out / "run", "init": arguments.init, "data.on_error": "skip"},
    )
    result = medfm.evaluate(
        "retrieval",
        {
            "model": run,
            "data.manifest": manifest,
            "data.split": "val",
            "data.on_error": "skip",
            "out": arguments.out / "retrieval",
        },
    )
    rows = []
    for direction in result["directions"]:
        for k, value in direction["recall"].items():
            chance = direction["chance"][k]
            rows.append(
                [direction["name"], f"R@{k}", _interval(value), _interval(direction["random"]["recall"][k]), f"{chance:.3f}"]
            )
    write(
        "notes_retrieval",
        "Image-report retrieval on real clinical notes",
        f"{result['images']} images and {result['texts']} distinct notes of {result['patients']} validation patients; "
        "intervals: 1,000 resamples of patients. The set is far too small to learn radiology from: the figure is here to be "
        "honest about it.",
        table(["direction", "metric", "model [95 % interval]", "random weights", "chance"], rows),
    )


def _interval(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    main()
