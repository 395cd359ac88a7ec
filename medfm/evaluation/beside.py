"""Means over images of a model and of random weights, and their difference, on the same resamples of patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfm.evaluation.statistics import Floats, PatientResamples, interval, weighted_mean

Draws = dict[str, tuple[float, Floats]]  # "model", "random", "difference" -> value, and that of every resample


def compared(values: Floats, random: Floats | None, rows: NDArray[np.int64], resamples: PatientResamples) -> Draws:
    """Means of `values` (n,) and of `random` (n,), of images `rows` (n,), with their resampled values."""
    draws = {"model": (float(np.mean(values)), resamples.evaluate(weighted_mean(values), rows))}
    if random is not None:
        draws["random"] = (float(np.mean(random)), resamples.evaluate(weighted_mean(random), rows))
        gain = values.astype(np.float64) - random
        draws["difference"] = (float(np.mean(gain)), resamples.evaluate(weighted_mean(gain), rows))
    return draws


def averaged(several: Sequence[Draws]) -> Draws:
    """The mean over findings, resample by resample, so that the interval keeps their correlation."""
    return {
        key: (float(np.mean([d[key][0] for d in several])), np.mean([d[key][1] for d in several], axis=0)) for key in several[0]
    }


def put(entry: dict[str, Any], metric: str, draws: Draws | None, confidence: float) -> None:
    """Into `entry`: `metric`, and with random weights `random.metric` and `random.difference.metric`; null for None."""

    def estimate(key: str) -> dict[str, Any] | None:
        return interval(*draws[key], confidence).to_dict() if draws is not None and key in draws else None

    entry[metric] = estimate("model")
    if "random" in entry or (draws is not None and "random" in draws):
        beside = entry.setdefault("random", {"difference": {}})
        beside[metric], beside["difference"][metric] = estimate("random"), estimate("difference")
