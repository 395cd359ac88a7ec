"""Masked autoencoding: MAE and SimMIM, in two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.image import ImageModel
from medfm.encoders.patches import patchify
from medfm.errors import ConfigError
from medfm.objectives.base import Objective, Parts
from medfm.objectives.config import MaeConfig
from medfm.objectives.gather import Gather, SingleDevice, current_gather
from medfm.objectives.mae_decoder import LinearHead, MaeDecoder
from medfm.objectives.masking import (
    Masks,
    block_score,
    check_split,
    draw_noise,
    foreground_score,
    is_foreground,
    masks_by_score,
    split_counts,
    unit_grid,
    units_to_patches,
)
from medfm.objectives.panels import Reconstruction
from medfm.transforms.draws import Draws
from medfm.types import Batch, EncoderOutput, ObjectiveOutput


def build(config: MaeConfig, parts: Parts) -> MaeObjective:
    """The objective of a recipe."""
    return MaeObjective(config, parts.image_encoder, parts.preprocess.config.std)


_EPSILON = 1e-6  # models_mae.py's, added to a patch's variance


@dataclass
class Target:
    """Pixels to predict, (B, M, P * C), as they are and as the loss takes them.

    Attributes:
        pixels: of the normalised images.
        wanted: `pixels`, or with norm_pix (pixels - mean) / deviation.
        mean, variance: (B, M, 1) of each patch, the latter unbiased; None without norm_pix.
    """

    pixels: Tensor
    wanted: Tensor
    mean: Tensor | None = None
    variance: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor, patch_size: tuple[int, ...], chosen: Tensor | None, norm_pix: bool) -> Target:
        """Of the patches `chosen`; MAE's arithmetic: unbiased variance over pixels and channels, 1e-6 added."""
        pixels = patchify(images, patch_size, chosen)
        pixels = pixels if pixels.dtype == torch.float64 else pixels.float()
        if not norm_pix:
            return cls(pixels, pixels)
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        return cls(pixels, (pixels - mean) / (variance + _EPSILON).sqrt(), mean, variance)

    def undo(self, predicted: Tensor) -> Tensor:
        """Predictions as pixels of the normalised images; norm_pix is undone with the true patch's mean and deviation."""
        if self.mean is None or self.variance is None:
            return predicted
        return predicted * (self.variance + _EPSILON).sqrt() + self.mean


