"""Losses against the papers' own arithmetic, written out naively in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medfm.objectives.losses import info_nce, sigmoid_loss


def features(n: int = 11, d: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    pair[1] += 0.5 * pair[0]
    image, text = F.normalize(pair, dim=-1).to(dtype)
    return image.requires_grad_(), text.requires_grad_()


def codes(n: int = 11, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-1, 5, (n,), generator=generator), torch.randint(-1, 8, (n,), generator=generator)]


def false_negatives(groups: list[Tensor], n: int) -> Tensor:
    """Pair by pair, as the definition reads."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(n):
            mask[i, j] = i != j and any(int(g[i]) >= 0 and int(g[i]) == int(g[j]) for g in groups)
    return mask


def naive_info_nce(image: Tensor, text: Tensor, logit_scale: Tensor, lam: float, mask: Tensor) -> Tensor:
    """ConVIRT, equations 2 to 4: sums of exponentials over the pairs that are not masked, tau = exp(-logit_scale)."""
    tau = torch.exp(-logit_scale)
    total = image.new_zeros(())
    n = image.shape[0]
    for i in range(n):
        own = torch.exp(image[i] @ text[i] / tau)
        row = sum(torch.exp(image[i] @ text[k] / tau) for k in range(n) if not mask[i, k])
        column = sum(torch.exp(image[k] @ text[i] / tau) for k in range(n) if not mask[k, i])
        total = total - lam * torch.log(own / row) - (1 - lam) * torch.log(own / column)
    return total / n


def naive_sigmoid(image: Tensor, text: Tensor, t_prime: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """SigLIP, algorithm 1, with masked pairs left out of the sum."""
    n = image.shape[0]
    logits = image @ text.T * torch.exp(t_prime) + b
    labels = 2 * torch.eye(n, dtype=image.dtype) - torch.ones(n, n, dtype=image.dtype)
    return -(F.logsigmoid(labels * logits) * ~mask).sum() / n


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("lam", [0.5, 0.75, 0.0, 1.0])
@pytest.mark.parametrize("tile", [1, 4, 11, 64])
@pytest.mark.parametrize("masked", [False, True])
def test_info_nce__is_the_papers_sum(lam: float, tile: int, masked: bool) -> None:
    image, text = features()
    groups = codes() if masked else []
    scale = torch.tensor(math.log(10.0), dtype=torch.float64, requires_grad=True)
    ours = info_nce(image, text, scale, image_weight=lam, groups=groups, tile=tile).loss
    theirs = naive_info_nce(image, text, scale, lam, false_negatives(groups, 11))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    inputs = [image, text, scale]
    for mine, paper in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, paper, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [-10.0, 1.5])
