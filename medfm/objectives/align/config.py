"""Knobs of fine-grained alignment terms."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from medfm.registry import TERMS, ComponentConfig
from medfm.text.config import TextKind
from medfm.transforms.config import ViewsConfig

__all__ = ["TERMS", "TermConfig"]


class TermConfig(ComponentConfig):
    """Base of the terms of `objective.terms`.

    Attributes:
        texts: kinds of further texts that batches must hold for the term.
        reads_patches, reads_words: the term needs the encoders' tokens, not their pooled vectors alone.
        aligns_patches: the term compares projected patch tokens (`Encoded.patches`) with texts: heat maps then read these.
        reads_concepts: batches must hold concepts: the objective's `knowledge` must be given.
        reads_relations: batches must hold which concepts one sentence states together; with reads_concepts.
    """

    texts: ClassVar[tuple[TextKind, ...]] = ()
    reads_patches: ClassVar[bool] = False
    reads_words: ClassVar[bool] = False
    aligns_patches: ClassVar[bool] = False
    reads_concepts: ClassVar[bool] = False
    reads_relations: ClassVar[bool] = False

    weight: float = Field(default=1.0, gt=0, description="of the term in the loss")


_HELD = Field(default=2**24, ge=1, description="similarities held at once; more is faster and takes memory")


@TERMS.register("filip", "medfm.objectives.align.filip:FilipTerm")
class FilipConfig(TermConfig):
    """Token-wise maximum similarity (FILIP, Yao 2021)."""

    reads_patches: ClassVar[bool] = True
    reads_words: ClassVar[bool] = True
    aligns_patches: ClassVar[bool] = True

    name: str = "filip"
    held: int = _HELD


@TERMS.register("gloria", "medfm.objectives.align.gloria:GloriaTerm")
class GloriaConfig(TermConfig):
    """Attention-weighted local contrast of patches and words (GLoRIA, Huang 2021)."""

    reads_patches: ClassVar[bool] = True
    reads_words: ClassVar[bool] = True
    aligns_patches: ClassVar[bool] = True

    name: str = "gloria"
    attention: float = Field(default=4.0, gt=0, description="sharpness of a word's attention to patches; GLoRIA's temp1")
    match: float = Field(default=5.0, gt=0, description="of the words within a text; GLoRIA's temp2")
    scale: float = Field(default=10.0, gt=0, description="of the contrast between texts; GLoRIA's temp3")
    aggregate: Literal["sum", "mean"] = Field(default="sum", description="over words; mean does not favour longer texts")
    held: int = _HELD


@TERMS.register("sentences", "medfm.objectives.align.sentences:SentencesTerm")
class SentencesConfig(TermConfig):
    """Each sentence against the mean of the patches that resemble it most (SimCroP, Wang 2025)."""

    texts: ClassVar[tuple[TextKind, ...]] = ("sentences",)
    reads_patches: ClassVar[bool] = True
    aligns_patches: ClassVar[bool] = True

    name: str = "sentences"
    top: int = Field(default=8, ge=1, description="patches that a sentence selects")


@TERMS.register("levels", "medfm.objectives.align.levels:LevelsTerm")
class LevelsConfig(TermConfig):
    """Contrast of sections and of sentences beside that of the whole report (VELVET-Med, Zhang 2025)."""

    texts: ClassVar[tuple[TextKind, ...]] = ("findings", "impression", "sentences")
    reads_patches: ClassVar[bool] = True
    aligns_patches: ClassVar[bool] = True

    name: str = "levels"
    sections: float = Field(default=1.0, ge=0, description="weight of findings and impression against the image, their mean")
    sentences: float = Field(default=1.0, ge=0, description="weight of sentences against patches")
    attention: float = Field(default=4.0, gt=0, description="sharpness of a sentence's attention to patches")
    match: float = Field(default=5.0, gt=0, description="of the sentences within a report")
    scale: float = Field(default=10.0, gt=0, description="of the contrast between reports")
    held: int = _HELD

    @model_validator(mode="after")
    def _learns(self) -> LevelsConfig:
        if not self.sections + self.sentences:
            raise ValueError("sections and sentences are both 0: nothing would be learned")
        return self


@TERMS.register("hard_negatives", "medfm.objectives.align.hard_negatives:HardNegativesTerm")
class HardNegativesConfig(TermConfig):
    """An image against its own text and that text with sides swapped or findings negated (NegCLIP's hard negatives)."""

    name: str = "hard_negatives"
    kinds: tuple[Literal["swapped", "negated"], ...] = Field(
        default=("swapped", "negated"), min_length=1, description="changes of a text that an image is held against"
    )

    @property
    def texts(self) -> tuple[TextKind, ...]:  # type: ignore[override]
        return self.kinds


_Kinds = tuple[Literal["anatomy", "pathology", "device", "normal"], ...]
_UNSTATED = "what a report's silence on a concept means: absence, as reports name what they find, or nothing"
_SAY = "what of a concept the text encoder reads: name, definition and synonyms, or the name alone"


@TERMS.register("knowledge", "medfm.objectives.align.knowledge:KnowledgeTerm")
class KnowledgeTermConfig(TermConfig):
    """Images against descriptions of what their reports state (K-LITE), relatives being no negatives (KEEP)."""

    reads_concepts: ClassVar[bool] = True

    name: str = "knowledge"
    kinds: _Kinds = Field(default=("pathology",), min_length=1, description="concepts that take part")
    say: Literal["description", "name"] = Field(default="description", description=_SAY)
    unstated: Literal["negative", "ignored"] = Field(default="negative", description=_UNSTATED)
    temperature: float | None = Field(default=None, gt=0, description="None: the learned one of the whole contrast")


@TERMS.register("concepts", "medfm.objectives.align.concepts:ConceptsTerm")
class ConceptsConfig(TermConfig):
    """Patches against the concepts of a vocabulary: ConceptCLIP's patch-concept alignment."""

    reads_patches: ClassVar[bool] = True
    reads_concepts: ClassVar[bool] = True

    name: str = "concepts"
    weight: float = Field(default=0.5, gt=0, description="of the term in the loss; 0.5 is ConceptCLIP's")
    kinds: _Kinds = Field(default=("pathology",), min_length=1, description="concepts that take part")
    say: Literal["description", "name"] = Field(default="name", description=_SAY)
    unstated: Literal["negative", "ignored"] = Field(default="negative", description=_UNSTATED)
    heads: Literal["joint", "own"] = Field(
        default="joint",
        description="compare by the projections that zero-shot and heat maps use, or by ConceptCLIP's two layers a side, which "
        "are lost after training",
    )
    scale: float = Field(default=10.0, gt=0, le=100, description="of the similarity, at the start; learned")
    bias: float = Field(default=-10.0, description="added to it, at the start; learned")

    @property
    def aligns_patches(self) -> bool:  # type: ignore[override]
        return self.heads == "joint"


@TERMS.register("streams", "medfm.objectives.align.streams:StreamsTerm")
class StreamsConfig(TermConfig):
    """Pathology and anatomy in streams of their own, with prototypes and a contrast between them (MeDSLIP)."""

    reads_patches: ClassVar[bool] = True
    reads_concepts: ClassVar[bool] = True
    reads_relations: ClassVar[bool] = True

    name: str = "streams"
    say: Literal["description", "name"] = Field(default="description", description=_SAY)
    prototypes: float = Field(default=1.0, ge=0, description="weight of the contrast with the other stream's prototypes")
    relations: float = Field(default=1.0, ge=0, description="weight of telling which pathology lies where within an image")
    dim: int = Field(default=256, ge=1, description="of the streams")
    depth: int = Field(default=4, ge=1, description="layers of each stream's decoder")
    num_heads: int = Field(default=4, ge=1)
    mlp_ratio: float = Field(default=4.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> StreamsConfig:
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        return self


@TERMS.register("captioning", "medfm.objectives.align.captioning:CaptioningTerm")
class CaptioningConfig(TermConfig):
    """A decoder, thrown away after training, tells the report from the image word by word (CoCa)."""

    reads_patches: ClassVar[bool] = True
    reads_words: ClassVar[bool] = True

    name: str = "captioning"
    weight: float = Field(default=2.0, gt=0, description="of the term in the loss; 2 beside a contrast of 1 is CoCa's")
    inputs: Literal["auto", "words", "embedding"] = Field(
        default="auto",
        description="what the decoder reads of the report: the tokens of a text encoder that is causal (CoCa), or its token "
        "embedding; auto: the tokens of clip_text, else the embedding",
    )
    share_embedding: bool = Field(
        default=False, description="the next word is found by the text encoder's token embedding, not by a matrix of its own"
    )
    dim: int | None = Field(default=None, ge=1, description="of the decoder; None: the text encoder's")
    depth: int = Field(default=12, ge=1, description="pairs of causal and cross-attention layers")
    num_heads: int = Field(default=8, ge=1)
    mlp_ratio: float = Field(default=4.0, gt=0)


@TERMS.register("intra_modal", "medfm.objectives.align.intra_modal:IntraModalTerm")
class IntraModalConfig(TermConfig):
    """Images against images, texts against texts, whole and in part, by a momentum encoder (TCL)."""

    name: str = "intra_modal"
    weight: float = Field(default=2.0, gt=0, description="of the term in the loss; 2 beside a contrast of 1 is TCL's")
    sides: tuple[Literal["image", "text"], ...] = Field(default=("image", "text"), min_length=1)
    parts: tuple[Literal["imc", "lmi"], ...] = Field(
        default=("imc", "lmi"), min_length=1, description="intra-modal contrast of wholes; local mutual information of parts"
    )
    momentum: float = Field(default=0.995, ge=0, lt=1, description="of the moving average of encoders and projections")
    views: ViewsConfig = Field(
        default=ViewsConfig(global_count=1, local_count=0), description="the view that the momentum encoder sees"
    )

    @field_validator("views", mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        return _with_defaults(value, cls.model_fields["views"].default)

    @field_validator("views")
    @classmethod
    def _one(cls, value: ViewsConfig) -> ViewsConfig:
        if (value.global_count, value.local_count) != (1, 0):
            raise ValueError("the momentum encoder sees one view: global_count must be 1 and local_count 0")
        return value


@TERMS.register("image_views", "medfm.objectives.align.image_views:ImageViewsTerm")
class ImageViewsConfig(TermConfig):
    """Two views of each image agree: DeCLIP's (simsiam) and SLIP's (simclr) image self-supervision."""

    name: str = "image_views"
    loss: Literal["simsiam", "simclr"] = "simsiam"
    temperature: float = Field(default=0.1, gt=0, description="of loss=simclr")
    layers: int = Field(default=3, ge=1, description="of the projector")
    hidden_dim: int = Field(default=1024, ge=1, description="SLIP: 4096")
    out_dim: int = Field(default=1024, ge=1, description="SLIP: 256")
    predictor_dim: int = Field(default=512, ge=1, description="hidden size of SimSiam's predictor")
    views: ViewsConfig = Field(default=ViewsConfig(global_scale=(0.2, 1.0), local_count=0), description="the two views")

    @field_validator("views", mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        return _with_defaults(value, cls.model_fields["views"].default)

    @field_validator("views")
    @classmethod
    def _two(cls, value: ViewsConfig) -> ViewsConfig:
        if (value.global_count, value.local_count) != (2, 0):
            raise ValueError("two views are compared: global_count must be 2 and local_count 0")
        return value


def _with_defaults(value: Any, default: ViewsConfig) -> Any:
    """A recipe that sets one key of the views keeps the term's defaults of the others."""
    if isinstance(value, ViewsConfig):
        value = {key: getattr(value, key) for key in value.model_fields_set}
    return {**default.model_dump(), **value} if isinstance(value, dict) else value


@TERMS.register("masked_words", "medfm.objectives.align.masked_words:MaskedWordsTerm")
class MaskedWordsConfig(TermConfig):
    """Hidden words of the report are guessed by the text encoder: DeCLIP's text self-supervision."""

    name: str = "masked_words"
    ratio: float = Field(default=0.15, gt=0, lt=1, description="share of the words that are to be guessed")


@TERMS.register("nearest_text", "medfm.objectives.align.nearest_text:NearestTextTerm")
class NearestTextConfig(TermConfig):
    """Images against the most similar report of former batches: DeCLIP's nearest-neighbour supervision."""

    name: str = "nearest_text"
    bank: int = Field(default=65536, ge=1, description="reports of former batches that are kept")
