"""Hidden words of the report are guessed from the others by the text encoder: DeCLIP's text self-supervision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.dual import DualEncoder
from medfm.errors import ConfigError
from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.encode import never_empty
from medfm.objectives.gather import mean_of_sums
from medfm.objectives.losses import at_least_float32

if TYPE_CHECKING:
    from medfm.objectives.align.config import MaskedWordsConfig
    from medfm.text.tokenizers import Tokenizer


class MaskedWordsTerm(Term):
    """Cross entropy of the words chosen, the mean over those of all devices.

    Each real token but the special ones is chosen with probability `ratio`; of the chosen 80 % become the mask token, 10 % a
    random one, 10 % stay (BERT, Devlin et al. 2019, section 3.1). The report goes through the text encoder once more so, and a
    linear layer of this term tells the chosen tokens from its features.

    Source: Li et al. 2022 (DeCLIP), section on self-supervision within each modality, and the authors' declip.py
    (`text_label_predictor`), whose text encoder is CLIP's causal one as well: a word is guessed from those before it. TCL's
    masked language modelling, which also looks at the image, is not this one. Other than there the masked report does not
    stand for the report in the contrast. CLIP's vocabulary has no mask token, and DeCLIP adds one: see `Tokenizer.mask_id`.

    Raises:
        ConfigError: the tokenizer has no mask token.
    """

    special: Tensor

    def __init__(self, config: MaskedWordsConfig, *, dual: DualEncoder, tokenizer: Tokenizer | None = None, **_: Any) -> None:
        super().__init__()
        if tokenizer is None or tokenizer.mask_id is None:
            raise ConfigError(
                "objective.terms: masked_words: the tokenizer has no mask token such as [MASK]; use another, or clip"
            )
        encoder: Any = dual.text_encoder
        self.config = config
        self.mask_id, self.vocab_size, self.context_length = tokenizer.mask_id, tokenizer.vocab_size, tokenizer.context_length
        self.predict = nn.Linear(int(encoder.embed_dim), tokenizer.vocab_size)
        self.register_buffer("special", torch.tensor(sorted(set(tokenizer.special_ids)), dtype=torch.int64), persistent=False)

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, mask = encoded.batch.tokens, encoded.batch.attention_mask
        assert tokens is not None
        mask = torch.ones_like(tokens) if mask is None else mask
        # Devices may have padded to other lengths: all draw for the longest there can be.
        noise = encoded.rand(max(self.context_length, tokens.shape[1]), 3)[:, : tokens.shape[1]]
        words = (mask == 1) & ~torch.isin(tokens, self.special)
        hidden, chosen = hide_words(tokens, words, noise, self.config.ratio, self.mask_id, self.vocab_size)
        features = encoded.dual.text_encoder(never_empty(hidden), never_empty(mask, 1)).tokens[: len(hidden)]
        chosen = chosen[:, : features.shape[1]]
        logits = self.predict(features[chosen])
        wanted = tokens[:, : features.shape[1]][chosen]
        with torch.autocast(logits.device.type, enabled=False):
            losses = F.cross_entropy(at_least_float32(logits), wanted, reduction="sum")
        count = losses.new_tensor(float(len(wanted)))
        right = (logits.detach().argmax(dim=1) == wanted).sum().to(losses.dtype)
        loss = mean_of_sums(losses, count, encoded.gather) + self.touched(features)
        return loss, {"accuracy": mean_of_sums(right, count, encoded.gather)}


def hide_words(
    tokens: Tensor, words: Tensor, noise: Tensor, ratio: float, mask_id: int, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Tokens with some words hidden, and which were chosen, both (B, T).

    Args:
        tokens: (B, T) ids.
        words: (B, T) bool, what may be chosen.
        noise: (B, T, 3) uniform in [0, 1): whether a word is chosen, what becomes of it, and which random one.
    """
    chosen = words & (noise[..., 0] < ratio)
    replaced = torch.where(noise[..., 1] < 0.8, mask_id, (noise[..., 2] * vocab_size).long().clamp(max=vocab_size - 1))
    return torch.where(chosen & (noise[..., 1] < 0.9), replaced, tokens), chosen
