"""From configurations to a DualEncoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medfm.encoders.config import ClipTextConfig, HuggingFaceTextConfig
from medfm.encoders.dual import DualEncoder
from medfm.errors import ConfigError
from medfm.registry import ENCODERS, TEXT_ENCODERS, TOKENIZERS, ComponentConfig

if TYPE_CHECKING:
    from medfm.text.tokenizers import Tokenizer


def build_tokenizer(config: ComponentConfig, state: Mapping[str, str] | None = None) -> Tokenizer:
    """The tokenizer that `config` describes; with `state` (from a weight file) no other file is read."""
    return TOKENIZERS.build(config) if state is None else TOKENIZERS.build(config, state=state)


def build_dual(
    encoder: ComponentConfig | Callable[[], Any],
    objective: Any,
    tokenizer: Tokenizer | None = None,
    hf_config: dict[str, Any] | None = None,
) -> DualEncoder:
    """The DualEncoder of a recipe.

    Args:
        encoder: an image encoder's configuration, or a function that gives one; built after the text encoder.
        objective: anything with `text_encoder`, `tokenizer`, `embed_dim`, `projection`, `temperature`, `learn_temperature`,
            `loss`, `logit_bias` and `dense`: a ContrastiveConfig or a DualConfig.
        tokenizer: the objective's tokenizer where it is built already.
        hf_config: config.json of a Hugging Face text encoder, which is then built with random weights (a weight file follows).

    Raises:
        ConfigError: text encoder and tokenizer do not fit each other.
    """
    tokenizer = tokenizer or build_tokenizer(objective.tokenizer)
    text = objective.text_encoder
    if isinstance(text, ClipTextConfig):
        # The vocabulary decides the size of the embedding; two keys that must agree would only be a trap.
        text = text.model_copy(update={"vocab_size": tokenizer.vocab_size, "context_length": tokenizer.context_length})
    parts = {"hf_config": hf_config} if isinstance(text, HuggingFaceTextConfig) else {}
    text_encoder = TEXT_ENCODERS.build(text, **parts)
    if isinstance(text, HuggingFaceTextConfig):
        _check_fit(text_encoder.hf_config, tokenizer)
    return DualEncoder(
        encoder() if callable(encoder) else ENCODERS.build(encoder),
        text_encoder,
        embed_dim=objective.embed_dim,
        projection=objective.projection,
        temperature=objective.temperature,
        learn_temperature=objective.learn_temperature,
        logit_bias=objective.logit_bias if objective.loss == "sigmoid" else None,
        dense=objective.dense,
    )


def _check_fit(hf_config: dict[str, Any], tokenizer: Tokenizer) -> None:
    from medfm.text.tokenizers import ClipTokenizer

    vocabulary = hf_config.get("vocab_size")
    # A language model may hold more ids than its tokenizer gives; CLIP's would be ids of other words.
    strange = isinstance(tokenizer, ClipTokenizer) and tokenizer.vocab_size != vocabulary
    if vocabulary is not None and (strange or tokenizer.vocab_size > vocabulary):
        raise ConfigError(
            f"objective.tokenizer has {tokenizer.vocab_size} tokens, the text encoder {vocabulary}; set objective.tokenizer to "
            "{name: hf, path: <the text encoder's path>}"
        )
    positions = hf_config.get("max_position_embeddings")
    if positions is not None:
        # RoBERTa counts positions from pad_token_id + 1.
        offset = hf_config.get("pad_token_id", 0) + 1 if "roberta" in str(hf_config.get("model_type")) else 0
        if tokenizer.context_length > positions - offset:
            raise ConfigError(
                f"objective.tokenizer.context_length: {tokenizer.context_length} exceeds the {positions - offset} positions "
                "of the text encoder"
            )


def refused_size(encoder: Any, size: Sequence[int], channels: int) -> str:
    """Why an image encoder does not take images of `size`, "" where it does: one image of zeros goes through, in eval mode."""
    import torch

    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            encoder(next(encoder.parameters()).new_zeros(1, channels, *size))
    except (RuntimeError, AssertionError, ConfigError, ValueError) as error:
        return str(error)
    finally:
        encoder.train(training)
    return ""
