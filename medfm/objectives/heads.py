"""Heads between an encoder's features and a loss."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medfm.objectives.batch_norm import BatchNorm


class WeightNormLinear(nn.Module):
    """A linear map without bias whose rows are `weight_g * weight_v / |weight_v|`: `nn.utils.weight_norm(nn.Linear(...))`.

    Names, start and arithmetic are those of that function, so that a moving average acts on `weight_v` and `weight_g`, and
    weight decay on `weight_v`, as in DINO's code.

    Source: Salimans and Kingma 2016, "Weight Normalization", equations 2 and 3.

    Args:
        learn_norm: train `weight_g`, which starts at 1 and stays there otherwise.
    """

    def __init__(self, in_features: int, out_features: int, learn_norm: bool = False) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=learn_norm)
        self.weight_v = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x (n, in_features) -> (n, out_features)."""
        y: Tensor = _WeightNormLinear.apply(x, self.weight_v, self.weight_g)
        return y


class _WeightNormLinear(torch.autograd.Function):
    """The gain `s = g / |v|` is put on the output instead of on the matrix, which is the same by the distributive law: with
    65536 prototypes neither the normalised matrix nor its gradient (64 MB each in float32) is ever made."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, g: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        norm = torch.linalg.vector_norm(v, dim=1, dtype=torch.promote_types(v.dtype, torch.float32))
        gain = g.squeeze(1) / norm
        x_low, v_low = x.to(dtype), v.to(dtype)
        y = F.linear(x_low, v_low)
        ctx.save_for_backward(x_low, v_low, v, norm, gain, y)
        ctx.dtype = x.dtype
        return y * gain.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, v_low, v, norm, gain, y = ctx.saved_tensors
        along = (grad * y).sum(0, dtype=norm.dtype)  # of each gain
        grad_y = grad * gain.to(grad.dtype)
        grad_v = (grad_y.t() @ x).to(v.dtype)
        # A row's length is no part of v: what the gradient has along it is taken out.
        grad_v.addcmul_(v, (-along * gain / norm.square()).to(v.dtype)[:, None])
        grad_g = (along / norm)[:, None] if ctx.needs_input_grad[2] else None
        return (grad_y @ v_low).to(ctx.dtype), grad_v, grad_g


class DinoHead(nn.Module):
    """Features to logits over prototypes: an MLP, l2 normalisation, and a weight-normalised linear layer.

    State-dict names are those of DINO's and DINOv2's `DINOHead`.

    Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", section 3.1 and
    vision_transformer.py.

    Args:
        in_dim: of the encoder's features.
        out_dim: prototypes, K.
        layers: linear layers of the MLP; 1 is a single projection to the bottleneck.
        norm_last_layer: each prototype has norm 1; False learns the norms, which is stronger and less stable.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        sizes = [in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        mlp: list[nn.Module] = []
        for before, after in pairwise(sizes):
            linear = nn.Linear(before, after)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            mlp += [linear, nn.GELU()]
        # FB's head of one layer is a plain Linear named `mlp`.
        self.mlp = nn.Sequential(*mlp[:-1]) if layers > 1 else mlp[0]
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim, learn_norm=not norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, in_dim) -> logits (n, out_dim)."""
        x = self.mlp(x)
        return self.last_layer(F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12))


class ProjectionHead(nn.Sequential):
    """Linear layers with batch normalisation and ReLU between: the projectors and predictors of two-view objectives.

    Linear layers have a bias only where no batch normalisation is asked for: BYOL's and Barlow Twins' last one has none, and
    before a normalisation it would be taken away again.

    Args:
        in_dim, hidden_dim, out_dim: features of the input, between layers, and of the output.
        layers: linear layers, at least 1.
        batch_norm: after every hidden layer; statistics are those of the batch of all devices.
        last_norm: what follows the last layer: "none" (BYOL, Barlow Twins), "plain" batch normalisation without scale and
            shift (MoCo v3), "affine" with them (SimCLR).
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        layers: int = 2,
        batch_norm: bool = True,
        last_norm: Literal["none", "plain", "affine"] = "none",
    ) -> None:
        sizes = [in_dim, *[hidden_dim] * (layers - 1), out_dim]
        modules: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(sizes), start=1):
            modules.append(nn.Linear(before, after, bias=not batch_norm))
            if number < layers:
                modules += [BatchNorm(after), nn.ReLU(inplace=True)] if batch_norm else [nn.ReLU(inplace=True)]
        if last_norm != "none":
            modules.append(BatchNorm(out_dim, affine=last_norm == "affine"))
        super().__init__(*modules)
