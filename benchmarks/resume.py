"""A run killed with SIGKILL mid-epoch and resumed, against one never interrupted: are the weights the same, bit for bit?

python -m benchmarks.resume
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import bar, table, write

KILLS = 3


def main() -> None:
    import torch
    from safetensors.torch import load_file

    import medfm

    rows, same = [], True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        medfm.phantom({"kind": "chest_xray", "n": 120, "out": folder / "phantom", "masks": False})
        manifest = folder / "manifest.parquet"
        medfm.index({"images": folder / "phantom" / "images", "reports": folder / "phantom" / "reports.csv", "out": manifest})
        for workers in (0, 2):
            words = _words(manifest, folder / f"whole{workers}", workers)
            subprocess.run(words, check=True, capture_output=True)
            whole = load_file(folder / f"whole{workers}" / "model.safetensors")
            run = folder / f"killed{workers}"
            steps = []
            for kill in range(KILLS):
                steps.append(_kill(_words(manifest, run, workers), run, kill + 1))
            subprocess.run(_words(manifest, run, workers), check=True, capture_output=True)
            resumed = load_file(run / "model.safetensors")
            differing = [key for key in whole if not torch.equal(whole[key], resumed[key])]
            same = same and not differing and whole.keys() == resumed.keys()
            rows.append([workers, ", ".join(map(str, steps)), len(whole), len(differing)])
    head = ["loader processes", "checkpoints at each SIGKILL", "tensors", "tensors that differ"]
    write(
        "resume",
        "Killed and resumed",
        "ResNet-10t and a text transformer with dropout and augmentation, 5 batches an epoch, a checkpoint "
        "every 2 of 24 steps: the kills come in the middle of epochs.",
        table(head, rows),
        bar("the weights are the same, bit for bit on CPU, as of a run never interrupted", same),
    )


def _words(manifest: Path, run: Path, workers: int) -> list[str]:
    return [
        str(Path(sys.executable).parent / "medfm"),
        "pretrain",
        "recipe=phantom_demo",
        f"data.manifest={manifest}",
        f"out={run}",
        f"data.workers={workers}",
        "data.batch_size=16",
        "preprocess.size=[64,64]",
        "encoder.model=resnet10t",
        "objective.text_encoder.dropout=0.1",
        "trainer.max_steps=24",
        "trainer.checkpoint_every=0.4",
    ]


def _kill(words: list[str], run: Path, wanted: int) -> str:
    """Start a run, and kill it and its loader processes once it has written `wanted` more checkpoints."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    known = {p.name for p in (run / "checkpoints").glob("*.ckpt")}
    seen: set[str] = set()
    while len(seen) < wanted and process.poll() is None:
        seen |= {p.name for p in (run / "checkpoints").glob("step=*.ckpt")} - known
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return max(seen)


if __name__ == "__main__":
    main()
