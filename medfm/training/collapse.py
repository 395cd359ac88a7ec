"""When a run has collapsed: rules on a few numbers over time, and the words that say so. No network, no files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medfm.training.config import GuardConfig

# A fall is told from the highest value seen, which must have been more than rounding.
_ALIVE = {"information": 1e-4, "spread": 1e-6}
_FALL = 0.2  # of the highest information seen
_NAMES = {"information": "teacher", "spread": "features"}


@dataclass(frozen=True)
class Alarm:
    """One finding.

    Attributes:
        kind: "one-hot", "uniform", "same answer" (of a teacher), "features" or "not finite".
        step: optimiser step.
        text: what is wrong, by which numbers, and what to try.
        evidence: the numbers and the limits they crossed.
    """

    kind: str
    step: int
    text: str
    evidence: dict[str, float]


@dataclass
class _Signal:
    """Highest value seen, when, and for how many checks in a row it has been too low."""

    best: float = 0.0
    best_step: int = 0
    strikes: int = 0


@dataclass
class CollapseRules:
    """Judges the numbers of each check.

    Two numbers are judged, both 0 in a collapsed run: the *information* a teacher's answer holds about which image it saw
    (nats; see `medfm.objectives.dino_loss.target_entropies`), and the *spread* of features (1 - mean cosine of two images).
    Either must be low and have fallen far below the highest value seen in `guard.patience` checks in a row: many healthy
    networks start with features that are all but equal (LayerScale of 1e-5), and must be given time. A run that never rose
    from there is judged after the share `guard.grace` of all steps, unless it is rising.

    Args:
        config: thresholds.
        total: optimiser steps of the whole run.
        prototypes: K of a teacher's answer, None where there is none.
        batch: images of a forward pass over all devices.
    """

    config: GuardConfig
    total: int
    prototypes: int | None = None
    batch: int = 0
    signals: dict[str, _Signal] = field(default_factory=dict)

    def teacher(self, step: int, entropy: float, marginal: float, name: str = "") -> Alarm | None:
        """Judge a teacher's mean entropy and the entropy of its mean answer, in nats."""
        information = max(marginal - entropy, 0.0)
        limit = self.config.min_information
        signal = self._observe(f"{name}information", "information", step, information, limit, _FALL)
        if signal.strikes < self.config.patience:
            return None
        evidence = {
            "information": information,
            "best_information": signal.best,
            "best_step": signal.best_step,
            "min_information": limit,
            "teacher_entropy": entropy,
            "teacher_marginal_entropy": marginal,
            "checks_in_a_row": signal.strikes,
        }
        kind, meaning, advice = _kind(entropy, self.prototypes)
        most = "" if self.prototypes is None else f" of {math.log(self.prototypes):.2f}"
        before = self._before(signal, f"{signal.best:.2g}")
        return Alarm(
            kind,
            step,
            f"the teacher gives the same answer to every image: entropy {entropy:.4g}{most} nats, {meaning}; which image it "
            f"saw makes a difference of {information:.2g} nats ({before}; limit {limit:g}), {signal.strikes} checks in a row. "
            f"{advice}",
            evidence,
        )

    def features(self, step: int, values: Mapping[str, float], name: str = "") -> Alarm | None:
        """Judge features by `values`: mean_cosine, and whatever else should stand in the evidence."""
        who = name.strip("/")
        whose = f"the {who}'s features" if who else "the features"
        cosine = values["mean_cosine"]
        if not math.isfinite(cosine):
            text = f"{whose} are not finite. Lower optimizer.lr, raise schedule.warmup, or use trainer.precision=32-true"
            return Alarm("not finite", step, text, {})
        spread = max(1 - cosine, 0.0)
        signal = self._observe(f"{name}spread", "spread", step, spread, math.inf, self.config.min_spread)
        if signal.strikes < self.config.patience:
            return None
        evidence = {f"{name}{key}": value for key, value in values.items()}
        evidence |= {
            "spread": spread,
            "best_spread": signal.best,
            "best_step": signal.best_step,
            "min_spread": self.config.min_spread,
            "checks_in_a_row": signal.strikes,
        }
        before = self._before(signal, f"{signal.best:.2g}")
        return Alarm(
            "features",
            step,
            f"{whose} are the same for every image: 1 - mean cosine {spread:.2g} ({before}; limit {self.config.min_spread:g} "
            f"of that), effective rank {values.get('effective_rank', math.nan):.2f}, {signal.strikes} checks in a row. Lower "
            "optimizer.lr, raise schedule.warmup or data.batch_size; of an objective with a teacher raise its momentum; look "
            "at the images that training sees, which may be blank",
            evidence,
        )

    def _observe(self, name: str, kind: str, step: int, value: float, limit: float, fall: float) -> _Signal:
        signal = self.signals.setdefault(name, _Signal())
        rises = value > signal.best
        if rises:
            signal.best, signal.best_step = value, step
        fell = value < min(limit, fall * signal.best)
        # Seen in DINOv2 with LayerScale: from rounding it doubles every ten steps, a hundred steps long.
        dead = not rises and step > self.config.grace * self.total
        low = fell if signal.best > _ALIVE[kind] else dead
        signal.strikes = signal.strikes + 1 if low else 0
        return signal

    def _before(self, signal: _Signal, best: str) -> str:
        return f"{best} at step {signal.best_step}" if signal.best_step else "never more"

    def state_dict(self) -> dict[str, Any]:
        return {name: [s.best, s.best_step, s.strikes] for name, s in self.signals.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.signals = {name: _Signal(float(b), int(at), int(strikes)) for name, (b, at, strikes) in state.items()}


def _kind(entropy: float, prototypes: int | None) -> tuple[str, str, str]:
    """Name, meaning and remedy of a teacher's collapse."""
    top = math.log(prototypes) if prototypes else math.inf
    if entropy < 0.1 * min(top, 5):
        return (
            "one-hot",
            "one prototype for all",
            "Centre the teacher (objective.centring), raise its temperature or data.batch_size, lower optimizer.lr, or take "
            "fewer prototypes (objective.out_dim=auto)",
        )
    if entropy > 0.99 * top:
        return (
            "uniform",
            "no prototype preferred",
            "Sharpen the teacher: lower its temperature, with a warm-up from 0.04 where it is higher later, well below the "
            "student's 0.1; lower optimizer.lr, raise data.batch_size",
        )
    return (
        "same answer",
        "the same prototypes for all",
        "Centre the teacher (objective.centring) and sharpen it (a temperature of 0.04, below the student's 0.1), raise "
        "data.batch_size or the teacher's momentum, lower optimizer.lr",
    )
