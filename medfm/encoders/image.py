"""An image encoder alone: what is kept of pre-training without text."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.pooling import pooled


class ImageModel(nn.Module):
    """Images as unit vectors of the encoder's own feature space, (B, E): the sibling of `DualEncoder` without a text side.

    Its tensors have the names that a DualEncoder's image side has, so that weights move between objectives.

    Args:
        image_encoder: gives an EncoderOutput; has `embed_dim` and `pool`.
    """

    def __init__(self, image_encoder: nn.Module) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.embed_dim = int(image_encoder.embed_dim)  # type: ignore[arg-type]

    def encode_image(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x (B, C, *spatial) -> (B, E) of unit norm, float32."""
        features = pooled(self.image_encoder(x, keep), self.image_encoder.pool)  # type: ignore[arg-type]
        return F.normalize(features.float(), dim=-1)
