"""Knobs of self-supervision by views and teachers: SimCLR, MoCo, BYOL, Barlow Twins, distillation and DINO."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from medfm.objectives.config import ObjectiveConfig
from medfm.registry import ENCODERS, OBJECTIVES, InputPath, optional_component
from medfm.transforms.config import ViewsConfig


class TwoViewsConfig(ObjectiveConfig):
    """Base of objectives that compare two views of an image."""

    makes_views: ClassVar[bool] = True

    views: ViewsConfig = Field(default=ViewsConfig(global_scale=(0.08, 1.0), local_count=0), description="the two views")

    @field_validator("views", mode="before")
    @classmethod
    def _only_what_differs(cls, value: Any) -> Any:
        """A recipe that sets one key keeps this objective's defaults of the others."""
        if isinstance(value, ViewsConfig):
            value = {key: getattr(value, key) for key in value.model_fields_set}
        return {**cls.model_fields["views"].default.model_dump(), **value} if isinstance(value, dict) else value

    @field_validator("views")
    @classmethod
    def _two(cls, value: ViewsConfig) -> ViewsConfig:
        if (value.global_count, value.local_count) != (2, 0):
            raise ValueError("two views are compared: global_count must be 2 and local_count 0")
        return value


class NegativesConfig(TwoViewsConfig):
    """Base of two-view objectives that push other images away."""

    compares_batch: ClassVar[bool] = True

    temperature: float = Field(default=0.1, gt=0)
    mask_same_patient: bool = Field(default=True, description="other images of the patient are no negatives")
    mask_same_text: bool = Field(
        default=True,
        description="images with equal reports, or reports that are both normal, are no negatives; acts where another term of "
        "a sum reads reports",
    )
    tile: int = Field(default=1024, ge=1, description="rows of the similarity matrix computed at once")


_MOMENTUM = (
    "start of the teacher's moving average, in [0, 1), then to 1 on a cosine; auto: the published one scaled to the batch"
)


