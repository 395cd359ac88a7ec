"""A 2D encoder over slices, pooled by attention, against native 3D encoders, on the phantom's chest CTs: same steps.

python -m benchmarks.chest_ct.encoders

A run that has ended is not trained again, so that the command may be stopped and given again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.chest_ct.common import NEAR, measured, phantom, stored
from benchmarks.common import ROOT, table, write

SIZE = "${preprocess.size}"
VIT = {"name": "vit", "embed_dim": 96, "depth": 2, "num_heads": 3, "pool": "mean", "pos_embed": "sincos"}
ENCODERS: dict[str, dict[str, Any]] = {
    "3D ResNet (chest_ct_tiny)": {},
    "3D ViT": {**VIT, "img_size": SIZE, "patch_size": [8, 8, 8]},
    "2D ViT over slices, attention (RadCLIP)": {
        "name": "slices", "img_size": SIZE, "encoder": {**VIT, "patch_size": [8, 8]}, "pool": "cls",
    },
}  # fmt: skip
HEADLINES = ("mean_auroc", "side swapped report", "negated report", "mean_near")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "chest_ct", help="folder of volumes and runs")
    parser.add_argument("--studies", type=int, default=3600)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="*", default=[], help=f"of: {', '.join(ENCODERS)}; writes no table")
    arguments = parser.parse_args()
    manifest = phantom(arguments.out, arguments.studies)
    rows: list[list[object]] = []
    for name, encoder in ENCODERS.items():
        if arguments.only and name not in arguments.only:
            continue
        overrides: dict[str, Any] = {
            "data.batch_size": arguments.batch,
            "data.cache": str(stored(manifest)),
            "trainer.max_epochs": arguments.epochs,
            "trainer.val_every": arguments.epochs,
            "trainer.checkpoint_every": arguments.epochs,
            **({"encoder": encoder, "optimizer.lr": 1e-3, "trainer.channels_last": False} if encoder else {}),
        }
        short = "".join(c if c.isalnum() else "_" for c in name)
        folder = arguments.out / "encoders" / f"{short}_{arguments.epochs}x{arguments.batch}"
        found, minutes = measured(manifest, folder, overrides, HEADLINES, quick=True)
        both = [f"{score:.3f} ({random:.3f})" for score, random in found]
        rows.append([name, *both, f"{minutes:.1f}"])
        print(table(_HEAD, rows), flush=True)
    if arguments.only:
        return
    write(
        "chest_ct_encoders",
        "Slices against volumes on the phantom's chest CTs",
        f"{arguments.studies} studies, `chest_ct_tiny` for {arguments.epochs} epochs, batches of {arguments.batch}, one "
        "seed; the ViTs are alike (96 wide, 2 blocks, patches of 8 pixels a side), at a rate of 1e-3; in brackets the same "
        "encoder with random weights. Scored on patients that training has not seen: mean zero-shot AUROC, reports with sides "
        "swapped and findings negated told from true ones, pointing game within "
        f"{NEAR:g} mm. The grids of tokens differ: what no token's centre falls into cannot be pointed at. "
        "Minutes are the clock's, whatever else the machine did.",
        table(_HEAD, rows),
    )


_HEAD = ["encoder", "AUROC", "side-swapped", "negated", "pointing", "minutes"]


if __name__ == "__main__":
    main()
