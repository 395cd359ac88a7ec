"""What mae_2d and mae_3d share: medfm's step and its peers' in turns on one CPU core, their memory, and ours on a GPU."""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS, bar, command, table, write
from benchmarks.speed.clip_step import PEAKS, machine, matmul_tflops, profile, seconds
from benchmarks.speed.mae_peers import Loss, Missing
from medfm.encoders.config import VitConfig
from medfm.encoders.vit import VisionTransformer
from medfm.objectives.config import MaeConfig
from medfm.objectives.mae import MaeObjective
from medfm.training.config import OptimizerConfig
from medfm.training.optim import build_optimizer
from medfm.types import Batch

Build = Callable[[], tuple[nn.Module, Loss]]
OURS = "medfm"


def vit_config(sizes: Mapping[str, Any], axes: int, channels: int) -> VitConfig:
    return VitConfig(
        img_size=(sizes["size"],) * axes,
        patch_size=(sizes["patch"],) * axes,
        in_channels=channels,
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_ratio=sizes.get("mlp_ratio", 4.0),
        pos_embed="sincos",
    )


def medfm(sizes: Mapping[str, Any], axes: int, channels: int) -> tuple[nn.Module, Loss]:
    config = MaeConfig(
        decoder_dim=sizes["decoder_dim"],
        decoder_depth=sizes["decoder_depth"],
        decoder_heads=sizes["decoder_heads"],
        decoder_mlp_ratio=sizes.get("decoder_mlp_ratio", 4.0),
    )
    objective = MaeObjective(config, VisionTransformer(vit_config(sizes, axes, channels)))

    def loss(images: Tensor) -> Tensor:
        rows = torch.zeros(len(images), dtype=torch.int64)
        return objective(Batch(images, None, None, rows, rows, rows, rows)).loss

    return objective, loss


def make_step(
    name: str, build: Build, shape: tuple[int, ...], dtype: str, device: str = "cpu", own: bool = False
) -> Callable[[], float]:
    """Forward, backward and AdamW on images that are on the device already. `own`: torch's default AdamW, which the peers'
    scripts take, in place of the fused one."""
    torch.manual_seed(0)
    module, loss = build()
    module.to(device).train()
    if name.startswith(OURS):
        optimizer = build_optimizer(module, OptimizerConfig(lr=1.5e-4, weight_decay=0.05, betas=(0.9, 0.95), eps=1e-8))
    else:
        trainable = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1.5e-4, betas=(0.9, 0.95), fused=None if own else True)
    images = torch.randn(shape, device=device)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bf16"):
            value = loss(images)
        value.backward()
        optimizer.step()
        return float(value.detach()) if device == "cpu" else 0.0

    return step


