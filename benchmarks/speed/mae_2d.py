"""MAE in 2D, one training step: medfm beside facebookresearch/mae, lightly and transformers.

    python -m benchmarks.speed.mae_2d --peers ../peers
    python -m benchmarks.speed.mae_2d --device cuda --encoder base --compile --profile

On a CPU: ViT-S/16 at 224 pixels, three channels, decoder of 8 blocks of 512 and 16 heads, 75 % masked, norm_pix; one thread,
all candidates in turns in one process, timed by the process's clock; peak memory of each in a process of its own. Writes
benchmarks/results/mae_2d.md; on a GPU medfm alone, benchmarks/results/mae_2d_cuda.md.
"""

from __future__ import annotations

import argparse
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
    rates,
    run_cpu,
    run_gpu,
)

AS_SHIPPED = ("facebookresearch/mae", "lightly", "transformers + fused")
UPGRADED = ("facebookresearch/mae + fused", "lightly + fused")
ENCODERS = {"small": {"dim": 384, "depth": 12, "heads": 6}, "base": {"dim": 768, "depth": 12, "heads": 12}}
TINY = {"size": 64, "patch": 16, "dim": 64, "depth": 2, "heads": 4, "decoder_dim": 32, "decoder_depth": 2, "decoder_heads": 4}


def sizes_of(arguments: argparse.Namespace, tiny: bool) -> dict[str, Any]:
    if tiny:
        return TINY
    decoder = {"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16}
    return {"size": 224, "patch": 16, **ENCODERS[arguments.encoder], **decoder}


def builds_of(arguments: argparse.Namespace, tiny: bool) -> dict[str, Build]:
    sizes = sizes_of(arguments, tiny)
    return {
        OURS: lambda: medfm(sizes, axes=2, channels=3),
        "facebookresearch/mae": lambda: mae_peers.facebook(arguments.peers, sizes),
        "lightly": lambda: mae_peers.lightly(sizes),
        "transformers": lambda: mae_peers.transformers(sizes),
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--encoder", choices=tuple(ENCODERS), default="small")
    arguments = made.parse_args()
    sizes = sizes_of(arguments, arguments.tiny)
    builds = builds_of(arguments, arguments.tiny)

    def shape(batch: int) -> tuple[int, ...]:
        return (batch, 3, sizes["size"], sizes["size"])

    if arguments.memory_of:
        toy = (2, 3, TINY["size"], TINY["size"])
        memory_child(arguments, builds, builds_of(arguments, tiny=True), shape(arguments.batch), toy)
        return
    if arguments.device == "cuda":
        run_gpu(arguments, "mae_2d", f"MAE ViT-{arguments.encoder[0].upper()}/16 at 224 pixels", builds[OURS], shape)
        return
    taken, memory, absent = run_cpu(arguments, builds, shape(arguments.batch))
    page = [
        f"ViT-{arguments.encoder[0].upper()}/16 at {sizes['size']} pixels, decoder {sizes['decoder_dim']} x "
        f"{sizes['decoder_depth']}, batch {arguments.batch}, one thread: forward, backward and AdamW. `+ fused` is a peer with "
        "torch's fused AdamW, which medfm takes; without, with torch's default. As they ship, facebookresearch/mae and lightly "
        "take the default and transformers, by its Trainer, the fused one: the bar is about these three. What medfm gains over "
        "the others when they are given its optimiser is said beside it. "
        f"CPU time of {arguments.rounds} rounds in turns. Memory: peak resident memory of model, "
        "optimiser and three steps, in a process of its own, above what imports and a toy step left.",
        *absent,
    ]
    for dtype, values in taken.items():
        page += [f"## {dtype}", table(HEAD, rates(values, memory.get(dtype, {}), arguments.batch))]
        shipped, upgraded = gain_over(values, AS_SHIPPED), gain_over(values, UPGRADED)
        if shipped is not None:
            best, gain = shipped
            page.append(bar(f"{dtype}: at least 1.05 times the best peer as it ships: {gain:.2f} times {best}", gain >= 1.05))
        if upgraded is not None:
            best, gain = upgraded
            page.append(f"Beside peers that are given medfm's fused AdamW: {gain:.2f} times {best}.")
        held = memory.get(dtype, {})
        if len(held) > 1:
            least = min(value for name, value in held.items() if name != OURS)
            page.append(
                bar(
                    f"{dtype}: memory not above the peers': {held[OURS]:.0f} MB, theirs from {least:.0f} MB",
                    held[OURS] <= least,
                )
            )
    page_of(arguments, "mae_2d", "MAE in 2D", page)


if __name__ == "__main__":
    main()
