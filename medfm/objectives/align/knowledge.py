"""Images against descriptions of what their reports state: K-LITE's knowledge-enriched prompts, KEEP's hierarchy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medfm.encoders.dual import DualEncoder
from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.concept_texts import ConceptTexts, everyone_stated, false_negatives, left_out
from medfm.objectives.losses import at_least_float32

if TYPE_CHECKING:
    from medfm.objectives.align.config import KnowledgeTermConfig
    from medfm.text.knowledge import Knowledge
    from medfm.text.tokenizers import Tokenizer


class KnowledgeTerm(Term):
    """Each image finds the descriptions (name, definition, synonyms) of what its report states, each description its images.

    The loss of `concept_contrast` over the rows of all devices and the concepts that some report of the batch states or denies.

    Followed: K-LITE (Shen et al. 2022, "K-LITE: Learning Transferable Visual Models with External Knowledge", section 3), whose
    class prompts hold the definition of the class and are learned by UniCL's contrast; KEEP (Zhou et al. 2024, "A
    Knowledge-enhanced Pathology Vision-language Foundation Model"), whose loss.py takes a concept's ancestors and descendants
    out of the negatives. Not followed: K-LITE's knowledge in free captions; KEEP's text encoder trained on the knowledge graph
    before, its random templates and its metric loss with mined positives and negatives (AdaSP); DeViDe's (Luo et al. 2024)
    several descriptions an entity and its cross-attention from them to patches, which the terms `streams` and `concepts` come
    nearest to. One concept has one description here.

    Raises:
        ConfigError: no knowledge file, or none of its concepts is of `kinds`.
    """

    def __init__(
        self,
        config: KnowledgeTermConfig,
        *,
        knowledge: Knowledge | None = None,
        tokenizer: Tokenizer | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.config = config
        self.concepts = ConceptTexts(knowledge, tokenizer, config.kinds, config.say, config.name)

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        gather, dual = encoded.gather, encoded.dual
        stated, sizes = everyone_stated(self.concepts.stated(encoded), gather)
        used = (~stated.isnan()).any(dim=0).nonzero().squeeze(1)
        positive = stated[:, used] == 1
        logs = {
            "stated": positive.sum().to(encoded.image.dtype) / max(len(stated), 1),
            "concepts": encoded.image.new_tensor(len(used)),
        }
        image = gather.rows(encoded.image, sizes)
        if not len(used) or not len(stated):
            return 0.0 * image.sum(), logs
        out = left_out(stated, self.concepts.related, self.config.unstated)[:, used]
        groups = [gather.rows(codes, sizes) for codes in encoded.groups]
        out |= false_negatives(positive, stated[:, used], groups)
        scale = self._scale(dual, image)
        loss = concept_contrast(image, self.concepts.vectors(dual, used, gather), scale, positive, out)
        # All devices have made the same loss of all rows: by the convention of `medfm.objectives.gather` that is all.
        return loss, logs

    def _scale(self, dual: DualEncoder, like: Tensor) -> Tensor:
        temperature = self.config.temperature
        return dual.logit_scale if temperature is None else like.new_tensor(-math.log(temperature))


def concept_contrast(image: Tensor, concepts: Tensor, logit_scale: Tensor, positive: Tensor, left_out: Tensor) -> Tensor:
    """UniCL's contrast: each image against the concepts and each concept against the images, with several positives a side.

    With A = exp(logit_scale) * image @ concepts.T and P(i) the positives of row i,
    `loss = 1/2 mean_i(lse_k A_ik - mean_{k in P(i)} A_ik) + 1/2 mean_k(lse_i A_ik - mean_{i in P(k)} A_ik)`,
    means over the rows, and the columns, that have positives; sums without the pairs left out.

    Source: Yang et al. 2022, "Unified Contrastive Learning in Image-Text-Label Space", section 3.2, the loss that K-LITE trains
    with. UniCL sums the two directions; here they are averaged, as CLIP's are.

    Args:
        image: (N, D) unit vectors.
        concepts: (K, D) unit vectors.
        positive, left_out: (N, K) bool; what is both counts as positive.
    """
    with torch.autocast(image.device.type, enabled=False):
        logits = at_least_float32(logit_scale).exp() * at_least_float32(image) @ at_least_float32(concepts).t()
        seen = logits.masked_fill(left_out & ~positive, -math.inf)
        return (_one_way(seen, positive) + _one_way(seen.t(), positive.t())) / 2


def _one_way(logits: Tensor, positive: Tensor) -> Tensor:
    count = positive.sum(dim=1)
    has = count > 0
    if not logits.shape[1]:
        return logits.sum()
    # Rows without a positive may be left out whole: their -inf must not reach the gradient.
    safe = torch.where(has[:, None], logits, 0.0)
    own = torch.where(positive, safe, 0.0).sum(dim=1) / count.clamp(min=1)
    losses = torch.where(has, safe.logsumexp(dim=1) - own, 0.0)
    return losses.sum() / has.sum().clamp(min=1)