def in_turns(steps: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each step, by the process's clock: the time that other work takes from this core is not counted.
    Candidates take turns, the order reversed every other round; the first two rounds warm up."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            start = time.process_time()
            steps[name]()
            elapsed = time.process_time() - start
            if number > 1:
                taken[name].append(elapsed)
    return taken


def one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


def _status(field: str) -> int:
    """Bytes, of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def measure_memory(toy: Callable[[], float], step_of: Callable[[], Callable[[], float]]) -> int:
    """Bytes of resident memory that model, optimiser and three steps add to what the process held before, at their peak. A toy
    model's step comes before: what is imported or set up on the way is not the model's."""
    toy()
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    step = step_of()
    for _ in range(3):
        step()
    return _status("VmHWM") - before


def child_memory(name: str, dtype: str, arguments: argparse.Namespace) -> float:
    """MB, from a process that runs this candidate alone."""
    call = [sys.executable, "-m", _module(), "--memory-of", name, "--dtype", dtype, "--batch", str(arguments.batch)]
    call += ["--peers", str(arguments.peers), *(["--tiny"] if arguments.tiny else [])]
    done = subprocess.run(call, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    return float(done.stdout.split()[-1]) / 1e6


def _module() -> str:
    return f"benchmarks.speed.{Path(sys.argv[0]).stem}"


def product_gain() -> float:
    """How many times as fast as fp32 a large matrix product is in bf16 here: what a step could gain at most."""
    best = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2, 1024, 1024).to(dtype)
        taken = []
        for _ in range(20):
            start = time.process_time()
            a @ b
            taken.append(time.process_time() - start)
        best.append(min(taken))
    return best[0] / best[1]


def count_flops(step: Callable[[], Tensor]) -> int:
    """Of forward and backward, a multiplication and an addition counted as two. Fused attention is not seen on every device:
    it is computed plainly here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step().backward()
    return int(counter.get_total_flops())


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--batch", type=int, default=4)
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    made.add_argument("--peers", type=Path, default=Path("../peers"), help="folder that holds clones of the peers' code")
    made.add_argument("--tiny", action="store_true", help="a toy model, to try the script")
    made.add_argument("--profile", action="store_true", help="one step's operators")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: medfm alone, samples a second and MFU")
    made.add_argument("--batches", type=int, nargs="+", default=[64, 256, 512, 1024], help="tried in turn, with cuda")
    made.add_argument("--compile", action="store_true", help="torch.compile encoder and decoder, with cuda")
    made.add_argument("--skip-memory", action="store_true")
    made.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    made.add_argument("--dtype", default="fp32", help=argparse.SUPPRESS)
    return made


def available(builds: Mapping[str, Build]) -> tuple[dict[str, Build], list[str]]:
    """The candidates that can be built, and what is missing of the others."""
    found: dict[str, Build] = {}
    absent = []
    for name, build in builds.items():
        try:
            build()
            found[name] = build
        except Missing as error:
            absent.append(str(error))
    return found, absent


def run_cpu(
    arguments: argparse.Namespace, builds: Mapping[str, Build], shape: tuple[int, ...], fp32_only: tuple[str, ...] = ()
) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, float]], list[str]]:
    """Seconds by dtype and candidate, MB by dtype and candidate, and what was skipped. Peers run twice: with torch's default
    AdamW, as their scripts do, and with the fused one ("+ fused")."""
    one_core()
    builds, absent = available(builds)
    taken: dict[str, dict[str, list[float]]] = {}
    memory: dict[str, dict[str, float]] = {}
    for dtype in arguments.dtypes:
        steps = {}
        able = {name: build for name, build in builds.items() if dtype == "fp32" or name not in fp32_only}
        for name, build in able.items():
            steps[name if name == OURS else f"{name} + fused"] = make_step(name, build, shape, dtype)
            if name != OURS:
                steps[name] = make_step(name, build, shape, dtype, own=True)
        taken[dtype] = in_turns(steps, arguments.rounds)
        del steps
        gc.collect()
        if not arguments.skip_memory:
            memory[dtype] = {name: child_memory(name, dtype, arguments) for name in able}
    return taken, memory, absent


def gain_over(taken: Mapping[str, list[float]], names: Iterable[str]) -> tuple[str, float] | None:
    """The fastest of these candidates, and how many times as fast medfm is; None where none of them was measured."""
    medians = {name: median(taken[name]) for name in names if name in taken}
    if not medians:
        return None
    best = min(medians, key=lambda name: medians[name])
    return best, medians[best] / median(taken[OURS])


def memory_child(
    arguments: argparse.Namespace,
    builds: Mapping[str, Build],
    toys: Mapping[str, Build],
    shape: tuple[int, ...],
    toy: tuple[int, ...],
) -> None:
    """What a process that `child_memory` has started does: print the MB of one candidate."""
    one_core()
    name = arguments.memory_of
    small = make_step(name, toys[name], toy, arguments.dtype)
    print(measure_memory(small, lambda: make_step(name, builds[name], shape, arguments.dtype)))


