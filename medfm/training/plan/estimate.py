"""Memory and time of a setting, from steps that were followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from medfm.training.config import PretrainConfig
from medfm.training.plan.devices import Gpu
from medfm.training.plan.memory import Weights
from medfm.training.plan.settings import Setting, compares_batch, with_setting
from medfm.training.plan.trace import Footprint, trace_step

# What a process takes of a card beside tensors: the CUDA context with its kernels, and cuBLAS' and cuDNN's workspaces.
CONTEXT = 900_000_000
# Buffers of the library that sums gradients over devices.
COLLECTIVES = 600_000_000
# Gaps between the blocks of the caching allocator, as a share of what comes and goes in a step.
FRAGMENTATION = 0.05
# What streaming kernels reach of the bandwidth on the data sheet.
STREAMED = 0.8


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the worst moment of a step."""

    weights: int
    gradients: int
    optimizer: int
    inputs: int
    activations: int
    margin: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.inputs + self.activations + self.margin


# Passes of more images are not followed but lie on the line through these two: a step of thousands takes minutes to follow.
SMALL, LARGE = 32, 64


@dataclass
class Tracer:
    """Footprints of a recipe, each followed once."""

    recipe: PretrainConfig
    images: int = 0
    say: Callable[[str], None] = lambda _: None
    seen: dict[tuple[Any, ...], tuple[Footprint, Weights]] = field(default_factory=dict)

    def __call__(self, setting: Setting, rows: int, chunk: int = 0) -> tuple[Footprint, Weights]:
        key = (setting.precision, setting.checkpointing, rows, chunk)
        if key not in self.seen:
            self.say(f"{setting.precision}, {'with' if setting.checkpointing else 'no'} checkpointing, {rows} images")
            config = with_setting(self.recipe, replace(setting, micro=rows, chunk=chunk, accumulate=1), 1)
            self.seen[key] = trace_step(config, rows, batch=self.recipe.step_batch, images=self.images)
        return self.seen[key]

    def estimate(self, setting: Setting, rows: int) -> tuple[Footprint, Weights]:
        """The footprint of `rows` images; losses that compare images of a batch grow faster than it and are followed whole."""
        if rows <= LARGE or compares_batch(self.recipe.objective):
            return self(setting, rows)
        (small, weights), (large, _) = self(setting, SMALL), self(setting, LARGE)
        values = {}
        for name, a in vars(small).items():
            b = getattr(large, name)
            values[name] = round(a + (rows - SMALL) * (b - a) / (LARGE - SMALL))
        return Footprint(**values), weights


def memory_of(foot: Footprint, weights: Weights, setting: Setting, devices: int) -> Memory:
    """What a step takes on one device, at its worst moment.

    Lightning clears gradients between forward and backward, so those of the step before stand beside the forward pass; with
    accumulation they stand beside both passes.
    """
    if setting.accumulate > 1 or setting.sharded:
        moving = foot.peak
        gradients = weights.gradients
    else:
        worst = max(foot.peak_with_gradients, foot.forward_peak + weights.gradients)
        gradients = min(weights.gradients, worst)
        moving = worst - gradients
    margin = CONTEXT + round(FRAGMENTATION * (moving + gradients))
    held, states = weights.weights, weights.optimizer
    if setting.sharded:
        # Two blocks are whole at a time: one computes while the next arrives; a gradient is whole until it is shared out.
        whole = 3 * weights.largest_block
        held, states, gradients = (n // devices for n in (held, states, gradients))
        held += whole
    if devices > 1:
        margin += COLLECTIVES
    return Memory(held, gradients, states, foot.inputs, moving, margin)


def step_seconds(foot: Footprint, weights: Weights, passes: float, gpu: Gpu, mfu: float) -> float | None:
    """Time of an optimiser step: of each pass the longer of its arithmetic, at `mfu` of the card's rate, and of its traffic;
    and the optimiser's traffic."""
    if gpu.half is None or gpu.full is None or gpu.bandwidth is None:
        return None
    arithmetic = (foot.flops - foot.full_flops) / (mfu * gpu.half) + foot.full_flops / (mfu * gpu.full)
    traffic = foot.traffic / (STREAMED * gpu.bandwidth)
    # Weights, gradients and states are read, weights and states written.
    update = (2 * weights.weights + weights.gradients + 2 * weights.optimizer) / (STREAMED * gpu.bandwidth)
    return passes * max(arithmetic, traffic) + update
