"""Scores and intervals against scikit-learn, DeLong and hand-computed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from medfm.evaluation import statistics
from medfm.evaluation.statistics import (
    PatientResamples,
    Ranking,
    auroc,
    average_precision,
    bootstrap,
    calibration,
    interval,
    operating_point,
    weighted_mean,
    weighted_median,
    youden_threshold,
)


def sample(n: int, seed: int, decimals: int = 8, effect: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = (rng.random(n) < 0.35).astype(int)
    return target, np.round(rng.normal(size=n) + effect * target, decimals)


def test_auroc__by_hand_with_a_tie() -> None:
    # Pairs (positive, negative): 0.8>0.1, 0.8>0.4, 0.4>0.1, 0.4=0.4 -> 3.5 of 4.
    assert auroc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.4, 0.8])) == pytest.approx(3.5 / 4)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(4, 120), decimals=st.integers(0, 6))
def test_auroc_and_average_precision__equal_scikit_learn_on_every_resample(seed: int, n: int, decimals: int) -> None:
    target, score = sample(n, seed, decimals)
    rng = np.random.default_rng(seed + 1)
    weights = rng.integers(0, 4, size=(5, n)).astype(float)
    ranking = Ranking(target, score)
    for weight, area, precision in zip(weights, ranking.auroc(weights), ranking.average_precision(weights), strict=True):
        again = np.repeat(np.arange(n), weight.astype(int))
        if len(np.unique(target[again])) < 2:
            assert math.isnan(area)
            assert math.isnan(precision)
            continue
        assert area == pytest.approx(roc_auc_score(target[again], score[again]), abs=1e-12)
        assert precision == pytest.approx(average_precision_score(target[again], score[again]), abs=1e-12)


def test_auroc__of_one_class_or_nothing_is_nan() -> None:
    assert math.isnan(auroc(np.ones(3), np.arange(3.0)))
    assert math.isnan(average_precision(np.zeros(3), np.arange(3.0)))
    assert math.isnan(auroc(np.empty(0), np.empty(0)))


@pytest.mark.parametrize(("target", "score"), [([0, 2], [0.1, 0.2]), ([0, 1], [0.1, math.nan]), ([0, 1], [0.1])])
def test_ranking__refuses_what_it_cannot_rank(target: list[float], score: list[float]) -> None:
    with pytest.raises(ValueError):
        Ranking(np.array(target), np.array(score))


def test_resamples__draw_as_many_patients_as_there_are_and_all_their_images() -> None:
    patients = ["a", "b", "a", "c", "b", "a"]
    resamples = PatientResamples(patients, resamples=50, seed=3)
    weights = np.concatenate(list(resamples.chunks()))
    assert weights.shape == (50, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 0], weights[:, 5])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    np.testing.assert_array_equal(weights, np.concatenate(list(PatientResamples(patients, 50, 3).chunks())))
    assert not np.array_equal(weights, np.concatenate(list(PatientResamples(patients, 50, 4).chunks())))


def test_chunks__do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    target, score = sample(60, 0)
    resamples = PatientResamples(np.arange(60) // 2, resamples=40)
    whole = resamples.evaluate(Ranking(target, score).auroc)
    monkeypatch.setattr(statistics, "_CHUNK", 180)
    assert len(list(resamples.chunks())) == 14
    np.testing.assert_array_equal(resamples.evaluate(Ranking(target, score).auroc), whole)


def delong_error(target: np.ndarray, score: np.ndarray) -> float:
    """Standard error of the AUROC after DeLong et al. 1988, by the placement values."""
    positive, negative = score[target == 1], score[target == 0]
    above = (positive[:, None] > negative).astype(float) + 0.5 * (positive[:, None] == negative)
    variance = above.mean(axis=1).var(ddof=1) / len(positive) + above.mean(axis=0).var(ddof=1) / len(negative)
    return math.sqrt(variance)


def test_bootstrap__agrees_with_delong_when_images_are_independent() -> None:
    target, score = sample(400, 7)
    estimate = bootstrap(Ranking(target, score).auroc, PatientResamples(np.arange(400), resamples=2000))
    assert estimate.resamples == 2000
    assert estimate.value == pytest.approx(roc_auc_score(target, score))
    half_width = 1.96 * delong_error(target, score)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half_width, rel=0.08)
    assert (estimate.high + estimate.low) / 2 == pytest.approx(estimate.value, abs=0.3 * half_width)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), copies=st.integers(2, 5))
def test_bootstrap__copies_of_an_image_do_not_narrow_the_clustered_interval(seed: int, copies: int) -> None:
    target, score = sample(80, seed)
    once = bootstrap(Ranking(target, score).auroc, PatientResamples(np.arange(80), 600, seed=1))
    many_target, many_score = np.repeat(target, copies), np.repeat(score, copies)
    patients = np.repeat(np.arange(80), copies)
    clustered = bootstrap(Ranking(many_target, many_score).auroc, PatientResamples(patients, 600, seed=1))
    by_image = bootstrap(Ranking(many_target, many_score).auroc, PatientResamples(np.arange(80 * copies), 600, seed=1))
    # Patients are drawn alike whatever their number of images, so the clustered interval is that of single images.
    assert clustered.low == pytest.approx(once.low)
    assert clustered.high == pytest.approx(once.high)
    assert clustered.high - clustered.low > 1.1 * (by_image.high - by_image.low)


def test_bootstrap__drops_and_counts_resamples_without_both_classes() -> None:
    target, score = np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3])
    estimate = bootstrap(Ranking(target, score).auroc, PatientResamples(np.arange(4), resamples=400))
    # The only positive is missed with probability (3/4)^4, and drawn alone with (1/4)^4.
    assert estimate.dropped / 400 == pytest.approx(0.316 + 0.004, abs=0.07)
    assert estimate.resamples + estimate.dropped == 400
    assert estimate.value == estimate.low == 1.0


def test_interval__of_an_undefined_score_is_undefined_and_json_safe() -> None:
    estimate = interval(math.nan, np.full(5, math.nan))
    assert estimate.to_dict() == {"value": None, "low": None, "high": None, "resamples": 0, "dropped": 5}


def test_bootstrap__rows_select_images_of_the_shared_resamples() -> None:
    target, score = sample(50, 3)
    patients = np.arange(50) // 5
    rows = np.flatnonzero(np.arange(50) % 3 != 0)
    resamples = PatientResamples(patients, 200)
    part = resamples.evaluate(Ranking(target[rows], score[rows]).auroc, rows)
    weights = np.concatenate(list(resamples.chunks()))
    expected = [roc_auc_score(target[rows], score[rows], sample_weight=w[rows]) for w in weights]
    np.testing.assert_allclose(part, expected, atol=1e-12)


def test_youden_threshold__lies_between_the_classes() -> None:
    target, score = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.7, 0.9])
    assert youden_threshold(target, score) == pytest.approx(0.5)
    assert math.isnan(youden_threshold(np.zeros(3), np.arange(3)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), decimals=st.integers(0, 3))
def test_youden_threshold__no_other_threshold_is_better(seed: int, decimals: int) -> None:
    target, score = sample(40, seed, decimals)
    if len(np.unique(target)) < 2:
        return

    def youden(threshold: float) -> float:
        called = score >= threshold
        return called[target == 1].mean() - called[target == 0].mean()

    chosen = youden(youden_threshold(target, score))
    assert chosen >= max(youden(t) for t in [*score, -np.inf, np.inf]) - 1e-9


def test_operating_point__counts() -> None:
    target, score = np.array([1, 1, 1, 0, 0]), np.array([0.9, 0.8, 0.2, 0.6, 0.1])
    point = operating_point(target, score, 0.5, PatientResamples(np.arange(5), 100))
    assert {name: estimate.value for name, estimate in point.items()} == pytest.approx(
        {"accuracy": 0.6, "sensitivity": 2 / 3, "specificity": 0.5}
    )
    assert all(e.low <= e.value <= e.high for e in point.values())


def test_weighted_mean_and_median__follow_the_weights() -> None:
    values = np.array([5.0, 1.0, 3.0, 9.0])
    weights = np.array([[1, 1, 1, 1], [0, 0, 0, 2], [0, 3, 1, 1], [0, 0, 0, 0]], dtype=float)
    np.testing.assert_allclose(weighted_mean(values)(weights), [4.5, 9.0, 3.0, math.nan])
    np.testing.assert_allclose(weighted_median(values)(weights), [3.0, 9.0, 1.0, math.nan])


def test_calibration__by_hand() -> None:
    result = calibration(np.array([1, 0, 1, 1]), np.array([0.95, 0.95, 0.15, 1.0]), bins=10)
    # Bin 0.9-1.0: mean 0.9667, two of three positive; bin 0.1-0.2: mean 0.15, all positive.
    assert result["ece"] == pytest.approx(0.75 * abs(2.9 / 3 - 2 / 3) + 0.25 * 0.85)
    assert [b["images"] for b in result["bins"]] == [1, 3]


def test_bootstrap__one_patient_gives_no_interval() -> None:
    values = np.array([0.1, 0.9, 0.8, 0.7])
    resamples = PatientResamples(["a", "a", "a", "b"], 50)
    alone = bootstrap(weighted_mean(values[:3]), resamples, rows=np.arange(3))
    assert (alone.value, alone.resamples, alone.dropped) == (pytest.approx(0.6), 0, 50)
    assert math.isnan(alone.low)
    assert math.isfinite(bootstrap(weighted_mean(values), resamples).low)
