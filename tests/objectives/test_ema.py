from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from medfm.objectives.batch_norm import BatchNorm
from medfm.objectives.ema import ema_update, make_teacher, teacher_mode


def test_ema_update__is_the_papers_average() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4, bias=False)).double()
    teacher = make_teacher(student)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    ema_update(teacher, student, 0.9)
    for mine, old, new in zip(teacher.parameters(), before, student.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.9 * old + 0.1 * new, rtol=1e-14, atol=1e-15)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_ema_update__ends(momentum: float) -> None:
    student = nn.Linear(3, 2)
    teacher = make_teacher(nn.Linear(3, 2))
    kept = [teacher.weight.clone(), student.weight.clone()]
    ema_update(teacher, student, momentum)
    torch.testing.assert_close(teacher.weight, kept[0] if momentum else kept[1], rtol=0, atol=0)


def test_make_teacher__shares_no_memory() -> None:
    student = nn.Linear(3, 2)
    teacher = make_teacher(student)
    with torch.no_grad():
        student.weight.zero_()
    assert bool((teacher.weight != 0).all())
    assert not teacher.training


def test_teacher__batch_norms_see_their_own_batch_in_training_and_nothing_else_trains() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.9), BatchNorm(4))
    teacher = make_teacher(student)
    teacher_mode(teacher, training=True)
    assert [module.training for module in teacher] == [False, True, False, True]
    out = teacher(torch.randn(50, 3) * 5 + 2)
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-5)
    statistics = teacher[1].running_mean.clone()
    assert bool((statistics != 0).any())
    ema_update(teacher, student, 0.5)
    torch.testing.assert_close(teacher[1].running_mean, statistics, rtol=0, atol=0)  # its own, not the student's
    teacher_mode(teacher, training=False)
    assert not any(module.training for module in teacher.modules())


def test_ema_update__of_parameters_shared_out_over_devices(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
        expected = 0.8 * teacher.weight.detach() + 0.2 * student.weight.detach()
        for module in (student, teacher):
            for name, p in list(module.named_parameters()):
                setattr(module, name, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))
        assert isinstance(teacher.weight, DTensor)
        ema_update(teacher, student, 0.8)
        torch.testing.assert_close(teacher.weight.full_tensor(), expected)
    finally:
        dist.destroy_process_group()
