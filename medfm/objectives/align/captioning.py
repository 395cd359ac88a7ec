"""Telling the report from the image, word by word, beside the contrast: CoCa."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medfm.encoders.text import ClipTextEncoder
from medfm.errors import ConfigError
from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.caption_decoder import CaptionDecoder
from medfm.objectives.gather import mean_of_sums
from medfm.objectives.losses import at_least_float32

if TYPE_CHECKING:
    from medfm.encoders.dual import DualEncoder
    from medfm.objectives.align.config import CaptioningConfig
    from medfm.text.tokenizers import Tokenizer


class CaptioningTerm(Term):
    """`loss = -mean_t log P(y_t | y_<t, image)` over the words of all devices' reports: teacher forcing, padding left out.

    A decoder reads the report shifted by one and the image's patch tokens, and is thrown away when training ends. What it reads
    of the report (`inputs`):

    - "words": the text encoder's tokens, as CoCa, whose unimodal decoder is the text encoder. It must be causal (clip_text):
      else each word could be read off the next.
    - "embedding": the text encoder's token embedding (shared, not copied) with positions of the decoder's own; for encoders
      that see both ways, such as BERT.

    With `share_embedding` the next word is found by comparison with the text encoder's token embedding in place of an output
    matrix of the decoder's own.

    Source: Yu et al. 2022, "CoCa: Contrastive Captioners are Image-Text Foundation Models", section 3.2, L_Cap and its place in
    L_CoCa = lambda_Con L_Con + lambda_Cap L_Cap (lambda_Cap = 2, this term's default weight), and open_clip's coca_model.py and
    `CoCaLoss`, with which decoder and loss agree. Other than there the decoder looks at all patch tokens through one linear
    layer, where CoCa pools them by 256 queries; the text's vector is the text encoder's, no CLS token is added to the report;
    and padding is known by its mask, where open_clip leaves out id 0 (a "!" of CLIP's vocabulary too).

    Args:
        dual: for its sizes.

    Raises:
        ConfigError: inputs=words with a text encoder that is not known to be causal, or sizes that do not fit.
    """

    CHUNK = 4096  # words whose scores over the vocabulary are in memory at once (800 MB for CLIP's in float32)

    def __init__(self, config: CaptioningConfig, *, dual: DualEncoder, tokenizer: Tokenizer | None = None, **_: Any) -> None:
        super().__init__()
        self.config = config
        assert tokenizer is not None
        image_encoder: Any = dual.image_encoder
        text_encoder: Any = dual.text_encoder
        width = int(text_encoder.embed_dim)
        dim = config.dim or width
        if dim % config.num_heads:
            raise ConfigError(f"objective.terms: captioning: dim {dim} is not a multiple of num_heads {config.num_heads}")
        causal = isinstance(text_encoder, ClipTextEncoder)
        if config.inputs == "words" and not causal:
            raise ConfigError(
                "objective.terms: captioning: inputs=words needs a causal text encoder (clip_text); use inputs=embedding"
            )
        self.from_words = config.inputs == "words" or (config.inputs == "auto" and causal)
        self.see = nn.Linear(int(image_encoder.embed_dim), dim)
        embedding = None if self.from_words and not config.share_embedding else _embedding(text_encoder)
        read = width if self.from_words or embedding is None else embedding.weight.shape[1]
        self.read: nn.Module = nn.Identity() if read == dim else nn.Linear(read, dim)
        self.positions: nn.Parameter | None = None
        if not self.from_words:
            self.positions = nn.Parameter(torch.empty(tokenizer.context_length, dim))
            nn.init.normal_(self.positions, std=0.01)
        checkpointing = bool(getattr(image_encoder, "gradient_checkpointing", False))
        self.decoder = CaptionDecoder(dim, config.depth, config.num_heads, config.mlp_ratio, checkpointing)
        if config.share_embedding:
            assert embedding is not None
            out = embedding.weight.shape[1]
            self.write: nn.Module = nn.Identity() if out == dim else nn.Linear(dim, out, bias=False)
        else:
            self.write = nn.Linear(dim, tokenizer.vocab_size, bias=False)
            nn.init.normal_(self.write.weight, std=dim**-0.5)

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        batch = encoded.batch
        assert encoded.patch_tokens is not None
        assert batch.tokens is not None
        mask = torch.ones_like(batch.tokens) if batch.attention_mask is None else batch.attention_mask
        if self.from_words:
            assert encoded.word_tokens is not None
            # What stands beyond a report's end is never asked for, but may be anything.
            words = self.read(encoded.word_tokens.masked_fill(mask[:, :, None] == 0, 0.0)[:, :-1])
        else:
            ids = batch.tokens[:, :-1]
            assert self.positions is not None
            if ids.shape[1] > len(self.positions):
                raise ConfigError(
                    f"texts have {ids.shape[1] + 1} tokens, objective.tokenizer.context_length is {len(self.positions)}"
                )
            words = self.read(_embedding(encoded.dual.text_encoder)(ids)) + self.positions[: ids.shape[1]]
        asked = mask[:, 1:] == 1
        wanted = batch.tokens[:, 1:][asked]
        features = self.decoder(words, self.see(encoded.patch_tokens))[asked]
        matrix = _embedding(encoded.dual.text_encoder).weight if self.config.share_embedding else None
        total, right = self._scores(features, wanted, matrix)
        count = total.new_tensor(float(len(wanted)))
        loss = mean_of_sums(total, count, encoded.gather) + self.touched(total)
        return loss, {"accuracy": mean_of_sums(right.to(total.dtype), count, encoded.gather)}

    def _scores(self, features: Tensor, wanted: Tensor, matrix: Tensor | None) -> tuple[Tensor, Tensor]:
        """Summed cross entropy and the number of right answers, of features (n, dim) and words (n,)."""

        def of(part: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.write(part) if matrix is None else F.linear(self.write(part), matrix)
            with torch.autocast(part.device.type, enabled=False):
                losses = F.cross_entropy(at_least_float32(logits), words, reduction="sum")
            return losses, (logits.detach().argmax(dim=1) == words).sum()

        total, right = at_least_float32(features).sum() * 0.0, torch.zeros((), dtype=torch.int64, device=features.device)
        for start in range(0, len(wanted), self.CHUNK):
            part = features[start : start + self.CHUNK], wanted[start : start + self.CHUNK]
            # A batch of one chunk keeps its scores; more chunks make them again in the backward.
            more = len(wanted) > self.CHUNK and torch.is_grad_enabled()
            losses, hits = checkpoint(of, *part, use_reentrant=False) if more else of(*part)
            total, right = total + losses, right + hits
        return total, right


def _embedding(text_encoder: Any) -> nn.Embedding:
    """The token embedding of a text encoder.

    Raises:
        ConfigError: it shows none.
    """
    found = getattr(text_encoder, "token_embedding", None)
    model: Any = getattr(text_encoder, "model", None)
    if found is None and model is not None:
        found = model.get_input_embeddings()
    if not isinstance(found, nn.Embedding):
        raise ConfigError(
            f"objective.terms: captioning: a {type(text_encoder).__name__} shows no token embedding; "
            "with clip_text use inputs=words and share_embedding=false"
        )
    return found
