"""Self-distillation with no labels: DINO, and with it iBOT, DINOv2 and 3DINO, in two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from medfm.encoders.build import refused_size
from medfm.encoders.image import ImageModel
from medfm.encoders.pooling import pooled
from medfm.encoders.vit import VisionTransformer
from medfm.errors import ConfigError
from medfm.objectives.base import Objective, Parts
from medfm.objectives.dino_loss import (
    batch_centre,
    centred,
    dino_loss,
    koleo_loss,
    masked_patch_loss,
    sinkhorn,
    target_entropies,
)
from medfm.objectives.ema import ema_update, make_teacher, teacher_mode
from medfm.objectives.gather import Gather, SingleDevice, current_gather
from medfm.objectives.heads import DinoHead
from medfm.objectives.patch_masks import draw_patch_masks
from medfm.objectives.scaling import auto_momentum, auto_out_dim
from medfm.objectives.schedules import cosine, linear_warmup
from medfm.objectives.ssl_config import DinoConfig
from medfm.transforms.draws import Draws
from medfm.transforms.views import MultiCrop, Views
from medfm.types import Batch, ObjectiveOutput

_MOMENTUM, _BATCH = 0.996, 1024  # DINO's, ViT-S/16


def build(config: DinoConfig, parts: Parts) -> DinoObjective:
    """The objective of a recipe.

    Raises:
        ConfigError: the local views' size is no multiple of the patch size or does not fit the encoder, `out_dim: auto` without
            the number of training images, or an encoder without patch tokens for iBOT.
    """
    encoder = parts.image_encoder
    size = tuple(getattr(parts.encoder, "img_size", parts.preprocess.config.size))
    # The last stride of most convolutional networks, where nothing else is said.
    patch = tuple(getattr(parts.encoder, "patch_size", None) or getattr(encoder, "patch_size", None) or (32,) * len(size))
    local = config.views.local_size
    if local is not None and len(local) != len(size):
        raise ConfigError(f"objective.views.local_size {list(local)} must have {len(size)} numbers, as the encoder's img_size")
    views = MultiCrop(parts.preprocess, parts.augment, config.views, size, patch)
    if config.views.local_count:
        _check_local_size(encoder, views.local_size, patch, parts.preprocess.config.channels)
    out_dim = config.out_dim
    if out_dim == "auto":
        if parts.train_images < 1:
            raise ConfigError("objective.out_dim: auto needs the number of training images; give a number, e.g. 4096")
        out_dim = auto_out_dim(parts.batch_size, parts.train_images)
    return DinoObjective(config, ImageModel(encoder), views, out_dim, parts.batch_size)


def _check_local_size(encoder: nn.Module, size: tuple[int, ...], patch: tuple[int, ...], channels: int) -> None:
    if isinstance(encoder, VisionTransformer):
        if len(size) != len(patch) or any(n % p for n, p in zip(size, patch, strict=True)):
            raise ConfigError(f"objective.views.local_size {list(size)} is not a multiple of the patch size {list(patch)}")
        return
    if why := refused_size(encoder, size, channels):
        raise ConfigError(
            f"objective.views.local_size: this encoder does not take images of {list(size)} ({why}); set local_size to the "
            "encoder's img_size, local_count=0, or use the encoder 'vit'"
        )


class DinoNetwork(nn.Module):
    """An image encoder with its heads: student or teacher.

    Attributes:
        network: the encoder, as weight files keep it.
        head: of the image's feature.
        patch_head: of masked patches where they have one of their own.
    """

    def __init__(self, network: ImageModel, head: DinoHead, patch_head: DinoHead | None = None) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.patch_head = patch_head

    def features(
        self, views: Tensor, masked: Tensor | None = None, mask_token: Tensor | None = None, patches: bool = False
    ) -> tuple[Tensor, Tensor]:
        """views (n, C, *spatial) -> the image's feature (n, E) and patch tokens (n, N, E), none (N = 0) where not asked for."""
        encoder: Any = self.network.image_encoder
        if isinstance(encoder, VisionTransformer):
            output = encoder(views, masked=masked, mask_token=mask_token, class_only=not patches and encoder.pool == "cls")
        else:
            output = encoder(views)
        return pooled(output, encoder.pool), output.patch_tokens

    def logits(self, features: Tensor, patches: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features (n, E) and chosen patch tokens (M, E) to logits; a shared head takes them together."""
        if patches is None:
            return self.head(features), None
        if self.patch_head is not None:
            return self.head(features), self.patch_head(patches)
        first, second = self.head(torch.cat([features, patches])).split([len(features), len(patches)])
        return first, second


class MaskedPatches(NamedTuple):
    """Masked patches of all global views on this device.

    Attributes:
        where: (G * B, N) bool.
        places: (M,) their indices in the flattened `where`.
        weights: (M,) 1 / masked patches of the same view.
    """

    where: Tensor
    places: Tensor
    weights: Tensor


class DinoObjective(Objective):
    """A student learns to give every view of an image the distribution over prototypes that its own moving average, the
    teacher, gives another, global view.

    Global views go through student and teacher, local ones through the student; views of a size are one batch. With
    `ibot_weight` patches of some global views are masked for the student, and it learns the teacher's distributions of them;
    the mask token lives here, so that encoders keep timm's names. With `koleo_weight` features of a batch are spread.

    How its collapse shows: `medfm.objectives.dino_loss.target_entropies`.

    Args:
        config: views, head, temperatures, centring, momentum, iBOT, KoLeo.
        network: the encoder to train; the teacher starts as its copy.
        views: stored images to normalised views, e.g. `MultiCrop`.
        out_dim: prototypes.
        batch_size: images an optimiser step sees, for momentum="auto".
        gather: the devices of the batch; None is the default process group where one runs.

    Raises:
        ConfigError: iBOT with an encoder other than 'vit', or of a single patch.
    """

    takes_stored_pixels = True

    centre: Tensor
    patch_centre: Tensor

    def __init__(
        self,
        config: DinoConfig,
        network: ImageModel,
        views: Callable[[Tensor, Draws], Views],
        out_dim: int,
        batch_size: int = _BATCH,
        gather: Gather | None = None,
    ) -> None:
        super().__init__()
        encoder = network.image_encoder
        if config.ibot_weight and not isinstance(encoder, VisionTransformer):
            raise ConfigError("objective.ibot_weight: masked patches need the encoder 'vit'; set ibot_weight=0 for plain DINO")
        if config.ibot_weight and math.prod(encoder.grid_size) < 2:  # type: ignore[arg-type]
            raise ConfigError(
                "objective.ibot_weight: the encoder's grid has a single patch, of which none can be masked; use smaller "
                "patches, or ibot_weight=0"
            )
        self.config = config
        self.views = views
        self.out_dim = out_dim
        self.batch_size = batch_size
        self._gather = gather
        patch_dim = config.ibot_out_dim or out_dim

        def head(prototypes: int, bottleneck: int) -> DinoHead:
            return DinoHead(
                network.embed_dim,
                prototypes,
                config.hidden_dim,
                bottleneck,
                config.head_layers,
                config.norm_last_layer,
            )

        self.student = DinoNetwork(network, head(out_dim, config.bottleneck_dim))
        if config.separate_head:
            self.student.patch_head = head(patch_dim, config.ibot_bottleneck_dim or config.bottleneck_dim)
        self.teacher = make_teacher(self.student)
        self.mask_token = nn.Parameter(torch.zeros(network.embed_dim)) if config.ibot_weight else None
        if config.centring == "centre":
            self.register_buffer("centre", torch.zeros(out_dim))
            if config.ibot_weight:
                self.register_buffer("patch_centre", torch.zeros(patch_dim))
        self.before_step(0, 1)
        self.train(self.training)

    @property
    def gather(self) -> Gather:
        """In validation every device sees the whole split: there is nothing to gather."""
        return (self._gather or current_gather()) if self.training else SingleDevice()

    def model(self) -> ImageModel:
        """The teacher's encoder, which is the better one throughout training (Caron et al., section 5.2)."""
        return self.teacher.network

    def learner(self) -> ImageModel:
        return self.student.network

    def weights_loaded(self) -> None:
        self.teacher.load_state_dict(self.student.state_dict())

    def compile_encoders(self) -> None:
        # Two image sizes: each is compiled for itself.
        self.student.network.image_encoder.compile(dynamic=False)
        self.teacher.network.image_encoder.compile(dynamic=False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        teacher_mode(self.teacher, mode)
        return self

    def before_step(self, step: int, total: int) -> None:
        config = self.config
        if config.momentum == "auto":
            start = min(auto_momentum(_MOMENTUM, _BATCH, self.batch_size, total), config.momentum_end)
        else:
            start = config.momentum
        self.momentum = cosine(start, config.momentum_end, step, total)
        warmup = round(config.teacher_temp_warmup * total)
        self.teacher_temp = linear_warmup(config.warmup_teacher_temp, config.teacher_temp, step, warmup)

    def after_backward(self, step: int, total: int) -> None:
        """The heads' last layers stay as they are for the first share of steps: neither gradient, decay nor momentum."""
        if step < round(self.config.freeze_last_layer * total):
            for head in (self.student.head, self.student.patch_head):
                if head is not None:
                    for parameter in head.last_layer.parameters():
                        parameter.grad = None

    def after_optimizer_step(self, step: int, total: int) -> None:
        """With the momentum of the step that was taken."""
        ema_update(self.teacher, self.student, self.momentum)

    def forward(self, batch: Batch, draws: Draws | None = None) -> ObjectiveOutput:
        """One batch, its images as stored, to a loss and numbers to log."""
        if draws is None:
            draws = Draws(int(torch.randint(2**62, ())), batch.images.device)
        views = self.views(batch.images, draws)
        return self.distil(views, len(batch.images), draws)

    def distil(self, views: Views, images: int, draws: Draws) -> ObjectiveOutput:
        """Views of `images` images to a loss and numbers to log; in training the centres move on."""
        config, gather = self.config, self.gather
        masks = self._masks(views.global_views, images, draws) if config.ibot_weight else None
        targets, patch_targets, logs = self._targets(views.global_views, images, masks, gather)

        where, token = (None, None) if masks is None else (masks.where, self.mask_token)
        features, tokens = self.student.features(views.global_views, where, token, patches=masks is not None)
        of_globals = features
        if views.local_views is not None:
            features = torch.cat([features, self.student.features(views.local_views)[0]])
        logits, patch_logits = self.student.logits(
            features, None if masks is None else tokens.flatten(0, 1).index_select(0, masks.places)
        )
        result = dino_loss(logits, targets, config.student_temp, gather)
        loss = result.loss
        logs |= {"loss_dino": loss.detach(), "student_entropy": result.student_entropy}
        if masks is not None:
            assert patch_logits is not None
            assert patch_targets is not None
            ibot = masked_patch_loss(patch_logits, patch_targets, masks.weights, len(masks.where), config.student_temp, gather)
            loss = loss + config.ibot_weight * ibot
            logs["loss_ibot"] = ibot.detach()
        if config.koleo_weight:
            spread = self._koleo(of_globals, images, gather)
            loss = loss + config.koleo_weight * spread
            logs["loss_koleo"] = spread.detach()
        return ObjectiveOutput(loss, {"loss": loss.detach(), **logs})

    def _masks(self, global_views: Tensor, images: int, draws: Draws) -> MaskedPatches:
        config, encoder = self.config, self.student.network.image_encoder
        count = len(global_views) // images
        grid: Any = encoder.grid_size
        drawn = draw_patch_masks(images, count, grid, config.mask_probability, config.mask_ratio, draws, config.masking)
        drawn = drawn.to(global_views.device)
        index = drawn.flatten().nonzero().squeeze(1)
        weights = (1 / drawn.sum(dim=1).clamp(min=1))[:, None].expand_as(drawn).flatten()[index]
        return MaskedPatches(drawn, index, weights)

    @torch.no_grad()
    def _targets(
        self, global_views: Tensor, images: int, masks: MaskedPatches | None, gather: Gather
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """The teacher's distributions of the global views (G, B, K) and of masked patches (M, K'), and numbers to log."""
        features, tokens = self.teacher.features(global_views, patches=masks is not None)
        chosen = None if masks is None else tokens.flatten(0, 1).index_select(0, masks.places)
        logits, patch_logits = self.teacher.logits(features, chosen)
        targets = self._distributions(logits, "centre", gather)
        patch_targets = None if patch_logits is None else self._distributions(patch_logits, "patch_centre", gather)
        entropy, marginal = target_entropies(targets, gather)
        logs = {
            "teacher_entropy": entropy,
            "teacher_marginal_entropy": marginal,
            "teacher_temp": entropy.new_full((), self.teacher_temp),
            "ema_momentum": entropy.new_full((), self.momentum),
        }
        if self.config.centring == "centre":
            logs["centre_norm"] = self.centre.norm()
        return targets.view(-1, images, targets.shape[-1]), patch_targets, logs

    def _distributions(self, logits: Tensor, centre: str, gather: Gather) -> Tensor:
        """With the centre of the batches before; then this batch is taken into it."""
        config = self.config
        if config.centring == "sinkhorn":
            return sinkhorn(logits, self.teacher_temp, gather)
        if config.centring == "none":
            return centred(logits, None, self.teacher_temp)
        moving: Tensor = getattr(self, centre)
        targets = centred(logits, moving, self.teacher_temp)
        if self.training:
            moving.lerp_(batch_centre(logits, gather).to(moving.dtype), 1 - config.centre_momentum)
        return targets

    def _koleo(self, features: Tensor, images: int, gather: Gather) -> Tensor:
        """Summed over the global views: views of one image are meant to be near, so each is spread among its own kind."""
        if images < 2 and not self.training:
            return features.new_zeros(())  # what is left over of a validation split: nothing to be spread from
        if not self.config.koleo_all_devices:
            gather = SingleDevice()
        return torch.stack([koleo_loss(view, gather) for view in features.split(images)]).sum()
