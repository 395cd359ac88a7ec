"""From probabilities and labels to scores: per finding, and their mean, with patient-clustered intervals. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from medfm.errors import DataError
from medfm.evaluation.statistics import (
    Floats,
    PatientResamples,
    Ranking,
    bootstrap,
    calibration,
    interval,
    operating_point,
    weighted_mean,
    youden_threshold,
)
from medfm.registry import suggest
from medfm.text.prompts import PromptSet

if TYPE_CHECKING:
    import pandas as pd

Uncertain = Literal["ignore", "negative", "positive"]

# A finding with fewer positives or negatives than this is shown but does not enter the mean: its AUROC is mostly noise.
MIN_FOR_MEAN = 5
LABEL = "label:"
# Below these a bootstrap over patients draws from too few different ones: its intervals are too narrow, or mean nothing.
FEW_PATIENTS, FEW_OF_A_CLASS = 20, 5
_NAMED = 5


@dataclass(frozen=True)
class Settings:
    """How labels count and how intervals are drawn; see ZeroShotConfig."""

    uncertain: Uncertain = "ignore"
    bootstrap: int = 1000
    confidence: float = 0.95
    seed: int = 0


class Finding(Protocol):
    """What is scored: a name to show, the label column, and labels that a row must have to count; FindingPrompts is one."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def where(self) -> tuple[tuple[str, tuple[float, ...]], ...]: ...


@dataclass(frozen=True)
class LabelledFinding:
    """A finding by its label column alone."""

    name: str
    label: str
    where: tuple[tuple[str, tuple[float, ...]], ...] = ()


@dataclass(frozen=True, eq=False)
class Scored:
    """What was scored of one finding, for pictures.

    Attributes:
        rows: (n,) positions in the scored split.
        target: (n,) 0 or 1.
        probability: (n,) of the model; `baseline` (n,) of random weights and `against` (n,) of another model, or None.
        threshold: probability from which on an image is called positive; NaN where none could be chosen.
    """

    rows: NDArray[np.int64]
    target: NDArray[np.int64]
    probability: Floats
    baseline: Floats | None
    threshold: float
    against: Floats | None = None


def patient_codes(frame: pd.DataFrame) -> NDArray[np.int64]:
    """(n,) codes; equal numbers are the same patient. A row without a patient id is a patient of its own."""
    import pandas as pd

    known = frame["patient_id"].fillna("").astype(str).str.strip()
    names = known.where(known != "", [f"\0{row}" for row in range(len(frame))])
    return pd.factorize(names)[0].astype(np.int64)


