"""Knobs of what is learned."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from medfm.registry import OBJECTIVES, TEXT_ENCODERS, TOKENIZERS, ComponentConfig, component


class ObjectiveConfig(ComponentConfig):
    """Base of what can be learned. An objective that reads text has a field `tokenizer`.

    Attributes:
        makes_views: the objective cuts views of the encoder's size out of the contract's images, which may then be larger.
    """

    makes_views: ClassVar[bool] = False

    @property
    def tokenizer_config(self) -> ComponentConfig | None:
        """The tokenizer that batches are made with; None for batches without text."""
        return getattr(self, "tokenizer", None)


@OBJECTIVES.register("sum", "medfm.objectives.sum:build")
class SumConfig(ObjectiveConfig):
    """Several objectives on one image encoder: `{name: sum, terms: [{name: contrastive}, {name: mae}], weights: [1, 0.5]}`."""

    name: str = "sum"
    terms: tuple[component(OBJECTIVES), ...] = Field(min_length=1, description="objectives, each with its own keys")  # type: ignore[valid-type]
    weights: tuple[float, ...] = Field(default=(), description="of the terms' losses; empty: 1 each")

    @property
    def tokenizer_config(self) -> ComponentConfig | None:
        found = [t.tokenizer_config for t in self.terms if t.tokenizer_config is not None]
        return found[0] if found else None

    @model_validator(mode="after")
    def _fits(self) -> SumConfig:
        if self.weights and len(self.weights) != len(self.terms):
            raise ValueError(f"{len(self.weights)} weights for {len(self.terms)} terms")
        if any(w < 0 for w in self.weights):
            raise ValueError("weights must not be negative")
        readers = [t.tokenizer_config for t in self.terms if t.tokenizer_config is not None]
        if any(r != readers[0] for r in readers):
            raise ValueError("terms that read text must have the same tokenizer")
        if any(isinstance(t, SumConfig) for t in self.terms):
            raise ValueError("a sum holds no sum")
        return self


@OBJECTIVES.register("contrastive", "medfm.objectives.contrastive:build")
class ContrastiveConfig(ObjectiveConfig):
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
