"""Image-report alignment: CLIP, ConVIRT, SigLIP and FLIP as settings of one objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from medfm.encoders.build import build_dual
from medfm.encoders.dual import DualEncoder
from medfm.errors import DataError
from medfm.objectives.base import Objective, Parts
from medfm.objectives.config import ContrastiveConfig
from medfm.objectives.gather import Gather, current_gather
from medfm.objectives.grad_cache import encode_in_chunks
from medfm.objectives.losses import ContrastiveLoss, info_nce, sigmoid_loss
from medfm.objectives.masking import draw_keep
from medfm.transforms.draws import Draws
from medfm.types import Batch, ObjectiveOutput


def build(config: ContrastiveConfig, parts: Parts) -> ContrastiveObjective:
    """The objective of a recipe."""
    return ContrastiveObjective(config, build_dual(lambda: parts.image_encoder, config, parts.tokenizer))


class ContrastiveObjective(Objective):
    """Pulls an image and its own report together and apart from the others of the batch, over all devices.

    Rows without text take no part. Pairs of the same patient, or with the same or both normal reports, are no negatives.
    With `patch_dropout` a random share of patches is hidden from the image encoder in training; with `cache_chunk` the
    encoders run over chunks and gradients stay exact (see `medfm.objectives.grad_cache`).

    Args:
        config: loss, temperature bounds, masking, dropout and caching.
        dual: the encoders; owned here, saved by `medfm.weights`.
        to_float: the contract's pixels-to-float step, run a chunk at a time; None where the batch is float already.
        gather: the devices to contrast over; None is the default process group where one runs.

    Raises:
        DataError: a batch has no text.
        ConfigError: patch dropout with an encoder that cannot leave patches out.
    """

    def __init__(
        self,
        config: ContrastiveConfig,
        dual: DualEncoder,
        to_float: Callable[[Tensor], Tensor] | None = None,
        gather: Gather | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.dual = dual
        self.to_float = to_float
        self.gather = gather

    def forward(self, batch: Batch, draws: Draws | None = None) -> ObjectiveOutput:
        """One batch to a loss and numbers to log. `draws` says which patches are dropped."""
        with_text, rows, dropped = _rows_with_text(batch)
        image, text = self._encode(with_text, self._keep(batch, rows, draws), draws)
        paired = batch.images.shape[0] - dropped  # 0 where a single row stands in for a batch without any text
        result = self._loss(image[:paired], text[:paired], with_text)
        logs = {
            "loss": result.loss.detach(),
            **{f"loss_{name}": value for name, value in result.terms.items()},
            "accuracy_image_to_text": result.image_to_text,
            "accuracy_text_to_image": result.text_to_image,
            "logit_scale": self.dual.logit_scale.detach().exp(),
            "masked_negatives": result.masked,
            "rows_without_text": torch.tensor(float(dropped)),
        }
        if self.dual.logit_bias is not None:
            logs["logit_bias"] = self.dual.logit_bias.detach().clone()
        return ObjectiveOutput(result.loss, logs)

    @torch.no_grad()
    def after_optimizer_step(self, step: int, total: int) -> None:
        """Keep the learned logit scale at or below its bound (CLIP, section 2.5)."""
        if self.dual.logit_scale.requires_grad:
            self.dual.logit_scale.clamp_(max=math.log(self.config.max_logit_scale))

    def model(self) -> DualEncoder:
        return self.dual

    def _keep(self, batch: Batch, rows: Tensor | None, draws: Draws | None) -> Tensor | None:
        """Patches that stay, drawn for the whole batch before any row or chunk is set apart: devices and chunks then see what
        one batch would have seen."""
        if not self.training or self.config.patch_dropout == 0:
            return None
        patches = math.prod(self.dual.image_encoder.grid_size)  # type: ignore[arg-type]
        keep = draw_keep(batch.images.shape[0], patches, self.config.patch_dropout, device=batch.images.device, draws=draws)
        return keep if rows is None else keep[rows]

    def _encode(self, batch: Batch, keep: Tensor | None, draws: Draws | None) -> tuple[Tensor, ...]:
        return encode_in_chunks(
            self._encode_chunk,
            [batch.images, batch.tokens, batch.attention_mask, keep],
            self.config.cache_chunk or batch.images.shape[0],
            modules=[self.dual],
            generators=[] if draws is None else [draws.generator],
        )

    def _encode_chunk(
        self, images: Tensor, tokens: Tensor, attention_mask: Tensor | None, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        images = images if self.to_float is None else self.to_float(images)
        return self.dual.encode_image(images, keep), self.dual.encode_text(tokens, attention_mask)

    def _loss(self, image: Tensor, text: Tensor, batch: Batch) -> ContrastiveLoss:
        groups = []
        if self.config.mask_same_patient:
            groups.append(batch.patient[: image.shape[0]])
        if self.config.mask_same_text:
            groups.append(batch.text_group[: image.shape[0]])
            if batch.drawn is not None:  # sampling sentences can draw the same one from different reports
                groups.append(batch.drawn[: image.shape[0]])
        gather, tile, scale = self.gather or current_gather(), self.config.tile, self.dual.logit_scale
        if self.config.loss == "sigmoid":
            assert self.dual.logit_bias is not None
            return sigmoid_loss(image, text, scale, self.dual.logit_bias, groups=groups, gather=gather, tile=tile)
        return info_nce(image, text, scale, image_weight=self.config.image_weight, groups=groups, gather=gather, tile=tile)


def _rows_with_text(batch: Batch) -> tuple[Batch, Tensor | None, int]:
    """The batch without its rows that have no text, the rows that stayed (None: all), and how many were left out.

    They are taken out before the encoders: a text of padding alone gives NaN in many of them, and NaN times a zero gradient
    is NaN.
    A batch without any text keeps one row, so that every device has parameters to synchronise.
    """
    if batch.tokens is None:
        raise DataError("the contrastive objective learns from reports, but the batch has no text; index with reports=...")
    with_text = batch.text_group >= 0
    if batch.drawn is not None:
        with_text &= batch.drawn >= 0
    has_text = with_text.nonzero().squeeze(1)
    size = batch.text_group.shape[0]
    dropped = size - has_text.numel()
    if dropped == 0:
        return batch, None, 0
    rows = has_text if dropped < size else has_text.new_zeros(1)
    picked = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **picked), rows, dropped
