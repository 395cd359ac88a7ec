"""Teachers that follow a student: exponential moving averages of weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medfm.objectives.batch_norm import BatchNorm

M = TypeVar("M", bound=nn.Module)


def make_teacher(student: M) -> M:
    """A copy of `student` that no gradient reaches, in eval mode: no dropout, no drop path."""
    return deepcopy(student).requires_grad_(False).eval()


def teacher_mode(teacher: nn.Module, training: bool) -> None:
    """Eval mode, but in training batch norms normalise by the teacher's own batch, as in DINO's, MoCo v3's and BYOL's code.

    To be called where `nn.Module.train` has set all of an objective, its teacher too, to training.
    """
    teacher.eval()
    for module in teacher.modules():
        if isinstance(module, BatchNorm | nn.modules.batchnorm._BatchNorm):
            module.train(training)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """`teacher = momentum * teacher + (1 - momentum) * student`, in place, one fused call for all parameters.

    Buffers are left alone, as in the authors' code: a teacher's batch norms keep the running statistics of its own batches.
    Parameters sharded over devices are averaged shard by shard; teacher and student must be sharded alike.

    Source: DINO (Caron et al. 2021), main_dino.py; as one foreach-lerp it takes less than a third of that loop's time.
    """
    averaged = [_local(p) for p in teacher.parameters()]
    torch._foreach_lerp_(averaged, [_local(p) for p in student.parameters()], 1 - momentum)


def _local(parameter: Any) -> Tensor:
    """This device's part. (Importing DTensor to ask for it by type takes a second.)"""
    local: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.detach()
