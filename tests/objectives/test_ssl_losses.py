"""Each loss beside lightly's, or the paper's arithmetic written out, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medfm.objectives.ssl_losses import barlow_loss, byol_loss, key_loss, nt_xent, queue_loss

Pair = tuple[Tensor, Tensor]


@pytest.fixture
def pair() -> Pair:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(10, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    return first.requires_grad_(), (second + first.detach()).requires_grad_()


def assert_same(mine: Tensor, theirs: Tensor, inputs: Pair) -> None:
    """Values and gradients to 1e-10; where one passes no gradient the other does not either."""
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    ours = torch.autograd.grad(mine, inputs, allow_unused=True)
    reference = torch.autograd.grad(theirs, inputs, allow_unused=True)
    for a, b in zip(ours, reference, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def lightly_queue(queue: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    pytest.importorskip("lightly")
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(temperature=0.2, memory_bank_size=tuple(queue.shape))
    loss.memory_bank.bank = queue.clone()
    return lambda query, key: loss(query, key.detach())


def test_losses__are_lightlys(pair: Pair) -> None:
    pytest.importorskip("lightly")
    from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss

    queue = F.normalize(torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=1)
    assert_same(nt_xent(*pair, 0.1, tile=7).loss, NTXentLoss(temperature=0.1)(*pair), pair)
    assert_same(queue_loss(*pair, queue, 0.2).loss, lightly_queue(queue)(*pair), pair)
    assert_same(barlow_loss(*pair, 0.0051).loss, BarlowTwinsLoss(lambda_param=0.0051)(*pair), pair)
    assert_same(byol_loss(*pair), 2 + 2 * NegativeCosineSimilarity()(pair[0], pair[1].detach()), pair)


def test_key_loss__is_moco_v3s_ctr(pair: Pair) -> None:
    q, k = F.normalize(pair[0], dim=1), F.normalize(pair[1].detach(), dim=1)
    expected = F.cross_entropy(torch.einsum("nc,mc->nm", q, k) / 0.2, torch.arange(10))
    result = key_loss(*pair, 0.2, tile=3)
    assert_same(result.loss, expected, pair)
    assert float(result.image_to_text) == pytest.approx(float(((q @ k.t()).argmax(1) == torch.arange(10)).double().mean()))


PATIENT = torch.tensor([0, 1, 2, 2, 3, 4, 5, 5, 5, -1])
TEXT = torch.tensor([7, -1, -1, 8, 7, -1, 9, 9, 10, -1])


def related(i: int, j: int) -> bool:
    return any(int(codes[i]) >= 0 and int(codes[i]) == int(codes[j]) for codes in (PATIENT, TEXT))


def test_nt_xent__relatives_are_no_negatives(pair: Pair) -> None:
    views = F.normalize(torch.cat(pair), dim=1)
    terms, left_out = [], 0
    for row in range(20):
        image, partner = row % 10, (row + 10) % 20
        rivals = [c for c in range(20) if c % 10 != image and not related(image, c % 10)]
        left_out += 19 - 1 - len(rivals)
        scores = torch.stack([views[row] @ views[c] / 0.1 for c in [partner, *rivals]])
        terms.append(scores.logsumexp(0) - scores[0])
    result = nt_xent(*pair, 0.1, groups=[PATIENT, TEXT], tile=6)
    assert_same(result.loss, torch.stack(terms).mean(), pair)
    assert float(result.masked) == pytest.approx(left_out / (20 * 18))


def test_key_loss__relatives_are_no_negatives(pair: Pair) -> None:
    q, k = F.normalize(pair[0], dim=1), F.normalize(pair[1].detach(), dim=1)
    mask = torch.tensor([[i != j and related(i, j) for j in range(10)] for i in range(10)])
    expected = F.cross_entropy((q @ k.t() / 0.2).masked_fill(mask, -math.inf), torch.arange(10))
    assert_same(key_loss(*pair, 0.2, groups=[PATIENT, TEXT]).loss, expected, pair)


def test_queue_loss__relatives_are_no_negatives(pair: Pair) -> None:
    queue = F.normalize(torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=1)
    theirs = torch.tensor([2, 5, 30, -1])  # rows 2 and 3 meet key 0, rows 6 to 8 key 1; a code below 0 groups nothing
    q, k = F.normalize(pair[0], dim=1), F.normalize(pair[1].detach(), dim=1)
    scores = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.t()], dim=1) / 0.2
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[2:4, 1] = True
    mask[6:9, 2] = True
    expected = F.cross_entropy(scores.masked_fill(mask, -math.inf), torch.zeros(10, dtype=torch.long))
    result = queue_loss(*pair, queue, 0.2, groups=[(PATIENT, theirs)])
    assert_same(result.loss, expected, pair)
    assert float(result.masked) == pytest.approx(5 / 40)


def test_queue_loss__lets_the_queue_change_before_the_backward(pair: Pair) -> None:
    queue = F.normalize(torch.ones(4, 6, dtype=torch.float64), dim=1)
    expected = torch.autograd.grad(queue_loss(*pair, queue, 0.2).loss, pair[0])[0]
    loss = queue_loss(*pair, queue, 0.2).loss
    queue.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, pair[0])[0], expected)


def test_contrast__without_any_negative_is_zero(pair: Pair) -> None:
    everyone = torch.zeros(10, dtype=torch.long)
    queue = F.normalize(torch.ones(4, 6, dtype=torch.float64), dim=1)
    losses = [
        nt_xent(*pair, 0.1, groups=[everyone]).loss,
        key_loss(*pair, 0.1, groups=[everyone]).loss,
        queue_loss(*pair, queue, 0.1, groups=[(everyone, everyone[:4])]).loss,
    ]
    for loss in losses:
        assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
        assert float(torch.autograd.grad(loss, pair[0])[0].abs().max()) < 1e-12


def test_losses__in_half_precision_are_computed_in_float32(pair: Pair) -> None:
    first, second = (x.detach().to(torch.bfloat16) for x in pair)
    queue = F.normalize(torch.ones(4, 6), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = [
            nt_xent(first, second, 0.1).loss,
            key_loss(first, second, 0.1).loss,
            queue_loss(first, second, queue, 0.1).loss,
            byol_loss(first, second),
            barlow_loss(first, second, 0.0051).loss,
        ]
    first, second = first.double(), second.double()
    wanted = [
        nt_xent(first, second, 0.1).loss,
        key_loss(first, second, 0.1).loss,
        queue_loss(first, second, queue.double(), 0.1).loss,
        byol_loss(first, second),
        barlow_loss(first, second, 0.0051).loss,
    ]
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6)


def test_losses__of_a_single_image_are_finite(pair: Pair) -> None:
    """What is left over at the end of a validation split."""
    first, second = (x[:1] for x in pair)
    assert float(barlow_loss(first, second, 0.5).loss.detach()) == pytest.approx(6.0)  # C is 0
    assert float(nt_xent(first, second, 0.1).loss.detach()) == pytest.approx(0.0, abs=1e-12)
    assert float(key_loss(first, second, 0.1).loss.detach()) == pytest.approx(0.0, abs=1e-12)


def test_barlow_loss__parts(pair: Pair) -> None:
    first, second = (F.batch_norm(x.detach(), None, None, training=True) for x in pair)
    c = first.t() @ second / 10
    result = barlow_loss(*pair, 0.5)
    assert float(result.on_diagonal) == pytest.approx(float((c.diagonal() - 1).square().sum()))
    assert float(result.off_diagonal) == pytest.approx(float((c - c.diagonal().diag()).square().sum()))
    assert float(result.loss.detach()) == pytest.approx(float(result.on_diagonal + 0.5 * result.off_diagonal))
