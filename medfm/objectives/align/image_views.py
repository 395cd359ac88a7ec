"""Two views of each image agree, beside the contrast with reports: DeCLIP's and SLIP's image self-supervision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from medfm.encoders.dual import DualEncoder, unit
from medfm.encoders.pooling import image_features
from medfm.errors import ConfigError
from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.encode import never_empty
from medfm.objectives.align.second_views import SecondViews
from medfm.objectives.gather import mean_of_rows
from medfm.objectives.heads import ProjectionHead
from medfm.objectives.ssl_losses import nt_xent

if TYPE_CHECKING:
    from medfm.objectives.align.config import ImageViewsConfig
    from medfm.transforms.config import AugmentConfig
    from medfm.transforms.preprocess import Preprocess


class ImageViewsTerm(Term):
    """Two further views of each image through the image encoder, a projector, and SimSiam's or SimCLR's loss.

    - loss=simsiam (DeCLIP): `-1/2 mean_i(cos(q(z1), sg(z2)) + cos(q(z2), sg(z1)))`, z the projector's output, q a predictor, sg
      stops gradients.
    - loss=simclr (SLIP): NT-Xent of the two views, over all devices; images of one patient or text are no negatives.

    Sources: Li et al. 2022, "Supervision Exists Everywhere: A Data Efficient Contrastive Language-Image Pre-training Paradigm",
    section on self-supervision within each modality, and the authors' declip.py (`projection_MLP`, `prediction_MLP`) and
    `SimsiamLoss`; Mu et al. 2022, "SLIP: Self-supervision meets Language-Image Pre-training". Other than there batch statistics
    are those of all devices and both views together; the projector reads the encoder's pooled feature, as SLIP's, where
    DeCLIP's reads its projection; views are cut from the augmented image, see `SecondViews`; DeCLIP's contrast of both views
    with the report, and with a changed report, is not covered. DeCLIP's weights are 0.4 for the contrast and 0.2 for this.

    Raises:
        ConfigError: no preprocessing contract to cut views by.
    """

    def __init__(
        self,
        config: ImageViewsConfig,
        *,
        dual: DualEncoder,
        preprocess: Preprocess | None = None,
        augment: AugmentConfig | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        if preprocess is None or augment is None:
            raise ConfigError("objective.terms: image_views cuts views of images, which needs the preprocessing contract")
        self.config = config
        self.views = SecondViews(preprocess, augment, config.views)
        encoder: Any = dual.image_encoder
        sizes = (int(encoder.embed_dim), config.hidden_dim, config.out_dim)
        self.projector = ProjectionHead(*sizes, config.layers, last_norm="affine" if config.loss == "simsiam" else "none")
        self.predictor = (
            ProjectionHead(config.out_dim, config.predictor_dim, config.out_dim) if config.loss == "simsiam" else None
        )

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        encoder: Any = encoded.dual.image_encoder
        views = self.views(encoded).to(encoded.batch.images.dtype)
        if not len(views) and encoded.gather.world_size == 1:
            return self.touched(encoded.image), {}
        projected = self.projector(image_features(encoder, never_empty(views))[: len(views)])
        first, second = projected.chunk(2) if len(projected) else (projected, projected)
        gather = encoded.gather
        if self.predictor is None:
            result = nt_xent(first, second, self.config.temperature, groups=encoded.groups, gather=gather)
            return result.loss, {"accuracy": result.image_to_text}
        predicted = self.predictor(projected)
        one, other = predicted.chunk(2) if len(predicted) else (predicted, predicted)
        cosines = [(unit(p) * unit(z.detach())).sum(dim=1) for p, z in ((one, second), (other, first))]
        similarity = mean_of_rows((cosines[0] + cosines[1]) / 2, gather)
        return -similarity, {"similarity": similarity.detach()}
