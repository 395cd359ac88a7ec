"""Diagnostics of features against values by hand, scikit-learn and lightly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medfm.objectives import diagnostics as d

NAN = float("nan")


def _two_groups(n: int = 60, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of two overlapping classes, and their labels (n, 1)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    x = torch.randn(n, width, generator=generator)
    x[:, 0] += 1.5 * labels
    return 3 * x + 5, labels[:, None].float()


def test_effective_rank__by_hand() -> None:
    assert d.effective_rank(torch.eye(5)) == pytest.approx(5)
    assert d.effective_rank(torch.ones(7, 4)) == pytest.approx(1)
    # Singular values 3 and 1: shares 3/4 and 1/4.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert d.effective_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0]))) == pytest.approx(math.exp(entropy))


def test_effective_rank__without_the_mean() -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    far = x + 1000
    assert d.effective_rank(far) < 1.1
    assert d.effective_rank(far, center=True) == pytest.approx(d.effective_rank(x, center=True), rel=1e-3)
    # What rounding leaves of equal rows is no direction.
    same = torch.full((64, 6), 0.1) + torch.zeros(64, 1)
    assert d.effective_rank(same / 3, center=True) == 1
    assert d.effective_rank(torch.zeros(3, 3)) == 1


def test_koleo_distance__by_hand() -> None:
    angles = torch.tensor([0.0, 0.1, 2.0])
    x = 7 * torch.stack([angles.cos(), angles.sin()], dim=1)
    chord = [2 * math.sin(0.05), 2 * math.sin(0.05), 2 * math.sin(0.95)]
    assert d.koleo_distance(x) == pytest.approx(sum(chord) / 3)
    assert d.koleo_distance(torch.ones(4, 3)) == pytest.approx(0, abs=1e-9)
    assert math.isnan(d.koleo_distance(torch.ones(1, 3)))


def test_koleo_distance__is_what_lightlys_loss_takes_the_logarithm_of() -> None:
    koleo = pytest.importorskip("lightly.loss").KoLeoLoss()
    x = torch.eye(5) + 0.3
    # All distances are equal here, so that the mean of logarithms is the logarithm of the mean.
    assert -math.log(d.koleo_distance(x)) == pytest.approx(float(koleo(x)), abs=1e-5)


def test_mean_cosine_and_std__by_hand() -> None:
    assert d.mean_cosine(torch.eye(4)) == pytest.approx(0)
    assert d.mean_cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])) == pytest.approx(1 / 3)
    assert d.feature_std(torch.ones(9, 4)) == pytest.approx(0, abs=1e-9)
    isotropic = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    assert d.feature_std(isotropic) == pytest.approx(1, abs=0.01)
    assert d.mean_cosine(isotropic) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("function", [d.effective_rank, d.koleo_distance, d.mean_cosine, d.feature_std])
def test_features__that_are_not_finite_are_refused(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="not finite"):
        function(torch.tensor([[1.0, NAN], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"\(N, E\)"):
        function(torch.zeros(3))


def test_knn_scores__by_hand() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]])
    labels = torch.tensor([[1.0], [0.0], [1.0]])
    scores = d.knn_scores(train, labels, torch.tensor([[3.0, 3.0]]), k=3, temperature=0.5)
    near, far = math.exp(math.sqrt(0.5) / 0.5), math.exp(-math.sqrt(0.5) / 0.5)
    assert float(scores) == pytest.approx((near + far) / (2 * near + far))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
def test_knn_scores__features_and_labels_may_lie_on_another_device() -> None:
    generator = torch.Generator().manual_seed(1)
    train, test = torch.randn(50, 6, generator=generator), torch.randn(20, 6, generator=generator)
    labels = torch.randint(-1, 2, (50, 3), generator=generator).float()
    expected = d.knn_scores(train, labels, test)
    for places in (("cpu", "cpu", "cuda"), ("cuda", "cpu", "cpu"), ("cpu", "cuda", "cuda"), ("cuda", "cpu", "cuda")):
        found = d.knn_scores(*(x.to(place) for x, place in zip((train, labels, test), places, strict=True)))
        assert found.device.type == places[2]
        torch.testing.assert_close(found.cpu(), expected)


def test_knn_scores__are_lightlys_on_classes() -> None:
    knn_predict = pytest.importorskip("lightly.utils.benchmarking").knn_predict
    generator = torch.Generator().manual_seed(1)
    train, test = torch.randn(50, 6, generator=generator), torch.randn(20, 6, generator=generator)
    classes = torch.arange(50) % 4
    ours = d.knn_scores(train, torch.nn.functional.one_hot(classes, 4), test, k=11, temperature=0.1, chunk=7)
    bank = torch.nn.functional.normalize(train, dim=1).T
    theirs = knn_predict(torch.nn.functional.normalize(test, dim=1), bank, classes, num_classes=4, knn_k=11, knn_t=0.1)
    assert torch.equal(ours.argsort(dim=1, descending=True)[:, 0], theirs[:, 0])
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(20))


def test_knn_scores__of_unit_weights_are_scikit_learns() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    train, labels = _two_groups()
    test, _ = _two_groups(20, seed=1)
    theirs = KNeighborsClassifier(5, metric="cosine").fit(train.numpy(), labels[:, 0].numpy()).predict_proba(test.numpy())[:, 1]
    ours = d.knn_scores(train, labels, test, k=5, temperature=1e6)[:, 0]
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


def test_knn_scores__each_finding_on_its_stated_rows() -> None:
    train, one = _two_groups()
    test, _ = _two_groups(9, seed=2)
    labels = one.repeat(1, 3)
    labels[::3, 1] = NAN
    labels[1::5, 1] = -1
    labels[:, 2] = NAN
    scores = d.knn_scores(train, labels, test, k=(7, 1000))
    stated = (labels[:, 1] == 0) | (labels[:, 1] == 1)
    torch.testing.assert_close(scores[0, :, :1], d.knn_scores(train, one, test, k=7))
    torch.testing.assert_close(scores[0, :, 1:2], d.knn_scores(train[stated], one[stated], test, k=7))
    torch.testing.assert_close(scores[1, :, :1], d.knn_scores(train, one, test, k=60))
    assert scores[..., 2].isnan().all()


def test_fit_logistic__is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, labels = _two_groups()
    labels = labels.repeat(1, 2)
    labels[::4, 1] = NAN
    labels[1::7, 1] = -1
    test, _ = _two_groups(10, seed=3)
    scaler = StandardScaler().fit(train.double().numpy())
    for l2 in (0.01, 1.0, 50.0):
        probe = d.fit_logistic(train, labels, l2)
        for column in range(2):
            stated = ((labels[:, column] == 0) | (labels[:, column] == 1)).numpy()
            theirs = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10_000).fit(
                scaler.transform(train.double().numpy())[stated], labels[stated, column].numpy()
            )
            np.testing.assert_allclose(probe.weight[column], theirs.coef_[0], atol=2e-4)
            expected = theirs.predict_proba(scaler.transform(test.double().numpy()))[:, 1]
            np.testing.assert_allclose(probe.scores(test)[:, column], expected, atol=1e-4)


def test_fit_logistic__path_and_repeats() -> None:
    train, labels = _two_groups()
    first = d.fit_logistic(train, labels, 1.0)
    warm = d.fit_logistic(train, labels, 1.0, start=d.fit_logistic(train, labels, 10.0))
    torch.testing.assert_close(warm.weight, first.weight, atol=1e-4, rtol=0)
    again = d.fit_logistic(train, labels, 1.0)
    assert torch.equal(again.weight, first.weight)
    assert torch.equal(d.logistic_probe(train, labels, train), first.scores(train))


def test_fit_logistic__findings_of_one_class_and_constant_features() -> None:
    train, labels = _two_groups()
    train[:, 3] = 0.1
    labels = torch.cat([labels, torch.ones_like(labels)], dim=1)
    scores = d.logistic_probe(train, labels, train)
    assert scores[:, 0].isfinite().all()
    assert scores[:, 1].isnan().all()
    equal = d.logistic_probe(torch.full((60, 4), 0.1), labels[:, :1], torch.full((5, 4), 0.1))
    torch.testing.assert_close(equal, torch.full((5, 1), 0.5))


def test_auroc__is_scikit_learns_with_ties() -> None:
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (80, 3), generator=generator) / 5
    labels = torch.randint(0, 2, (80, 3), generator=generator).float()
    labels[::6, 1] = NAN
    labels[1::9, 1] = -1
    labels[:, 2] = 1
    areas = d.auroc(scores, labels)
    assert float(areas[0]) == pytest.approx(roc_auc_score(labels[:, 0], scores[:, 0]))
    stated = labels[:, 1] >= 0
    assert float(areas[1]) == pytest.approx(roc_auc_score(labels[stated, 1], scores[stated, 1]))
    assert areas[2].isnan()


def test_pairs__that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, L\)"):
        d.knn_scores(torch.ones(3, 2), torch.ones(4, 1), torch.ones(3, 2))
    with pytest.raises(ValueError, match="k must"):
        d.knn_scores(torch.ones(3, 2), torch.ones(3, 1), torch.ones(3, 2), k=0)
    with pytest.raises(ValueError, match="l2"):
        d.fit_logistic(torch.ones(3, 2), torch.ones(3, 1), l2=0)
