"""Knobs of what is learned: the base, alignment, masked autoencoding and sums; views and teachers are in ssl_config.py."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from medfm.objectives.align.config import TERMS
from medfm.registry import (
    OBJECTIVES,
    TEXT_ENCODERS,
    TOKENIZERS,
    ComponentConfig,
    component,
)
from medfm.text.config import FurtherTexts


class ObjectiveConfig(ComponentConfig):
    """Base of what can be learned. An objective that reads text has a field `tokenizer`.

    Attributes:
        makes_views: the objective cuts views of the encoder's size out of the contract's images, which may then be larger.
        compares_batch: the loss sets the images of a batch against each other, so that accumulated small batches are another
            loss than a large batch.
    """

    makes_views: ClassVar[bool] = False
    compares_batch: ClassVar[bool] = False

    @property
    def tokenizer_config(self) -> ComponentConfig | None:
        """The tokenizer that batches are made with; None for batches without text."""
        return getattr(self, "tokenizer", None)

    @property
    def further_texts(self) -> FurtherTexts:
        """What batches hold of a report beside its drawn text."""
        return FurtherTexts()


@OBJECTIVES.register("sum", "medfm.objectives.sum:build")
class SumConfig(ObjectiveConfig):
    """Several objectives on one image encoder: `{name: sum, terms: [{name: contrastive}, {name: mae}], weights: [1, 0.5]}`."""

    name: str = "sum"
    terms: tuple[component(OBJECTIVES), ...] = Field(min_length=1, description="objectives, each with its own keys")  # type: ignore[valid-type]
    weights: tuple[float, ...] = Field(default=(), description="of the terms' losses; empty: 1 each")

    @property
    def makes_views(self) -> bool:  # type: ignore[override]
        """Whether every term cuts views: then the contract's images may be larger than the encoder's."""
        return all(getattr(term, "makes_views", False) for term in self.terms)

    @property
    def tokenizer_config(self) -> ComponentConfig | None:
        found = [t.tokenizer_config for t in self.terms if t.tokenizer_config is not None]
        return found[0] if found else None

    @property
    def further_texts(self) -> FurtherTexts:
        return next((t.further_texts for t in self.terms if t.further_texts != FurtherTexts()), FurtherTexts())

    @model_validator(mode="after")
    def _fits(self) -> SumConfig:
        if self.weights and len(self.weights) != len(self.terms):
            raise ValueError(f"{len(self.weights)} weights for {len(self.terms)} terms")
        if any(w < 0 for w in self.weights):
            raise ValueError("weights must not be negative")
        readers = [t.tokenizer_config for t in self.terms if t.tokenizer_config is not None]
        if len([t for t in self.terms if t.further_texts != FurtherTexts()]) > 1:
            raise ValueError("one term of a sum may read further texts (sentences, sections, concepts)")
        if any(r != readers[0] for r in readers):
            raise ValueError("terms that read text must have the same tokenizer")
        if any(isinstance(t, SumConfig) for t in self.terms):
            raise ValueError("a sum holds no sum")
        return self


@OBJECTIVES.register("contrastive", "medfm.objectives.contrastive:build")
class ContrastiveConfig(ObjectiveConfig):
    """Image-report alignment: CLIP, ConVIRT, SigLIP and FLIP are settings of this one objective."""

    compares_batch: ClassVar[bool] = True

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
    weight: float = Field(default=1.0, ge=0, description="of the contrast of whole images and texts beside the terms")
    terms: tuple[component(TERMS), ...] = Field(default=(), description="fine-grained alignment, each term with its own weight")  # type: ignore[valid-type]
    max_sentences: int = Field(default=8, ge=1, description="of a report, drawn anew each epoch, for terms that read sentences")
    knowledge: str | None = Field(
        default=None,
        description="knowledge file or its shipped name, for terms that read concepts: definitions, synonyms, parents",
    )

    @property
    def further_texts(self) -> FurtherTexts:
        kinds = tuple(dict.fromkeys(kind for term in self.terms for kind in term.texts))
        return FurtherTexts(kinds, self.max_sentences, self.knowledge, any(term.reads_relations for term in self.terms))

    @property
    def dense(self) -> Literal["patches", "values"]:
        """What heat maps read of a class-token encoder: patch tokens where a term aligns them with texts."""
        return "patches" if any(term.aligns_patches for term in self.terms) else "values"

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
        if not self.weight and not self.terms:
            raise ValueError("weight is 0 and there are no terms: nothing would be learned")
        if self.patch_dropout and (readers := [term.name for term in self.terms if term.reads_patches]):
            raise ValueError(f"patch_dropout must be 0: the term '{readers[0]}' reads all patches")
        if self.knowledge is None and (readers := [term.name for term in self.terms if term.reads_concepts]):
            raise ValueError(f"the term '{readers[0]}' reads concepts: set knowledge to a knowledge file or its shipped name")
        return self


@OBJECTIVES.register("mae", "medfm.objectives.mae:build")
class MaeConfig(ObjectiveConfig):
    """Masked autoencoding in 2D and 3D: MAE (He 2022), and with encode_all SimMIM (Xie 2022). Defaults: MAE ViT-B/16."""

    name: str = "mae"
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    masking: Literal["random", "block", "foreground"] = Field(
        default="random",
        description="patches one by one; contiguous boxes (BEiT), which are harder to fill from neighbours; or the same "
        "share of tissue and of air in each image, see foreground_*",
    )
    mask_unit: int = Field(default=1, ge=1, description="side, in patches, of squares or cubes masked together (SimMIM: 32 px)")
    block_scale: tuple[float, float] = Field(
        default=(0.05, 0.3), description="share of the image that a box of masking=block covers"
    )
    block_aspect: float = Field(
        default=0.3, gt=0, le=1, description="how flat boxes may be, as in BEiT; 1: the image's proportions"
    )
    foreground_threshold: float = Field(
        default=0.02, ge=0, description="patches whose [0, 1] grey values have a standard deviation up to this are background"
    )
    foreground_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of patches that take part with masking=foreground, background left out first",
    )
    background_weight: float = Field(default=0.1, ge=0, description="of background patches in the loss, masking=foreground")
    mask_channels: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that the encoder does not get an input channel (MR sequence); one stays",
    )
    norm_pix: bool = Field(default=True, description="targets are each patch's pixels less their mean, over their deviation")
    loss: Literal["mse", "l1", "smooth_l1"] = "mse"
    encode_all: bool = Field(
        default=False, description="the encoder gets mask tokens in place of masked patches (SimMIM); timm encoders need it"
    )
    head: Literal["decoder", "linear"] = Field(default="decoder", description="linear: SimMIM's one layer, with encode_all")
    decoder_dim: int = Field(default=512, ge=1)
    decoder_depth: int = Field(default=8, ge=1)
    decoder_heads: int = Field(default=16, ge=1)
    decoder_mlp_ratio: float = Field(default=4.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> MaeConfig:
        if self.head == "linear" and not self.encode_all:
            raise ValueError("head=linear reads masked patches from the encoder, which needs encode_all=true")
        if self.head == "decoder" and self.decoder_dim % self.decoder_heads:
            raise ValueError(f"decoder_dim {self.decoder_dim} is not a multiple of decoder_heads {self.decoder_heads}")
        low, high = self.block_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"block_scale {list(self.block_scale)} must be two shares, 0 < least <= largest <= 1")
        if self.encode_all and self.foreground_share < 1:
            raise ValueError("foreground_share below 1 leaves patches out of the encoder; with encode_all it must be 1")
        if self.masking != "foreground" and self.foreground_share < 1:
            raise ValueError("foreground_share goes with masking=foreground")
        return self


@OBJECTIVES.register("m3ae", "medfm.objectives.m3ae:build")
class M3aeConfig(ObjectiveConfig):
    """Masked autoencoding of image and report together (M3AE, Geng et al. 2022)."""

    name: str = "m3ae"
    tokenizer: component(TOKENIZERS) = Field(default="clip")  # type: ignore[valid-type]
    image_mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    text_mask_ratio: float = Field(default=0.75, gt=0, le=1, description="of a report's words; start, end and padding stay")
    image_weight: float = Field(default=1.0, ge=0, description="of the squared error of masked patches")
    text_weight: float = Field(default=0.5, ge=0, description="of the cross entropy of masked words")
    norm_pix: bool = Field(default=True, description="targets are each patch's pixels less their mean, over their deviation")
    token_std: float = Field(default=1.0, gt=0, description="of the word embedding at the start, beside positions up to 1")
    decoder_dim: int = Field(default=512, ge=1)
    decoder_depth: int = Field(default=8, ge=1)
    decoder_heads: int = Field(default=16, ge=1)
    decoder_mlp_ratio: float = Field(default=4.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> M3aeConfig:
        if self.decoder_dim % self.decoder_heads:
            raise ValueError(f"decoder_dim {self.decoder_dim} is not a multiple of decoder_heads {self.decoder_heads}")
        if not self.image_weight + self.text_weight:
            raise ValueError("image_weight and text_weight are both 0: nothing would be learned")
        return self
