"""Real steps of a recipe on the device at hand, to hold a plan's estimate against."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medfm.data.batches import tensors_of, to_device
from medfm.objectives.base import Objective, Parts
from medfm.registry import OBJECTIVES
from medfm.training.config import PretrainConfig
from medfm.training.optim import build_optimizer
from medfm.training.plan.memory import saved_bytes
from medfm.training.plan.trace import example_batch, parts_of, precision_context, without_files
from medfm.transforms.augment import Augment
from medfm.transforms.draws import Draws
from medfm.types import Batch


@dataclass(frozen=True)
class Measured:
    """What real steps of one micro-batch took.

    Attributes:
        device: "cuda" or "cpu", and its name.
        rows: images.
        kept: bytes saved for the backward pass; None on CUDA.
        peak: the most bytes that tensors took at once: weights, gradients, optimiser states and activations.
        reserved: the most that the allocator took from the device; None on a CPU.
        seconds: median time of a micro-batch's forward and backward pass.
        update_seconds: median time of the optimiser's step.
    """

    device: str
    rows: int
    kept: int | None
    peak: int
    reserved: int | None
    seconds: float
    update_seconds: float


def measure_step(
    config: PretrainConfig, rows: int, device: str, steps: int = 3, batch: int | None = None, images: int = 0
) -> Measured:
    """Train `steps` steps of `rows` made-up images, after a warm-up, and note memory and time.

    Args:
        batch, images: as in `parts_of`.

    Raises:
        torch.OutOfMemoryError: the device is too small.
    """
    torch.manual_seed(config.seed)
    parts = parts_of(config, batch, images)
    objective: Objective = OBJECTIVES.build(without_files(config).objective, parts=parts)
    if config.trainer.precision == "bf16-true":
        objective.to(torch.bfloat16)
    objective.to(device).train()
    if config.trainer.compile:
        objective.compile_encoders()
    optimizer = build_optimizer(objective, config.optimizer)
    step = _Step(objective, parts, config, _batch(config, parts, rows, device), optimizer, device)
    if device == "cuda":
        return _on_cuda(step, rows, steps)
    return _on_cpu(step, rows, steps)


class _Step:
    """Forward, backward and update, callable apart."""

    def __init__(
        self, objective: Objective, parts: Parts, config: PretrainConfig, batch: Batch, optimizer: Any, device: str
    ) -> None:
        self.objective, self.parts, self.config, self.batch = objective, parts, config, batch
        self.optimizer, self.device, self.number = optimizer, device, 0
        self.augment = Augment(config.augment)

    def forward(self) -> Tensor:
        draws = Draws(self.number, self.device)
        self.objective.before_step(self.number, 1000)
        with precision_context(self.config.trainer.precision, self.device):
            images = self.batch.images
            if not self.objective.takes_stored_pixels:
                images = self.augment.prepare(self.parts.preprocess, images, draws)
            return self.objective(replace(self.batch, images=images), draws).loss

    def backward(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()

    def update(self) -> None:
        self.optimizer.step()
        self.objective.after_optimizer_step(self.number, 1000)
        self.number += 1


def _batch(config: PretrainConfig, parts: Parts, rows: int, device: str) -> Batch:
    batch = example_batch(config, parts, rows)
    like = batch.images
    images = torch.rand(like.shape) * 255 if not like.is_floating_point() else torch.rand(like.shape)
    batch = replace(batch, images=images.to(like.dtype))
    if batch.tokens is not None:
        batch.tokens = torch.randint(1, 100, batch.tokens.shape)
    for texts in batch.texts.values():
        texts.tokens = torch.randint(1, 100, texts.tokens.shape)
    return to_device(batch, device)


def _on_cuda(step: _Step, rows: int, steps: int) -> Measured:
    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    passes, updates = [], []
    for number in range(steps + 2):
        if number == 2:  # states of the optimiser exist, kernels are chosen
            torch.cuda.reset_peak_memory_stats()
        started = clock()
        step.backward(step.forward())
        between = clock()
        step.update()
        ended = clock()
        if number >= 2:
            passes.append(between - started)
            updates.append(ended - between)
    name = torch.cuda.get_device_name()
    return Measured(
        f"cuda ({name})", rows, None, torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(),
        statistics.median(passes), statistics.median(updates),
    )  # fmt: skip


def _on_cpu(step: _Step, rows: int, steps: int) -> Measured:
    passes, updates = [], []
    for number in range(steps + 1):
        started = time.process_time()
        step.backward(step.forward())
        between = time.process_time()
        step.update()
        if number:
            passes.append(between - started)
            updates.append(time.process_time() - between)
    excluded = [*step.objective.parameters(), *step.objective.buffers(), *tensors_of(step.batch)]
    loss, kept = saved_bytes(step.forward, excluded)
    del loss
    states = [v for s in step.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    resident = sum(t.untyped_storage().nbytes() for t in (*excluded, *states))
    return Measured("cpu", rows, kept, resident + _cpu_peak(step), None, statistics.median(passes), statistics.median(updates))


def _cpu_peak(step: _Step) -> int:
    """The most bytes that a step takes beside weights and states, by torch's own record of its allocations."""
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to the terminal that there is no GPU
    step.optimizer.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for _ in range(2):  # the second with the first's gradients, as every step but the first
            step.backward(step.forward())
    changes: list[tuple[int, int]] = []
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            changes.append((event.start_ns(), event.nbytes()))
    live = most = 0
    for _, nbytes in sorted(changes, key=lambda change: change[0]):
        live += nbytes
        most = max(most, live)
    return most
