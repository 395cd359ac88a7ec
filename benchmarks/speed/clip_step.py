"""One CLIP training step, ViT-B/16 at 224 pixels with the 12-layer text transformer: pairs a second and model FLOP utilisation.

    python -m benchmarks.speed.clip_step --device cuda --batches 1024 2048 4096 8192 --compile --profile

Tries each batch in turn until memory runs out ("plain": no gradient caching, no checkpointing, no patch dropout), and writes
benchmarks/results/clip_step_<device>.md. A step is pixels to float, both encoders, InfoNCE, backward, gradient clipping, fused
AdamW and the clamp of the logit scale, in bf16 autocast over float32 weights, on data that is on the device already. `--tiny`
shrinks the model so that the script itself can be tried on a CPU.

Needs torch, numpy and pydantic alone.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.common import RESULTS, bar, command, table
from medfm.encoders.config import ClipTextConfig, VitConfig
from medfm.encoders.dual import DualEncoder
from medfm.encoders.text import ClipTextEncoder
from medfm.encoders.vit import VisionTransformer
from medfm.objectives.config import ContrastiveConfig
from medfm.objectives.contrastive import ContrastiveObjective
from medfm.types import Batch

# Dense bfloat16 TFLOP/s by the vendor's data sheets.
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0}


def forward_flops(vit: VitConfig, text: ClipTextConfig, embed_dim: int, batch: int) -> float:
    """Of one pair's forward pass, multiply and add counted as two: matrix products only, a causal attention at half."""

    def blocks(depth: int, width: int, mlp_ratio: float, tokens: int, causal: bool) -> float:
        linear = tokens * width**2 * (8 + 4 * mlp_ratio)
        attention = 4 * tokens**2 * width * (0.5 if causal else 1.0)
        return depth * (linear + attention)

    patches, pixels = 1, vit.in_channels
    for size, patch in zip(vit.img_size, vit.patch_size, strict=True):
        patches, pixels = patches * (size // patch), pixels * patch
    image = 2 * patches * pixels * vit.embed_dim + 2 * vit.embed_dim * embed_dim
    image += blocks(vit.depth, vit.embed_dim, vit.mlp_ratio, patches + vit.class_token + vit.reg_tokens, causal=False)
    words = 2 * text.embed_dim * embed_dim + blocks(
        text.depth, text.embed_dim, text.mlp_ratio, text.context_length, causal=True
    )
    return image + words + 2 * batch * embed_dim


def build(arguments: argparse.Namespace) -> tuple[ContrastiveObjective, VitConfig, ClipTextConfig]:
    if arguments.tiny:
        vit = VitConfig(img_size=(32, 32), patch_size=(16, 16), embed_dim=64, depth=2, num_heads=2)
        text = ClipTextConfig(vocab_size=512, context_length=16, embed_dim=64, depth=2, num_heads=2)
    else:
        vit, text = VitConfig(), ClipTextConfig()
    config = ContrastiveConfig(embed_dim=512, cache_chunk=arguments.cache_chunk, patch_dropout=arguments.patch_dropout)
    torch.manual_seed(0)
    dual = DualEncoder(VisionTransformer(vit), ClipTextEncoder(text), config.embed_dim).to(arguments.device)
    if arguments.compile:
        # Static shapes: each batch of the sweep is compiled for itself.
        dual.image_encoder.compile(dynamic=False)
        dual.text_encoder.compile(dynamic=False)
    return ContrastiveObjective(config, dual, to_float=lambda x: (x.float() / 255 - 0.5) / 0.25), vit, text


def make_batch(pairs: int, vit: VitConfig, text: ClipTextConfig, device: str) -> Batch:
    """uint8 images as the loader sends them; every tenth patient has two studies, every tenth report is a normal one."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, text.vocab_size - 1, (pairs, text.context_length), generator=generator)
    tokens[:, -1] = text.vocab_size - 1
    rows = torch.arange(pairs)
    batch = Batch(
        images=torch.randint(0, 256, (pairs, vit.in_channels, *vit.img_size), dtype=torch.uint8, generator=generator),
        tokens=tokens,
        attention_mask=torch.ones_like(tokens),
        patient=torch.where(rows % 10 == 0, (rows - 1).clamp_min(0), rows),
        text_group=torch.where(rows % 10 == 5, 5, rows),
        labels=torch.zeros(pairs, 0),
        index=rows,
    )
    return Batch(**{name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)})


def make_step(objective: ContrastiveObjective, batch: Batch, device: str) -> Callable[[], Tensor]:
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, fused=True)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    generator = torch.Generator(device=device).manual_seed(2)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = objective(batch, generator).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        objective.after_optimizer_step(0, 1)
        return loss.detach()

    return step


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str, warmup: int, repeats: int) -> float:
    """The median of single calls, each waited for."""
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return median(times)


def matmul_tflops(device: str) -> float:
    """What a large bfloat16 matrix product reaches on this machine: the ceiling in practice."""
    n = 8192 if device == "cuda" else 512
    a, b = torch.randn(2, n, n, device=device, dtype=torch.bfloat16)
    return 2 * n**3 / seconds(lambda: a @ b, device, warmup=3, repeats=10) / 1e12


def profile(step: Callable[[], Tensor], device: str) -> str:
    """One step's kernels (operators on a CPU), most time first."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with record(activities=activities) as recorded:
        step()
        synchronise(device)
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda e: getattr(e, key), reverse=True)
    if device == "cuda":
        events = [e for e in events if e.device_type == DeviceType.CUDA]
    total = sum(getattr(e, key) for e in events)
    rows = [(f"`{e.key[:90]}`", e.count, f"{getattr(e, key) / 1e3:.2f}", f"{getattr(e, key) / total:.1%}") for e in events[:20]]
    return table(("kernel" if device == "cuda" else "operator", "calls", "ms", "share"), rows)


