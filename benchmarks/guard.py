"""The collapse guard on real images: runs set up to collapse are stopped within 100 steps, healthy ones raise no alarm.

python -m benchmarks.guard
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, bar, index, table, write
from medfm.training.logs import read_metrics

DINO = {
    "encoder": {"name": "vit", "img_size": [64, 64], "patch_size": [8, 8], "embed_dim": 96, "depth": 4, "num_heads": 3},
    "objective": {
        "name": "dino",
        "hidden_dim": 512,
        "views": {"local_count": 4, "local_size": [32, 32]},
    },
}
PLAIN = {"encoder": {**DINO["encoder"], "img_size": [96, 96]}}
VOLUMES = {
    "preprocess": {"size": [32, 48, 32], "window": "percentile", "resize": "none", "spacing": [1.0, 1.0, 1.0]},
    "encoder": {"name": "vit", "img_size": [32, 48, 32], "patch_size": [8, 8, 8], "embed_dim": 96, "depth": 4, "num_heads": 3},
}
DECODER = {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 3}


@dataclass
class Run:
    """One run: what it is, its part of the recipe, and what the guard should say (None: nothing)."""

    name: str
    what: str
    recipe: dict[str, Any]
    collapses: bool = False
    volumes: bool = False
    objective: dict[str, Any] = field(default_factory=dict)
    lr: float = 5e-4

    def config(self, steps: int, manifest: Path, out: Path) -> dict[str, Any]:
        base = {
            "name": self.name,
            "data": {"manifest": str(manifest), "batch_size": 32, "workers": 0, "cache": "memory"},
            "preprocess": {"size": [96, 96], "window": "none", "resize": "pad"},
            "optimizer": {"lr": self.lr, "weight_decay": 0.04},
            "schedule": {"warmup": 0.1},
            "trainer": {
                "max_steps": steps,
                "accelerator": "cpu",
                "devices": 1,
                "val_every": 10,
                "checkpoint_every": 10,
                "clip_grad": 3.0,
            },
            "out": str(out),
            "resume": "never",
        }
        return {**base, **self.recipe, "objective": {**self.recipe.get("objective", {}), **self.objective}}


RUNS = [
    Run(
        "collapse_none",
        "DINO, no centring, no sharpening (both temperatures 0.1)",
        DINO,
        True,
        objective={"centring": "none", "teacher_temp": 0.1, "warmup_teacher_temp": 0.1},
        lr=1e-3,
    ),
    Run(
        "collapse_uniform",
        "DINO, centring alone (teacher temperature 1)",
        DINO,
        True,
        objective={"teacher_temp": 1.0, "warmup_teacher_temp": 1.0},
    ),
    Run("collapse_one_hot", "DINO, sharpening alone (no centring)", DINO, True, objective={"centring": "none"}, lr=1e-3),
    Run("dino", "DINO as published, tiny", DINO),
    Run(
        "dinov2",
        "DINOv2: Sinkhorn, iBOT, KoLeo, LayerScale 1e-5 (all images alike at the start)",
        {**DINO, "encoder": {**DINO["encoder"], "init_values": 1e-5}},
        objective={"centring": "sinkhorn", "ibot_weight": 1.0, "koleo_weight": 0.1},
    ),
    Run("mae", "MAE", PLAIN, objective={"name": "mae", **DECODER}),
    Run("simclr", "SimCLR", PLAIN, objective={"name": "simclr"}),
    Run(
        "byol_cnn",
        "BYOL, ResNet-18 of timm",
        {"encoder": {"name": "timm", "model": "resnet18", "img_size": [96, 96]}},
        objective={"name": "byol", "hidden_dim": 512},
    ),
    Run("mae_3d", "MAE in 3D, MR of the hippocampus", VOLUMES, volumes=True, objective={"name": "mae", **DECODER}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "guard", help="folder of manifests and runs")
    parser.add_argument("--steps", type=int, default=300, help="of the healthy runs")
    parser.add_argument("--only", nargs="*", default=[], help=f"of: {', '.join(run.name for run in RUNS)}; writes no table")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "collapse.png")
    arguments = parser.parse_args()
    out: Path = arguments.out
    rows, bars = [], []
    for run in RUNS:
        if arguments.only and run.name not in arguments.only:
            continue
        row, met = measure(run, out, arguments.steps)
        rows.append(row)
        bars.append(met)
    head = ["run", "steps", "alarm", "entropy", "information: best", "at the end", "spread: best", "at the end", "guard's time"]
    text = table(head, rows)
    if arguments.only:
        print(text, *bars, sep="\n")
        return
    picture(out, arguments.picture)
    write(
        "guard",
        "The collapse guard",
        "Paediatric radiographs (cxr_kermany, 482 training images) and MR volumes (mr3d_hippocampus), batch 32, tiny encoders, "
        "the guard's defaults. Each run is the command `medfm pretrain`; one that collapses must end with exit status 2, a "
        "message that names the evidence, no traceback, and a checkpoint. Information: nats that the teacher's answer tells "
        "about which image it saw. Spread: 1 - mean cosine of two images' features (of the student, where there is one).",
        text,
        "\n".join(bars),
    )


def measure(run: Run, out: Path, steps: int) -> tuple[list[object], str]:
    """One run as a row of the table and its bar."""
    folder = out / run.name
    manifest = out / ("volumes.parquet" if run.volumes else "films.parquet")
    if not manifest.is_file():
        _index(manifest, run.volumes)
    recipe = out / f"{run.name}.yaml"
    # 100 steps are what a collapsing run has; its schedule is that of the healthy one.
    recipe.write_text(json.dumps(run.config(steps, manifest, folder)), encoding="utf-8")
    if (folder / "resolved.yaml").is_file():
        raise SystemExit(f"{folder} holds a run already: remove it or choose another --out")
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "medfm.cli", "pretrain", f"recipe={recipe}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    seconds = time.perf_counter() - start
    if "Traceback" in done.stderr or done.returncode not in (0, 2) or not (folder / "guard.json").is_file():
        raise SystemExit(f"{run.name} failed:\n{done.stderr[-3000:]}")
    facts = json.loads((folder / "guard.json").read_text(encoding="utf-8"))
    alarm = facts["alarms"][0] if facts["alarms"] else None
    checks = facts["checks"]
    spread = [1 - c[key] for c in checks for key in [_student(c)] if key]
    information = [check["information"] for check in checks if "information" in check]
    last = read_metrics(folder / "metrics.csv")
    entropy = [value for _, name, value in last if name == "train/teacher_entropy"]
    row: list[object] = [
        run.what,
        checks[-1]["step"],
        "none" if alarm is None else f"{alarm['kind']} (step {alarm['step']})",
        f"{entropy[-1]:.3f}" if entropy else "-",
        f"{max(information):.2g}" if information else "-",
        f"{information[-1]:.2g}" if information else "-",
        f"{max(spread):.2g}",
        f"{spread[-1]:.2g}",
        f"{facts['seconds'] / seconds:.1%}",
    ]
    if run.collapses:
        saved = alarm is not None and (folder / "checkpoints" / f"step={alarm['step']:08d}.ckpt").is_file()
        named = alarm is not None and alarm["text"] in done.stderr.replace("\n", " ")
        met = done.returncode == 2 and alarm is not None and alarm["step"] <= 100 and saved and named
        return row, bar(f"{run.what}: stopped within 100 steps, evidence named, checkpoint written", met)
    return row, bar(
        f"{run.what}: {checks[-1]['step']} steps without an alarm", done.returncode == 0 and alarm is None and steps >= 300
    )


def _student(check: dict[str, float]) -> str:
    return next((key for key in ("student/mean_cosine", "mean_cosine") if key in check), "")


def _index(manifest: Path, volumes: bool) -> None:
    if volumes:
        index("mr3d_hippocampus", manifest, modality="modality", text_kind="none")
    else:
        index("cxr_kermany", manifest, view="view", labels="labels", text="text_derived", text_kind="label sentences")


def picture(out: Path, target: Path) -> None:
    """A collapsed run and a healthy one side by side."""
    from matplotlib.figure import Figure

    panels = [
        ("train/loss", "loss", "linear"),
        ("guard/information", "what an answer tells about its image (nats)", "log"),
        ("guard/student/mean_cosine", "mean cosine of two images", "linear"),
    ]
    runs = [("collapse_uniform", "collapsed: stopped by the guard", "#b2332e"), ("dino", "healthy", "#2a6f8f")]
    figure = Figure(figsize=(10.5, 3.1), layout="constrained")
    for number, (name, title, scale) in enumerate(panels):
        axes = figure.add_subplot(1, 3, number + 1)
        for run, label, colour in runs:
            points = [(step, value) for step, n, value in read_metrics(out / run / "metrics.csv") if n == name]
            axes.plot(*zip(*points, strict=True), color=colour, label=label, marker="o", markersize=3)
            if run.startswith("collapse"):
                axes.axvline(max(points)[0], color=colour, linewidth=0.8, linestyle=":")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_yscale(scale)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if number == 1:
            axes.axhline(0.03, color="grey", linewidth=0.8, linestyle="--", label="guard.min_information")
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    main()
