"""Barlow Twins: two views' features agree, and each feature tells something else. No negatives, no teacher."""

from __future__ import annotations

from medfm.encoders.image import ImageModel
from medfm.objectives.base import Parts
from medfm.objectives.gather import Gather
from medfm.objectives.heads import ProjectionHead
from medfm.objectives.ssl_config import BarlowConfig
from medfm.objectives.ssl_losses import barlow_loss
from medfm.objectives.two_views import Branch, MakeViews, TwoViewsObjective, build_views
from medfm.transforms.draws import Draws
from medfm.types import Batch, ObjectiveOutput


def build(config: BarlowConfig, parts: Parts) -> BarlowObjective:
    """The objective of a recipe."""
    return BarlowObjective(config, ImageModel(parts.image_encoder), build_views(config, parts))


class BarlowObjective(TwoViewsObjective):
    """The loss of `barlow_loss` on projections of two views.

    Source: Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction".

    Args:
        network: the encoder to train.
        views, gather: as in `TwoViewsObjective`.
    """

    config: BarlowConfig

    def __init__(self, config: BarlowConfig, network: ImageModel, views: MakeViews, gather: Gather | None = None) -> None:
        head = ProjectionHead(network.embed_dim, config.out_dim, config.out_dim, config.layers)
        super().__init__(config, Branch(network, head), views, gather)

    def forward(self, batch: Batch, draws: Draws | None = None) -> ObjectiveOutput:
        """One batch, its images as stored, to a loss and numbers to log."""
        first, second = self.student(self.two_views(batch, draws))
        result = barlow_loss(first, second, self.config.redundancy_weight, self.gather)
        logs = {"loss": result.loss.detach(), "on_diagonal": result.on_diagonal, "off_diagonal": result.off_diagonal}
        return ObjectiveOutput(result.loss, logs)