def labelled_rows(frame: pd.DataFrame, finding: Finding, uncertain: Uncertain) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that say whether the finding is present, and what they say.

    Returns:
        Positions (n,) of rows labelled for the finding which satisfy its `where`, and their targets (n,), 0 or 1.
    """
    label = _numbers(frame, finding.label)
    if uncertain != "ignore":
        label = np.where(label == -1, 1.0 if uncertain == "positive" else 0.0, label)
    keep = (label == 0) | (label == 1)
    for other, values in finding.where:
        keep &= np.isin(_numbers(frame, other), values)
    rows = np.flatnonzero(keep)
    return rows, label[rows].astype(np.int64)


def _numbers(frame: pd.DataFrame, label: str) -> Floats:
    """A label column as float; a column that still holds text is read value by value."""
    from medfm.data.values import parse_label

    column = frame[LABEL + label]
    if column.dtype.kind in "fiub":
        return column.to_numpy(dtype=np.float64)
    values = [parse_label(value) for value in column]
    if any(value is None for value in values):
        raise DataError(f"column '{LABEL}{label}' holds something other than 1, 0, -1 or nothing")
    return np.array(values, dtype=np.float64)


def few_patients(patients: int, findings: Sequence[dict[str, Any]] = ()) -> list[str]:
    """One sentence where the scored patients are too few for intervals to be relied on, else none.

    Args:
        patients: in the scored split.
        findings: entries of `score`.
    """
    said = [f"{patients} patients in all"] if patients < FEW_PATIENTS else []
    few = []
    for entry in findings:
        for count, word in ((entry["positive_patients"], "with"), (entry["negative_patients"], "without")):
            if count < FEW_OF_A_CLASS:
                few.append(f"{count} {word} {entry['name']}")
    said += few[:_NAMED] + ([f"and {len(few) - _NAMED} more findings or classes as rare"] if len(few) > _NAMED else [])
    return [f"Few patients are scored ({'; '.join(said)}): the intervals are unreliable."] if said else []


def available(frame: pd.DataFrame, prompts: PromptSet, explicit: bool = False) -> tuple[PromptSet, list[dict[str, str]]]:
    """The findings that the manifest has label columns for, and the others with the reason.

    Args:
        frame: the manifest's table.
        prompts: the findings wanted.
        explicit: the user named them, so a missing column is an error.

    Raises:
        DataError: no finding has its columns, or an explicitly wanted one has not.
    """
    columns = [c[len(LABEL) :] for c in frame.columns if c.startswith(LABEL)]
    kept, left_out = [], []
    for finding in prompts.findings:
        missing = [name for name in (finding.label, *(name for name, _ in finding.where)) if name not in columns]
        if not missing:
            kept.append(finding.name)
            continue
        reason = f"the manifest has no column '{LABEL}{missing[0]}'{suggest(missing[0], columns)}"
        if explicit:
            raise DataError(f"finding '{finding.name}' cannot be scored: {reason}")
        left_out.append({"name": finding.name, "reason": reason})
    if not kept:
        has = ", ".join(columns) or "none"
        raise DataError(
            f"none of the {len(prompts.findings)} findings of prompt set '{prompts.name}' is labelled; labels: {has}"
        )
    return prompts.select(tuple(kept)), left_out


def score(
    frame: pd.DataFrame,
    prompts: PromptSet | Sequence[Finding],
    probabilities: Floats,
    settings: Settings,
    val: tuple[pd.DataFrame, Floats] | None = None,
    baseline: Floats | None = None,
    against: Floats | None = None,
    others: Floats | None = None,
) -> tuple[dict[str, Any], dict[str, Scored]]:
    """Scores of every finding and their mean.

    Args:
        frame: the scored rows of a manifest: `patient_id` and the label columns of all findings.
        prompts: the findings, in the order of the columns of `probabilities`; a prompt set, or findings alone.
        probabilities: (n, F) for the rows of `frame`.
        settings: how labels count, and the bootstrap.
        val: rows and probabilities (m, F) that thresholds are chosen on.
        baseline: (n, F) probabilities of random weights, scored as `random`.
        against: (n, F) probabilities of another model, scored as `against`.
        others: (n,) the highest probability of classes without labels, which compete for an image all the same.

    Returns:
        `findings`, `mean`, `left_out` (and `classes` for multiclass prompts), ready for JSON; and what was scored, by finding.
        `random` and `against` hold AUROC, AUPRC, and as `difference` the model's less theirs on the same resamples.
    """
    findings = prompts.findings if isinstance(prompts, PromptSet) else prompts
    patients = patient_codes(frame)
    resamples = PatientResamples(patients, settings.bootstrap, settings.seed)
    found: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    scored: dict[str, Scored] = {}
    samples: dict[str, dict[str, Floats]] = {}
    for column, finding in enumerate(findings):
        rows, target = labelled_rows(frame, finding, settings.uncertain)
        positives, negatives = int((target == 1).sum()), int((target == 0).sum())
        if positives == 0 or negatives == 0:
            left_out.append({"name": finding.name, "reason": f"{positives} positive and {negatives} negative images"})
            continue
        threshold, val_counts = _threshold(val, finding, column, settings.uncertain)
        case = Scored(
            rows,
            target,
            probabilities[rows, column],
            None if baseline is None else baseline[rows, column],
            threshold,
            None if against is None else against[rows, column],
        )
        ranks, draws = _ranking_scores(case.target, case.probability, rows, resamples, settings.confidence)
        entry: dict[str, Any] = {
            "name": finding.name,
            "label": finding.label,
            "where": {name: list(values) for name, values in finding.where},
            "images": len(rows),
            "patients": len(np.unique(patients[rows])),
            "positives": positives,
            "negatives": negatives,
            "positive_patients": len(np.unique(patients[rows[target == 1]])),
            "negative_patients": len(np.unique(patients[rows[target == 0]])),
            "prevalence": positives / len(rows),
            "in_mean": min(positives, negatives) >= MIN_FOR_MEAN,
            **ranks,
            "threshold": None if math.isnan(threshold) else threshold,
            "val": val_counts,
            "calibration": calibration(case.target, case.probability),
        }
        if math.isnan(threshold):
            entry.update(accuracy=None, sensitivity=None, specificity=None)
        else:
            point = operating_point(case.target, case.probability, threshold, resamples, settings.confidence, rows)
            entry.update({name: estimate.to_dict() for name, estimate in point.items()})
            right = (case.probability >= threshold) == (case.target == 1)
            draws["accuracy"] = resamples.evaluate(weighted_mean(right), rows)
        for other, theirs in (("random", case.baseline), ("against", case.against)):
            if theirs is None:
                continue
            entry[other], other_draws = _ranking_scores(case.target, theirs, rows, resamples, settings.confidence)
            for name in ("auroc", "auprc"):
                draws[f"{other} {name}"] = other_draws[name]
                draws[f"{other} difference {name}"] = draws[name] - other_draws[name]
            entry[other]["difference"] = {
                name: interval(
                    ranks[name]["value"] - entry[other][name]["value"], draws[f"{other} difference {name}"], settings.confidence
                ).to_dict()
                for name in ("auroc", "auprc")
            }
        found.append(entry)
        scored[finding.name] = case
        samples[finding.name] = draws
    if not found:
        reasons = "; ".join(f"{item['name']}: {item['reason']}" for item in left_out)
        raise DataError(f"no finding can be scored on the {len(frame)} images of this split ({reasons})")
    result = {"findings": found, "mean": _mean(found, samples, settings.confidence), "left_out": left_out}
    if isinstance(prompts, PromptSet) and prompts.method == "multiclass":
        result["classes"] = _classes(frame, prompts, probabilities, resamples, settings, others)
    return result, scored


def _ranking_scores(
    target: NDArray[np.int64], score: Floats, rows: NDArray[np.int64], resamples: PatientResamples, confidence: float
) -> tuple[dict[str, Any], dict[str, Floats]]:
    """AUROC and AUPRC for JSON, and their values on every resample."""
    ranking = Ranking(target, score)
    once = np.ones((1, len(rows)))
    draws = {name: resamples.evaluate(statistic, rows) for name, statistic in _statistics(ranking).items()}
    return {
        name: interval(float(statistic(once)[0]), draws[name], confidence).to_dict()
        for name, statistic in _statistics(ranking).items()
    }, draws


def _statistics(ranking: Ranking) -> dict[str, Any]:
    return {"auroc": ranking.auroc, "auprc": ranking.average_precision}


def _threshold(
    val: tuple[pd.DataFrame, Floats] | None, finding: Finding, column: int, uncertain: Uncertain
) -> tuple[float, dict[str, int]]:
    if val is None:
        return math.nan, {"images": 0, "positives": 0, "negatives": 0}
    frame, probabilities = val
    rows, target = labelled_rows(frame, finding, uncertain)
    counts = {"images": len(rows), "positives": int((target == 1).sum()), "negatives": int((target == 0).sum())}
    return youden_threshold(target, probabilities[rows, column]), counts


def _mean(found: list[dict[str, Any]], samples: dict[str, dict[str, Floats]], confidence: float) -> dict[str, Any]:
    """Means over the findings with enough images, on the same resamples of patients, so that the interval keeps their
    correlation."""
    chosen = [entry for entry in found if entry["in_mean"]]
    outside = [
        {"name": e["name"], "reason": f"{e['positives']} positive and {e['negatives']} negative images, below {MIN_FOR_MEAN}"}
        for e in found
        if not e["in_mean"]
    ]
    mean: dict[str, Any] = {"findings": [entry["name"] for entry in chosen], "not_in_mean": outside}

    def average(metric: str, *parts: str) -> dict[str, Any] | None:
        values = []
        for entry in chosen:
            for part in parts:
                entry = entry[part]
            if entry.get(metric) is not None:
                values.append(entry[metric]["value"])
        if not values or len(values) < len(chosen):
            return None
        draws = np.mean([samples[entry["name"]][" ".join((*parts, metric))] for entry in chosen], axis=0)
        return interval(float(np.mean(values)), draws, confidence).to_dict()

    mean.update({metric: average(metric) for metric in ("auroc", "auprc", "accuracy")})
    for other in ("random", "against"):
        if chosen and other in chosen[0]:
            mean[other] = {metric: average(metric, other) for metric in ("auroc", "auprc")}
            mean[other]["difference"] = {metric: average(metric, other, "difference") for metric in ("auroc", "auprc")}
    return mean


def _classes(
    frame: pd.DataFrame,
    prompts: PromptSet,
    probabilities: Floats,
    resamples: PatientResamples,
    settings: Settings,
    others: Floats | None,
) -> dict[str, Any]:
    """Top-1 accuracy and confusion over images that belong to exactly one class; with `others`, the last column is of images
    called a class without labels."""
    truth = np.zeros(probabilities.shape, dtype=bool)
    for column, finding in enumerate(prompts.findings):
        rows, target = labelled_rows(frame, finding, settings.uncertain)
        truth[rows, column] = target == 1
    rows = np.flatnonzero(truth.sum(axis=1) == 1)
    names = [finding.name for finding in prompts.findings]
    columns, competing = list(names), probabilities
    if others is not None:
        columns.append("a class without labels")
        competing = np.column_stack([probabilities, others])
    actual, called = truth[rows].argmax(axis=1), competing[rows].argmax(axis=1)
    confusion = np.zeros((len(names), len(columns)), dtype=int)
    np.add.at(confusion, (actual, called), 1)
    accuracy = bootstrap(weighted_mean(actual == called), resamples, settings.confidence, rows)
    return {
        "names": names,
        "called": columns,
        "images": len(rows),
        "accuracy": accuracy.to_dict(),
        "confusion": confusion.tolist(),
    }