def machine(device: str) -> str:
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"
    )
    return f"{name}; Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 1024, 2048, 3072, 4096])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a toy model, to try the script")
    parser.add_argument("--cache-chunk", type=int, default=0)
    parser.add_argument("--patch-dropout", type=float, default=0.0)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--goal", type=float, default=1800.0, help="pairs a second")
    parser.add_argument("--out", type=Path, default=None, help="default: benchmarks/results/clip_step_<device>.md")
    arguments = parser.parse_args()
    device = arguments.device
    # As training sets it: float32 products that remain (the loss) may use TF32.
    torch.set_float32_matmul_precision("high")

    objective, vit, text = build(arguments)
    objective.train()
    ceiling = matmul_tflops(device)
    name = machine(device)
    sheet = next((peak for word, peak in PEAKS.items() if word in name), None)
    rows: list[tuple[object, ...]] = []
    best, largest = 0.0, 0
    for pairs in arguments.batches:
        step = None  # frees the last optimiser and batch
        try:
            step = make_step(objective, make_batch(pairs, vit, text, device), device)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            elapsed = seconds(step, device, arguments.warmup, arguments.repeats)
        except torch.OutOfMemoryError:
            rows.append((pairs, "out of memory", "", "", "", ""))
            break
        flops = 3 * pairs * forward_flops(vit, text, 512, pairs)
        reached = flops / elapsed / 1e12
        memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if device == "cuda" else ""
        share = f"{reached / sheet:.1%}" if sheet else ""
        rows.append(
            (
                pairs,
                f"{pairs / elapsed:,.0f}",
                f"{elapsed * 1e3:.1f}",
                f"{reached:.3g}",
                share,
                f"{reached / ceiling:.1%}",
                memory,
            )
        )
        print(rows[-1], flush=True)
        best, largest = max(best, pairs / elapsed), pairs
    gflops = 3 * forward_flops(vit, text, 512, arguments.batches[0]) / 1e9
    head = ("pairs a step", "pairs/s", "ms a step", "TFLOP/s", "MFU", "of a matrix product", "peak memory, GB")
    page = [
        "# CLIP step",
        f"`{command()}`",
        name,
        f"{'Toy model' if arguments.tiny else 'ViT-B/16 at 224 pixels, 12-layer text transformer'}, bf16 autocast, "
        f"{'torch.compile of both encoders' if arguments.compile else 'eager'}; {gflops:.1f} GFLOP a pair (forward and "
        f"backward, matrix products). A bf16 product of two large matrices reaches {ceiling:.3g} TFLOP/s here"
        f"{f', the data sheet says {sheet:.0f}' if sheet else ''}; MFU is against the data sheet. Median of "
        f"{arguments.repeats} steps.",
        table(head, [(*row, *[""] * (len(head) - len(row))) for row in rows]),
        bar(f"goal of {arguments.goal:,.0f} pairs/s: {best:,.0f}", best >= arguments.goal),
    ]
    if arguments.profile and largest:
        step = None
        step = make_step(objective, make_batch(largest, vit, text, device), device)
        step()
        page += [f"One step of {largest} pairs:", profile(step, device)]
    out = arguments.out or RESULTS / f"clip_step_{device}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print(out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
