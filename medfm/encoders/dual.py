"""An image encoder and a text encoder with one joint space."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medfm.encoders.pooling import pooled
from medfm.types import EncoderOutput, TextOutput

Dense = Literal["patches", "values"]


def unit(x: Tensor) -> Tensor:
    """Of unit norm along the last axis, in float32 at least: `torch.nn.functional.normalize`, whose gradient costs less here.

    The patch tokens of a batch of volumes are some ten million numbers, which autograd's chain of a division and a norm passes
    over nine times, this thrice.
    """
    made: Tensor = _Unit.apply(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
    return made


class _Unit(torch.autograd.Function):
    """y = x / |x|; dx = (dy - y (y . dy)) / |x|."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
        y = x / norm
        ctx.save_for_backward(y, norm)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, norm = ctx.saved_tensors
        return torch.addcmul(grad, y, (grad * y).sum(dim=-1, keepdim=True), value=-1) / norm


def projection_head(width: int, embed_dim: int, kind: Literal["linear", "mlp"]) -> nn.Module:
    """To the joint space: CLIP's matrix, or ConVIRT's two layers with a ReLU between (hidden size = input, as SimCLR)."""
    if kind == "linear":
        head = nn.Linear(width, embed_dim, bias=False)
        nn.init.normal_(head.weight, std=width**-0.5)
        return head
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, embed_dim))


class DualEncoder(nn.Module):
    """Images and texts as unit vectors of one space, (B, D); what contrastive training learns and zero-shot uses.

    Args:
        image_encoder: gives an EncoderOutput; has `embed_dim` and `pool`.
        text_encoder: gives a TextOutput; has `embed_dim`.
        embed_dim: D.
        projection: "linear" (CLIP) or "mlp" (ConVIRT).
        temperature: `logit_scale` starts at log(1 / temperature).
        learn_temperature: whether `logit_scale` is a parameter or a buffer.
        logit_bias: start of SigLIP's learnable bias; None for none.
        dense: what stands for a patch beside a text, with pool=cls: "patches", the patch tokens, where training aligned them
            with texts; "values", see `image_tokens`, where training aligned the class token alone.
    """

    logit_scale: Tensor

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        embed_dim: int,
        projection: Literal["linear", "mlp"] = "linear",
        temperature: float = 0.07,
        learn_temperature: bool = True,
        logit_bias: float | None = None,
        dense: Dense = "values",
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.embed_dim = embed_dim
        self.dense = dense
        self.image_projection = projection_head(int(image_encoder.embed_dim), embed_dim, projection)  # type: ignore[arg-type]
        self.text_projection = projection_head(int(text_encoder.embed_dim), embed_dim, projection)  # type: ignore[arg-type]
        scale = torch.tensor(math.log(1 / temperature))
        if learn_temperature:
            self.logit_scale = nn.Parameter(scale)
        else:
            self.register_buffer("logit_scale", scale)
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(float(logit_bias)))

    def encode_image(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x (B, C, *spatial) -> (B, D) of unit norm, float32. `keep`: see the encoder."""
        return self.encode_image_and_patches(x, keep)[0]

    def encode_image_and_patches(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, EncoderOutput]:
        """As `encode_image`, and what the encoder gave."""
        output = self.image_encoder(x, keep)
        return unit(self.image_projection(pooled(output, self.image_encoder.pool))), output  # type: ignore[arg-type]

    def encode_text(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """tokens, mask (B, T) -> (B, D) of unit norm, float32."""
        return self.encode_text_and_words(tokens, attention_mask)[0]

    def encode_text_and_words(self, tokens: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, TextOutput]:
        """As `encode_text`, and what the encoder gave."""
        output = self.text_encoder(tokens, attention_mask)
        return unit(self.text_projection(output.pooled)), output

    @property
    def token_centre(self) -> tuple[float, ...] | None:
        """Where in its patch a token of `image_tokens` is centred, a share of it along each axis; None: in the middle."""
        return getattr(self.image_encoder, "token_centre", None)

    def image_tokens(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """x (B, C, *spatial) -> patch tokens in the joint space, (B, N, D) float32, and their grid.

        With pool=mean or max and a linear projection the image's vector is made of the projected tokens themselves. They keep
        their lengths then, in units of that vector's before it is normalised: with pool=mean their mean is the image's vector,
        so that each has its share of the score, and what is short (air, whose direction is chance) counts for little, as in
        class activation maps (Zhou et al. 2016).

        Else they are of unit norm. Where training aligned the patch tokens themselves (`dense` is "patches"), they are
        taken whatever the pooling. With pool=cls and "values" the patches' own outputs never met the text; where the encoder
        offers it, their values pass through the last block instead (MaskCLIP, see `VisionTransformer.forward_dense`).
        """
        encoder = self.image_encoder
        values = encoder.pool == "cls" and self.dense == "values"
        output = getattr(encoder, "forward_dense", encoder)(x) if values else encoder(x)
        tokens = self.image_projection(output.patch_tokens)
        if encoder.pool not in ("mean", "max") or not isinstance(self.image_projection, nn.Linear):
            return unit(tokens), output.grid_size
        whole = torch.linalg.vector_norm(self.image_projection(pooled(output, encoder.pool)).float(), dim=1)  # type: ignore[arg-type]
        return tokens.float() / whole.clamp_min(1e-12)[:, None, None], output.grid_size
