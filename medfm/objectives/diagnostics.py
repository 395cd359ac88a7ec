"""What features look like, in numbers: how many directions they use, how alike they are, what can be read off them.

Pure functions of feature tensors; no gradients. Features are (N, E), one row an image. Labels are (N, L), one column a finding:
1 present, 0 absent, -1 uncertain, NaN not stated; only 1 and 0 count, each finding on the rows where it is stated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def effective_rank(features: Tensor, center: bool = False) -> float:
    """How many directions the features fill: exp of the entropy of their singular values divided by their sum, 1..min(N, E).

    1 where all rows are multiples of one vector; `k` where they fill `k` directions equally.

    Source: Roy & Vetterli 2007, "The effective rank", definition 1; as a score of pre-training RankMe (Garrido et al. 2023),
    which does not subtract the mean. `center` does, so that what all images share counts for nothing; of equal rows it is 1.

    Raises:
        ValueError: not (N, E), or a value is not finite.
    """
    x = _checked(features).double()
    scale = float(x.norm())
    if center:
        x = x - x.mean(dim=0)
    values = torch.linalg.svdvals(x)
    # Of equal rows only rounding is left after the mean is taken off, and that has full rank.
    if float(values.sum()) <= 1e-6 * scale or scale == 0:
        return 1.0
    share = values / values.sum()
    return math.exp(float(torch.special.entr(share).sum()))


@torch.no_grad()
def koleo_distance(features: Tensor) -> float:
    """Mean distance of unit-length features to their nearest neighbour, 0..2: what the KoLeo loss takes the logarithm of.

    Source: Sablayrolles et al. 2019, "Spreading vectors for similarity search", section 3; DINOv2's KoLeoLoss. NaN for one row.

    Raises:
        ValueError: not (N, E), or a value is not finite.
    """
    x = F.normalize(_checked(features).double(), dim=-1)
    if len(x) < 2:
        return math.nan
    similarity = x @ x.T
    nearest = similarity.fill_diagonal_(-2).argmax(dim=1)
    return float((x - x[nearest]).norm(dim=1).mean())


@torch.no_grad()
def mean_cosine(features: Tensor) -> float:
    """Mean cosine of two different rows: 1 where all images look the same. NaN for one row.

    Raises:
        ValueError: not (N, E), or a value is not finite.
    """
    x = F.normalize(_checked(features).double(), dim=-1)
    n = len(x)
    if n < 2:
        return math.nan
    return float((x.sum(dim=0).square().sum() - x.square().sum()) / (n * (n - 1)))


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Deviation of unit-length features over images, averaged over dimensions, times sqrt(E): 0 collapsed, 1 isotropic.

    Source: Chen & He 2021, "Exploring simple Siamese representation learning", figure 2, which plots it without the sqrt(E).

    Raises:
        ValueError: not (N, E), or a value is not finite.
    """
    x = F.normalize(_checked(features).double(), dim=-1)
    return float(x.std(dim=0, correction=0).mean() * x.shape[1] ** 0.5)


