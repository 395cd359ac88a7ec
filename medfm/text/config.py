"""Knobs of report text and tokenizers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from medfm.registry import TOKENIZERS, ComponentConfig, Config

TextKind = Literal["findings", "impression", "sentences", "swapped", "negated"]


@dataclass(frozen=True)
class FurtherTexts:
    """What an objective reads of a report beside the text that is drawn from it.

    Attributes:
        kinds: "findings", "impression": the section, where the report has it; "sentences": single sentences; "swapped",
            "negated": the drawn text with left and right changed, or a finding denied or asserted, where it allows that.
        max_sentences: of a report, drawn anew each epoch.
        knowledge: knowledge file or shipped name; with it a batch holds which of its concepts a report states.
        relations: a batch holds too which two of them one sentence states.
    """

    kinds: tuple[TextKind, ...] = ()
    max_sentences: int = 8
    knowledge: str | None = None
    relations: bool = False


class ReportConfig(Config):
    """Which part of a report is learned from."""

    sections: tuple[str, ...] = Field(
        default=("findings", "impression"), description="kept in this order; the whole text where none of them is found"
    )
    sample: Literal["all", "sentence", "sentences"] = Field(
        default="all",
        description="all the kept text; one sentence at random (ConVIRT); or a random contiguous run of sentences, in training",
    )
    min_words: int = Field(default=2, ge=1, description="shorter sentences are never sampled")


@TOKENIZERS.register("clip", "medfm.text.tokenizers:ClipTokenizer")
class ClipTokenizerConfig(ComponentConfig):
    """The CLIP byte-pair encoding, 49,408 tokens, from the file that open_clip carries."""

    name: str = "clip"
    context_length: int = Field(default=77, ge=4)


@TOKENIZERS.register("hf", "medfm.text.tokenizers:HuggingFaceTokenizer")
class HuggingFaceTokenizerConfig(ComponentConfig):
    """The tokenizer of a Hugging Face model, by local folder or hub name."""

    name: str = "hf"
    path: str | Path = Field(description="folder, or hub name")
    context_length: int = Field(default=256, ge=4)
