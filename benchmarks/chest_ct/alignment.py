"""Plain contrast against each fine-grained term on the phantom's chest CTs: same steps, three seeds each.

python -m benchmarks.chest_ct.alignment

A run that has ended is not trained again, so that the command may be stopped and given again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chest_ct.common import NEAR, measured, phantom, stored
from benchmarks.common import ROOT, table, write

HELD = {"held": 2**22}  # of similarities at once: as fast on a CPU as more, in less memory
PLAIN = "plain contrast"
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {"terms": []},
    "filip": {"terms": [{"name": "filip", **HELD}]},
    "gloria": {"terms": [{"name": "gloria", **HELD}]},
    "sentences": {"terms": [{"name": "sentences"}]},
    "levels": {"terms": [{"name": "levels", **HELD}]},
    "hard_negatives": {"terms": [{"name": "hard_negatives"}]},
    "knowledge": {"knowledge": "chest", "terms": [{"name": "knowledge"}]},
    "concepts": {"knowledge": "chest", "terms": [{"name": "concepts"}]},
    "streams": {"knowledge": "chest", "terms": [{"name": "streams", "depth": 2}]},
    "captioning": {"terms": [{"name": "captioning", "depth": 2, "num_heads": 4}]},
    "intra_modal": {"terms": [{"name": "intra_modal"}]},
    "image_views": {"terms": [{"name": "image_views"}]},
    "masked_words": {"terms": [{"name": "masked_words"}]},
    "nearest_text": {"terms": [{"name": "nearest_text", "bank": 512}]},
    "sentences + hard_negatives": {"terms": [{"name": "sentences"}, {"name": "hard_negatives"}]},
}
LIGHTER: dict[str, Any] = {
    "encoder.layers": [1, 1],
    "encoder.widths": [16, 48],
    "encoder.strides": [1, 2],
    "encoder.stem_kernel": [5, 5, 5],
    "encoder.stem_stride": [4, 4, 4],
    "objective.text_encoder": {"name": "clip_text", "embed_dim": 128, "depth": 1, "num_heads": 2},
    "augment": {"scale": [1.0, 1.0], "rotate": 0, "translate": 0, "brightness": 0, "contrast": 0},
    "guard.on_collapse": "off",
}
"""About a quarter of the recipe's multiplications and an eighth of its tokens, 44 mm each: there are many runs, and some terms
compare every token with every word. No image is seen more than `epochs` times, so that augmentation is left out."""
HEADLINES = ("side swapped sentence", "side swapped report", "negated sentence", "mean_near", "mean_auroc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "chest_ct", help="folder of volumes and runs")
    parser.add_argument("--studies", type=int, default=3600)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32, help="small, since some terms compare every image with every text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help=f"of: {', '.join(OPTIONS)}; writes no table")
    arguments = parser.parse_args()
    manifest = phantom(arguments.out, arguments.studies)
    options = {name: changes for name, changes in OPTIONS.items() if not arguments.only or name in arguments.only}
    found: dict[str, list[tuple[list[float], float]]] = {name: [] for name in options}
    for seed in range(arguments.seeds):  # all options once, then again: what was stopped early compares like with like
        for name, changes in options.items():
            found[name].append(_measure(name, changes, seed, manifest, arguments))
            print(name, seed, found[name][-1], flush=True)
    if arguments.only:
        return
    minutes = {name: float(np.median([r[1] for r in runs])) for name, runs in found.items()}  # a pause spoils one seed's
    rows: list[list[object]] = []
    for name, runs in found.items():
        cells = [f"{np.mean(column):.3f} ± {np.std(column, ddof=1):.3f}" for column in zip(*(r[0] for r in runs), strict=True)]
        rows.append([name, *cells, f"{minutes[name] / minutes[PLAIN]:.1f}"])
    write(
        "chest_ct_alignment",
        "Fine-grained alignment on the phantom's chest CTs",
        f"{arguments.studies} generated studies, `chest_ct_tiny` with lighter encoders and no augmentation for "
        f"{arguments.epochs} epochs, batches of {arguments.batch}, each option alone beside the contrast, with its defaults; "
        f"{arguments.seeds} seeds: mean ± standard deviation. Scored on the val split, whose patients training has not seen, "
        "since recipes are chosen by this table: sentences and reports with sides swapped, and sentences with findings denied, "
        f"told from true ones; pointing game within {NEAR:g} mm, half a token; mean zero-shot AUROC; training's time in units "
        "of the plain contrast's, medians over seeds. A made-up world: which term helps there says little of patients.",
        table(_HEAD, rows),
    )


_HEAD = ["objective.terms", "sides, sentence", "sides, report", "negated", "pointing", "AUROC", "time"]


def _measure(name: str, changes: dict[str, Any], seed: int, manifest: Path, arguments: Any) -> tuple[list[float], float]:
    folder = arguments.out / "alignment" / f"{name.replace(' ', '_')}_{arguments.epochs}x{arguments.batch}_{seed}"
    overrides = {
        "seed": seed,
        "data.batch_size": arguments.batch,
        "data.cache": str(stored(manifest)),
        "trainer.max_epochs": arguments.epochs,
        "trainer.val_every": arguments.epochs,
        "trainer.checkpoint_every": arguments.epochs,
        **LIGHTER,
        "objective.knowledge": None,
        **{f"objective.{key}": value for key, value in changes.items()},
    }
    found, minutes = measured(manifest, folder, overrides, HEADLINES, split="val", quick=True, random=False)
    return [values[0] for values in found], minutes


if __name__ == "__main__":
    main()
