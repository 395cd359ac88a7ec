"""From tokens to the one feature that stands for an image."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from medfm.encoders.vit import VisionTransformer
from medfm.errors import ConfigError
from medfm.types import EncoderOutput

Pool = Literal["cls", "mean", "max", "cls+mean"]


def pooled(output: EncoderOutput, pool: Pool) -> Tensor:
    """The class token, or the mean or the maximum of the patch tokens, (B, E), or class token and mean, (B, 2 E).

    The maximum (Oquab et al. 2015, "Is object localization for free?") sees a finding in a few of thousands of patches, which
    a mean dilutes.

    Raises:
        ConfigError: pool=cls of an encoder without a class token.
    """
    if pool == "mean":
        return output.patch_tokens.mean(dim=1)
    if pool == "max":
        return output.patch_tokens.amax(dim=1)
    if output.cls_token is None:
        raise ConfigError("encoder.pool: 'cls' needs an encoder with a class token, this one has none; use pool=mean")
    return output.cls_token if pool == "cls" else torch.cat([output.cls_token, output.patch_tokens.mean(dim=1)], dim=1)


def image_features(encoder: Any, x: Tensor) -> Tensor:
    """x (B, C, *spatial) -> (B, E): `pooled(encoder(x), encoder.pool)`, by a ViT's shorter way where it is the class token."""
    if encoder.pool == "cls" and isinstance(encoder, VisionTransformer):
        return pooled(encoder(x, class_only=True), "cls")
    return pooled(encoder(x), encoder.pool)


def last_blocks(encoder: Any, x: Tensor, blocks: int = 1) -> list[EncoderOutput]:
    """What the last `blocks` blocks give of x (B, C, *spatial), each after the encoder's last norm, the earliest first.

    Raises:
        ConfigError: the encoder has fewer blocks, or does not show its blocks (`forward_blocks`).
    """
    if blocks == 1:
        return [encoder(x)]
    if not hasattr(encoder, "forward_blocks"):
        raise ConfigError(f"blocks={blocks}: a {type(encoder).__name__} gives its last features alone; use blocks=1")
    outputs: list[EncoderOutput] = encoder.forward_blocks(x, blocks)
    return outputs


def patch_block_features(encoder: Any, x: Tensor, blocks: int = 1) -> tuple[Tensor, tuple[int, ...]]:
    """Patch tokens of the last `blocks` blocks side by side, the earlier ones first: (B, N, E * blocks), and their grid.

    Source: Oquab et al. 2023 (DINOv2), section 7.4: its "+ms" segmentation head reads the last four blocks.

    Raises:
        ConfigError: as `last_blocks`.
    """
    outputs = last_blocks(encoder, x, blocks)
    return torch.cat([output.patch_tokens for output in outputs], dim=2), tuple(outputs[0].grid_size)


def block_features(encoder: Any, x: Tensor, pool: Pool, blocks: int = 1) -> Tensor:
    """Features of the last `blocks` blocks side by side, the earlier ones first, as DINO's linear evaluation takes them.

    "cls": of each block the class token, after the encoder's last norm; "mean", "max": of each that of the patch tokens;
    "cls+mean": the class tokens, then the mean patch token of the last block.

    Source: Caron et al. 2021 (DINO), eval_linear.py, options n_last_blocks and avgpool_patchtokens.

    Args:
        encoder: as `last_blocks` takes it.
        x: (B, C, *spatial).

    Returns:
        (B, E * blocks), with "cls+mean" (B, E * (blocks + 1)).

    Raises:
        ConfigError: the encoder has no class token, fewer blocks, or does not show its blocks.
    """
    outputs = last_blocks(encoder, x, blocks)
    if blocks == 1:
        return pooled(outputs[0], pool)
    if pool in ("mean", "max"):
        return torch.cat([pooled(output, pool) for output in outputs], dim=1)
    parts = [pooled(output, "cls") for output in outputs]
    return torch.cat([*parts, pooled(outputs[-1], "mean")] if pool == "cls+mean" else parts, dim=1)