class MaeObjective(Objective):
    """Predicts the pixels of masked patches.

    MAE: the encoder sees the other patches alone, and a light decoder reconstructs. SimMIM (`encode_all`): the encoder sees
    mask tokens in their place, so that any encoder with a patch embedding will do (timm's Swin); a linear layer reconstructs.
    The loss is the mean over pixels of a patch, then over masked patches of all images, weighted where background counts for
    less.

    Logs `relative_error`: the squared error of the masked pixels over that of predicting each patch's mean (of each channel),
    in pixels of the contract, norm_pix undone; below 1 something has been learned, 0 is perfect.

    Sources: He et al. 2022 (models_mae.py); Xie et al. 2022 (simmim.py).

    Args:
        config: masking, target, decoder.
        encoder: gives an EncoderOutput; has `embed_dim`, `grid_size`, `patch_size`, `in_channels`. With `drops_patches` it
            takes `keep`, with a `mask_dim` it takes `masked` and `mask_token`.
        std: the contract's standard deviation, one number or one a channel: brings errors and spreads to the unit range.
        gather: the devices; None is the default process group where one runs.

    Raises:
        ConfigError: the encoder cannot do what the config asks.
    """

    pixel_std: Tensor

    def __init__(self, config: MaeConfig, encoder: Any, std: Sequence[float] = (1.0,), gather: Gather | None = None) -> None:
        super().__init__()
        self.config = config
        self._gather = gather
        self.image_model = ImageModel(encoder)
        self.patch_size = tuple(encoder.patch_size)
        self.channels = int(encoder.in_channels)
        self.register_buffer("pixel_std", torch.tensor(tuple(std)).expand(self.channels).clone(), persistent=False)
        units = math.prod(unit_grid(encoder.grid_size, config.mask_unit))
        check_split(units, config.mask_ratio, "objective.mask_ratio", config.foreground_share)
        values = math.prod(self.patch_size) * self.channels
        self.mask_token: nn.Parameter | None = None
        if config.encode_all:
            if getattr(encoder, "mask_dim", None) is None:
                raise ConfigError(
                    "objective.encode_all: this encoder has no patch embedding that mask tokens could follow; use a ViT or Swin"
                )
            self.mask_token = nn.Parameter(torch.empty(encoder.mask_dim))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        elif not getattr(encoder, "drops_patches", False):
            raise ConfigError(
                "objective: this encoder encodes all patches; set objective.encode_all=true (SimMIM) or use the encoder 'vit'"
            )
        self.decoder: nn.Module = (
            LinearHead(encoder.embed_dim, values)
            if config.head == "linear"
            else MaeDecoder(
                encoder.embed_dim,
                tuple(encoder.grid_size),
                values,
                dim=config.decoder_dim,
                depth=config.decoder_depth,
                num_heads=config.decoder_heads,
                mlp_ratio=config.decoder_mlp_ratio,
                mask_tokens=not config.encode_all,
                gradient_checkpointing=bool(getattr(encoder, "gradient_checkpointing", False)),
            )
        )

    @property
    def gather(self) -> Gather:
        """In validation every device sees the whole split: there is nothing to gather."""
        return (self._gather or current_gather()) if self.training else SingleDevice()

    def model(self) -> ImageModel:
        return self.image_model

    def compile_encoders(self) -> None:
        super().compile_encoders()
        self.decoder.compile()

    def forward(self, batch: Batch, draws: Draws | None = None) -> ObjectiveOutput:
        """One batch of normalised images (B, C, *spatial) to a loss and numbers to log. `draws` decides the masks."""
        images = batch.images
        masks, foreground = self.draw_masks(images, draws)
        predicted = self.decoder(self._encode(images, masks, draws), masks)
        target = Target.of(images, self.patch_size, masks.masked, self.config.norm_pix)
        return self._loss(predicted, target, None if foreground is None else foreground.gather(1, masks.masked))

    def draw_masks(self, images: Tensor, draws: Draws | None) -> tuple[Masks, Tensor | None]:
        """What is seen and what is masked; with masking=foreground also which patches are foreground, (B, N) bool."""
        config, batch, device = self.config, len(images), images.device
        grid = tuple(n // p for n, p in zip(images.shape[2:], self.patch_size, strict=True))
        units = unit_grid(grid, config.mask_unit)
        count = math.prod(units)
        keep, masked = split_counts(count, config.mask_ratio, config.foreground_share)
        foreground: Tensor | None = None
        if config.masking == "block":
            score = block_score(
                batch, units, config.mask_ratio, config.block_scale, config.block_aspect, device=device, draws=draws
            )
        else:
            score = draw_noise(batch, count, device=device, draws=draws)
        if config.masking == "foreground":
            size = tuple(p * config.mask_unit for p in self.patch_size)
            foreground = is_foreground(images, size, config.foreground_threshold, self.pixel_std)
            score = foreground_score(foreground, keep + masked, score)
            if config.mask_unit > 1:
                foreground = is_foreground(images, self.patch_size, config.foreground_threshold, self.pixel_std)
        masks = masks_by_score(score, keep, masked)
        if config.mask_unit > 1:
            masks = Masks(*(units_to_patches(index, grid, config.mask_unit) for index in (masks.keep, masks.masked)))
        return masks, foreground

    def _encode(self, images: Tensor, masks: Masks, draws: Draws | None) -> EncoderOutput:
        if self.config.mask_channels:
            images = images * self._channels_seen(images, draws)
        encoder: Any = self.image_model.image_encoder
        if self.mask_token is None:
            return encoder(images, masks.keep)
        grid = tuple(n // p for n, p in zip(images.shape[2:], self.patch_size, strict=True))
        return encoder(images, masked=masks.map(math.prod(grid)), mask_token=self.mask_token)

    def _channels_seen(self, images: Tensor, draws: Draws | None) -> Tensor:
        """(B, C, 1, ...) of 1 and 0: what is dropped is 0, the contract's mean grey."""
        noise = draw_noise(*images.shape[:2], device=images.device, draws=draws)
        seen = (noise >= self.config.mask_channels) | (noise == noise.amax(dim=1, keepdim=True))
        return seen.to(images.dtype).reshape(*images.shape[:2], *[1] * len(self.patch_size))

    def _loss(self, predicted: Tensor, target: Target, foreground: Tensor | None) -> ObjectiveOutput:
        """Per patch, then over masked patches of all devices; see `medfm.objectives.gather` for values and gradients."""
        wanted = target.wanted
        predicted = predicted.to(wanted.dtype)
        if self.config.loss == "mse":
            per_pixel = (predicted - wanted).square()
        elif self.config.loss == "l1":
            per_pixel = (predicted - wanted).abs()
        else:
            per_pixel = F.smooth_l1_loss(predicted, wanted, reduction="none")
        per_patch = per_pixel.mean(dim=-1)
        if foreground is None:
            total, count = per_patch.sum(), per_patch.new_full((), per_patch.numel())
        else:
            weight = torch.where(foreground, 1.0, self.config.background_weight).to(per_patch.dtype)
            total, count = (per_patch * weight).sum(), weight.sum()
        gather = self.gather
        with torch.no_grad():
            error, spread = self._errors(predicted, target, per_patch if self.config.loss == "mse" else None)
            sums = gather.sum(torch.stack([total.detach(), count, error, spread]))
        count = sums[1].clamp(min=1e-30)  # not the smallest number, whose inverse times four devices is infinite
        mine = total * (gather.world_size / count)
        loss = mine + (sums[0] / count - mine.detach()) if gather.world_size > 1 else mine
        logs = {"loss": loss.detach(), "relative_error": sums[2] / sums[3].clamp(min=torch.finfo(sums.dtype).tiny)}
        if foreground is not None:
            logs["masked_foreground"] = foreground.float().mean()
        return ObjectiveOutput(loss, logs)

    def _errors(self, predicted: Tensor, target: Target, squared: Tensor | None) -> tuple[Tensor, Tensor]:
        """Squared errors in the contract's [0, 1] pixels, summed: of the prediction, and of each patch's mean a channel.
        `squared`: those of the loss by patch, where it has them."""
        scale = self.pixel_std.square().to(predicted.dtype)
        count = target.pixels.shape[-1]
        if self.channels == 1 and target.variance is not None and squared is not None:  # all sums are there
            error, spread = squared[..., None], target.variance * ((count - 1) / count)
        else:
            error = (target.wanted - predicted).square().unflatten(-1, (-1, self.channels)).mean(dim=-2)  # (B, M, C)
            spread = target.pixels.unflatten(-1, (-1, self.channels)).var(dim=-2, correction=0)
        if target.variance is not None:
            error = error * (target.variance + _EPSILON)
        return (error * scale).sum(), (spread * scale).sum()

    @torch.no_grad()
    def reconstruct(self, batch: Batch, draws: Draws | None = None) -> Reconstruction:
        """Pixels predicted for every patch that takes part, seen or masked; norm_pix undone. For `medfm.objectives.panels`."""
        images = batch.images
        masks, _ = self.draw_masks(images, draws)
        predicted = self.decoder(self._encode(images, masks, draws), masks, everything=True)
        order = torch.cat([masks.keep, masks.masked], dim=1)
        target = Target.of(images, self.patch_size, order, self.config.norm_pix)
        pixels = target.undo(predicted.to(target.pixels.dtype))
        count = math.prod(n // p for n, p in zip(images.shape[2:], self.patch_size, strict=True))
        made = pixels.new_zeros(len(images), count, pixels.shape[-1])
        made.scatter_(1, order[..., None].expand_as(pixels), pixels)
        part = torch.zeros(made.shape[:2], dtype=torch.bool, device=made.device).scatter_(1, order, True)
        return Reconstruction(made, part, masks.map(count))
