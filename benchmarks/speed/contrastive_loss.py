"""Tiled contrastive losses side by side with open_clip's: time, bytes saved for backward, error against float64.

    python -m benchmarks.speed.contrastive_loss

Writes benchmarks/results/contrastive_loss.md. The two losses take turns within each pair, on the same features; the median
ratio counts, by wall clock, since other work on the machine hits both.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from importlib.metadata import version
from statistics import median

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import bar, table, write
from medfm.objectives.losses import info_nce, sigmoid_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
BIAS = -10.0


def leaves(n: int, d: int, scale: float) -> list[Tensor]:
    """Unit features whose partners have a cosine of about 0.15, so that a scale of 100 leaves something to learn; log scale."""
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, n, d, generator=generator)
    return [F.normalize(image, dim=1), F.normalize(0.15 * image + noise, dim=1), torch.tensor(math.log(scale))]


def step(loss: Loss, features: list[Tensor]) -> tuple[tuple[float, float], list[Tensor]]:
    """Seconds of forward and backward, by the wall and by the processor; and the gradients."""
    inputs = [x.clone().requires_grad_() for x in features]
    start, processor = time.perf_counter(), time.process_time()
    loss(*inputs).backward()
    elapsed = time.perf_counter() - start, time.process_time() - processor
    return elapsed, [x.grad for x in inputs if x.grad is not None]


def saved_bytes(loss: Loss, features: list[Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps between forward and backward."""
    storages: dict[int, int] = {}
    kept = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x)  # a storage that is let go could come back under the same address
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss(*[x.clone().requires_grad_() for x in features])
    return sum(storages.values())


def clip_float64(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    logits = logit_scale.exp() * image @ text.T
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def siglip_float64(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    logits = logit_scale.exp() * image @ text.T + BIAS
    return -F.logsigmoid(logits * (2 * torch.eye(len(logits), dtype=logits.dtype) - 1)).sum() / len(logits)


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Of the image, text and scale gradients: norm of the difference over the norm."""
    return [((mine.double() - right).norm() / right.norm()).item() for mine, right in zip(found, exact, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="contrastive_loss", help="file in benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n, d, tile = arguments.rows, arguments.dim, arguments.tile

    bias = torch.tensor(BIAS)
    peer, sigmoid_peer = ClipLoss(), SigLipLoss()
    generator = torch.Generator().manual_seed(1)
    groups = [torch.randint(0, size, (n,), generator=generator) for size in (3 * n // 4, n // 2)]
    # name -> scale, ours, open_clip's, float64
    cases: dict[str, tuple[float, Loss, Loss, Loss]] = {
        "InfoNCE, scale 14.3": (
            1 / 0.07,
            lambda i, t, s: info_nce(i, t, s, tile=tile).loss,
            lambda i, t, s: peer(i, t, s.exp()),
            clip_float64,
        ),
        "InfoNCE, scale 100": (
            100.0,
            lambda i, t, s: info_nce(i, t, s, tile=tile).loss,
            lambda i, t, s: peer(i, t, s.exp()),
            clip_float64,
        ),
        "sigmoid, scale 10, bias -10": (
            10.0,
            lambda i, t, s: sigmoid_loss(i, t, s, bias, tile=tile).loss,
            lambda i, t, s: sigmoid_peer(i, t, s.exp(), bias),
            siglip_float64,
        ),
    }
    rows = []
    verdicts = []
    for name, (scale, ours, theirs, exact) in cases.items():
        features = leaves(n, d, scale)
        step(ours, features), step(theirs, features)  # warm up
        mine, peers = [], []
        for pair in range(arguments.pairs):
            for loss, times in ((ours, mine), (theirs, peers))[:: 1 if pair % 2 else -1]:
                times.append(step(loss, features)[0])
        ratios, cpu_ratios = ([b[clock] / a[clock] for a, b in zip(mine, peers, strict=True)] for clock in (0, 1))
        saved, peer_saved = saved_bytes(ours, features), saved_bytes(theirs, features)
        right = step(exact, [x.double() for x in features])[1]
        worst, peer_worst = (max(errors(step(loss, features)[1], right)) for loss in (ours, theirs))
        rows.append(
            (
                name,
                f"{median(wall for wall, _ in mine):.2f}",
                f"{median(wall for wall, _ in peers):.2f}",
                f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
                f"{median(cpu_ratios):.2f}",
                f"{saved / 1e6:.1f}",
                f"{peer_saved / 1e6:.1f}",
                f"{peer_saved / saved:.1f}",
                f"{worst:.1e}",
                f"{peer_worst:.1e}",
            )
        )
        if not verdicts:  # the bar speaks of ClipLoss at its own scale
            ratio = median(ratios)
            verdicts = [
                bar(f"at least 1.4 times ClipLoss's speed: {ratio:.2f}", ratio >= 1.4),
                bar(f"at most 1/15 of its bytes saved for backward: 1/{peer_saved / saved:.1f}", peer_saved >= 15 * saved),
                bar(f"gradients within 1e-6 relative of float64: {worst:.1e}", worst <= 1e-6),
            ]
    features = leaves(n, d, 1 / 0.07)
    plain, masked = [], []
    for _ in range(arguments.pairs):
        plain.append(step(cases["InfoNCE, scale 14.3"][1], features)[0][1])
        masked.append(step(lambda i, t, s: info_nce(i, t, s, groups=groups, tile=tile).loss, features)[0][1])
    masking = median(masked) / median(plain)
    head = ("loss", "medfm, s", "open_clip, s", "speed ratio", "by processor time", "saved, MB", "open_clip, MB", "saved ratio")
    write(
        arguments.name,
        "Tiled contrastive losses against open_clip's",
        f"N = {n} pairs, d = {d}, float32, tile {tile}, {arguments.threads} thread(s), open_clip_torch "
        f"{version('open_clip_torch')}; forward and backward. Seconds and ratios are medians of {arguments.pairs} interleaved "
        "pairs by the wall clock, in brackets the smallest and largest ratio. Saved: bytes of distinct storages that autograd "
        "keeps between forward and backward. Error: norm of the difference from float64 over the norm, the largest of the "
        "image, text and logit-scale gradients.",
        table((*head, "gradient error", "open_clip's"), rows),
        f"Masking same-patient and same-text pairs (two group codes) multiplies the processor time by {masking:.2f}.",
        "\n".join(verdicts),
    )


if __name__ == "__main__":
    main()
