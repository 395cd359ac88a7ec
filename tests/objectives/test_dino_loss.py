from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medfm.errors import ConfigError
from medfm.objectives import dino_loss as module
from medfm.objectives.dino_loss import (
    batch_centre,
    centred,
    cross_entropies,
    dino_loss,
    koleo_loss,
    masked_patch_loss,
    sinkhorn,
    target_entropies,
)

K = 40


def logits(rows: int, seed: int = 0, scale: float = 0.3, prototypes: int = K) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, prototypes, generator=generator, dtype=torch.float64)


def paper_loss(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """DINO's two loops over views."""
    count, batch, prototypes = targets.shape
    views = student.view(-1, batch, prototypes)
    terms = []
    for t in range(count):
        for s in range(len(views)):
            if s != t:
                log_p = (views[s] / temperature).exp()
                log_p = (log_p / log_p.sum(dim=1, keepdim=True)).log()
                terms.append(-(targets[t] * log_p).sum(dim=1).mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize(("global_count", "local_count"), [(2, 3), (2, 0), (3, 1), (1, 2)])
def test_dino_loss__is_the_papers_arithmetic(global_count: int, local_count: int) -> None:
    batch = 5
    student = logits((global_count + local_count) * batch, 1).requires_grad_()
    targets = centred(logits(global_count * batch, 2), None, 0.05).view(global_count, batch, K)
    found, expected = dino_loss(student, targets, 0.1), paper_loss(student, targets, 0.1)
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, student)[0] for value in (found.loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
    p = (student[: global_count * batch] / 0.1).softmax(dim=1)
    torch.testing.assert_close(found.student_entropy, -(p * p.log()).sum(dim=1).mean())


def test_dino_loss__float32_is_within_1e_6_of_float64_at_full_size() -> None:
    student, teacher = logits(20, 1, 0.2, 65536), logits(4, 2, 0.2, 65536)
    exact_targets = centred(teacher, None, 0.04).view(2, 2, -1)
    leaf = student.float().requires_grad_()
    exact_leaf = student.float().double().requires_grad_()
    found = dino_loss(leaf, exact_targets.float(), 0.1).loss
    exact = dino_loss(exact_leaf, exact_targets.float().double(), 0.1).loss
    assert found.item() == pytest.approx(exact.item(), rel=1e-6)
    (mine,), (right,) = torch.autograd.grad(found, leaf), torch.autograd.grad(exact, exact_leaf)
    assert (mine.double() - right).norm() < 3e-6 * right.norm()


def test_dino_loss__equals_lightly() -> None:
    from lightly.loss import DINOLoss

    batch, views, momentum = 6, 5, 0.9
    peer = DINOLoss(output_dim=K, teacher_temp=0.06, student_temp=0.1, center_momentum=momentum).double()
    centre = torch.zeros(K, dtype=torch.float64)
    for step in range(3):
        student = logits(views * batch, step).requires_grad_()
        teacher = logits(2 * batch, step + 10)
        theirs = peer(list(teacher.chunk(2)), list(student.chunk(views)), teacher_temp=0.06)
        mine = dino_loss(student, centred(teacher, centre, 0.06).view(2, batch, K), 0.1).loss
        centre.lerp_(batch_centre(teacher), 1 - momentum)
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)  # its temperature is float32
        gradients = [torch.autograd.grad(value, student)[0] for value in (mine, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(centre, peer.center.flatten(), rtol=1e-12, atol=1e-15)


def test_cross_entropies__gradient_is_the_slope() -> None:
    targets = [centred(logits(3, 5), None, 0.2), 2 * centred(logits(3, 6), None, 0.2)]

    def call(x: Tensor) -> Tensor:
        return cross_entropies(x.view(3, 3, K), targets, [0, 1, 1], [1.0, 2.0], 0.3)[0]

    # A loss has one backward pass, gradcheck takes several: here the slope along one direction.
    x = logits(9, 7).requires_grad_()
    weights = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(call(x) @ weights, x)
    direction, step = logits(9, 8), 1e-5
    with torch.no_grad():
        slope = (call(x + step * direction) - call(x - step * direction)) @ weights / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-8, atol=0)


def test_cross_entropies__chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    student, targets = logits(35, 1), centred(logits(14, 2), None, 0.05).view(2, 7, K)
    results = []
    for chunk in (1 << 24, 3 * K, 1):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        leaf = student.clone().requires_grad_()
        loss = dino_loss(leaf, targets, 0.1).loss
        results.append((loss.item(), torch.autograd.grad(loss, leaf)[0]))
    for value, gradient in results[1:]:
        assert value == pytest.approx(results[0][0], rel=1e-14)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-12, atol=1e-18)


def test_dino_loss__of_bfloat16_logits_is_float32() -> None:
    """Under autocast and without: the softmax of what the logits are, its gradient rounded once."""
    low = logits(10, 1).bfloat16().requires_grad_()
    exact = low.detach().double().requires_grad_()
    targets = centred(logits(4, 2), None, 0.05).view(2, 2, K)
    expected = dino_loss(exact, targets, 0.1).loss
    with torch.autocast("cpu", torch.bfloat16):
        found = dino_loss(low, targets.float(), 0.1).loss
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,), (right,) = torch.autograd.grad(found, low), torch.autograd.grad(expected, exact)
    assert gradient.dtype == torch.bfloat16
    assert (gradient.double() - right).norm() < 2**-8 * right.norm()


