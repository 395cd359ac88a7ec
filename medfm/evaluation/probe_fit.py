"""Fitting probes on frozen features: the linear probe and the nearest-neighbour vote, with their strength chosen, per finding.

Legend: N images, E features, L findings, C candidates of strength. Labels are (N, L): 1, 0, or NaN where they do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medfm.evaluation.statistics import Floats, auroc
from medfm.objectives.diagnostics import LogisticProbe, fit_logistic, knn_scores

Features = NDArray[np.float32]
FOLDS = 5


class Method(Protocol):
    """A kind of probe.

    Attributes:
        candidates: (C,) strengths to choose from, the most cautious first: of equally good ones it is taken.
        strength: what they are called.
    """

    candidates: tuple[Any, ...]
    strength: str

    def predict(self, train: Features, labels: Floats, queries: Sequence[Features]) -> list[Floats]:
        """Probabilities (C, n, L) for each of `queries`, NaN for a finding without both classes in `labels`."""
        ...

    def badness(self, target: NDArray, probability: Floats) -> float:
        """What the choice makes small, of one finding."""
        ...


class Linear:
    """Logistic regression, penalty chosen by log loss: it uses every validation image, where AUROC on a few positives is mostly
    noise, and keeps the probabilities calibrated."""

    strength = "l2"

    def __init__(self, l2: Sequence[float], device: str = "cpu") -> None:
        self.candidates = tuple(sorted(l2, reverse=True))
        self.device = device

    def predict(self, train: Features, labels: Floats, queries: Sequence[Features]) -> list[Floats]:
        x, y = _tensor(train, self.device), _tensor(labels, self.device)
        asked = [_tensor(query, self.device) for query in queries]
        parts: list[list[Floats]] = [[] for _ in queries]
        fit: LogisticProbe | None = None
        for l2 in self.candidates:  # each starts where the former, stronger one ended
            fit = fit_logistic(x, y, l2, start=fit)
            for part, query in zip(parts, asked, strict=True):
                part.append(fit.scores(query).double().cpu().numpy())
        return [np.stack(part) for part in parts]

    def badness(self, target: NDArray, probability: Floats) -> float:
        p = np.clip(probability, 1e-7, 1 - 1e-7)
        return float(-np.mean(np.where(target == 1, np.log(p), np.log1p(-p))))


class Neighbours:
    """DINO's weighted vote of the nearest training images, their number chosen by AUROC: votes of few are no probabilities."""

    strength = "k"

    def __init__(self, k: Sequence[int], temperature: float = 0.07, device: str = "cpu") -> None:
        self.candidates = tuple(sorted(k, reverse=True))
        self.temperature = temperature
        self.device = device

    def predict(self, train: Features, labels: Floats, queries: Sequence[Features]) -> list[Floats]:
        x, y = _tensor(train, self.device), _tensor(labels, self.device)
        stated = [labels[:, column][~np.isnan(labels[:, column])] for column in range(labels.shape[1])]
        one_sided = [len(np.unique(values)) < 2 for values in stated]
        found = []
        for query in queries:
            if not len(query):
                found.append(np.empty((len(self.candidates), 0, labels.shape[1])))
                continue
            scores = knn_scores(x, y, _tensor(query, self.device), self.candidates, self.temperature).double().cpu().numpy()
            scores[:, :, one_sided] = np.nan
            found.append(scores)
        return found

    def badness(self, target: NDArray, probability: Floats) -> float:
        return -auroc(target, probability)


def _tensor(array: NDArray, device: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one split: features (N, E), labels (N, L) and patient codes (N,)."""

    features: Features
    labels: Floats
    patients: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.patients)

    def where(self, rows: NDArray) -> Part:
        return Part(self.features[rows], self.labels[rows], self.patients[rows])


@dataclass(frozen=True, eq=False)
class Fit:
    """Attributes:
    test, val: probabilities (n, L) of the chosen strength; NaN for a finding that could not be learned.
    chosen: of each finding its strength, on what it was chosen, and what each candidate got.
    """

    test: Floats
    val: Floats
    chosen: list[dict[str, Any]]


def fit(method: Method, train: Part, val: Part, test: Part, seed: int = 0) -> Fit:
    """Fit on `train` with every candidate strength, choose one a finding, and predict `val` and `test` with it.

    A finding's strength is chosen on `val` where that has both classes, else by cross-validation over patients of `train`: no
    patient is on both sides of a fold.
    """
    on_val, on_test = method.predict(train.features, train.labels, [val.features, test.features])
    findings = train.labels.shape[1]
    folded: Floats | None = None
    chosen: list[dict[str, Any]] = []
    best = np.zeros(findings, np.int64)
    for column in range(findings):
        stated = ~np.isnan(val.labels[:, column])
        by_val = len(np.unique(val.labels[stated, column])) == 2
        if np.isnan(on_test[:, :, column]).any():
            chosen.append({method.strength: None, "by": "", "tried": []})
            continue
        if by_val:
            target, candidates, by = val.labels[stated, column], on_val[:, stated, column], "val"
        elif len(method.candidates) == 1:
            target, candidates, by = np.empty(0), np.empty((1, 0)), "given"
        else:
            if folded is None:
                folded = out_of_fold(method, train, seed)
            stated = ~np.isnan(train.labels[:, column])
            target, candidates, by = train.labels[stated, column], folded[:, stated, column], "cross-validation"
        badness = [method.badness(target, candidate) for candidate in candidates] if by != "given" else [0.0]
        best[column] = int(np.argmin(np.round(badness, 9)))  # of equal ones the first, the most cautious
        tried = [] if by == "given" else [[value, bad] for value, bad in zip(method.candidates, badness, strict=True)]
        chosen.append({method.strength: method.candidates[best[column]], "by": by, "tried": tried})
    columns = np.arange(findings)
    return Fit(on_test[best, :, columns].T, on_val[best, :, columns].T, chosen)


def out_of_fold(method: Method, part: Part, seed: int = 0) -> Floats:
    """(C, N, L): each row predicted by a probe that saw none of its patient; 1/2 where a fold could not be learned."""
    names, codes = np.unique(part.patients, return_inverse=True)
    folds = min(FOLDS, len(names))
    fold = np.random.default_rng(seed).permutation(len(names))[codes] % max(folds, 1)
    found = np.full((len(method.candidates), *part.labels.shape), 0.5)
    for number in range(folds if folds > 1 else 0):
        out = fold == number
        (predicted,) = method.predict(part.features[~out], part.labels[~out], [part.features[out]])
        found[:, out] = np.nan_to_num(predicted, nan=0.5)
    return found


def draw_patients(patients: NDArray[np.int64], share: float, seed: int, draw: int) -> NDArray[np.int64]:
    """Rows of a random `share` of the patients, two at least. A larger share of the same draw holds the smaller one."""
    names = np.unique(patients)
    order = np.random.default_rng([seed, draw]).permutation(len(names))
    kept = names[order[: min(len(names), max(2, round(share * len(names))))]]
    return np.flatnonzero(np.isin(patients, kept))


def mean_auroc(test: Part, probabilities: Floats, findings: Sequence[int]) -> float:
    """Mean AUROC of some findings on `test`; a finding that could not be learned counts 1/2."""
    areas = []
    for column in findings:
        stated = ~np.isnan(test.labels[:, column])
        scores = np.nan_to_num(probabilities[stated, column], nan=0.5)
        areas.append(auroc(test.labels[stated, column], scores))
    return float(np.mean(areas))
