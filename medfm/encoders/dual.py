"""An image encoder and a text encoder with one joint space."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.pooling import pooled


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
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.embed_dim = embed_dim
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
        features = pooled(self.image_encoder(x, keep), self.image_encoder.pool)  # type: ignore[arg-type]
        return F.normalize(self.image_projection(features).float(), dim=-1)

    def encode_text(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """tokens, mask (B, T) -> (B, D) of unit norm, float32."""
        return F.normalize(self.text_projection(self.text_encoder(tokens, attention_mask).pooled).float(), dim=-1)

    def image_tokens(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """x (B, C, *spatial) -> patch tokens in the joint space, (B, N, D) of unit norm, and their grid.

        With pool=mean and a linear projection the image's vector is the normalised mean of the projected tokens, so that each
        token has its share of the score. With pool=cls the patches' own outputs never met the text; where the encoder offers
        it, their values pass through the last block instead (MaskCLIP, see `VisionTransformer.forward_dense`).
        """
        encoder = self.image_encoder
        dense = getattr(encoder, "forward_dense", encoder) if encoder.pool == "cls" else encoder
        output = dense(x)
        return F.normalize(self.image_projection(output.patch_tokens).float(), dim=-1), output.grid_size
