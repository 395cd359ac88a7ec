"""DINO, one training step from ready views: medfm beside facebookresearch/dino and lightly; its loss and moving average alone.

    python -m benchmarks.speed.dino --peers ../peers
    python -m benchmarks.speed.dino --device cuda --compile --profile --batches 64 128 256

ViT-S/16, 2 views of 224 and 8 of 96 pixels an image, three channels, 65536 prototypes. A step is teacher and student forward,
loss, backward, clipping of each gradient, AdamW, centre and moving average. On a CPU one thread, all candidates in turns in one
process, timed by the process's clock; writes benchmarks/results/dino.md. On a GPU medfm alone, benchmarks/results/dino_cuda.md.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, bar, command, table, write
from benchmarks.speed.clip_step import PEAKS, machine, matmul_tflops, profile, seconds
from benchmarks.speed.dino_peers import CLIP, DECAY, LR, MOMENTUM, Facebook, Missing, Step, facebook, lightly
from benchmarks.speed.mae_steps import in_turns, one_core
from medfm.encoders.config import VitConfig
from medfm.encoders.image import ImageModel
from medfm.encoders.vit import VisionTransformer
from medfm.objectives.dino import DinoObjective
from medfm.objectives.dino_loss import batch_centre, centred, dino_loss
from medfm.objectives.ema import ema_update, make_teacher
from medfm.objectives.ssl_config import DinoConfig
from medfm.training.config import OptimizerConfig
from medfm.training.gradients import clip_gradients
from medfm.training.optim import build_optimizer
from medfm.transforms.draws import Draws
from medfm.transforms.views import Views

SMALL = {"size": 224, "local": 96, "patch": 16, "dim": 384, "depth": 12, "heads": 6, "out": 65536, "locals": 8}
TINY = {"size": 64, "local": 32, "patch": 16, "dim": 64, "depth": 2, "heads": 4, "out": 512, "locals": 4}
OURS = "medfm"
FACEBOOK = "facebookresearch/dino"
LIGHTLY = "lightly"


def objective_of(sizes: Mapping[str, Any]) -> DinoObjective:
    config = VitConfig(
        img_size=(sizes["size"],) * 2,
        patch_size=(sizes["patch"],) * 2,
        in_channels=3,
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
    )
    dino = DinoConfig(momentum=MOMENTUM, momentum_end=MOMENTUM, views={"local_count": sizes["locals"]})  # type: ignore[arg-type]

    def no_views(stored: Tensor, draws: Draws) -> Views:
        raise AssertionError("views are handed in ready")

    return DinoObjective(dino, ImageModel(VisionTransformer(config)), no_views, sizes["out"]).train()


def medfm(objective: DinoObjective, autocast: Callable[[], Any]) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """As `medfm pretrain` does it with optimizer.decay_tokens and trainer.clip_grad_by=parameter, DINO's own rules."""
    rule = OptimizerConfig(lr=LR, weight_decay=DECAY, betas=(0.9, 0.999), eps=1e-8, decay_tokens=True)
    optimizer = build_optimizer(objective, rule)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total = 100

    def step(global_views: list[Tensor], local_views: list[Tensor]) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        objective.before_step(total // 2, total)  # the last layer moves
        device = global_views[0].device
        with autocast():
            views = Views(torch.cat(global_views), torch.cat(local_views) if local_views else None)
            loss = objective.distil(views, len(global_views[0]), Draws(0, device)).loss
        loss.backward()
        clip_gradients(parameters, CLIP, "parameter")
        objective.after_backward(total // 2, total)
        optimizer.step()
        objective.after_optimizer_step(total // 2 + 1, total)
        return loss.detach()

    return step


def make_views(sizes: Mapping[str, Any], batch: int, device: str = "cpu") -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator(device=device).manual_seed(1)
    made = partial(torch.randn, generator=generator, device=device)
    return (
        [made(batch, 3, sizes["size"], sizes["size"]) for _ in range(2)],
        [made(batch, 3, sizes["local"], sizes["local"]) for _ in range(sizes["locals"])],
    )


def steps_of(sizes: Mapping[str, Any], arguments: argparse.Namespace, dtype: str) -> tuple[dict[str, Step], list[str]]:
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=dtype == "bf16")
    ours = medfm(objective_of(sizes), autocast)
    steps: dict[str, Step] = {OURS: lambda global_views, local_views: ours(global_views, local_views).item()}
    absent = []
    builds: dict[str, Callable[[], Step]] = {
        FACEBOOK: lambda: facebook(arguments.peers, sizes, autocast, fused=False),
        f"{FACEBOOK} + fused": lambda: facebook(arguments.peers, sizes, autocast, fused=True),
        LIGHTLY: lambda: lightly(sizes, autocast, fused=False, batched=False),
        f"{LIGHTLY} + views batched, fused": lambda: lightly(sizes, autocast, fused=True, batched=True),
    }
    for name, build in builds.items():
        if arguments.only and not any(word in name for word in arguments.only):
            continue
        try:
            steps[name] = build()
        except Missing as error:
            absent.append(f"Skipped: {error}")
    return steps, list(dict.fromkeys(absent))


def step_tables(sizes: Mapping[str, Any], arguments: argparse.Namespace) -> list[str]:
    page = []
    views = make_views(sizes, arguments.batch)
    for dtype in arguments.dtypes:
        torch.manual_seed(0)
        steps, absent = steps_of(sizes, arguments, dtype)
        taken = in_turns({name: partial(step, *views) for name, step in steps.items()}, arguments.rounds)
        del steps
        gc.collect()
        ours = median(taken[OURS])
        rows = []
        for name, times in sorted(taken.items(), key=lambda item: median(item[1])):
            middle = median(times)
            rate, best = f"{arguments.batch / middle:.3f}", f"{1000 * min(times):.0f}"
            rows.append((name, rate, f"{1000 * middle:.0f}", best, f"{middle / ours:.2f}"))
        page += [f"## Step, {dtype}", table(("candidate", "images/s", "ms, median", "ms, best", "medfm's speed over it"), rows)]
        page += absent
        bars = {(FACEBOOK, "fp32"): 1.03, (FACEBOOK, "bf16"): 1.0, (LIGHTLY, "bf16"): 2.2}
        for (peer, of), least in bars.items():
            if of == dtype and peer in taken:
                gain = median(taken[peer]) / ours
                page.append(bar(f"{dtype}: at least {least} times {peer}: {gain:.2f}", gain >= least))
    return page


def part_tables(sizes: Mapping[str, Any], arguments: argparse.Namespace) -> list[str]:
    """The loss, forward and backward with its centre, and the moving average, beside Facebook's."""
    try:
        code = Facebook(arguments.peers)
    except Missing as error:
        return [f"Skipped: {error}"]
    batch, out, count = arguments.batch, sizes["out"], 2 + sizes["locals"]
    generator = torch.Generator().manual_seed(2)
    student = torch.randn(count * batch, out, generator=generator).mul_(0.2).requires_grad_()
    teacher = torch.randn(2 * batch, out, generator=generator).mul_(0.2)
    theirs, centre = code.loss(out, count), torch.zeros(out)

    def their_loss() -> float:
        loss = theirs(student, teacher, 1)
        torch.autograd.grad(loss, student)  # as in training, where logits keep no gradient
        return loss.item()

    def our_loss() -> float:
        loss = dino_loss(student, centred(teacher, centre, 0.04).view(2, batch, out), 0.1).loss
        centre.lerp_(batch_centre(teacher), 0.1)
        torch.autograd.grad(loss, student)
        return loss.item()

    objective = objective_of(sizes)
    their_student, their_teacher = code.network(sizes), code.network(sizes)
    averages = make_teacher(objective.student)

    def follow(call: Callable[[], None]) -> float:
        call()
        return 0.0

    parts: dict[str, tuple[Callable[[], float], Callable[[], float], float]] = {
        "loss": (our_loss, their_loss, 2.0),
        "moving average": (
            partial(follow, lambda: ema_update(averages, objective.student, MOMENTUM)),
            partial(follow, lambda: code.follow(their_student, their_teacher, MOMENTUM)),
            3.0,
        ),
    }
    rows, verdicts = [], []
    for name, (ours, reference, least) in parts.items():
        taken = in_turns({OURS: ours, FACEBOOK: reference}, max(20, arguments.rounds))
        gain = median(taken[FACEBOOK]) / median(taken[OURS])
        rows.append((name, f"{1000 * median(taken[OURS]):.1f}", f"{1000 * median(taken[FACEBOOK]):.1f}", f"{gain:.2f}"))
        verdicts.append(bar(f"{name}: at least {least:g} times the reference loop: {gain:.2f}", gain >= least))
    return ["## Parts, fp32", table(("part", "medfm, ms", f"{FACEBOOK}, ms", "speed ratio"), rows), *verdicts]


def count_flops(sizes: Mapping[str, Any]) -> float:
    """Of one image's step: forwards of teacher and student and the backward, as they are computed here (a last block that makes
    the class token alone), with plain attention. A multiplication and an addition count as two."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    objective = objective_of(sizes)
    global_views, local_views = make_views(sizes, 1)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective.distil(Views(torch.cat(global_views), torch.cat(local_views)), 1, Draws(0)).loss.backward()
    return float(counter.get_total_flops())


def run_gpu(sizes: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    torch.set_float32_matmul_precision("high")
    flops, hardware, ceiling = count_flops(sizes), machine("cuda"), matmul_tflops("cuda")
    sheet = next((peak for word, peak in PEAKS.items() if word in hardware), None)
    autocast = partial(torch.autocast, "cuda", dtype=torch.bfloat16)
    rows: list[tuple[object, ...]] = []
    best, call = 0.0, None
    for batch in arguments.batches:
        call = None  # frees the last one
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            objective = objective_of(sizes).to("cuda")
            if arguments.compile:
                objective.compile_encoders()
            call = partial(medfm(objective, autocast), *make_views(sizes, batch, "cuda"))
            elapsed = seconds(call, "cuda", warmup=5, repeats=20)
        except torch.OutOfMemoryError:
            rows.append((batch, "out of memory", *[""] * 5))
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
    head = ("images a step", "images/s", "ms a step", "TFLOP/s", "of a matrix product", "of the data sheet", "peak memory, GB")
    page = [
        "# DINO on a GPU",
        f"`{command()}`",
        hardware,
        f"ViT-S/16, 2 views of {sizes['size']} and {sizes['locals']} of {sizes['local']} pixels, {sizes['out']} prototypes, "
        f"full step, bf16 autocast, {'torch.compile of both encoders' if arguments.compile else 'eager'}; "
        f"{flops / 1e9:.1f} GFLOP an image (counted by torch's FlopCounterMode with plain attention). A "
        "bf16 product of two large matrices reaches "
        f"{ceiling:.0f} TFLOP/s here. Median of 20 steps.",
        table(head, rows),
        bar(f"30 % of the measured matrix rate: {best / ceiling:.1%}", best >= 0.30 * ceiling),
        bar(f"goal, 45 %: {best / ceiling:.1%}", best >= 0.45 * ceiling),
    ]
    if arguments.profile and call is not None:
        page += ["One step:", profile(call, "cuda")]
    out = RESULTS / "dino_cuda.md"
    out.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print(out.read_text(encoding="utf-8"))


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--batch", type=int, default=2, help="images a step on a CPU")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--dtypes", nargs="*", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    made.add_argument("--only", nargs="*", default=[], help="peers whose name has one of these words")
    made.add_argument("--peers", type=Path, default=Path("../peers"), help="folder that holds clones of the peers' code")
    made.add_argument("--tiny", action="store_true", help="a toy model, to try the script")
    made.add_argument("--profile", action="store_true", help="one step's operators")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: medfm alone, images a second and MFU")
    made.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256], help="tried in turn, with cuda")
    made.add_argument("--compile", action="store_true", help="torch.compile the encoders, with cuda")
    made.add_argument("--out", default="dino", help="file in benchmarks/results")
    arguments = made.parse_args()
    sizes = TINY if arguments.tiny else SMALL
    if arguments.device == "cuda":
        run_gpu(sizes, arguments)
        return
    one_core()
    page = [
        f"ViT {sizes['dim']} x {sizes['depth']}, patch {sizes['patch']}, 2 views of {sizes['size']} and {sizes['locals']} of "
        f"{sizes['local']} pixels, {sizes['out']} prototypes, {arguments.batch} images, one thread. CPU time of "
        f"{arguments.rounds} rounds in turns. Peers with torch's default AdamW, as their scripts build it; `+ fused` with the "
        "fused one, which medfm takes. lightly as in its example, one view at a time, without clipping.",
        *step_tables(sizes, arguments),
        *part_tables(sizes, arguments),
    ]
    if arguments.profile:
        for dtype in arguments.dtypes:
            autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=dtype == "bf16")
            call = partial(medfm(objective_of(sizes), autocast), *make_views(sizes, arguments.batch))
            call()
            page += [f"## medfm's step, {dtype}", profile(call, "cpu")]
    write(arguments.out, "DINO", *page)


if __name__ == "__main__":
    main()
