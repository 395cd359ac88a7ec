"""SDPA against plain matmul attention, by dtype and length, forward and with backward: what `attend`'s rule stands on.

    python benchmarks/speed/attention.py --device cpu --threads 1

Writes benchmarks/results/attention_<device>.md. Both variants get the same tensors, as a ViT hands them over (views of
one fused qkv projection), and alternate within each repeat; the fastest repeat counts, since other work only adds time.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from medfm.encoders.attention import plain_attention, prefers_plain

HEADS, HEAD_DIM = 12, 64
TOKENS = 4096  # a batch's tokens: the batch shrinks as the length grows
LENGTHS = (50, 77, 128, 197, 257, 401, 577, 785, 1025, 2049)


def sdpa(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)


def plain(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return plain_attention(q, k, v, is_causal=is_causal)


def seconds(function: Callable[..., Tensor], qkv: Tensor, is_causal: bool, backward: bool) -> float:
    """One call on qkv (B, N, 3, heads, d)."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if qkv.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out = function(q, k, v, is_causal)
        if backward:
            out.backward(torch.ones_like(out))
    if qkv.is_cuda:
        torch.cuda.synchronize()
    qkv.grad = None
    return time.perf_counter() - start


def compare(length: int, dtype: torch.dtype, device: str, is_causal: bool, backward: bool, repeats: int) -> tuple[float, float]:
    """Milliseconds of SDPA and of plain attention."""
    batch = max(1, TOKENS // length)
    qkv = torch.randn(batch, length, 3, HEADS, HEAD_DIM, dtype=dtype, device=device).requires_grad_(backward)
    best = {sdpa: float("inf"), plain: float("inf")}
    for repeat in range(repeats + 1):
        for function in best:
            elapsed = seconds(function, qkv, is_causal, backward)
            if repeat:  # the first warms up
                best[function] = min(best[function], elapsed)
    return best[sdpa] * 1e3, best[plain] * 1e3


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} thread(s), {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    cases = (("forward", False, False), ("training", False, True), ("training, causal", True, True))
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for length in LENGTHS:
            for case, is_causal, backward in cases:
                fused, simple = compare(length, dtype, arguments.device, is_causal, backward, arguments.repeats)
                taken = "plain" if prefers_plain(torch.device(arguments.device), dtype, length, backward, is_causal) else "SDPA"
                name = str(dtype).removeprefix("torch.")
                rows.append(f"| {name} | {length} | {case} | {fused:.1f} | {simple:.1f} | {fused / simple:.2f} | {taken} |")
                print(rows[-1], flush=True)
    table = "\n".join(rows)
    text = f"""# Attention on {arguments.device}: SDPA against plain matmuls

`python {shlex.join(sys.argv)}`

{hardware(arguments.device)}; torch {torch.__version__}, Python {platform.python_version()}.
{HEADS} heads of {HEAD_DIM}, {TOKENS:,} tokens a batch. Milliseconds, best of {arguments.repeats}; training: with backward.
A ratio above 1 means that plain matmuls are faster; the last column is what `attend` takes.

| dtype | tokens | case | SDPA | plain | SDPA / plain | taken |
| --- | --- | --- | --- | --- | --- | --- |
{table}
"""
    out = arguments.out or Path(__file__).parents[1] / "results" / f"attention_{arguments.device}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
