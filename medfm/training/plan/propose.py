"""Settings of a recipe that fit a card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from medfm.errors import MedfmError
from medfm.training.config import PretrainConfig
from medfm.training.plan.devices import Gpu
from medfm.training.plan.estimate import FRAGMENTATION, LARGE, SMALL, Memory, Tracer, memory_of, step_seconds
from medfm.training.plan.memory import Weights
from medfm.training.plan.settings import Precision, Setting, compares_batch, overrides
from medfm.training.plan.trace import Footprint, Untraceable


@dataclass(frozen=True)
class Proposal:
    """A setting, and what it is estimated to take.

    Attributes:
        flops: operations of an optimiser step on one device, recomputation included.
        seconds: of an optimiser step; None where the card's rates are not known.
        overrides: what to add to the recipe.
        notes: in what it differs from the recipe, where it does.
    """

    setting: Setting
    memory: Memory
    fits: bool
    flops: float
    seconds: float | None
    overrides: dict[str, Any]
    notes: tuple[str, ...] = ()


class Planner:
    """Searches the settings of a recipe that fit a card.

    Args:
        recipe: validated; its `step_batch` stays what it is.
        gpu: the card. `timed` is the one whose rates count, where `gpu` is known by its memory alone.
        devices: that share a batch; a pass of the recipe must divide by their number.
    """

    def __init__(self, recipe: PretrainConfig, gpu: Gpu, timed: Gpu, devices: int, mfu: float, tracer: Tracer) -> None:
        self.recipe, self.gpu, self.timed, self.devices, self.mfu, self.trace = recipe, gpu, timed, devices, mfu, tracer
        self.rows = recipe.step_batch // devices  # of an optimiser step on one device
        self.least = 1

    def as_is(self) -> Proposal:
        """The recipe without a change."""
        recipe, objective = self.recipe, self.recipe.objective
        setting = Setting(
            recipe.trainer.precision,
            bool(getattr(recipe.encoder, "gradient_checkpointing", False)),
            recipe.data.batch_size // self.devices,
            recipe.trainer.accumulate,
            int(getattr(objective, "cache_chunk", 0)),
            recipe.trainer.strategy == "fsdp2" and self.devices > 1,
        )
        return self._cached(setting) if 0 < setting.chunk < setting.micro else self._plain(setting)

    def proposals(self) -> list[Proposal]:
        """Settings that fit, the fastest first; of equally fast ones that with the fewest changes."""
        found = [p for setting in self._kinds() if (p := self._largest(setting)) is not None]
        if not found and self.devices > 1:
            found = [p for setting in self._kinds() if (p := self._largest(_sharded(setting))) is not None]
        exact = [p for p in found if not p.notes] or found
        return sorted(exact, key=lambda p: (round(p.seconds or p.flops, 4), len(p.overrides)))

    def smallest(self) -> Proposal:
        """The most saving setting there is: what does not fit with it does not fit."""
        kinds = list(self._kinds())
        passes, sharded = max(1, self.rows // self.least), self.devices > 1
        tried = [self._plain(replace(k, micro=self.least, accumulate=passes, sharded=sharded)) for k in kinds]
        return min(tried, key=lambda p: p.memory.total)

    def _kinds(self) -> Iterator[Setting]:
        recipe = self.recipe
        half: Precision = "bf16-mixed" if self.timed.bfloat16 else "16-mixed"
        precisions = [recipe.trainer.precision]
        if recipe.trainer.precision == "32-true":
            precisions.append(half)
        elif recipe.trainer.precision.startswith("bf16") and not self.timed.bfloat16:
            precisions = [half]
        checkpointing = [False, True] if hasattr(recipe.encoder, "gradient_checkpointing") else [False]
        if getattr(recipe.encoder, "gradient_checkpointing", False):
            checkpointing = [True]
        for precision in precisions:
            for again in checkpointing:
                yield Setting(precision, again, 1)

    def _largest(self, kind: Setting) -> Proposal | None:
        """The largest pass that fits, by `cache_chunk` where the loss compares all images of a batch, else by accumulation."""
        try:
            self.trace(kind, SMALL)
        except Untraceable:
            if kind.precision == self.recipe.trainer.precision:
                raise
            return None  # a precision that this objective cannot take is not proposed
        if hasattr(self.recipe.objective, "cache_chunk"):
            return self._largest_chunk(kind)
        for micro in self._candidates(kind):
            proposal = self._plain(replace(kind, micro=micro, accumulate=self.rows // micro))
            if proposal.fits:
                return proposal
        return None

    def _candidates(self, kind: Setting) -> list[int]:
        """Passes that divide the batch and may fit by a straight line through two small ones; at most three are tried."""
        sizes = [n for n in range(self.rows, 0, -1) if self.rows % n == 0 and n >= self.least]
        (small, weights), (large, _) = self.trace(kind, SMALL), self.trace(kind, LARGE)
        slope = max(1.0, (large.peak + large.inputs - small.peak - small.inputs) / (LARGE - SMALL))
        setting = replace(kind, micro=SMALL, accumulate=2)
        room = self.gpu.memory - memory_of(small, weights, setting, self.devices).total
        guess = SMALL + room / (slope * (1 + FRAGMENTATION))
        below = [n for n in sizes if n <= guess * 1.1]
        return below[:3] if below else sizes[-1:]

    def _plain(self, setting: Setting) -> Proposal:
        foot, weights = self.trace.estimate(setting, setting.micro)
        return self._proposal(foot, weights, setting, setting.accumulate)

    def _largest_chunk(self, kind: Setting) -> Proposal | None:
        whole = self._fitted(kind, replace(kind, micro=self.rows))
        if whole is not None:
            return whole
        sizes = [2**power for power in range(self.rows.bit_length()) if 2**power < self.rows]
        for chunk in reversed(sizes):
            proposal = self._cached(replace(kind, micro=self.rows, chunk=chunk))
            if proposal.fits:
                return proposal
        return None

    def _fitted(self, kind: Setting, setting: Setting) -> Proposal | None:
        """`setting` followed whole, where a straight line through two small passes says that it may fit."""
        if setting.micro not in self._candidates(kind):
            return None
        proposal = self._plain(setting)
        return proposal if proposal.fits else None

    def _cached(self, setting: Setting) -> Proposal:
        """Gradient caching. Bytes are a plane over rows and chunk, through three small steps: a step of hundreds of chunks
        would take minutes to follow."""
        (first, weights), (second, _), (third, _) = (self.trace(setting, *shape) for shape in ((2, 1), (3, 1), (4, 2)))
        small, large = (self.trace(setting, rows)[0] for rows in (SMALL, LARGE))
        rows, chunk = setting.micro, setting.chunk

        def plane(name: str) -> int:
            a, b, c = (getattr(f, name) for f in (first, second, third))
            per_row = b - a
            per_chunk = c - a - 2 * per_row
            return round(a + (rows - 2) * per_row + (chunk - 1) * per_chunk)

        def line(name: str) -> float:
            a, b = getattr(small, name), getattr(large, name)
            return float(a + (rows - SMALL) * (b - a) / (LARGE - SMALL))

        # Weights are read once a chunk.
        per_row = (third.traffic - first.traffic) / 2
        per_pass = second.traffic - first.traffic - per_row
        traffic = first.traffic + (rows - 2) * per_row + (rows / chunk - 2) * per_pass
        again = 1 - chunk / rows  # all chunks but the last run forward twice
        forward = line("forward_flops") * again
        flops = line("flops") + forward
        foot = replace(
            small,
            batch=rows,
            inputs=round(line("inputs")),
            kept=plane("kept"),
            forward_peak=plane("forward_peak"),
            peak=plane("peak"),
            peak_with_gradients=plane("peak_with_gradients"),
            forward_flops=round(line("forward_flops")),
            flops=round(flops),
            full_flops=round(line("full_flops") * flops / line("flops")),
            traffic=round(traffic),
        )
        return self._proposal(foot, weights, setting, setting.accumulate)

    def _proposal(self, foot: Footprint, weights: Weights, setting: Setting, passes: int) -> Proposal:
        memory = memory_of(foot, weights, setting, self.devices)
        seconds = step_seconds(foot, weights, passes, self.timed, self.mfu)
        notes = []
        if setting.accumulate > self.recipe.trainer.accumulate and compares_batch(self.recipe.objective):
            notes.append(
                f"the loss compares the {setting.micro * self.devices} images of a pass, not the "
                f"{self.recipe.data.batch_size} of the recipe"
            )
        return Proposal(
            setting,
            memory,
            memory.total <= self.gpu.memory,
            float(foot.flops * passes),
            seconds,
            overrides(self.recipe, setting, self.devices),
            tuple(notes),
        )


def _sharded(setting: Setting) -> Setting:
    """FSDP2 does not scale float16 gradients, see `medfm.training.sharding`."""
    return replace(setting, sharded=True, precision="bf16-mixed" if setting.precision == "16-mixed" else setting.precision)


def least_rows(recipe: PretrainConfig, gpu_setting: Setting, trace: Tracer) -> int:
    """The smallest pass that the objective takes: batch normalisation and negatives need two images.

    Raises:
        MedfmError: it takes neither one nor two.
    """
    try:
        trace(gpu_setting, 1)
    except MedfmError:
        trace(gpu_setting, 2)
        return 2
    return 1
