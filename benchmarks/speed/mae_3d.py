"""MAE in 3D, one training step: medfm beside MONAI's MaskedAutoEncoderViT, and medfm in bfloat16 beside itself.

    python -m benchmarks.speed.mae_3d
    python -m benchmarks.speed.mae_3d --device cuda --compile --profile

On a CPU: volumes of 96^3 in patches of 16^3, MONAI's default network (encoder 768 x 12, 12 heads, MLP 512; decoder 384 x 4,
12 heads, MLP 512), 75 % masked, norm_pix; one thread, candidates in turns in one process, timed by the process's clock; peak
memory of each in a process of its own. MONAI's network fails under autocast. Writes benchmarks/results/mae_3d.md; on a GPU
medfm alone with ViT-B's MLP of 3072, benchmarks/results/mae_3d_cuda.md.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from benchmarks.common import bar, table
from benchmarks.speed import mae_peers
from benchmarks.speed.mae_steps import (
    HEAD,
    OURS,
    Build,
    gain_over,
    medfm,
    memory_child,
    page_of,
    parser,
    product_gain,
    rates,
    run_cpu,
    run_gpu,
)

BASE = {"dim": 768, "depth": 12, "heads": 12, "decoder_dim": 384, "decoder_depth": 4, "decoder_heads": 12}
SMALL = {**BASE, "dim": 384, "heads": 6}
TINY = {"dim": 48, "depth": 2, "heads": 4, "decoder_dim": 48, "decoder_depth": 2, "decoder_heads": 4}


def sizes_of(arguments: argparse.Namespace, tiny: bool) -> dict[str, Any]:
    if tiny:
        return {"size": 32, "patch": 8, "mlp_ratio": 2.0, "decoder_mlp_ratio": 2.0, **TINY}
    if arguments.device == "cuda":
        return {"size": 96, "patch": 16, **(SMALL if arguments.encoder == "small" else BASE)}
    return {"size": 96, "patch": 16, "mlp_ratio": 512 / 768, "decoder_mlp_ratio": 512 / 384, **BASE}


def builds_of(arguments: argparse.Namespace, tiny: bool) -> dict[str, Build]:
    sizes = sizes_of(arguments, tiny)
    return {OURS: lambda: medfm(sizes, axes=3, channels=1), "MONAI": lambda: mae_peers.monai(sizes)}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--encoder", choices=("small", "base"), default="base", help="with cuda")
    arguments = made.parse_args()
    size = sizes_of(arguments, arguments.tiny)["size"]
    builds = builds_of(arguments, arguments.tiny)

    def shape(batch: int) -> tuple[int, ...]:
        return (batch, 1, size, size, size)

    if arguments.memory_of:
        memory_child(arguments, builds, builds_of(arguments, tiny=True), shape(arguments.batch), (2, 1, 32, 32, 32))
        return
    if arguments.device == "cuda":
        run_gpu(arguments, "mae_3d", f"MAE 3D ViT-{arguments.encoder[0].upper()}, 96^3", builds[OURS], shape)
        return
    taken, memory, absent = run_cpu(arguments, builds, shape(arguments.batch), fp32_only=("MONAI",))
    page = [
        f"Volumes of {size}^3, batch {arguments.batch}, one thread: forward, backward and AdamW. `+ fused` is MONAI with "
        "torch's fused AdamW, which medfm takes; without, with torch's default. CPU time of "
        f"{arguments.rounds} rounds in turns. Memory: peak resident memory of model, optimiser and three steps, in a process "
        "of its own, above what imports and a toy step left. MONAI has no bf16 row: its patch embedding fails under autocast.",
        *absent,
    ]
    for dtype, values in taken.items():
        page += [f"## {dtype}", table(HEAD, rates(values, memory.get(dtype, {}), arguments.batch))]
        peer = gain_over(values, [name for name in values if name != OURS])
        if peer is not None:
            best, gain = peer
            page.append(bar(f"{dtype}: at least 1.10 times MONAI: {gain:.2f} times {best}", gain >= 1.10))
    if len(taken) == 2:
        gain = median(taken["fp32"][OURS]) / median(taken["bf16"][OURS])
        page.append(bar(f"bf16 at least 3 times our fp32: {gain:.2f} times", gain >= 3))
        page.append(
            f"A product of two large matrices is {product_gain():.2f} times as fast in bf16 as in fp32 on this machine."
        )
    page_of(arguments, "mae_3d", "MAE in 3D", page)


if __name__ == "__main__":
    main()
