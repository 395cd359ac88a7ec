"""Knobs of what is learned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medfm.registry import OBJECTIVES, TEXT_ENCODERS, TOKENIZERS, ComponentConfig, component


@OBJECTIVES.register("contrastive", "medfm.objectives.contrastive:ContrastiveObjective")
class ContrastiveConfig(ComponentConfig):
    """Image-report alignment: CLIP, ConVIRT, SigLIP and FLIP are settings of this one objective."""

    name: str = "contrastive"
    text_encoder: component(TEXT_ENCODERS) = Field(default="clip_text")  # type: ignore[valid-type]
    tokenizer: component(TOKENIZERS) = Field(default="clip")  # type: ignore[valid-type]
    loss: Literal["infonce", "sigmoid"] = Field(default="infonce", description="CLIP/ConVIRT softmax, or SigLIP's sigmoid")
    embed_dim: int = Field(default=512, ge=1, description="size of the joint space")
    projection: Literal["linear", "mlp"] = Field(default="linear", description="CLIP projects linearly, ConVIRT by two layers")
    temperature: float = Field(default=0.07, gt=0, description="at the start; fixed where learn_temperature is false")
    learn_temperature: bool = True
    max_logit_scale: float = Field(default=100.0, ge=1)
    logit_bias: float = Field(default=-10.0, description="start of the learnable bias of the sigmoid loss")
    image_weight: float = Field(default=0.5, ge=0, le=1, description="ConVIRT's lambda: weight of image -> text")
    mask_same_patient: bool = Field(default=True, description="other studies of the patient are no negatives")
    mask_same_text: bool = Field(default=True, description="equal reports, and reports that are both normal, are no negatives")
    patch_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of patches dropped in training (FLIP)")
    cache_chunk: int = Field(default=0, ge=0, description="exact gradient caching in chunks of this many pairs; 0: off")
    tile: int = Field(default=1024, ge=1, description="rows of the similarity matrix computed at once")

    @model_validator(mode="after")
    def _consistent(self) -> ContrastiveConfig:
        if self.loss == "sigmoid" and self.image_weight != 0.5:
            raise ValueError("image_weight has no meaning for the sigmoid loss, which has no directions")
        if self.learn_temperature and self.temperature * self.max_logit_scale < 1:
            scale = 1 / self.temperature
            raise ValueError(
                f"temperature {self.temperature:g} starts the logit scale at {scale:g}, above max_logit_scale "
                f"{self.max_logit_scale:g}"
            )
        return self