@torch.no_grad()
def knn_scores(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    k: int | Sequence[int] = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Weighted nearest-neighbour vote: for each test row and finding the share of the votes that say "present".

    Of the `k` training rows of highest cosine on which the finding is stated, each votes with `exp(cosine / temperature)`. For
    classes instead of findings give one-hot labels: the scores of a row are then its classes' shares.

    Source: Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination", section 3.4; DINO's
    eval_knn.py (temperature .07, k 10, 20, 100, 200).

    Args:
        train: (N, E) features, any length; made unit length here.
        train_labels: (N, L) of 1, 0, -1, NaN.
        test: (M, E).
        k: neighbours; all of them where there are fewer. Several are answered by one search.
        temperature: of the votes.
        chunk: test rows compared at once.

    Returns:
        (M, L) float32 in [0, 1] on `test`'s device, (len(k), M, L) for several k; NaN in the column of a finding that is stated
        nowhere.

    Raises:
        ValueError: shapes do not fit, `k` below 1, or a value is not finite.
    """
    _check_pair(train, train_labels, test)
    counts = [k] if isinstance(k, int) else list(k)
    if not counts or min(counts) < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    train = F.normalize(_checked(train).to(test.device).float(), dim=-1)
    test, labels = F.normalize(_checked(test).float(), dim=-1), train_labels.to(test.device)
    scores = test.new_full((len(counts), len(test), labels.shape[1]), math.nan)
    for stated, columns in _stated_groups(labels):
        rows, truth = train[stated], labels[stated][:, columns].float()
        for start in range(0, len(test), chunk):
            cosine, nearest = (test[start : start + chunk] @ rows.T).topk(min(max(counts), len(rows)), dim=1)
            # Shifted by the nearest: the share is the same, and no small temperature overflows.
            votes = ((cosine - cosine[:, :1]) / temperature).exp()
            for place, count in enumerate(counts):
                present = torch.einsum("mk,mkl->ml", votes[:, :count], truth[nearest[:, :count]])
                scores[place, start : start + chunk, columns] = present / votes[:, :count].sum(dim=1, keepdim=True)
    return scores[0] if isinstance(k, int) else scores


@dataclass(frozen=True, eq=False)
class LogisticProbe:
    """One logistic regression a finding, on features standardised by the training rows' mean and deviation.

    Attributes:
        mean, std: (E,) float64, of all training rows.
        weight: (L, E) float64 and bias: (L,), on standardised features; NaN for a finding without both classes.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """(M, E) -> (M, L) float32 probabilities of "present"."""
        x = (features.to(self.mean) - self.mean) / self.std
        return torch.sigmoid(x @ self.weight.T + self.bias).float()


def fit_logistic(
    features: Tensor, labels: Tensor, l2: float = 1.0, start: LogisticProbe | None = None, max_iter: int = 300
) -> LogisticProbe:
    """Logistic regression of each finding on the rows where it is stated: L-BFGS in float64, no random numbers.

    Minimises `sum of log losses + l2 / 2 * |weight|^2` a finding, the bias free: on standardised features scikit-learn's
    `LogisticRegression(C=1 / l2)`.

    Args:
        features: (N, E), any scale.
        labels: (N, L) of 1, 0, -1, NaN.
        l2: above 0.
        start: a probe of the same features to begin from, for a path of `l2`; its standardisation is not used.
        max_iter: of L-BFGS; it ends before at a gradient of 1e-6 a row.

    Raises:
        ValueError: shapes do not fit, `l2` not above 0, or a value is not finite.
    """
    _check_pair(features, labels, features)
    if not l2 > 0:
        raise ValueError(f"l2 must be above 0, got {l2}")
    x = _checked(features).detach().double()
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    # A feature that is the same for every image tells nothing; its rounding must not be blown up.
    std = torch.where(std <= 1e-7 * mean.abs().clamp_min(1e-30), torch.ones_like(std), std)
    x = (x - mean) / std
    weight = x.new_full((labels.shape[1], x.shape[1]), math.nan)
    bias = x.new_full((labels.shape[1],), math.nan)
    labels = labels.to(x.device)
    for column in range(labels.shape[1]):
        stated = (labels[:, column] == 0) | (labels[:, column] == 1)
        truth = labels[stated, column].double()
        if truth.numel() == 0 or truth.min() == truth.max():
            continue
        begin = x.new_zeros(x.shape[1] + 1)
        if start is not None and bool(torch.isfinite(start.bias[column])):
            begin = torch.cat([start.weight[column], start.bias[column : column + 1]]).to(x)
        solution = _minimise(x[stated], truth, l2, begin, max_iter)
        weight[column], bias[column] = solution[:-1], solution[-1]
    return LogisticProbe(mean, std, weight, bias)


def logistic_probe(train: Tensor, train_labels: Tensor, test: Tensor, l2: float = 1.0) -> Tensor:
    """`fit_logistic(train, train_labels, l2).scores(test)`: (M, L) probabilities, NaN for findings without both classes."""
    return fit_logistic(train, train_labels, l2).scores(test)


@torch.no_grad()
def auroc(scores: Tensor, labels: Tensor) -> Tensor:
    """(M, L) scores and labels -> (L,) float64 areas under the ROC curve on stated rows, ties counting half.

    NaN for a finding without both classes or with a score that is NaN. Source: Mann & Whitney's U over positives x negatives.
    """
    areas = []
    for column in range(labels.shape[1]):
        stated = ((labels[:, column] == 0) | (labels[:, column] == 1)).to(scores.device)
        score, positive = scores[stated, column].double(), labels.to(scores.device)[stated, column] == 1
        pairs = int(positive.sum()) * int((~positive).sum())
        if pairs == 0 or not bool(torch.isfinite(score).all()):
            areas.append(math.nan)
            continue
        _, inverse, counts = torch.unique(score, return_inverse=True, return_counts=True)
        ranks = counts.cumsum(0) - (counts - 1) / 2  # mean rank of each distinct score, from 1
        n = int(positive.sum())
        areas.append((float(ranks[inverse][positive].sum()) - n * (n + 1) / 2) / pairs)
    return torch.tensor(areas, dtype=torch.float64)


def _minimise(x: Tensor, truth: Tensor, l2: float, begin: Tensor, max_iter: int) -> Tensor:
    """The (E + 1,) weight and bias of one finding."""
    solution = begin.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [solution],
        max_iter=max_iter,
        max_eval=2 * max_iter,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    rows = len(truth)

    def closure() -> Tensor:
        # The gradient by hand: two matrix-vector products, no graph.
        with torch.no_grad():
            logits = x @ solution[:-1] + solution[-1]
            residual = (logits.sigmoid() - truth) / rows
            solution.grad = torch.cat([x.T @ residual + l2 / rows * solution[:-1], residual.sum()[None]])
            penalty = l2 / (2 * rows) * solution[:-1].square().sum()
            return F.binary_cross_entropy_with_logits(logits, truth) + penalty

    optimizer.step(closure)
    return solution.detach()


def _stated_groups(labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Findings stated on the same rows share their neighbours: [(rows (N,) bool, columns (l,))], none stated nowhere."""
    stated = (labels == 0) | (labels == 1)
    patterns, inverse = torch.unique(stated, dim=1, return_inverse=True)
    columns = [(inverse == g).nonzero().flatten() for g in range(patterns.shape[1])]
    return [(patterns[:, g], columns[g]) for g in range(patterns.shape[1]) if bool(patterns[:, g].any())]


def _check_pair(train: Tensor, labels: Tensor, test: Tensor) -> None:
    if labels.ndim != 2 or len(labels) != len(train) or train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        shapes = f"{tuple(train.shape)}, {tuple(labels.shape)}, {tuple(test.shape)}"
        raise ValueError(f"features, labels and test features must be (N, E), (N, L), (M, E), got {shapes}")


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features must be (N, E) with N >= 1, got {tuple(features.shape)}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features hold values that are not finite")
    return features
