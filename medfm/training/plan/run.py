"""`medfm plan`: which settings of a recipe fit a card, and what they take."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from medfm.errors import ConfigError
from medfm.training.config import PretrainConfig
from medfm.training.plan.config import PlanConfig
from medfm.training.plan.devices import GPUS, Gpu, at_hand, find_gpu, like


@dataclass
class Plan:
    """What a recipe needs, and ways to run it.

    Attributes:
        batch: images of an optimiser step, over all devices.
        forward_flops, flops: operations an image, forward, and forward and backward; at the recipe's precision.
        kept, kept_checkpointing: bytes an image that the forward pass keeps, without and with activation checkpointing.
        as_is: the recipe without a change.
        proposals: what fits, the fastest first.
        images: training images, None where neither given nor counted.
        steps: optimiser steps of the run, None without `images`.
        notes: assumptions and advice, in words.
        measured: real steps beside their estimate, see `compare`.
    """

    recipe: str
    changes: dict[str, Any]
    gpu: Gpu
    timed: Gpu
    devices: int
    mfu: float
    batch: int
    weights: Any
    forward_flops: float
    flops: float
    kept: float
    kept_checkpointing: float | None
    as_is: Any
    proposals: list[Any]
    images: int | None
    steps: int | None
    notes: list[str] = field(default_factory=list)
    measured: dict[str, Any] | None = None

    def command(self, proposal: Any) -> str:
        """What to type for a proposal."""
        keys = {**self.changes, **proposal.overrides}
        words = [f"{key}={_word(value)}" for key, value in keys.items()]
        if self.devices > 1 and "trainer.devices" not in keys:
            words.append(f"trainer.devices={self.devices}")
        return " ".join(["medfm pretrain", f"recipe={self.recipe}", *words])

    def hours(self, proposal: Any) -> float | None:
        if self.steps is None or proposal.seconds is None:
            return None
        return float(self.steps * proposal.seconds / 3600)


def _word(value: Any) -> str:
    """A value as a shell passes it on in one word."""
    if isinstance(value, str):
        return shlex.quote(value)
    text = json.dumps(value, separators=(",", ":"))
    return text if not any(c in text for c in "{}\"' ") else shlex.quote(text)


def run_plan(config: PlanConfig, recipe: PretrainConfig, progress: bool = True) -> Plan:
    """Plan `recipe` for a card.

    Raises:
        ConfigError: no such card, or a batch that the devices cannot share.
        Untraceable: the objective cannot be followed without data.
    """
    gpu = find_gpu(config.gpu) if config.gpu else at_hand()
    if gpu is None:
        raise ConfigError(f"gpu: there is no GPU here; say which one to plan for: gpu=24GB, or one of {', '.join(GPUS)}")
    if recipe.data.batch_size % config.devices:
        raise ConfigError(f"data.batch_size {recipe.data.batch_size} cannot be shared by {config.devices} devices")
    with _status(progress) as say:
        plan = _plan(config, recipe, gpu, say)
        if config.measure:
            say("real steps")
            plan.measured = compare(config, recipe, plan)
    if config.out is not None:
        try:
            config.out.parent.mkdir(parents=True, exist_ok=True)
            config.out.write_text(json.dumps(to_json(plan), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"out: '{config.out}' cannot be written: {error.strerror}") from None
    return plan


def _status(progress: bool) -> AbstractContextManager[Callable[[str], None]]:
    if not progress:
        return nullcontext(lambda text: None)
    from contextlib import contextmanager

    from rich.console import Console

    @contextmanager
    def shown() -> Any:
        with Console(stderr=True).status("following a step") as status:
            yield lambda text: status.update(f"following a step: {text}")

    return shown()


def _plan(config: PlanConfig, recipe: PretrainConfig, gpu: Gpu, say: Callable[[str], None]) -> Plan:
    from medfm.training.plan.estimate import LARGE, SMALL, Tracer
    from medfm.training.plan.propose import Planner, least_rows
    from medfm.training.plan.settings import Setting

    timed = gpu
    if gpu.half is None and (same := like(gpu)):
        timed = same[len(same) // 2]
    images = config.images or _count(recipe)
    tracer = Tracer(recipe, images or 0, say)
    planner = Planner(recipe, gpu, timed, config.devices, config.mfu, tracer)
    plain = Setting(recipe.trainer.precision, bool(getattr(recipe.encoder, "gradient_checkpointing", False)), 1)
    planner.least = least_rows(recipe, plain, tracer)
    as_is = planner.as_is()
    proposals = planner.proposals()
    (small, weights), (large, _) = (tracer(plain, n) for n in (SMALL, LARGE))

    def each(name: str) -> float:
        """Of an image."""
        return float(getattr(large, name) - getattr(small, name)) / (LARGE - SMALL)

    kept_again = None
    if hasattr(recipe.encoder, "gradient_checkpointing") and not plain.checkpointing:
        again = Setting(recipe.trainer.precision, True, 1)
        kept_again = (tracer(again, LARGE)[0].kept - tracer(again, SMALL)[0].kept) / (LARGE - SMALL)
    steps = recipe.trainer.max_steps or (_steps(recipe, images) if images else None)
    plan = Plan(
        recipe=config.recipe,
        changes=config.changes,
        gpu=gpu,
        timed=timed,
        devices=config.devices,
        mfu=config.mfu,
        batch=recipe.step_batch,
        weights=weights,
        forward_flops=each("forward_flops"),
        flops=each("flops"),
        kept=each("kept"),
        kept_checkpointing=kept_again,
        as_is=as_is,
        proposals=proposals[: config.proposals],
        images=images,
        steps=steps,
    )
    plan.notes = _notes(plan, planner, recipe, small.guesses)
    return plan


def _steps(recipe: PretrainConfig, images: int) -> int:
    """As `pretrain` counts them: a last batch that is not full is left out."""
    per_epoch = max(1, images // recipe.data.batch_size)
    return max(1, math.ceil(recipe.trainer.max_epochs * per_epoch) // recipe.trainer.accumulate)


def _count(recipe: PretrainConfig) -> int | None:
    """Training images of the recipe's manifest, where it is there."""
    if not recipe.data.manifest.is_file():
        return None
    from medfm.data.manifest import read_manifest

    frame = read_manifest(recipe.data.manifest, recipe.data.root).frame
    frame = frame[frame["split"] == "train"]
    if recipe.data.views:
        frame = frame[frame["view"].isin(recipe.data.views)]
    return len(frame) or None


