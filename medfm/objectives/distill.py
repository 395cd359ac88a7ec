"""Distillation: the student learns to say what a frozen teacher says of the same images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.image import ImageModel
from medfm.encoders.pooling import pooled
from medfm.errors import ConfigError, DataError
from medfm.objectives.base import Objective, Parts
from medfm.objectives.frozen import FrozenTeacher, teacher_from_encoder, teacher_from_file
from medfm.objectives.gather import Gather, SingleDevice, current_gather, mean_of_rows, mean_of_sums
from medfm.objectives.losses import at_least_float32
from medfm.objectives.masking import Masks, block_score, check_split, draw_noise, masks_by_score, split_counts
from medfm.objectives.ssl_config import DistillConfig
from medfm.transforms.draws import Draws
from medfm.types import Batch, EncoderOutput, ObjectiveOutput


def build(config: DistillConfig, parts: Parts) -> DistillObjective:
    """The objective of a recipe."""
    contract = parts.preprocess.config
    if config.teacher is not None:
        teacher = teacher_from_file(config.teacher, contract)
    else:
        assert config.teacher_encoder is not None
        teacher = teacher_from_encoder(config.teacher_encoder, contract, config.teacher_mean, config.teacher_std)
    return DistillObjective(config, ImageModel(parts.image_encoder), teacher)


class DistillObjective(Objective):
    """A linear head on the student predicts the teacher's features, or its similarities between images.

    - `target` cls, pooled, patches: features, by `config.loss`. With `mask_ratio` the student sees mask tokens in place of
      some patches and predicts the teacher's features of those alone (MVP, EVA).
    - `target` similarity: the teacher's soft assignment of an image to all images of the batch, by Kullback-Leibler divergence:
      DeiT's soft logits, for a teacher that has no classes.

    DeiT's hard targets and distillation token need a teacher with classes, which encoders do not have. Labels of the manifest,
    where `label_weight` is above 0, are learned by a linear classifier on the student's pooled feature: binary cross entropy
    over what is stated; uncertain and absent labels do not count.

    The teacher is no submodule: it is in no checkpoint and no weight file, and is read again when a run goes on.

    Sources: Touvron et al. 2021 (DeiT), section 4; Fang et al. 2021 (SEED), equations 3 to 5, with the batch for the queue;
    Wei et al. 2022 (MVP), equation 3; Fang et al. 2023 (EVA), section 2.1.

    Args:
        network: the student's encoder.
        teacher: see `FrozenTeacher`.
        gather: the devices of the batch; None is the default process group where one runs.

    Raises:
        ConfigError: masking with an encoder that takes no mask tokens; target=patches, which trains no attention over slices;
            on the first batch, target=cls without class tokens.
    """

    def __init__(
        self, config: DistillConfig, network: ImageModel, teacher: FrozenTeacher, gather: Gather | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self._teacher = (teacher,)  # in a tuple: nn.Module does not look into it
        self._gather = gather
        encoder: Any = network.image_encoder
        wanted = teacher.embedding_dim if config.target == "similarity" else teacher.embed_dim
        self.head = nn.Linear(encoder.embed_dim, wanted)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.mask_token: nn.Parameter | None = None
        if config.target == "patches" and not config.label_weight and getattr(encoder, "slice_pool", None) is not None:
            raise ConfigError("objective.target=patches trains no attention over slices: set encoder.pool=mean")
        if config.mask_ratio:
            if getattr(encoder, "mask_dim", None) is None:
                raise ConfigError("objective.mask_ratio: this encoder takes no mask tokens; use a ViT or Swin, or mask_ratio=0")
            check_split(math.prod(encoder.grid_size), config.mask_ratio, "objective.mask_ratio")
            self.mask_token = nn.Parameter(torch.empty(encoder.mask_dim))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.classifier = nn.Linear(encoder.embed_dim, config.label_count) if config.label_weight else None

    @property
    def teacher(self) -> FrozenTeacher:
        return self._teacher[0]

    @property
    def gather(self) -> Gather:
        return (self._gather or current_gather()) if self.training else SingleDevice()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts take the teacher along."""
        self.teacher._apply(fn)
        return super()._apply(fn, recurse)

    def model(self) -> ImageModel:
        return self.network

    def outside(self) -> list[nn.Module]:
        return [self.teacher]

    def compile_encoders(self) -> None:
        super().compile_encoders()
        self.teacher.network.image_encoder.compile()

    def forward(self, batch: Batch, draws: Draws | None = None) -> ObjectiveOutput:
        """One batch of normalised images to a loss and numbers to log. `draws` decides what is masked."""
        config, encoder = self.config, self.network.image_encoder
        masks = self._draw_masks(batch.images, draws) if self.mask_token is not None else None
        if masks is None:
            output = encoder(batch.images)
        else:
            output = encoder(batch.images, masked=masks.map(self._patches(batch.images)), mask_token=self.mask_token)
        if config.target == "similarity":
            loss, logs = self._similarity_loss(output, batch.images)
        else:
            loss, logs = self._feature_loss(output, batch.images, masks)
        if self.classifier is not None:
            labels = self._label_loss(output, batch.labels)
            loss = loss + config.label_weight * labels
            logs["label_loss"] = labels.detach()
        return ObjectiveOutput(loss, {"loss": loss.detach(), **logs})

    def _patches(self, images: Tensor) -> int:
        return math.prod(self._grid(images))

    def _grid(self, images: Tensor) -> tuple[int, ...]:
        patch: Any = self.network.image_encoder.patch_size
        return tuple(n // p for n, p in zip(images.shape[2:], patch, strict=True))

    def _draw_masks(self, images: Tensor, draws: Draws | None) -> Masks:
        config, grid, device = self.config, self._grid(images), images.device
        keep, masked = split_counts(math.prod(grid), config.mask_ratio)
        if config.masking == "block":
            # BEiT's blocks, as EVA takes them: 16 of 14 x 14 patches at least, sides up to .3 times or 1/.3 times.
            score = block_score(len(images), grid, config.mask_ratio, (0.08, 0.4), 0.3, device=device, draws=draws)
        else:
            score = draw_noise(len(images), math.prod(grid), device=device, draws=draws)
        return masks_by_score(score, keep, masked)

    def _pooled(self, output: EncoderOutput) -> Tensor:
        encoder: Any = self.network.image_encoder
        return pooled(output, encoder.pool)

    def _feature_loss(self, output: EncoderOutput, images: Tensor, masks: Masks | None) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        if config.target == "patches":
            theirs = self.teacher(images)
            wanted = _on_grid(theirs.patch_tokens, theirs.grid_size, output.grid_size)
            features = output.patch_tokens
            if masks is not None:
                features, wanted = (
                    x.gather(1, masks.masked[..., None].expand(-1, -1, x.shape[-1])) for x in (features, wanted)
                )
        elif config.target == "pooled":
            wanted, features = self.teacher.pooled(images), self._pooled(output)
        else:
            token = self.teacher(images).cls_token
            if token is None or output.cls_token is None:
                raise ConfigError("objective.target=cls: teacher or student has no class token; use target=pooled or patches")
            wanted, features = token, output.cls_token
        predicted, wanted = at_least_float32(self.head(features)), at_least_float32(wanted)
        if config.normalize_target:
            wanted = F.layer_norm(wanted, wanted.shape[-1:])
        cosine = F.cosine_similarity(predicted, wanted, dim=-1)
        if config.loss == "cosine":
            loss = 1 - cosine
        elif config.loss == "mse":
            loss = (predicted - wanted).square().mean(-1)
        else:
            loss = F.smooth_l1_loss(predicted, wanted, reduction="none").mean(-1)
        by_image = [x.reshape(len(x), -1).mean(1) for x in (loss, cosine.detach())]
        return mean_of_rows(by_image[0], self.gather), {"cosine": mean_of_rows(by_image[1], self.gather)}

    def _similarity_loss(self, output: EncoderOutput, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        gather = self.gather
        mine = F.normalize(at_least_float32(self.head(self._pooled(output))), dim=-1)
        theirs = self.teacher.embeddings(images).to(mine.dtype)
        everyone = gather.rows(theirs, gather.sizes(len(theirs), theirs.device))
        with torch.autocast(images.device.type, enabled=False):
            wanted = (theirs @ everyone.t() / self.config.teacher_temperature).softmax(dim=1)
            said = (mine @ everyone.t() / self.config.temperature).log_softmax(dim=1)
        divergence = F.kl_div(said, wanted, reduction="none").sum(1)
        cosine = mean_of_rows((mine * theirs).sum(1).detach(), gather)
        return mean_of_rows(divergence, gather), {"cosine": cosine}

    def _label_loss(self, output: EncoderOutput, labels: Tensor) -> Tensor:
        """Mean binary cross entropy of the labels that are 1 or 0, over all devices."""
        assert self.classifier is not None
        if labels.shape[1] != self.config.label_count:
            raise DataError(
                f"objective.label_count is {self.config.label_count}, but the manifest has {labels.shape[1]} label columns"
            )
        logits = at_least_float32(self.classifier(self._pooled(output)))
        stated = (labels == 0) | (labels == 1)
        # NaN times 0 is NaN: what is not stated is replaced before it meets the logits.
        losses = F.binary_cross_entropy_with_logits(logits, torch.where(stated, labels, 0).to(logits.dtype), reduction="none")
        return mean_of_sums((losses * stated).sum(), stated.sum().to(logits.dtype), self.gather)


def _on_grid(tokens: Tensor, grid: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    """Patch tokens (B, N, E) of `grid`, resampled linearly to `wanted` where that is another."""
    if grid == wanted:
        return tokens
    maps = at_least_float32(tokens).transpose(1, 2).unflatten(2, grid)  # on a CPU antialiasing takes no half precision
    mode = "bilinear" if len(grid) == 2 else "trilinear"
    return F.interpolate(maps, wanted, mode=mode, antialias=len(grid) == 2).flatten(2).transpose(1, 2)