@pytest.mark.parametrize("tile", [1, 4, 64])
@pytest.mark.parametrize("masked", [False, True])
def test_sigmoid_loss__is_algorithm_1(bias: float, tile: int, masked: bool) -> None:
    image, text = features()
    groups = codes() if masked else []
    scale = torch.tensor(math.log(10.0), dtype=torch.float64, requires_grad=True)
    b = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    ours = sigmoid_loss(image, text, scale, b, groups=groups, tile=tile).loss
    theirs = naive_sigmoid(image, text, scale, b, false_negatives(groups, 11))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    inputs = [image, text, scale, b]
    for mine, paper in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, paper, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck__both_losses(masked: bool) -> None:
    image, text = features(7, 4)
    groups = codes(7) if masked else []
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)

    def softmax(i: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return info_nce(i, t, s, image_weight=0.75, groups=groups, tile=3).loss

    def sigmoid(i: Tensor, t: Tensor, s: Tensor, b: Tensor) -> Tensor:
        return sigmoid_loss(i, t, s, b, groups=groups, tile=3).loss

    assert torch.autograd.gradcheck(softmax, (image, text, scale))
    assert torch.autograd.gradcheck(sigmoid, (image, text, scale, bias))


def test_info_nce__equals_open_clip() -> None:
    loss = pytest.importorskip("open_clip.loss")
    image, text = features(dtype=torch.float32)
    scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
    theirs = loss.ClipLoss()(image, text, scale.exp())
    torch.testing.assert_close(info_nce(image, text, scale).loss, theirs)
    bias = torch.tensor(-10.0)
    theirs = loss.SigLipLoss()(image, text, scale.exp(), bias)
    torch.testing.assert_close(sigmoid_loss(image, text, scale, bias).loss, theirs)


def test_mask__leaves_partners_and_negative_codes_alone() -> None:
    image, text = features()
    scale = torch.tensor(2.0, dtype=torch.float64)
    nothing = torch.full((11,), -1)
    plain = info_nce(image, text, scale)
    assert torch.equal(info_nce(image, text, scale, groups=[nothing]).loss, plain.loss)
    everything = info_nce(image, text, scale, groups=[torch.zeros(11, dtype=torch.int64)])
    torch.testing.assert_close(everything.loss, torch.zeros((), dtype=torch.float64))  # nothing left to tell apart
    assert float(everything.masked) == 1.0
    assert float(plain.masked) == 0.0


def test_mask__share_counts_pairs() -> None:
    image, text = features()
    groups = codes()
    expected = false_negatives(groups, 11).double().mean() * 11 / 10
    for result in (
        info_nce(image, text, torch.tensor(1.0), groups=groups, tile=4),
        sigmoid_loss(image, text, torch.tensor(1.0), torch.tensor(0.0), groups=groups, tile=4),
    ):
        torch.testing.assert_close(result.masked.double(), expected, rtol=1e-6, atol=0)


def test_mask__a_column_hidden_from_a_whole_tile_gives_numbers() -> None:
    image, text = features(6, 4)
    groups = [torch.tensor([3, 3, 3, 1, 2, 3])]
    scale = torch.tensor(3.0, dtype=torch.float64)
    ours = info_nce(image, text, scale, groups=groups, tile=2).loss
    torch.testing.assert_close(ours, naive_info_nce(image, text, scale, 0.5, false_negatives(groups, 6)))


def test_info_nce__rows_within_one_stay_negatives_whatever_their_groups() -> None:
    image, text = features(6)
    scale = torch.tensor(2.0, dtype=torch.float64)
    patient, report = torch.tensor([5, 5, 5, 5, 1, 2]), torch.tensor([0, 0, 1, 1, 2, 3])
    ours = info_nce(image, text, scale, groups=[patient], within=report, tile=4).loss
    mask = false_negatives([patient], 6)
    assert bool(mask[0, 1])
    mask &= report[:, None] != report
    torch.testing.assert_close(ours, naive_info_nce(image, text, scale, 0.5, mask))


@pytest.mark.parametrize("norm", [1.0, 30.0])
def test_info_nce__extreme_logits_stay_exact(norm: float) -> None:
    """Logits of -100 to 100 (and 30 times that): every partner is the least similar pair, so a fixed shift would underflow."""
    base, _ = features(16, 5, dtype=torch.float32)
    image = (norm * base.detach()).requires_grad_()
    text = (-base.detach()).requires_grad_()
    scale = torch.tensor(math.log(100.0), requires_grad=True)
    doubles = [x.detach().double().requires_grad_() for x in (image, text, scale)]
    logits = doubles[2].exp() * doubles[0] @ doubles[1].T
    exact = (F.cross_entropy(logits, torch.arange(16)) + F.cross_entropy(logits.T, torch.arange(16))) / 2
    ours = info_nce(image, text, scale, tile=5).loss
    torch.testing.assert_close(ours.double(), exact, rtol=2e-6, atol=0)
    for mine, reference in zip(gradients(ours, [image, text, scale]), gradients(exact, doubles), strict=True):
        assert (mine.double() - reference).norm() <= 1e-4 * reference.norm()


def test_sigmoid_loss__extreme_logits_stay_exact() -> None:
    base, _ = features(16, 5, dtype=torch.float32)
    image, text = base.detach().requires_grad_(), (-base.detach()).requires_grad_()
    scale, bias = torch.tensor(math.log(100.0), requires_grad=True), torch.tensor(-50.0, requires_grad=True)
    doubles = [x.detach().double().requires_grad_() for x in (image, text, scale, bias)]
    exact = naive_sigmoid(*doubles, torch.zeros(16, 16, dtype=torch.bool))
    ours = sigmoid_loss(image, text, scale, bias, tile=5).loss
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)
    for mine, reference in zip(gradients(ours, [image, text, scale, bias]), gradients(exact, doubles), strict=True):
        assert (mine.double() - reference).norm() <= 1e-5 * reference.norm()