def test_dino_loss__keeps_one_tensor_of_the_logits_size() -> None:
    """Autograd's loops would keep a log-softmax of each of 18 pairs. Here it saves next to nothing: the gradient is there."""
    student, targets = logits(10 * 4, 1).requires_grad_(), centred(logits(8, 2), None, 0.05).view(2, 4, K)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        loss = dino_loss(student, targets, 0.1).loss
    assert sum(saved) < student.numel()
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="one backward"):  # the gradient was made ahead and is used up
        loss.backward()


def test_masked_patch_loss__is_ibots_arithmetic() -> None:
    counts = [3, 0, 1, 4]  # of four views
    rows = sum(counts)
    student = logits(rows, 1).requires_grad_()
    targets = centred(logits(rows, 2), None, 0.05)
    weights = torch.cat([torch.full((n,), 1 / n, dtype=torch.float64) for n in counts if n])
    terms, start = [], 0
    for n in counts:
        log_p = (student[start : start + n] / 0.1).log_softmax(dim=1)
        terms.append(-(targets[start : start + n] * log_p).sum() / max(n, 1))
        start += n
    expected = torch.stack(terms).mean()
    found = masked_patch_loss(student, targets, weights, len(counts), 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, student)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_masked_patch_loss__equals_lightly() -> None:
    from lightly.loss import IBOTPatchLoss

    mask = torch.zeros(3, 2, 4, dtype=torch.bool)
    mask[0, 0, :3] = mask[2, 1, 1] = mask[2, 0, 0] = True
    rows = int(mask.sum())
    student, teacher = logits(rows, 1), logits(rows, 2)
    theirs = IBOTPatchLoss(output_dim=K, teacher_temp=0.05, student_temp=0.1).double()(teacher, student, mask)
    flat = mask.flatten(1)
    weights = (1 / flat.sum(dim=1, keepdim=True).clamp(min=1)).expand_as(flat)[flat].double()
    mine = masked_patch_loss(student, centred(teacher, torch.zeros(K), 0.05), weights, 3, 0.1)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)


def test_masked_patch_loss__of_no_patches_is_0_with_a_gradient() -> None:
    student = logits(0).requires_grad_()
    loss = masked_patch_loss(student, logits(0), torch.zeros(0, dtype=torch.float64), 4, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None


def test_koleo__is_the_papers_arithmetic_and_lightlys() -> None:
    from lightly.loss import KoLeoLoss

    x = logits(9, 3, 1.0, 16).requires_grad_()
    unit = x / x.norm(dim=1, keepdim=True)
    nearest = [min((unit[i] - unit[j]).norm() for j in range(9) if j != i) for i in range(9)]
    found = koleo_loss(x)
    torch.testing.assert_close(found, -torch.stack(nearest).log().mean(), rtol=1e-6, atol=0)  # its epsilons
    theirs = KoLeoLoss()(x)
    torch.testing.assert_close(found, theirs, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, x)[0] for value in (found, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_koleo__spreads_features() -> None:
    x = (torch.ones(8, 4) + 0.01 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    start = koleo_loss(x).item()
    optimizer = torch.optim.SGD([x], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        loss = koleo_loss(x)
        loss.backward()
        optimizer.step()
    assert loss.item() < start - 2
    with pytest.raises(ConfigError, match=r"objective\.koleo_weight: one image"):
        koleo_loss(x[:1])


def test_sinkhorn__equals_lightly() -> None:
    from lightly.loss.swav_loss import sinkhorn as theirs

    teacher = logits(12, 4, 0.4)
    for iterations in (1, 3):
        torch.testing.assert_close(
            sinkhorn(teacher, 0.07, iterations=iterations), theirs(teacher, iterations, 0.07), rtol=1e-10, atol=1e-15
        )


def test_sinkhorn__uses_all_prototypes_alike() -> None:
    """Logits that all favour one prototype, which softmax gives to all."""
    teacher = logits(200, 5, 0.1, 8)
    teacher[:, 3] += 1.0
    assert centred(teacher, None, 0.05).mean(dim=0)[3] > 0.99
    q = sinkhorn(teacher, 0.05, iterations=50)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(200, dtype=torch.float64))
    torch.testing.assert_close(q.mean(dim=0), torch.full((8,), 1 / 8, dtype=torch.float64), rtol=1e-3, atol=0)


def test_sinkhorn__of_huge_logits_is_finite_and_of_no_rows_empty() -> None:
    q = sinkhorn(1e4 * logits(6, 6).float(), 0.04)
    assert bool(torch.isfinite(q).all())
    torch.testing.assert_close(q.sum(dim=1), torch.ones(6))
    assert sinkhorn(logits(0), 0.04).shape == (0, K)


def test_centred__moves_and_sharpens() -> None:
    teacher, centre = logits(5, 1), logits(1, 2)[0]
    shifted = ((teacher - centre) / 0.05).exp()
    torch.testing.assert_close(centred(teacher, centre, 0.05), shifted / shifted.sum(dim=1, keepdim=True))
    assert centred(teacher.bfloat16(), None, 0.05).dtype == torch.float32


def test_target_entropies__their_difference_is_0_in_both_kinds_of_collapse() -> None:
    everywhere = torch.full((6, K), 1 / K)
    one = torch.zeros(6, K)
    one[:, 7] = 1
    own = torch.eye(K)[:6]
    for targets, entropy, marginal in (
        (everywhere, math.log(K), math.log(K)),
        (one, 0.0, 0.0),
        (own, 0.0, math.log(6)),
    ):
        found = target_entropies(targets)
        assert [x.item() for x in found] == pytest.approx([entropy, marginal], abs=1e-5)
