"""Several devices' batches as one: an all-gather through which gradients flow, and the small reductions that losses need.

Convention. Let `L` be the loss that one process would have on the rows of all devices. Every device returns the value of `L`
and gives its own features the gradient of `world_size * L`; the data-parallel wrapper then averages parameter gradients over
devices, the world size cancels, and what the optimiser sees is exactly the gradient of `L`. Devices may hold different numbers
of rows (some had no text).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class Gather(Protocol):
    """What a loss asks of the devices. `sizes` holds each device's number of rows, in rank order."""

    world_size: int
    rank: int

    def sizes(self, rows: int, device: torch.device) -> list[int]: ...

    def rows(self, x: Tensor, sizes: list[int]) -> Tensor: ...

    def sum(self, x: Tensor) -> Tensor: ...

    def sum_with_grad(self, x: Tensor) -> Tensor: ...

    def max(self, x: Tensor) -> Tensor: ...


class SingleDevice:
    """One process: everything is already here."""

    world_size = 1
    rank = 0

    def sizes(self, rows: int, device: torch.device) -> list[int]:
        return [rows]

    def rows(self, x: Tensor, sizes: list[int]) -> Tensor:
        return x

    def sum(self, x: Tensor) -> Tensor:
        return x

    def sum_with_grad(self, x: Tensor) -> Tensor:
        return x

    def max(self, x: Tensor) -> Tensor:
        return x


class DeviceGather:
    """The devices of a torch.distributed process group.

    Args:
        group: the process group; None is the default group, which must be initialised.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.world_size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def sizes(self, rows: int, device: torch.device) -> list[int]:
        """Each device's number of rows; `device` is where the collective runs."""
        mine = torch.full((1,), rows, dtype=torch.int64, device=device)
        everyone = mine.new_empty(self.world_size)
        dist.all_gather_into_tensor(everyone, mine, group=self.group)
        return everyone.tolist()

    def rows(self, x: Tensor, sizes: list[int]) -> Tensor:
        """(n, ...) of this device -> (sum(sizes), ...) of all, in rank order. The backward sums over devices."""
        gathered: Tensor = _AllGather.apply(x, sizes, self)
        return gathered

    def sum(self, x: Tensor) -> Tensor:
        """Sum over devices, without gradients."""
        total = x.detach().clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=self.group)
        return total

    def sum_with_grad(self, x: Tensor) -> Tensor:
        """Sum over devices, through which gradients flow: the backward sums over devices too."""
        total: Tensor = _AllReduce.apply(x, self)
        return total

    def max(self, x: Tensor) -> Tensor:
        """Largest over devices, without gradients."""
        largest = x.detach().clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return largest


class _AllGather(torch.autograd.Function):
    """All-gather of rows; the derivative of a gather is the reduce-scatter of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], gather: DeviceGather) -> Tensor:
        ctx.sizes, ctx.gather = sizes, gather
        most = max(sizes)
        # Collectives want equal shapes: shorter devices send rows of zeros, which are cut off on arrival.
        sent = x.contiguous() if x.shape[0] == most else torch.cat([x, x.new_zeros(most - x.shape[0], *x.shape[1:])])
        out = x.new_empty(most * gather.world_size, *x.shape[1:])
        dist.all_gather_into_tensor(out, sent, group=gather.group)
        if min(sizes) == most:
            return out
        return torch.cat([part[:size] for part, size in zip(out.split(most), sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        sizes, gather = ctx.sizes, ctx.gather
        most = max(sizes)
        if min(sizes) < most:
            padded = grad.new_zeros(gather.world_size, most, *grad.shape[1:])
            for target, part in zip(padded, grad.split(sizes), strict=True):
                target[: part.shape[0]] = part
            grad = padded.flatten(0, 1)
        mine = grad.new_empty(most, *grad.shape[1:])
        dist.reduce_scatter_tensor(mine, grad.contiguous(), op=dist.ReduceOp.SUM, group=gather.group)
        return mine[: sizes[gather.rank]], None, None


class _AllReduce(torch.autograd.Function):
    """All devices use the sum, so that each gives its terms the sum of all devices' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gather: DeviceGather) -> Tensor:
        ctx.gather = gather
        return gather.sum(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.gather.sum(grad), None


def mean_of_rows(values: Tensor, gather: Gather) -> Tensor:
    """The mean of a loss a row, (n,), over the rows of all devices; 0 of no rows."""
    return mean_of_sums(values.sum(), values.new_full((), values.shape[0]), gather)


def mean_of_sums(total: Tensor, count: Tensor, gather: Gather) -> Tensor:
    """`total` () over `count` (), each summed over devices, with gradients as the convention asks; 0 where nothing counts."""
    mine = total / gather.sum(count).clamp(min=1)
    # This device's gradient is that of world_size * its share; only the value needs the other devices.
    return mine * gather.world_size + (gather.sum(mine.detach()) - mine.detach() * gather.world_size)


def current_gather() -> Gather:
    """The default process group where one with several processes is running, else this device alone."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return DeviceGather()
    return SingleDevice()