class MomentumConfig(TwoViewsConfig):
    """Base of two-view objectives with a teacher."""

    published_momentum: ClassVar[float]
    published_batch: ClassVar[int] = 4096

    momentum: float | Literal["auto"] = Field(default="auto", description=_MOMENTUM)

    @field_validator("momentum")
    @classmethod
    def _below_one(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and not 0 <= value < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {value:g}")
        return value


@OBJECTIVES.register("simclr", "medfm.objectives.simclr:build")
class SimclrConfig(NegativesConfig):
    """SimCLR (Chen et al. 2020), also CT-FM's objective: the views of an image find each other among all of the batch."""

    name: str = "simclr"
    layers: int = Field(default=2, ge=1, description="of the projection head")
    hidden_dim: int = Field(default=2048, ge=1)
    out_dim: int = Field(default=128, ge=1)


@OBJECTIVES.register("moco", "medfm.objectives.moco:build")
class MocoConfig(NegativesConfig, MomentumConfig):
    """MoCo v3 (Chen et al. 2021). With `queue` the negatives are keys of former batches, for small batches, as in MoCo v2,
    `{queue: 65536, layers: 2, hidden_dim: 2048, out_dim: 128, batch_norm: false, predictor_layers: 0, momentum: 0.999,
    freeze_patch_embed: false, views: {blur_p: [0.5, 0.5, 0.5]}}`.
    """

    published_momentum: ClassVar[float] = 0.99

    name: str = "moco"
    temperature: float = Field(default=0.2, gt=0)
    momentum: float | Literal["auto"] = Field(default=0.99, description=_MOMENTUM)
    layers: int = Field(default=3, ge=1, description="of the projector")
    predictor_layers: int = Field(default=2, ge=0, description="of the student's predictor; 0: none")
    hidden_dim: int = Field(default=4096, ge=1)
    out_dim: int = Field(default=256, ge=1)
    batch_norm: bool = Field(default=True, description="in projector and predictor")
    freeze_patch_embed: bool = Field(default=True, description="the encoder's patch projection stays as it starts; for ViTs")
    queue: int = Field(default=0, ge=0, description="keys of former batches that are the negatives; 0: those of the batch are")


@OBJECTIVES.register("byol", "medfm.objectives.byol:build")
class ByolConfig(MomentumConfig):
    """BYOL (Grill et al. 2020): predict the moving average's projection of the other view."""

    published_momentum: ClassVar[float] = 0.996

    name: str = "byol"
    momentum: float | Literal["auto"] = Field(default=0.996, description=_MOMENTUM)
    hidden_dim: int = Field(default=4096, ge=1, description="of projector and predictor")
    out_dim: int = Field(default=256, ge=1)


@OBJECTIVES.register("barlow", "medfm.objectives.barlow:build")
class BarlowConfig(TwoViewsConfig):
    """Barlow Twins (Zbontar et al. 2021): the cross-correlation of two views' features becomes the identity."""

    compares_batch: ClassVar[bool] = True

    name: str = "barlow"
    redundancy_weight: float = Field(default=0.0051, ge=0, description="lambda, of the off-diagonal terms")
    layers: int = Field(default=3, ge=1, description="of the projector")
    out_dim: int = Field(default=8192, ge=1, description="of the projector and its hidden layers")


@OBJECTIVES.register("distill", "medfm.objectives.distill:build")
class DistillConfig(ObjectiveConfig):
    """Learn what a frozen teacher says of the same images: DeiT-style distillation, and CLIP targets as in MVP and EVA."""

    name: str = "distill"
    teacher: InputPath | None = Field(default=None, description="a medfm run folder or weight file")
    teacher_encoder: optional_component(ENCODERS) = Field(  # type: ignore[valid-type]
        default=None,
        description="or an encoder with its weights, e.g. {name: timm, model: vit_base_patch16_clip_224, weights: FILE}",
    )
    teacher_mean: tuple[float, ...] | None = Field(
        default=None, description="what teacher_encoder was normalised with; default: as preprocess. CLIP: [.481, .458, .408]"
    )
    teacher_std: tuple[float, ...] | None = Field(default=None, description="likewise. CLIP: [.269, .261, .276]")
    target: Literal["cls", "pooled", "patches", "similarity"] = Field(
        default="pooled",
        description="the teacher's features; or its softmax over similarities to the images of the batch (SEED)",
    )
    loss: Literal["cosine", "mse", "smooth_l1"] = Field(default="cosine", description="of features")
    normalize_target: bool = Field(default=False, description="features to mean 0 and variance 1 along their width (FD)")
    mask_ratio: float = Field(
        default=0.0, ge=0, lt=1, description="patches hidden from the student, whose features alone it then predicts (EVA: .4)"
    )
    masking: Literal["random", "block"] = "block"
    temperature: float = Field(default=0.2, gt=0, description="of the student's similarities")
    teacher_temperature: float = Field(default=0.01, gt=0, description="of the teacher's similarities")
    label_weight: float = Field(default=0.0, ge=0, description="of the manifest's labels, learned beside the teacher")
    label_count: int = Field(default=0, ge=0, description="label columns of the manifest, with label_weight")

    @model_validator(mode="after")
    def _fits(self) -> DistillConfig:
        if (self.teacher is None) == (self.teacher_encoder is None):
            raise ValueError("give either teacher (a medfm file) or teacher_encoder (an encoder with weights)")
        if self.teacher_encoder is not None and getattr(self.teacher_encoder, "weights", None) is None:
            raise ValueError("teacher_encoder.weights: a teacher with random weights teaches nothing; give a file")
        if self.teacher is not None and (self.teacher_mean or self.teacher_std):
            raise ValueError("a medfm file knows its mean and std: leave out teacher_mean and teacher_std")
        if self.mask_ratio and self.target != "patches":
            raise ValueError("mask_ratio goes with target=patches: the features of hidden patches are predicted")
        if bool(self.label_weight) != bool(self.label_count):
            raise ValueError("label_weight and label_count go together")
        return self


@OBJECTIVES.register("dino", "medfm.objectives.dino:build")
class DinoConfig(ObjectiveConfig):
    """Self-distillation in 2D and 3D: DINO (Caron 2021), iBOT (Zhou 2022), DINOv2 (Oquab 2023), 3DINO (Xu 2025).

    Defaults: DINO ViT-S/16. iBOT: `ibot_weight: 1`. DINOv2: also `centring: sinkhorn`, `koleo_weight: 0.1`, `separate_head:
    true` and views' scales of (0.32, 1) and (0.05, 0.32). 3DINO: also `masking: random`, `mask_ratio: [0.2, 0.75]`.
    """

    makes_views: ClassVar[bool] = True

    name: str = "dino"
    views: ViewsConfig = ViewsConfig()
    out_dim: int | Literal["auto"] = Field(default="auto", description="prototypes; auto: by batch and training images")
    hidden_dim: int = Field(default=2048, ge=1, description="of the head")
    bottleneck_dim: int = Field(default=256, ge=1, description="of the head, before its last layer")
    head_layers: int = Field(default=3, ge=1, description="of the head's MLP")
    norm_last_layer: bool = Field(default=True, description="prototypes of norm 1; false is stronger and less stable")
    freeze_last_layer: float = Field(default=0.01, ge=0, le=1, description="share of all steps; DINO: one epoch")
    student_temp: float = Field(default=0.1, gt=0)
    teacher_temp: float = Field(default=0.04, gt=0, description="after the warm-up; the stronger setting is 0.07")
    warmup_teacher_temp: float = Field(default=0.04, gt=0, description="teacher_temp at the start")
    teacher_temp_warmup: float = Field(default=0.3, ge=0, le=1, description="share of all steps, linear")
    centring: Literal["centre", "sinkhorn", "none"] = Field(
        default="centre", description="a moving mean, or Sinkhorn-Knopp as DINOv2's larger models; none collapses"
    )
    centre_momentum: float = Field(default=0.9, ge=0, lt=1)
    momentum: float | Literal["auto"] = Field(
        default="auto",
        description="of the teacher at the start, then a cosine to momentum_end; auto: 0.996 at batch 1024",
    )
    momentum_end: float = Field(default=1.0, ge=0, le=1)
    ibot_weight: float = Field(default=0.0, ge=0, description="of the masked-patch loss; 0: off")
    mask_probability: float = Field(default=0.5, gt=0, le=1, description="share of global views with masked patches")
    mask_ratio: tuple[float, float] = Field(default=(0.1, 0.5), description="least and largest share of patches masked in them")
    masking: Literal["block", "random"] = Field(default="block", description="boxes of patches as BEiT, or one by one as 3DINO")
    separate_head: bool = Field(default=False, description="patches have a head of their own")
    ibot_out_dim: int | None = Field(default=None, ge=2, description="prototypes of the separate head; default: out_dim")
    ibot_bottleneck_dim: int | None = Field(default=None, ge=1, description="of the separate head; default: bottleneck_dim")
    koleo_weight: float = Field(default=0.0, ge=0, description="of the loss that spreads features; DINOv2: 0.1")
    koleo_all_devices: bool = Field(
        default=True, description="nearest neighbours among all devices' images; false: each device its own, as DINOv2's code"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DinoConfig:
        if self.out_dim != "auto" and self.out_dim < 2:
            raise ValueError(f"out_dim {self.out_dim}: a distribution needs two prototypes at least")
        if self.momentum != "auto" and not 0 <= self.momentum <= self.momentum_end:
            raise ValueError(f"momentum {self.momentum:g} must lie between 0 and momentum_end {self.momentum_end:g}")
        low, high = self.mask_ratio
        if not 0 < low <= high < 1:
            raise ValueError(f"mask_ratio {[low, high]} must be two shares, 0 < least <= largest < 1")
        for name in ("ibot_out_dim", "ibot_bottleneck_dim"):
            if getattr(self, name) is not None and not self.separate_head:
                raise ValueError(f"{name} goes with separate_head=true")
        if self.separate_head and not self.ibot_weight:
            raise ValueError("separate_head is the head of the masked-patch loss: set ibot_weight")
        if self.views.global_count + self.views.local_count < 2:
            raise ValueError("views: the student must see a view that the teacher does not; two views at least")
        return self
