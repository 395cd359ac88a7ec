"""MoCo: a query finds the key that a slow teacher made of the other view, in the batch (v3) or against a queue (v2)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.image import ImageModel
from medfm.objectives.base import Parts
from medfm.objectives.gather import Gather
from medfm.objectives.heads import ProjectionHead
from medfm.objectives.ssl_config import MocoConfig
from medfm.objectives.ssl_losses import key_loss, queue_loss
from medfm.objectives.two_views import Branch, MakeViews, TeacherObjective, build_views, freeze_patch_embed, groups_of
from medfm.transforms.draws import Draws
from medfm.types import Batch, ObjectiveOutput


def build(config: MocoConfig, parts: Parts) -> MocoObjective:
    """The objective of a recipe."""
    return MocoObjective(config, ImageModel(parts.image_encoder), build_views(config, parts), parts.batch_size)


class MocoObjective(TeacherObjective):
    """Queries of the student (encoder, projector, predictor) against keys of its moving average (encoder, projector).

    Without a queue `loss = 2t (ctr(q1, k2) + ctr(q2, k1))`, ctr the cross entropy over the batch's keys. With one
    `loss = ctr(q1, k2) + ctr(q2, k1)`, over the own key and the queue, which then takes up the keys of both views in place of
    its oldest.

    Sources: Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers", algorithm 1; He et al.
    2020, "Momentum Contrast", algorithm 1, both views as queries as in the authors' symmetric version.

    Args:
        network: the encoder to train.
        views, batch_size, gather: as in `TeacherObjective`.

    Raises:
        ConfigError: freeze_patch_embed with an encoder that has no patch embedding.
    """

    config: MocoConfig
    queue: Tensor
    queue_patient: Tensor
    queue_text: Tensor
    queue_next: Tensor

    def __init__(
        self, config: MocoConfig, network: ImageModel, views: MakeViews, batch_size: int, gather: Gather | None = None
    ) -> None:
        if config.freeze_patch_embed:
            freeze_patch_embed(network.image_encoder)
        norm = config.batch_norm
        last: Literal["plain", "none"] = "plain" if norm else "none"
        head = ProjectionHead(network.embed_dim, config.hidden_dim, config.out_dim, config.layers, norm, last)
        super().__init__(config, Branch(network, head), views, batch_size, gather)
        self.predictor: nn.Module = nn.Identity()
        if config.predictor_layers:
            sizes = (config.out_dim, config.hidden_dim, config.out_dim)
            self.predictor = ProjectionHead(*sizes, config.predictor_layers, norm, last)
        if config.queue:
            # Random directions at first, as MoCo's; no image's code is -2.
            self.register_buffer("queue", F.normalize(torch.randn(config.queue, config.out_dim), dim=1))
            self.register_buffer("queue_patient", torch.full((config.queue,), -2))
            self.register_buffer("queue_text", torch.full((config.queue,), -2))
            self.register_buffer("queue_next", torch.tensor(0))

    def forward(self, batch: Batch, draws: Draws | None = None) -> ObjectiveOutput:
        """One batch, its images as stored, to a loss and numbers to log."""
        views = self.two_views(batch, draws)
        first, second = (self.predictor(part) for part in self.student(views))
        key_first, key_second = self.targets(views)
        temperature, gather = self.config.temperature, self.gather
        if self.config.queue:
            # In validation patients are numbered anew, and none of them is in the queue.
            groups = self._queue_groups(batch) if self.training else []
            both = [
                queue_loss(query, key, self.queue, temperature, groups=groups, gather=gather)
                for query, key in ((first, key_second), (second, key_first))
            ]
            loss = both[0].loss + both[1].loss
            accuracy = (both[0].accuracy + both[1].accuracy) / 2
            masked = both[0].masked
            if self.training:
                self._enqueue(key_first, key_second, batch)
        else:
            near, tile = groups_of(self.config, batch), self.config.tile
            one = key_loss(first, key_second, temperature, groups=near, gather=gather, tile=tile)
            other = key_loss(second, key_first, temperature, groups=near, gather=gather, tile=tile)
            loss = 2 * temperature * (one.loss + other.loss)
            accuracy, masked = (one.image_to_text + other.image_to_text) / 2, one.masked
        logs = {
            "loss": loss.detach(),
            "accuracy": accuracy,
            "masked_negatives": masked,
            "ema_momentum": self.momentum_log(loss),
        }
        return ObjectiveOutput(loss, logs)

    def _queue_groups(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        groups = [(batch.patient, self.queue_patient)] if self.config.mask_same_patient else []
        if self.config.mask_same_text:
            groups.append((batch.text_group, self.queue_text))
        return groups

    @torch.no_grad()
    def _enqueue(self, first: Tensor, second: Tensor, batch: Batch) -> None:
        """The keys of all devices, all first views before all second ones, over the oldest; of too many the last."""
        gather = self.gather
        sizes = gather.sizes(first.shape[0], first.device)
        keys = torch.cat([gather.rows(F.normalize(part.to(self.queue.dtype), dim=1), sizes) for part in (first, second)])
        patient, text = (gather.rows(codes, sizes).repeat(2) for codes in (batch.patient, batch.text_group))
        places = (self.queue_next + torch.arange(len(keys), device=keys.device))[-len(self.queue) :] % len(self.queue)
        for kept, new in ((self.queue, keys), (self.queue_patient, patient), (self.queue_text, text)):
            kept[places] = new[-len(self.queue) :]
        self.queue_next.copy_((self.queue_next + len(keys)) % len(self.queue))
