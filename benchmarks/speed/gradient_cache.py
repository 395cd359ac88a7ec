"""Gradient caching: equal gradients, what it costs in time, and memory that does not grow with the batch.

    python -m benchmarks.speed.gradient_cache

Writes benchmarks/results/gradient_cache.md. Plain and cached steps take turns; the median ratio counts, by wall clock, since
other work on the machine hits both. Memory is the growth of the peak resident size during one step, each in a process of its
own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import ROOT, bar, table, write
from medfm.encoders.config import ClipTextConfig, VitConfig
from medfm.encoders.dual import DualEncoder
from medfm.encoders.text import ClipTextEncoder
from medfm.encoders.vit import VisionTransformer
from medfm.objectives.config import ContrastiveConfig
from medfm.objectives.contrastive import ContrastiveObjective
from medfm.types import Batch

SIZE, CONTEXT = 96, 48


def build(cache_chunk: int, dropout: float = 0.0) -> ContrastiveObjective:
    """ViT-S/16 at 96 pixels with a text transformer of its width and half its depth; the same weights on every call."""
    torch.manual_seed(0)
    vit = VitConfig(img_size=(SIZE, SIZE), patch_size=(16, 16), embed_dim=384, depth=12, num_heads=6, dropout=dropout)
    text = ClipTextConfig(vocab_size=1024, context_length=CONTEXT, embed_dim=384, depth=6, num_heads=6, dropout=dropout)
    dual = DualEncoder(VisionTransformer(vit), ClipTextEncoder(text), embed_dim=256)
    return ContrastiveObjective(ContrastiveConfig(embed_dim=256, cache_chunk=cache_chunk), dual)


def make_batch(pairs: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 1023, (pairs, CONTEXT), generator=generator)
    tokens[:, -1] = 1023
    return Batch(
        images=torch.randn(pairs, 1, SIZE, SIZE, generator=generator),
        tokens=tokens,
        attention_mask=torch.ones_like(tokens),
        patient=torch.arange(pairs),
        text_group=torch.arange(pairs),
        labels=torch.zeros(pairs, 0),
        index=torch.arange(pairs),
    )


def step(objective: ContrastiveObjective, batch: Batch) -> tuple[float, float]:
    """Seconds of forward and backward by the wall and by the processor; gradients stay on the parameters."""
    objective.zero_grad(set_to_none=False)
    torch.manual_seed(2)
    start, processor = time.perf_counter(), time.process_time()
    objective(batch).loss.backward()
    return time.perf_counter() - start, time.process_time() - processor


def gradient_error(pairs: int, chunk: int, dropout: float) -> float:
    """The worst parameter's norm of difference over norm. Parameters whose gradient is rounding alone are left out."""
    plain, cached = build(0, dropout), build(chunk, dropout)
    batch = make_batch(pairs)
    if dropout:
        # A chunk draws other dropout masks than one batch does; what must agree is the cached step with itself uncached.
        plain = build(chunk, dropout)
        _without_caching(plain, batch)
    else:
        step(plain, batch)
    step(cached, batch)
    found = [(a.grad, b.grad) for a, b in zip(cached.parameters(), plain.parameters(), strict=True)]
    largest = max(float(b.norm()) for _, b in found if b is not None)
    return max(
        float((a - b).norm() / b.norm()) for a, b in found if a is not None and b is not None and b.norm() > 1e-5 * largest
    )


def _without_caching(objective: ContrastiveObjective, batch: Batch) -> None:
    """The same chunks with all activations kept: the checkpoint is replaced by a plain call."""
    from medfm.objectives import grad_cache

    original = grad_cache.checkpoint
    grad_cache.checkpoint = lambda function, *args, **_: function(*args)  # type: ignore[assignment]
    try:
        step(objective, batch)
    finally:
        grad_cache.checkpoint = original


