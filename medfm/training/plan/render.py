"""A plan on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from medfm.training.plan.run import Plan


def table(plan: Plan) -> Group:
    """What the recipe is, the settings that fit, the command of the first, and what was assumed."""
    gpus = f"{plan.devices} x {plan.gpu.name}" if plan.devices > 1 else plan.gpu.name
    if plan.gpu.half is not None:
        gpus += f" ({plan.gpu.memory / 1e9:.4g} GB)"
    kept = f"{_size(plan.kept)} kept for the backward pass"
    if plan.kept_checkpointing is not None:
        kept += f" ({_size(plan.kept_checkpointing)} with checkpointing)"
    head = [
        f"{plan.recipe} on {gpus}: {plan.batch} images an optimiser step",
        f"an image: {_flops(plan.forward_flops)} forward, {_flops(plan.flops)} in all; {kept}",
        f"{plan.weights.count / 1e6:.1f} M parameters, {plan.weights.trainable / 1e6:.1f} M trained: weights "
        f"{_size(plan.weights.weights)}, gradients {_size(plan.weights.gradients)}, optimiser {_size(plan.weights.optimizer)}",
    ]
    if plan.images is not None:
        head.append(f"{plan.images:,} training images, {plan.steps:,} steps")
    rows = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("", "batch", "passes", "checkpoints", "precision", "GB", "", "images/s"):
        rows.add_column(name, justify="left" if name in ("", "checkpoints", "precision") else "right", no_wrap=True)
    rows.add_column("hours" if plan.steps is not None else "h/M images", justify="right", no_wrap=True)
    if not any(proposal.setting == plan.as_is.setting for proposal in plan.proposals):
        rows.add_row(*_row(plan, plan.as_is, "as it is"))
    for number, proposal in enumerate(plan.proposals, 1):
        same = ", as it is" if proposal.setting == plan.as_is.setting else ""
        rows.add_row(*_row(plan, proposal, f"{number}{same}"))
    parts: list[Any] = [*map(Text, head), Text(), rows, Text()]
    for proposal in plan.proposals:
        parts += [Text(note, style="yellow") for note in proposal.notes]
    if plan.proposals:
        parts += [Text(_folded(plan.command(plan.proposals[0])), style="bold"), Text()]
    parts += [Text(note, style="dim" if plan.proposals else "") for note in plan.notes]
    if plan.measured is not None:
        parts += [Text(), *map(Text, _measured(plan.measured))]
    return Group(*parts)


def _row(plan: Plan, proposal: Any, name: str) -> list[str]:
    setting = proposal.setting
    rate = None if proposal.seconds is None else plan.batch / proposal.seconds
    hours = plan.hours(proposal) if plan.steps is not None else None if rate is None else 1e6 / rate / 3600
    return [
        name,
        f"{setting.chunk}/{setting.micro}" if setting.chunk else str(setting.micro),
        "cached" if setting.chunk else str(setting.accumulate),
        "yes" if setting.checkpointing else "no",
        setting.precision + (", fsdp2" if setting.sharded else ""),
        f"{proposal.memory.total / 1e9:.1f}",
        "" if proposal.fits else "too large",
        "-" if rate is None else f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}",
        "-" if hours is None else f"{hours:,.1f}",
    ]


def _folded(command: str, width: int = 76) -> str:
    """A command in lines that a shell takes together."""
    lines = [""]
    for word in command.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append("    " + word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def _measured(measured: dict[str, Any]) -> list[str]:
    real = measured["measured"]
    lines = [
        f"measured on {real['device']}, {real['rows']} images: peak {_size(real['peak'])}, estimated "
        f"{_size(measured['estimated_peak'])} (ratio {measured['peak_ratio']:.3f})"
    ]
    if "kept_ratio" in measured:
        lines.append(
            f"kept for the backward pass: {_size(real['kept'])}, estimated {_size(measured['estimated_kept'])} "
            f"(ratio {measured['kept_ratio']:.3f})"
        )
    total = real["seconds"] + real["update_seconds"]
    line = f"a step: {total:.3g} s"
    if measured.get("estimated_seconds"):
        line += f", estimated {measured['estimated_seconds']:.3g} s; {measured['measured_mfu']:.0%} of the matrix rate"
    if measured.get("measured_gflops"):
        line += f" of process time, {measured['measured_gflops']:.0f} GFLOP/s"
    return [*lines, line]


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.3g} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.3g} MB"


def _flops(flops: float) -> str:
    return f"{flops / 1e12:.3g} TFLOP" if flops >= 1e12 else f"{flops / 1e9:.3g} GFLOP"
