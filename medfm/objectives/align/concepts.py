"""Patches against the concepts of a vocabulary: ConceptCLIP's patch-concept alignment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.dual import DualEncoder, unit
from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.concept_texts import ConceptTexts, everyone_stated, false_negatives, left_out
from medfm.objectives.gather import Gather, mean_of_sums
from medfm.objectives.losses import at_least_float32

if TYPE_CHECKING:
    from medfm.objectives.align.config import ConceptsConfig
    from medfm.text.knowledge import Knowledge
    from medfm.text.tokenizers import Tokenizer


class ConceptsTerm(Term):
    """A concept that the report states is to be found in some patch of the image, one that it does not state in none.

    `loss = -1/M sum_ik log sigmoid(y_ik (exp(s) max_n <p_in, c_k> + b))` over images i and the concepts k that some report of
    the batch states or denies: y = 1 where the report states the concept, else -1; M pairs are positive; s and b are learned
    and belong to the term.

    Followed: PC-Align of ConceptCLIP (Nie et al. 2025, "An Explainable Biomedical Foundation Model via Large-Scale
    Concept-Enhanced Vision-Language Pre-training"; the authors' pre_training/src/open_clip/loss.py,
    `SigLipConceptLoss._concept_token_level_loss`, and model.py for the heads of heads=own). Its IT-Align is SigLIP's loss of
    whole images and texts, which is the objective's own with loss=sigmoid; the authors' total is IT + 0.5 PC, this term's
    default weight. Other than there
    - the vocabulary is the knowledge file's in place of UMLS, and a concept's vector is that of its name by itself in place of
      the mean of its words within a caption;
    - a concept that two reports state is one column with two positives, where there each mention is a column of its own and
      the other image its negative; where no concept is stated twice the two are equal;
    - silent reports on relatives of a stated concept, and of the same patient or text, are no negatives; `unstated: ignored`
      leaves out all that a report is silent on.

    heads=joint compares patches and names by the projections that zero-shot uses, so that heat maps gain from it; heads=own has
    the authors' two layers a side, which are lost when training ends.

    Raises:
        ConfigError: no knowledge file, or none of its concepts is of `kinds`.
    """

    MAX_SCALE = 100.0

    def __init__(
        self,
        config: ConceptsConfig,
        *,
        dual: DualEncoder,
        knowledge: Knowledge | None = None,
        tokenizer: Tokenizer | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.config = config
        self.concepts = ConceptTexts(knowledge, tokenizer, config.kinds, config.say, config.name)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.logit_bias = nn.Parameter(torch.tensor(config.bias))
        self.heads: nn.ModuleDict | None = None
        if config.heads == "own":
            encoders: Any = {"image": dual.image_encoder, "text": dual.text_encoder}
            self.heads = nn.ModuleDict({side: _head(e.embed_dim, dual.embed_dim) for side, e in encoders.items()})
            special = torch.tensor(sorted(set(getattr(tokenizer, "special_ids", ()))), dtype=torch.int64)
            words = self.concepts.attention_mask * ~torch.isin(self.concepts.tokens, special)
            self.register_buffer("own_words", words, persistent=False)

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        gather = encoded.gather
        own = self.concepts.stated(encoded)
        stated, sizes = everyone_stated(own, gather)
        used = (~stated.isnan()).any(dim=0).nonzero().squeeze(1)
        patches = self._patches(encoded)
        if not len(used):
            return self.touched(patches), {"found": patches.new_zeros(())}
        first = sum(sizes[: gather.rank])
        groups = [gather.rows(codes, sizes) for codes in encoded.groups]
        near = false_negatives(stated[:, used] == 1, stated[:, used], groups)[first : first + len(own)]
        out = left_out(own, self.concepts.related, self.config.unstated)[:, used] | near
        positive = own[:, used] == 1
        similarity = best_patch(patches, self._vectors(encoded.dual, used, gather))
        total = patch_concept_loss(similarity, self.logit_scale, self.logit_bias, positive, out)
        count = positive.sum().to(total.dtype)
        right = ((self.logit_scale.exp() * similarity + self.logit_bias > 0) & positive).sum().to(total.dtype)
        loss = mean_of_sums(total, count, gather) + self.touched(patches)
        return loss, {"found": mean_of_sums(right, count, gather), "logit_scale": self.logit_scale.detach().exp()}

    def _patches(self, encoded: Encoded) -> Tensor:
        """(B, N, D) unit vectors."""
        if self.heads is None:
            return encoded.patches
        assert encoded.patch_tokens is not None
        return unit(self.heads["image"](encoded.patch_tokens))

    def _vectors(self, dual: DualEncoder, used: Tensor, gather: Gather) -> Tensor:
        """(k, D) unit vectors of names. With heads of its own each device encodes all names: the heads are its own to train."""
        if self.heads is None:
            return self.concepts.vectors(dual, used, gather)
        features = dual.text_encoder(self.concepts.tokens[used], self.concepts.attention_mask[used]).tokens
        words: Any = self.own_words
        weight = words[used, : features.shape[1], None].to(features.dtype)
        pooled = (self.heads["text"](features) * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        return unit(pooled)

    @torch.no_grad()
    def after_optimizer_step(self, step: int, total: int) -> None:
        self.logit_scale.clamp_(max=math.log(self.MAX_SCALE))


def _head(width: int, embed_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, embed_dim, bias=False), nn.GELU(), nn.Linear(embed_dim, embed_dim, bias=False))


def best_patch(patches: Tensor, concepts: Tensor) -> Tensor:
    """(B, K) similarity of each concept (K, D) to the patch of each image (B, N, D) that it is most similar to."""
    with torch.autocast(patches.device.type, enabled=False):
        return (at_least_float32(patches) @ at_least_float32(concepts).t()).max(dim=1).values


def patch_concept_loss(
    similarity: Tensor, logit_scale: Tensor, logit_bias: Tensor, positive: Tensor, left_out: Tensor
) -> Tensor:
    """The sum over pairs of `-log sigmoid(y (exp(logit_scale) similarity + logit_bias))`, not yet divided by the positives.

    Args:
        similarity: (B, K).
        positive, left_out: (B, K) bool; what is both counts as positive.
    """
    with torch.autocast(similarity.device.type, enabled=False):
        logits = logit_scale.exp() * similarity + logit_bias
        losses = -F.logsigmoid(torch.where(positive, logits, -logits))
        return losses.masked_fill(left_out & ~positive, 0.0).sum()