def growth(pairs: int, chunk: int) -> float:
    """Megabytes by which one step's peak exceeds what model, gradients and batch take already."""
    import torch._dynamo  # the first checkpoint would import it, as 130 MB of modules that are no activations

    objective, batch = build(chunk), make_batch(pairs)
    for parameter in objective.parameters():
        parameter.grad = torch.ones_like(parameter)  # zeros would not be resident before they are written
    before = resident("VmRSS")
    step(objective, batch)
    return (resident("VmHWM") - before) / 1e6


def resident(field: str) -> int:
    """Bytes; getrusage's peak would be inherited from the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def measured_apart(pairs: int, chunk: int, threads: int) -> float:
    line = [
        sys.executable,
        "-m",
        "benchmarks.speed.gradient_cache",
        "--threads",
        str(threads),
        "--growth",
        str(pairs),
        str(chunk),
    ]
    # Freed memory goes back at once, so that the peak is what was in use and not what the allocator hoards.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(line, check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **allocator})
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256], help="for memory")
    parser.add_argument("--growth", type=int, nargs=2, metavar=("BATCH", "CHUNK"), help="print one memory measurement and stop")
    parser.add_argument("--name", default="gradient_cache", help="file in benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.growth:
        print(growth(*arguments.growth))
        return

    exact = gradient_error(arguments.batch, arguments.chunk, dropout=0.0)
    with_dropout = gradient_error(arguments.batch, arguments.chunk, dropout=0.1)

    objectives = {"plain": build(0), "cached": build(arguments.chunk)}
    batch = make_batch(arguments.batch)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in objectives}
    for pair in range(arguments.pairs + 1):
        for name in list(objectives)[:: 1 if pair % 2 else -1]:
            elapsed = step(objectives[name], batch)
            if pair:  # the first warms up
                seconds[name].append(elapsed)
    (plain_wall, plain_cpu), (cached_wall, cached_cpu) = (list(zip(*seconds[name], strict=True)) for name in objectives)
    ratios = sorted(b / a for a, b in zip(plain_wall, cached_wall, strict=True))
    ratio, cpu_ratio = median(ratios), median(b / a for a, b in zip(plain_cpu, cached_cpu, strict=True))

    memory = {
        pairs: (measured_apart(pairs, 0, arguments.threads), measured_apart(pairs, arguments.chunk, arguments.threads))
        for pairs in arguments.batches
    }
    smallest, largest = memory[arguments.batches[0]][1], memory[arguments.batches[-1]][1]
    write(
        arguments.name,
        "Gradient caching",
        f"ViT-S/16 at {SIZE} pixels, 6-layer text transformer, InfoNCE, float32, {arguments.threads} thread(s), chunk "
        f"{arguments.chunk}.",
        f"Step of {arguments.batch} pairs, median of {arguments.pairs} interleaved pairs: plain {median(plain_wall):.2f} s, "
        f"cached {median(cached_wall):.2f} s, ratio {ratio:.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) by the wall clock, "
        f"{cpu_ratio:.2f} by processor time. Gradients differ by {exact:.1e} (norm of the difference over the norm, worst "
        f"parameter), and with dropout 0.1 by {with_dropout:.1e} from the same chunks with all activations kept.",
        "Growth of the peak resident size in one step, MB:",
        table(("batch", "plain", "cached"), [(n, f"{plain:.0f}", f"{cached:.0f}") for n, (plain, cached) in memory.items()]),
        "\n".join(
            (
                bar(f"gradients equal the one-batch gradients within 1e-5: {exact:.1e}", exact <= 1e-5),
                bar(f"step time at most 1.35 times: {ratio:.2f}", ratio <= 1.35),
                bar(
                    f"memory flat in the batch size (within a tenth): {largest / smallest:.2f} times at "
                    f"{arguments.batches[-1] // arguments.batches[0]} times the batch",
                    largest <= 1.1 * smallest,
                ),
            )
        ),
    )


if __name__ == "__main__":
    main()
