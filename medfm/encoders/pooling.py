"""From tokens to the one feature that stands for an image."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from medfm.errors import ConfigError
from medfm.types import EncoderOutput


def pooled(output: EncoderOutput, pool: Literal["cls", "mean"]) -> Tensor:
    """The class token or the mean of the patch tokens, (B, E).

    Raises:
        ConfigError: pool=cls of an encoder without a class token.
    """
    if pool == "mean":
        return output.patch_tokens.mean(dim=1)
    if output.cls_token is None:
        raise ConfigError("encoder.pool: 'cls' needs an encoder with a class token, this one has none; use pool=mean")
    return output.cls_token
