"""Batch normalisation with the statistics of all devices' rows, on any backend.

torch's SyncBatchNorm runs on CUDA alone and wants equal layouts; heads are small matrices, so a few tensor operations do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.errors import ConfigError
from medfm.objectives.gather import Gather, current_gather


def batch_moments(x: Tensor, gather: Gather) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number () of the rows x (n, C) of all devices, through which gradients flow.

    The sums are of x and of the squared deviations from the common mean: E[x^2] - E[x]^2 would lose all digits where the mean
    is large.
    """
    count = gather.sum(x.new_full((), x.shape[0]))
    mean = gather.sum_with_grad(x.sum(0)) / count
    variance = gather.sum_with_grad((x - mean).square().sum(0)) / count
    return mean, variance, count


def standardise(x: Tensor, gather: Gather, eps: float = 1e-5) -> Tensor:
    """x (n, C) with mean 0 and variance 1 along the rows of all devices, no learned scale; a single row becomes 0."""
    if gather.world_size == 1 and x.shape[0] > 1:
        return F.batch_norm(x, None, None, training=True, eps=eps)
    mean, variance, _ = batch_moments(x, gather)
    return (x - mean) * (variance + eps).rsqrt()


class BatchNorm(nn.Module):
    """`nn.BatchNorm1d` for features (n, C), whose batch is that of all devices. State-dict names and arithmetic are the same.

    Source: Ioffe and Szegedy 2015, algorithm 1; statistics over devices as SimCLR (section 2.3), BYOL and Barlow Twins ask for.

    Args:
        features: C.
        affine: learn a scale and a shift.
        momentum: of the running statistics; `running = (1 - momentum) * running + momentum * batch`.
        gather: the devices of the batch; None is the default process group where one runs.

    Raises:
        ConfigError: in training, of a batch of a single row, whose variance is not defined.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, features: int, affine: bool = True, momentum: float = 0.1, eps: float = 1e-5, gather: Gather | None = None
    ) -> None:
        super().__init__()
        self.momentum, self.eps, self.gather = momentum, eps, gather
        self.weight = nn.Parameter(torch.ones(features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, C) -> (n, C) of the same dtype."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        self.num_batches_tracked += 1
        gather = self.gather or current_gather()
        if gather.world_size == 1:
            if x.shape[0] < 2:
                raise ConfigError("batch normalisation needs two images at least: raise data.batch_size")
            # One fused call, with the same arithmetic.
            running = (self.running_mean, self.running_var)
            return F.batch_norm(x, *running, self.weight, self.bias, True, self.momentum, self.eps)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        with torch.autocast(x.device.type, enabled=False):
            mean, variance, count = batch_moments(wide, gather)
            self._track(mean.detach(), variance.detach(), count)
            y = (wide - mean) * (variance + self.eps).rsqrt()
            if self.weight is not None and self.bias is not None:
                y = torch.addcmul(self.bias, y, self.weight)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """The running variance is the unbiased one, as torch's."""
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
