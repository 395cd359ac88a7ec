"""Values that change over a run, as functions of the step alone."""

from __future__ import annotations

import math


def cosine(start: float, end: float, step: int, total: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at `total`: DINO's momentum and weight decay."""
    share = min(max(step / max(total, 1), 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def linear_warmup(start: float, end: float, step: int, warmup: int) -> float:
    """Linear from `start` at step 0 to `end` at step `warmup`, `end` from there on: DINO's teacher temperature."""
    return end if step >= warmup else start + (end - start) * step / warmup
