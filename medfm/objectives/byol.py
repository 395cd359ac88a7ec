"""BYOL: the student predicts what its moving average makes of another view. No negatives."""

from __future__ import annotations

from medfm.encoders.image import ImageModel
from medfm.objectives.base import Parts
from medfm.objectives.gather import Gather
from medfm.objectives.heads import ProjectionHead
from medfm.objectives.ssl_config import ByolConfig
from medfm.objectives.ssl_losses import byol_loss
from medfm.objectives.two_views import Branch, MakeViews, TeacherObjective, build_views
from medfm.transforms.draws import Draws
from medfm.types import Batch, ObjectiveOutput


def build(config: ByolConfig, parts: Parts) -> ByolObjective:
    """The objective of a recipe."""
    return ByolObjective(config, ImageModel(parts.image_encoder), build_views(config, parts), parts.batch_size)


class ByolObjective(TeacherObjective):
    """`loss = |q(p1) - z2|^2 + |q(p2) - z1|^2` of unit vectors: student projections p, predictor q, teacher projections z.

    Source: Grill et al. 2020, "Bootstrap Your Own Latent", equation 2 and its symmetric term.

    Args:
        network: the encoder to train.
        views, batch_size, gather: as in `TeacherObjective`.
    """

    config: ByolConfig

    def __init__(
        self, config: ByolConfig, network: ImageModel, views: MakeViews, batch_size: int, gather: Gather | None = None
    ) -> None:
        head = ProjectionHead(network.embed_dim, config.hidden_dim, config.out_dim)
        super().__init__(config, Branch(network, head), views, batch_size, gather)
        self.predictor = ProjectionHead(config.out_dim, config.hidden_dim, config.out_dim)

    def forward(self, batch: Batch, draws: Draws | None = None) -> ObjectiveOutput:
        """One batch, its images as stored, to a loss and numbers to log."""
        views = self.two_views(batch, draws)
        first, second = (self.predictor(part) for part in self.student(views))
        target_first, target_second = self.targets(views)
        gather = self.gather
        loss = byol_loss(first, target_second, gather) + byol_loss(second, target_first, gather)
        return ObjectiveOutput(loss, {"loss": loss.detach(), "ema_momentum": self.momentum_log(loss)})
