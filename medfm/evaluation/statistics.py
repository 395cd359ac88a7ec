"""Scores with intervals: AUROC, average precision, operating points, calibration, and the patient-clustered bootstrap.

Legend: N images, P patients, R resamples. A resample is a vector of image weights: how often the image's patient was drawn. All
statistics take such weights, (R, N) at once, so that a thousand resamples need one sort of the scores instead of a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

# Largest weight matrix made at once, in numbers: 32 MB.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A score with its percentile interval.

    Attributes:
        value: on the images as they are; NaN where it is not defined.
        low, high: ends of the interval; NaN without one.
        resamples: resamples that the interval stands on.
        dropped: resamples left out because the score is not defined on them, for example without a positive.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    resamples: int = 0
    dropped: int = 0

    def to_dict(self) -> dict[str, float | int | None]:
        """For JSON, which knows no NaN: null instead."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


class PatientResamples:
    """Bootstrap resamples of patients, with replacement; a drawn patient brings all images.

    Images of a patient are not independent, so resampling images would give intervals that are too narrow
    (Field and Welsh 2007, "Bootstrapping clustered data").
    """

    def __init__(self, patients: Sequence[object] | NDArray, resamples: int = 1000, seed: int = 0) -> None:
        """`patients` (N,): an identifier per image; equal means the same patient."""
        _, codes = np.unique(np.asarray(patients).astype(str), return_inverse=True)
        self.codes: NDArray[np.int64] = codes
        self.resamples = resamples
        self.n_patients = int(codes.max()) + 1 if len(codes) else 0
        self._counts = self._draw(np.random.default_rng(seed))

    def _draw(self, rng: np.random.Generator) -> NDArray[np.uint16]:
        """(R, P): how often each patient was drawn."""
        n = self.n_patients
        counts = np.zeros((self.resamples, n), dtype=np.uint16)
        for row in counts:
            row[:] = np.bincount(rng.integers(0, n, size=n), minlength=n) if n else 0
        return counts

    def chunks(self, rows: NDArray[np.int64] | None = None) -> Iterator[Floats]:
        """Image weights, (r, N) or (r, len(rows)) float64, a part of the resamples at a time, R in all."""
        codes = self.codes if rows is None else self.codes[rows]
        step = max(1, _CHUNK // max(len(codes), 1))
        for start in range(0, self.resamples, step):
            yield self._counts[start : start + step][:, codes].astype(np.float64)

    def evaluate(self, statistic: Statistic, rows: NDArray[np.int64] | None = None) -> Floats:
        """`statistic` of every resample, (R,), NaN where it is not defined. `rows`: the images that it is about.

        Those of one patient give NaN: every resample would be that patient again, and the interval of no width.
        """
        codes = self.codes if rows is None else self.codes[rows]
        if len(codes) and (codes == codes[0]).all():
            return np.full(self.resamples, np.nan)
        parts = [statistic(weights) for weights in self.chunks(rows)]
        return np.concatenate(parts) if parts else np.empty(0)


def bootstrap(
    statistic: Statistic, resamples: PatientResamples, confidence: float = 0.95, rows: NDArray[np.int64] | None = None
) -> Estimate:
    """A statistic with its patient-clustered percentile interval.

    Args:
        statistic: maps image weights (r, N) to values (r,), NaN where the value is not defined.
        resamples: of the patients of the images.
        confidence: coverage of the interval.
        rows: positions of the images that the statistic is about, where it is not about all of them.
    """
    n = len(resamples.codes) if rows is None else len(rows)
    value = float(statistic(np.ones((1, n)))[0])
    return interval(value, resamples.evaluate(statistic, rows), confidence)


def interval(value: float, samples: Floats, confidence: float = 0.95) -> Estimate:
    """The percentile interval of bootstrap `samples` (R,) around `value`; NaN samples are dropped and counted."""
    kept = samples[np.isfinite(samples)]
    dropped = len(samples) - len(kept)
    if not math.isfinite(value) or len(kept) == 0:
        return Estimate(value, resamples=len(kept), dropped=dropped)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(kept, [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high), len(kept), dropped)


class Ranking:
    """Images sorted by score once, ties grouped: from it AUROC and average precision of any weights follow in linear time."""

    def __init__(self, target: NDArray, score: NDArray) -> None:
        """`target` (N,) of 0 and 1; `score` (N,), higher is more positive."""
        target, score = np.asarray(target), np.asarray(score, dtype=np.float64)
        if target.shape != score.shape or target.ndim != 1:
            raise ValueError(f"target {target.shape} and score {score.shape} must be equally long vectors")
        if not np.isin(target, (0, 1)).all() or not np.isfinite(score).all():
            raise ValueError("targets must be 0 or 1 and scores finite")
        self.order = np.argsort(score, kind="stable")
        ranked = score[self.order]
        self.starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ranked) else np.empty(0, dtype=np.int64)
        self.positive = (target[self.order] == 1).astype(np.float64)

    def _groups(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weight of positives and of negatives in every group of equal scores, (R, G), lowest score first."""
        ranked = np.atleast_2d(weights)[:, self.order]
        positive = ranked * self.positive
        if len(self.starts) < len(self.order):
            return np.add.reduceat(positive, self.starts, axis=1), np.add.reduceat(ranked - positive, self.starts, axis=1)
        return positive, ranked - positive

    def auroc(self, weights: Floats) -> Floats:
        """Area under the ROC curve of every row of `weights` (R, N): the chance that a positive scores above a negative, ties
        counting half (Hanley and McNeil 1982). NaN where a class is missing."""
        if not len(self.order):
            return np.full(len(np.atleast_2d(weights)), np.nan)
        positive, negative = self._groups(weights)
        below = np.cumsum(negative, axis=1) - 0.5 * negative
        total = positive.sum(axis=1) * negative.sum(axis=1)
        return _divide((positive * below).sum(axis=1), total)

    def average_precision(self, weights: Floats) -> Floats:
        """Average precision of every row of `weights` (R, N): precision at each distinct score, weighted by the recall gained
        there, without interpolation, as scikit-learn. NaN where a class is missing."""
        if not len(self.order):
            return np.full(len(np.atleast_2d(weights)), np.nan)
        positive, negative = self._groups(weights)
        found = np.cumsum(positive[:, ::-1], axis=1)[:, ::-1]
        called = found + np.cumsum(negative[:, ::-1], axis=1)[:, ::-1]
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        value = _divide((positive * precision).sum(axis=1), positive.sum(axis=1))
        return np.where(negative.sum(axis=1) > 0, value, np.nan)


def auroc(target: NDArray, score: NDArray) -> float:
    """Area under the ROC curve; NaN where a class is missing. `target` (N,) of 0 and 1, `score` (N,)."""
    return float(Ranking(target, score).auroc(np.ones((1, len(target))))[0])


def average_precision(target: NDArray, score: NDArray) -> float:
    """Average precision (AUPRC); NaN where a class is missing. `target` (N,) of 0 and 1, `score` (N,)."""
    return float(Ranking(target, score).average_precision(np.ones((1, len(target))))[0])


def weighted_mean(values: NDArray) -> Statistic:
    """The statistic 'mean of `values` (N,)', for accuracy, sensitivity, recall at k. NaN where the weights are all 0."""
    numbers = np.asarray(values, dtype=np.float64)
    return lambda weights: _divide(np.atleast_2d(weights) @ numbers, np.atleast_2d(weights).sum(axis=1))


def weighted_median(values: NDArray) -> Statistic:
    """The statistic 'lower median of `values` (N,)'. NaN where the weights are all 0."""
    numbers = np.asarray(values, dtype=np.float64)
    order = np.argsort(numbers, kind="stable")

    def statistic(weights: Floats) -> Floats:
        running = np.cumsum(np.atleast_2d(weights)[:, order], axis=1)
        total = running[:, -1] if len(order) else np.zeros(len(running))
        if not len(order):
            return np.full(len(running), np.nan)
        middle = (running < total[:, None] / 2).sum(axis=1)
        return np.where(total > 0, numbers[order[np.minimum(middle, len(order) - 1)]], np.nan)

    return statistic


def youden_threshold(target: NDArray, score: NDArray) -> float:
    """The score from which on an image is called positive: maximises sensitivity + specificity - 1 (Youden 1950).

    It lies half way between two neighbouring scores; of equally good ones the lowest is taken. NaN where a class is missing.
    """
    target, score = np.asarray(target), np.asarray(score, dtype=np.float64)
    n_positive, n_negative = int((target == 1).sum()), int((target == 0).sum())
    if n_positive == 0 or n_negative == 0:
        return math.nan
    distinct, inverse = np.unique(score, return_inverse=True)
    positives = np.bincount(inverse, weights=target == 1)
    negatives = np.bincount(inverse, weights=target == 0)
    # Calling positive from distinct[i] on.
    sensitivity = np.cumsum(positives[::-1])[::-1] / n_positive
    specificity = (np.cumsum(negatives) - negatives) / n_negative
    best = int(np.argmax(np.round(sensitivity + specificity, 12)))
    return float(distinct[0] if best == 0 else (distinct[best - 1] + distinct[best]) / 2)


def operating_point(
    target: NDArray,
    score: NDArray,
    threshold: float,
    resamples: PatientResamples,
    confidence: float = 0.95,
    rows: NDArray[np.int64] | None = None,
) -> dict[str, Estimate]:
    """Accuracy, sensitivity and specificity where `score >= threshold` is called positive."""
    target = np.asarray(target)
    right = (np.asarray(score) >= threshold) == (target == 1)
    positions = np.arange(len(target)) if rows is None else np.asarray(rows)
    parts = {"accuracy": np.ones(len(target), dtype=bool), "sensitivity": target == 1, "specificity": target == 0}
    return {name: bootstrap(weighted_mean(right[part]), resamples, confidence, positions[part]) for name, part in parts.items()}


def calibration(target: NDArray, probability: NDArray, bins: int = 10) -> dict[str, object]:
    """Expected calibration error over equally wide bins of [0, 1], and the bins (Guo et al. 2017).

    Returns:
        `ece`, and `bins`: mean probability, share of positives and count of every bin that holds images.
    """
    target, probability = np.asarray(target, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    which = np.minimum((probability * bins).astype(np.int64), bins - 1)
    count = np.bincount(which, minlength=bins)
    filled = count > 0
    mean = np.bincount(which, weights=probability, minlength=bins)[filled] / count[filled]
    rate = np.bincount(which, weights=target, minlength=bins)[filled] / count[filled]
    share = count[filled] / max(len(target), 1)
    return {
        "ece": float((share * np.abs(mean - rate)).sum()),
        "bins": [
            {"probability": float(m), "positives": float(r), "images": int(c)}
            for m, r, c in zip(mean, rate, count[filled], strict=True)
        ],
    }


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    out = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)