def _notes(plan: Plan, planner: Any, recipe: PretrainConfig, guesses: int) -> list[str]:
    from medfm.training.plan.estimate import CONTEXT, FRAGMENTATION
    from medfm.training.plan.trace import IMAGES

    notes = []
    if plan.gpu.half is None and plan.timed.half is not None:
        notes.append(f"Times are those of a card of this memory, {plan.timed.name}; gpu=NAME gives another's.")
    if plan.timed.half is not None:
        notes.append(
            f"Time assumes {plan.mfu:.0%} of {plan.timed.name}'s {plan.timed.half / 1e12:.4g} TFLOP/s ({plan.timed.source}), "
            "or 80 % of its bandwidth where that takes longer; loading keeps up."
        )
    notes.append(
        f"Memory counts {CONTEXT / 1e9:.1f} GB for the CUDA context and {FRAGMENTATION:.0%} of what comes and goes for gaps; "
        "attention by fused kernels, which keep no N x N weights."
    )
    if not recipe.trainer.compile and plan.proposals:
        notes.append("trainer.compile=true saves time and memory on most GPUs; the estimate does not count on it.")
    if plan.images is None:
        notes.append(
            f"The number of training images is not known: images=N gives the hours. Sizes on auto are those for {IMAGES:,}."
        )
    if guesses:
        notes.append(f"{guesses} values that decide shapes are not known before training; the largest shapes were assumed.")
    if not plan.proposals:
        notes += _advice(plan, planner, recipe)
    return notes


