"""What objectives that compare two views of an image share: SimCLR, MoCo, BYOL, Barlow Twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from medfm.encoders.image import ImageModel
from medfm.encoders.pooling import image_features
from medfm.errors import ConfigError
from medfm.objectives.base import Objective, Parts
from medfm.objectives.ema import ema_update, make_teacher, teacher_mode
from medfm.objectives.gather import Gather, SingleDevice, current_gather
from medfm.objectives.scaling import auto_momentum
from medfm.objectives.schedules import cosine
from medfm.objectives.ssl_config import MomentumConfig, NegativesConfig, TwoViewsConfig
from medfm.transforms.draws import Draws
from medfm.transforms.views import MultiCrop, Views
from medfm.types import Batch

MakeViews = Callable[[Tensor, Draws], Views]


def build_views(config: TwoViewsConfig, parts: Parts) -> MultiCrop:
    """The views of a recipe: of the encoder's image size, which the contract's images may exceed."""
    size = tuple(getattr(parts.encoder, "img_size", parts.preprocess.config.size))
    return MultiCrop(parts.preprocess, parts.augment, config.views, size)


class Branch(nn.Module):
    """An image encoder and a projector: what a teacher copies.

    Args:
        network: the encoder, as weight files keep it.
        projector: from the encoder's features (B, E) to projections (B, D).
    """

    def __init__(self, network: ImageModel, projector: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.projector = projector

    def forward(self, views: Tensor, together: bool = False) -> tuple[Tensor, Tensor]:
        """views (2B, C, *spatial), first views first -> the two projections, (B, D) each.

        The encoder takes all at once. The projector's batch normalisation sees one view at a time, as MoCo v3, BYOL and Barlow
        Twins have it, or both `together`, as SimCLR.
        """
        features = image_features(self.network.image_encoder, views)
        if together:
            first, second = self.projector(features).chunk(2)
        else:
            first, second = (self.projector(part) for part in features.chunk(2))
        return first, second


class TwoViewsObjective(Objective):
    """Makes two views of each image on the device.

    Args:
        config: of the objective.
        student: what is trained.
        views: stored images to two normalised views each, e.g. `MultiCrop`.
        gather: the devices of the batch; None is the default process group where one runs.
    """

    takes_stored_pixels = True

    def __init__(self, config: TwoViewsConfig, student: Branch, views: MakeViews, gather: Gather | None = None) -> None:
        super().__init__()
        self.config = config
        self.student = student
        self.views = views
        self._gather = gather

    @property
    def gather(self) -> Gather:
        """In validation every device sees the whole split: there is nothing to gather."""
        return (self._gather or current_gather()) if self.training else SingleDevice()

    def model(self) -> ImageModel:
        return self.student.network

    def two_views(self, batch: Batch, draws: Draws | None) -> Tensor:
        """(2B, C, *spatial), normalised: all images' first view, then their second. Without `draws` from torch's generator."""
        if draws is None:
            draws = Draws(int(torch.randint(2**62, ())), batch.images.device)
        return self.views(batch.images, draws).global_views


def groups_of(config: NegativesConfig, batch: Batch) -> list[Tensor]:
    """Codes (B,) of images that are no negatives of each other."""
    groups = [batch.patient] if config.mask_same_patient else []
    if config.mask_same_text:
        groups.append(batch.text_group)  # -1 throughout where no term reads text
    return groups


class TeacherObjective(TwoViewsObjective):
    """Two views, and a teacher that follows the student by an exponential moving average.

    As in the authors' code the teacher's batch normalisation normalises by its own batch, and no dropout acts in it. Momentum
    rises from `config.momentum` to 1 on half a cosine; "auto" scales the published one to the batch, see
    `medfm.objectives.scaling`.

    Args:
        batch_size: images an optimiser step sees, for momentum="auto".
    """

    config: MomentumConfig

    def __init__(
        self, config: MomentumConfig, student: Branch, views: MakeViews, batch_size: int, gather: Gather | None = None
    ) -> None:
        super().__init__(config, student, views, gather)
        self.teacher = make_teacher(student)
        self.batch_size = batch_size
        self.momentum = 0.0
        self.train(self.training)

    def weights_loaded(self) -> None:
        self.teacher.load_state_dict(self.student.state_dict())

    def compile_encoders(self) -> None:
        super().compile_encoders()
        self.teacher.network.image_encoder.compile()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        teacher_mode(self.teacher, mode)
        return self

    def before_step(self, step: int, total: int) -> None:
        start = self.config.momentum
        if start == "auto":
            start = auto_momentum(self.config.published_momentum, self.config.published_batch, self.batch_size, total)
        self.momentum = cosine(start, 1.0, step, total)

    def after_optimizer_step(self, step: int, total: int) -> None:
        self.before_step(step, total)
        ema_update(self.teacher, self.student, self.momentum)

    @torch.no_grad()
    def targets(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's projections of the first views and of the second, (B, D) each."""
        first, second = self.teacher(views)
        return first, second

    def momentum_log(self, like: Tensor) -> Tensor:
        return torch.full((), self.momentum, device=like.device)


def freeze_patch_embed(encoder: Any) -> None:
    """Leaves the patch projection at its start: it is where instability of ViT training begins (MoCo v3, section 4.3).

    Raises:
        ConfigError: the encoder has none.
    """
    embed = getattr(encoder, "patch_embed", None) or getattr(getattr(encoder, "model", None), "patch_embed", None)
    if embed is None:
        raise ConfigError("objective.freeze_patch_embed: this encoder has no patch embedding; set it to false")
    embed.requires_grad_(False)