def page_of(arguments: argparse.Namespace, name: str, title: str, page: list[str]) -> None:
    """benchmarks/results/<name>.md; a toy's page is printed alone."""
    if arguments.tiny:
        print("\n\n".join(page))
    else:
        write(name, title, *page)


def run_gpu(
    arguments: argparse.Namespace, name: str, title: str, build: Build, shape: Callable[[int], tuple[int, ...]]
) -> None:
    """benchmarks/results/<name>_cuda.md: samples a second and the share of the GPU's matrix rate, by batch size."""
    torch.set_float32_matmul_precision("high")
    device = arguments.device
    ceiling = matmul_tflops(device)
    hardware = machine(device)
    sheet = next((peak for word, peak in PEAKS.items() if word in hardware), None)
    module, plain = build()
    module.double()  # the counter does not see the product that float32 takes on a CPU
    flops = count_flops(lambda: plain(torch.randn(shape(2), dtype=torch.float64))) / 2

    def ready() -> tuple[nn.Module, Loss]:
        module, loss = build()
        if arguments.compile:
            module.compile_encoders()  # type: ignore[operator]
        return module, loss

    rows: list[tuple[object, ...]] = []
    best, step = 0.0, None
    for batch in arguments.batches:
        step = None  # frees the last one
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            step = make_step(OURS, ready, shape(batch), "bf16", device)
            elapsed = seconds(step, device, warmup=5, repeats=20)
        except torch.OutOfMemoryError:
            rows.append((batch, "out of memory", "", "", "", "", ""))
            break
        reached = flops * batch / elapsed / 1e12
        best = max(best, reached)
        rows.append(
            (
                batch,
                f"{batch / elapsed:,.0f}",
                f"{elapsed * 1e3:.1f}",
                f"{reached:.0f}",
                f"{reached / ceiling:.1%}",
                f"{reached / sheet:.1%}" if sheet else "",
                f"{torch.cuda.max_memory_allocated() / 1e9:.1f}",
            )
        )
        print(rows[-1], flush=True)
    head = ("batch", "samples/s", "ms a step", "TFLOP/s", "of a matrix product", "of the data sheet", "peak memory, GB")
    page = [
        f"# {title} on a GPU",
        f"`{command()}`",
        hardware,
        f"Forward, backward and fused AdamW, bf16 autocast, {'torch.compile' if arguments.compile else 'eager'}; "
        f"{flops / 1e9:.1f} GFLOP a sample (forward and backward, counted by torch's FlopCounterMode with plain attention). A "
        f"bf16 product of two large matrices reaches {ceiling:.0f} TFLOP/s here. Median of 20 steps.",
        table(head, rows),
        bar(f"30 % of the measured matrix rate: {best / ceiling:.1%}", best >= 0.30 * ceiling),
        bar(f"goal, 45 %: {best / ceiling:.1%}", best >= 0.45 * ceiling),
    ]
    if arguments.profile and step is not None:
        page += ["One step:", profile(step, device)]  # type: ignore[arg-type]
    out = RESULTS / f"{name}_cuda.md"
    out.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print(out.read_text(encoding="utf-8"))


def rates(taken: Mapping[str, list[float]], memory: Mapping[str, float], batch: int) -> list[tuple[str, ...]]:
    """Table rows: name, samples a second (best and median), ms, our ratio to it, MB."""
    ours = median(taken[OURS])
    made = []
    for name, values in sorted(taken.items(), key=lambda item: median(item[1])):
        middle = median(values)
        held = memory.get(name.removesuffix(" + fused"))
        made.append(
            (name, f"{batch / middle:.2f}", f"{batch / min(values):.2f}", f"{1000 * middle:.0f}", f"{middle / ours:.2f}",
             "" if held is None else f"{held:.0f}")
        )  # fmt: skip
    return made


HEAD = ("candidate", "samples/s, median", "best", "ms, median", "medfm's speed over it", "peak memory, MB")
