"""One process of a run on one or two devices: trains a recipe of every objective. Run by test_devices.py.

python devices.py RANK WORLD PORT FOLDER MANIFEST
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

HEADS = {"hidden_dim": 32, "out_dim": 16}
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
TEXT = {"name": "clip", "context_length": 24}
VIEWS = {"local_size": [16, 16], "local_count": 2}

# Each with what it draws: patches, crops, strengths of augmentation, masks.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "contrastive": {
        "name": "contrastive",
        "text_encoder": {"name": "clip_text", "embed_dim": 32, "depth": 1, "num_heads": 2},
        "tokenizer": TEXT,
        "embed_dim": 16,
        "patch_dropout": 0.25,
    },
    "mae": {"name": "mae", **DECODER},
    # Devices have different numbers of changed texts, hence of chunks; sharded weights are gathered for each.
    "terms": {
        "name": "contrastive",
        "text_encoder": {"name": "clip_text", "embed_dim": 32, "depth": 1, "num_heads": 2},
        "tokenizer": TEXT,
        "embed_dim": 16,
        "terms": [{"name": "hard_negatives", "kinds": ["swapped"]}],
        "cache_chunk": 3,
    },
    "dino": {
        "name": "dino",
        **HEADS,
        "bottleneck_dim": 8,
        "momentum": 0.9,
        "freeze_last_layer": 0.4,  # the first step of three
        "ibot_weight": 1.0,
        "koleo_weight": 0.1,
        "views": VIEWS,
    },
    "simclr": {"name": "simclr", **HEADS},
    "moco": {"name": "moco", **HEADS, "queue": 12, "momentum": 0.9},
    "byol": {"name": "byol", **HEADS, "momentum": 0.9},
    "barlow": {"name": "barlow", "out_dim": 16},
    "distill": {"name": "distill", "target": "patches", "mask_ratio": 0.5, "masking": "random"},
    "m3ae": {"name": "m3ae", "tokenizer": TEXT, **DECODER},
    "sum": {"name": "sum", "terms": [{"name": "mae", **DECODER}, {"name": "simclr", **HEADS}], "weights": [1.0, 0.5]},
}
# Class tokens of an untrained encoder hardly differ: dividing by their deviation over the batch would show rounding errors.
NORMED = ("simclr", "moco", "byol", "barlow", "sum")
SHARDED = ("contrastive", "terms", "mae", "dino", "moco")
RESUMED = {"one on two": "ddp", "one on two shards": "fsdp2"}
ADAM = {"optimizer.name": "adamw", "optimizer.lr": 1e-3, "optimizer.eps": 1e-4, "optimizer.weight_decay_end": 0.4}


def recipe(folder: Path, manifest: Path) -> Path:
    from medfm.data.manifest import Manifest, read_manifest, write_manifest

    whole = read_manifest(manifest)
    frame = whole.frame.copy()
    sided = [number % 4 == 0 for number in range(len(frame))]
    frame["report"] = [
        r if s else f"Clear lungs. Case {n}." for n, (r, s) in enumerate(zip(frame["report"], sided, strict=True))
    ]
    write_manifest(Manifest(frame, whole.root, whole.meta), folder / "few_sides.parquet")
    path = folder / "recipe.yaml"
    path.write_text(
        f"""
data: {{manifest: '{manifest}', batch_size: 8, workers: 0, cache: memory, check_files: none}}
preprocess: {{size: [32, 32], window: none}}
augment: {{scale: [0.7, 1.0], rotate: 10, brightness: 0.2}}
encoder: {{name: vit, img_size: [32, 32], patch_size: [8, 8], embed_dim: 32, depth: 2, num_heads: 2}}
optimizer: {{name: sgd, lr: 0.1}}
schedule: {{warmup: 0}}
guard: {{on_collapse: 'off'}}
trainer: {{max_steps: 3, accelerator: cpu, log_every: 1, checkpoint_every: 100, extra: {{limit_val_batches: 0}}}}
""",
        encoding="utf-8",
    )
    return path


def wait_for(path: Path) -> Path:
    deadline = time.monotonic() + 200
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    return path


def main(rank: int, world: int, port: str, folder: Path, manifest: Path) -> None:
    if world > 1:  # as torchrun
        names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        os.environ |= dict(zip(names, map(str, (rank, rank, 0, world, world)), strict=True))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    import torch

    import medfm

    torch.set_num_threads(1)

    def run(name: str, objective: str, **keys: Any) -> Path:
        knobs = OBJECTIVES[objective]
        if objective == "distill":
            knobs = {**knobs, "teacher": str(wait_for(folder / "1" / "mae" / "model.safetensors"))}
        pool = "mean" if objective in NORMED else "cls"
        overrides = {"objective": knobs, "encoder.pool": pool, "trainer.devices": world, "out": folder / str(world) / name}
        if objective == "terms":
            overrides |= {"data.manifest": folder / "few_sides.parquet", "data.root": manifest.parent}
        return medfm.pretrain(str(folder / "recipe.yaml"), {**overrides, **keys})

    every_step = {**ADAM, "trainer.max_steps": 6, "trainer.checkpoint_every": 1e-9, "trainer.keep": 9}
    third = "checkpoints/step=00000003.ckpt"
    # What the other processes wait for comes first.
    run("mae", "mae")
    if world == 1:
        run("whole", "mae", **every_step)
    else:
        run("shards", "mae", **every_step, **{"trainer.strategy": "fsdp2"})
    for objective in OBJECTIVES:
        if objective != "mae":
            run(objective, objective)
    if world == 1:
        run("two shards on one", "mae", **every_step, resume=wait_for(folder / "2" / "shards" / third))
        return
    for objective in SHARDED:
        run(f"{objective} shards", objective, **{"trainer.strategy": "fsdp2"})
    for name, strategy in RESUMED.items():
        start = wait_for(folder / "1" / "whole" / third)
        run(name, "mae", **every_step, **{"trainer.strategy": strategy}, resume=start)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
