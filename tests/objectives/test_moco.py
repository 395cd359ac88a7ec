from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm.encoders.pooling import pooled
from medfm.errors import ConfigError
from medfm.objectives.moco import MocoObjective
from medfm.objectives.ssl_config import MocoConfig
from medfm.transforms.draws import Draws

Make = Callable[..., Any]
UNMASKED = {"mask_same_patient": False, "mask_same_text": False}


def mlp(layers: int, sizes: tuple[int, int, int]) -> nn.Sequential:
    """As MoCo v3's builder.py describes its heads: no biases, every layer with batch normalisation, the last without scale."""
    modules: list[nn.Module] = []
    for number in range(layers):
        before = sizes[0] if number == 0 else sizes[1]
        last = number == layers - 1
        after = sizes[2] if last else sizes[1]
        modules += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, affine=not last)]
        if not last:
            modules.append(nn.ReLU())
    return nn.Sequential(*modules).double()


def test_two_steps__are_moco_v3s(make_two_views: Make, make_batch: Make, make_network: Make, train: Make) -> None:
    """Algorithm 1 of the paper in float64: losses, student, teacher and running statistics after two steps."""
    objective = make_two_views("moco", momentum=0.9, freeze_patch_embed=False, **UNMASKED)
    student, predictor = nn.ModuleList([make_network(), mlp(3, (16, 12, 8))]), mlp(2, (8, 12, 8))
    for theirs, ours in ((student, objective.student), (predictor, objective.predictor)):
        for a, b in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True):
            a.copy_(b)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimiser = torch.optim.SGD([*student.parameters(), *predictor.parameters()], lr=0.1)
    batches = [make_batch(8), make_batch(8, seed=1)]
    views = [objective.two_views(batch, Draws(step)) for step, batch in enumerate(batches)]
    losses = train(objective, batches)

    def project(branch: Any, part: Tensor) -> Tensor:
        return branch[1](pooled(branch[0].image_encoder(part), "cls"))

    def ctr(q: Tensor, k: Tensor) -> Tensor:
        logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).t() / 0.2
        return 2 * 0.2 * F.cross_entropy(logits, torch.arange(len(q)))

    expected = []
    for step, pair in enumerate(views):
        first, second = pair.chunk(2)
        q1, q2 = predictor(project(student, first)), predictor(project(student, second))
        with torch.no_grad():
            momentum = [0.9, 0.95][step]  # the teacher takes up the present student before it makes keys
            for theirs, mine in zip(teacher.parameters(), student.parameters(), strict=True):
                theirs.mul_(momentum).add_((1 - momentum) * mine)
            k1, k2 = project(teacher, first), project(teacher, second)
        loss = ctr(q1, k2) + ctr(q2, k1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        expected.append(float(loss.detach()))
    assert losses == pytest.approx(expected, rel=1e-9)
    for ours, theirs in ((objective.student, student), (objective.predictor, predictor)):
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)
    for (name, a), b in zip(objective.teacher.named_buffers(), teacher.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10, msg=name)


def test_queue__is_lightlys_memory_bank(make_two_views: Make, make_batch: Make) -> None:
    """Three batches of 8: losses, and the queue of 20 after it has been filled one time round."""
    pytest.importorskip("lightly")
    from lightly.loss import NTXentLoss

    v2 = {"layers": 2, "batch_norm": False, "predictor_layers": 0, **UNMASKED}
    objective = make_two_views("moco", queue=20, **v2)
    bank = NTXentLoss(temperature=0.2, memory_bank_size=(20, 8))
    bank.memory_bank.bank = objective.queue.clone()
    start = objective.queue.clone()
    taken: list[Tensor] = []
    for seed in range(3):
        batch = make_batch(8, seed)
        views = objective.two_views(batch, Draws(seed))
        loss = objective(batch, Draws(seed)).loss
        bank.memory_bank.bank = (torch.cat([start, *taken])[-20:]).clone()
        q1, q2 = objective.student(views)
        k1, k2 = objective.targets(views)
        with torch.no_grad():  # without gradients lightly's bank stays as it is
            expected = bank(q1, k2) + bank(q2, k1)
        assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-9)
        taken += [F.normalize(k1, dim=1), F.normalize(k2, dim=1)]
    newest = torch.cat(taken)[-20:]
    assert int(objective.queue_next) == 48 % 20
    torch.testing.assert_close(objective.queue.roll(-int(objective.queue_next), dims=0), newest)
    patients = torch.cat([make_batch(8).patient] * 6)[-20:]
    assert torch.equal(objective.queue_patient.roll(-int(objective.queue_next)), patients)


def test_queue__of_fewer_keys_than_a_batch_keeps_the_last(make_two_views: Make, make_batch: Make) -> None:
    objective, batch = make_two_views("moco", queue=5, layers=2), make_batch(8)
    keys = objective.targets(objective.two_views(batch, Draws(0)))
    objective(batch, Draws(0))
    torch.testing.assert_close(
        objective.queue.roll(-int(objective.queue_next), dims=0), F.normalize(torch.cat(keys), dim=1)[-5:]
    )


def test_queue__masks_a_patients_former_keys_and_rests_in_validation(make_two_views: Make, make_batch: Make) -> None:
    objective, batch = make_two_views("moco", queue=16, mask_same_text=False), make_batch(8)
    assert float(objective(batch, Draws(0)).logs["masked_negatives"]) == 0.0  # nobody's keys yet
    # Each of 8 rows meets its own two keys, rows 2 and 3 also each other's.
    assert float(objective(batch, Draws(1)).logs["masked_negatives"]) == pytest.approx((8 * 2 + 2 * 2) / (8 * 16))
    objective.eval()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    assert float(objective(batch, Draws(1)).logs["masked_negatives"]) == 0.0  # other patients under the same numbers
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_resume__goes_on_with_the_queue(make_two_views: Make, make_batch: Make, train: Make) -> None:
    batches = [make_batch(8, seed) for seed in range(4)]
    whole, stopped, resumed = (make_two_views("moco", queue=12) for _ in range(3))
    losses = train(whole, batches)
    assert train(stopped, batches[:2], total=4) == losses[:2]
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    assert train(resumed, batches[2:], start=2, total=4) == losses[2:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_freeze_patch_embed(make_two_views: Make, make_network: Make) -> None:
    frozen = {n for n, p in make_two_views("moco").student.named_parameters() if not p.requires_grad}
    assert frozen == {"network.image_encoder.patch_embed.proj.weight", "network.image_encoder.patch_embed.proj.bias"}
    network = make_network()
    network.image_encoder.patch_embed = None
    with pytest.raises(ConfigError, match="freeze_patch_embed"):
        MocoObjective(MocoConfig(), network, lambda *_: None, batch_size=8)  # type: ignore[arg-type, return-value]


def test_training__finds_the_keys(make_two_views: Make, make_batch: Make, train: Make) -> None:
    losses = train(make_two_views("moco"), [make_batch(8)] * 40, lr=0.3)
    assert losses[-1] < 0.7 * losses[0]


def test_config__momentum_is_below_one() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        MocoConfig(momentum=1.0)