def _advice(plan: Plan, planner: Any, recipe: PretrainConfig) -> list[str]:
    """What to do where nothing fits."""
    least = planner.smallest()
    memory = least.memory
    fixed = memory.weights + memory.gradients + memory.optimizer
    rows = f"{planner.least} image{'s' if planner.least > 1 else ''}"
    lines = [
        f"Does not fit {plan.gpu.name} even with {rows} a pass, {least.setting.precision}"
        f"{' and checkpointing' if least.setting.checkpointing else ''}: {memory.total / 1e9:.1f} GB, of which weights, "
        f"gradients and optimiser states {fixed / 1e9:.1f}, activations {memory.activations / 1e9:.1f}."
    ]
    if fixed > memory.activations:
        lines.append(
            "Weights and their states are the larger part: take more devices (trainer.strategy=fsdp2 shares them out), a "
            "smaller encoder (encoder.embed_dim, encoder.depth), or a smaller head of the objective."
        )
    else:
        lines.append(
            "Activations are the larger part: take smaller images or larger patches (preprocess.size, encoder.patch_size), "
            "hide more patches (objective.patch_dropout, objective.mask_ratio), or fewer or smaller crops."
        )
    return lines


def compare(config: PlanConfig, recipe: PretrainConfig, plan: Plan) -> dict[str, Any]:
    """Real steps on the device at hand, beside the estimate for the same steps: bytes, seconds and ratios.

    On a CPU the step has `measure_batch` or 2 images and runs at the recipe's settings; the peak is that of torch's allocator.

    Raises:
        ConfigError: a step that would take the CPU too long.
    """
    import torch

    from medfm.training.plan.estimate import memory_of, step_seconds
    from medfm.training.plan.measure import measure_step
    from medfm.training.plan.settings import with_setting
    from medfm.training.plan.trace import trace_step

    cuda = torch.cuda.is_available()
    best = plan.proposals[0] if plan.proposals else plan.as_is
    setting = best.setting
    rows = config.measure_batch or (setting.chunk or setting.micro if cuda else 2)
    if not cuda and plan.flops * rows > 5e12:
        raise ConfigError(
            f"measure: a step of {rows} images takes {plan.flops * rows / 1e12:.0f} TFLOP, which is for a GPU; measure there, "
            "or with a smaller recipe"
        )
    changed = with_setting(recipe, setting, 1)
    if getattr(changed.objective, "cache_chunk", 0):
        changed = changed.model_copy(update={"objective": changed.objective.model_copy(update={"cache_chunk": 0})})
    foot, weights = trace_step(changed, rows, cuda=cuda, batch=plan.batch, images=plan.images or 0)
    expected = memory_of(foot, weights, replace(setting, micro=rows, accumulate=1, chunk=0, sharded=False), 1)
    tensors = expected.total - expected.margin
    real = measure_step(changed, rows, "cuda" if cuda else "cpu", batch=plan.batch, images=plan.images or 0)
    result: dict[str, Any] = {"estimated_peak": tensors, "measured": asdict(real), "peak_ratio": tensors / real.peak}
    if real.kept:
        result |= {"estimated_kept": foot.kept, "kept_ratio": foot.kept / real.kept}
    here = at_hand()
    if here is not None:
        seconds = step_seconds(foot, weights, 1, here, config.mfu)
        total = real.seconds + real.update_seconds
        result |= {"estimated_seconds": seconds, "measured_mfu": None if here.half is None else foot.flops / total / here.half}
    else:
        result["measured_gflops"] = foot.flops / real.seconds / 1e9
    return result


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain numbers and texts."""
    content = asdict(plan)
    for shown, proposal in zip(content["proposals"], plan.proposals, strict=True):
        shown |= {"total": proposal.memory.total, "hours": plan.hours(proposal), "command": plan.command(proposal)}
    content["as_is"] |= {"total": plan.as_is.memory.total, "hours": plan.hours(plan.as_is)}
    return content


def render(plan: Plan) -> Any:
    """The plan for the terminal."""
    from medfm.training.plan.render import table

    return table(plan)
