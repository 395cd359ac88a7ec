"""SimCLR: the two views of an image find each other among all others of the batch."""

from __future__ import annotations

from medfm.encoders.image import ImageModel
from medfm.objectives.base import Parts
from medfm.objectives.gather import Gather
from medfm.objectives.heads import ProjectionHead
from medfm.objectives.ssl_config import SimclrConfig
from medfm.objectives.ssl_losses import nt_xent
from medfm.objectives.two_views import Branch, MakeViews, TwoViewsObjective, build_views, groups_of
from medfm.transforms.draws import Draws
from medfm.types import Batch, ObjectiveOutput


def build(config: SimclrConfig, parts: Parts) -> SimclrObjective:
    """The objective of a recipe."""
    return SimclrObjective(config, ImageModel(parts.image_encoder), build_views(config, parts))


class SimclrObjective(TwoViewsObjective):
    """The loss of `nt_xent` on projections of two views.

    Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations".

    Args:
        network: the encoder to train.
        views, gather: as in `TwoViewsObjective`.
    """

    config: SimclrConfig

    def __init__(self, config: SimclrConfig, network: ImageModel, views: MakeViews, gather: Gather | None = None) -> None:
        head = ProjectionHead(network.embed_dim, config.hidden_dim, config.out_dim, config.layers, last_norm="affine")
        super().__init__(config, Branch(network, head), views, gather)

    def forward(self, batch: Batch, draws: Draws | None = None) -> ObjectiveOutput:
        """One batch, its images as stored, to a loss and numbers to log."""
        config = self.config
        first, second = self.student(self.two_views(batch, draws), together=True)
        groups = groups_of(config, batch)
        result = nt_xent(first, second, config.temperature, groups=groups, gather=self.gather, tile=config.tile)
        logs = {"loss": result.loss.detach(), "accuracy": result.image_to_text, "masked_negatives": result.masked}
        return ObjectiveOutput(result.loss, logs)