def test_accuracy__counts_rows_whose_partner_wins() -> None:
    image = torch.eye(4)
    text = torch.eye(4)[[0, 1, 3, 2]]  # the last two are swapped
    for result in (info_nce(image, text, torch.tensor(1.0)), sigmoid_loss(image, text, torch.tensor(1.0), torch.tensor(0.0))):
        assert float(result.image_to_text) == 0.5
        assert float(result.text_to_image) == 0.5
    masked = info_nce(image, text, torch.tensor(1.0), groups=[torch.tensor([0, 1, 2, 2])])
    assert float(masked.image_to_text) == 1.0  # the pair that outshone them is no negative


def test_terms__weighted_sum_is_the_loss() -> None:
    image, text = features()
    result = info_nce(image, text, torch.tensor(2.0), image_weight=0.75)
    torch.testing.assert_close(0.75 * result.terms["image_to_text"] + 0.25 * result.terms["text_to_image"], result.loss)
    result = sigmoid_loss(image, text, torch.tensor(2.0), torch.tensor(-1.0))
    torch.testing.assert_close(result.terms["positives"] + result.terms["negatives"], result.loss)
    assert not any(term.requires_grad for term in result.terms.values())


def test_gradient__scales_with_what_follows() -> None:
    image, text = features()
    scale = torch.tensor(2.0, dtype=torch.float64)
    (one,) = gradients(info_nce(image, text, scale).loss, [image])
    (three,) = gradients(3.0 * info_nce(image, text, scale).loss, [image])
    torch.testing.assert_close(three, 3.0 * one)


def test_half_precision__is_computed_in_float32() -> None:
    image, text = (x.detach().bfloat16().requires_grad_() for x in features())
    scale = torch.tensor(math.log(100.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(image, text, scale).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, info_nce(image.float(), text.float(), scale).loss)
    loss.backward()
    assert image.grad is not None
    assert image.grad.dtype == torch.bfloat16


def test_saved__features_only_and_never_a_matrix() -> None:
    image, text = features(64, 4, dtype=torch.float32)
    saved: list[int] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        for loss in (
            info_nce(image, text, torch.tensor(1.0), tile=16).loss,
            sigmoid_loss(image, text, torch.tensor(1.0), torch.tensor(0.0), tile=16).loss,
        ):
            assert loss.requires_grad
    assert max(saved) == image.numel()
    assert sum(saved) <= 4 * image.numel() + 8


def test_empty_batch__is_a_zero_with_a_gradient() -> None:
    image, text = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    for loss in (
        info_nce(image, text, torch.tensor(1.0)).loss,
        sigmoid_loss(image, text, torch.tensor(1.0), torch.tensor(0.0)).loss,
    ):
        assert float(loss.detach()) == 0.0
        loss.backward()
    assert image.grad is not None


def test_shapes__disagree() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        info_nce(torch.zeros(3, 4), torch.zeros(2, 4), torch.tensor(0.0))
    with pytest.raises(ValueError, match="group codes must be"):
        sigmoid_loss(torch.zeros(3, 4), torch.zeros(3, 4), torch.tensor(0.0), torch.tensor(0.0), groups=[torch.zeros(2)])
