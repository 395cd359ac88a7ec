"""Pathology and anatomy in streams of their own, and what binds them: MeDSLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.errors import DataError
from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.concept_texts import ConceptTexts
from medfm.objectives.gather import Gather, mean_of_sums
from medfm.objectives.losses import at_least_float32

if TYPE_CHECKING:
    from medfm.encoders.dual import DualEncoder
    from medfm.objectives.align.config import StreamsConfig
    from medfm.text.knowledge import Knowledge
    from medfm.text.tokenizers import Tokenizer


class Stream(nn.Module):
    """One stream: patch tokens made its own, and queries that read them.

    Args:
        width: E of the patch tokens.
        dim: of the stream.
        prototype_dim: D of the prototypes.
    """

    def __init__(self, width: int, dim: int, prototype_dim: int, config: StreamsConfig) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
        layer = nn.TransformerDecoderLayer(
            dim, config.num_heads, int(dim * config.mlp_ratio), config.dropout, "relu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, config.depth, nn.LayerNorm(dim))
        self.dropout = nn.Dropout(config.dropout)
        self.exists = nn.Linear(dim, 2)
        self.to_prototypes = nn.Linear(dim, prototype_dim)

    def forward(self, tokens: Tensor, queries: Tensor) -> Tensor:
        """tokens (B, N, E), queries (C, dim) -> what each query found, (B, C, dim)."""
        found: Tensor = self.decoder(queries.expand(len(tokens), -1, -1), self.project(tokens))
        return found


class StreamsTerm(Term):
    """`loss = existence + prototypes * L_ProtoCL + relations * L_ICL`, for the pathology and the anatomy stream together.

    A gate g = W x + b splits each patch token x into g * x for pathology and (1 - g) * x for anatomy. In each stream a
    transformer decoder asks the tokens for every concept; its queries are the concepts' descriptions as vectors of the text
    encoder (the prototypes, through which no gradient flows), projected. With f_p, f_a what the queries found:

    - existence: cross entropy of two classes, present or not, from f;
    - L_ProtoCL (`prototype_loss`): what a present pathology's query found, projected, is nearer to the mean prototype of the
      anatomy it lies in than to that of any other; and a part's query to its pathologies';
    - L_ICL (`relation_loss`): f_p . f_a tells, by binary cross entropy, whether the pathology lies in that part.

    Source: Fan et al. 2024, "MeDSLIP: Medical Dual-Stream Language-Image Pre-training with Pathology-Anatomy Semantic
    Alignment", and the authors' model_MeDSLIP.py, whose arithmetic, sizes and weights of 1 are followed. Other than there
    - a pathology lies in the parts that one sentence states with it, in place of RadGraph's triplets; a part counts as the
      pathology's place or not wherever the report says something of the pathology;
    - prototypes are the trained text encoder's of this step, as unit vectors, in place of a frozen BERT's;
    - ProtoCL's negatives are all other concepts of the other stream, where the authors draw seven;
    - ancestors and descendants of a related part (or pathology) are no negatives.

    Raises:
        ConfigError: no knowledge file, or one without pathology or anatomy.
        DataError: a batch holds no concepts or no relations.
    """

    def __init__(
        self,
        config: StreamsConfig,
        *,
        dual: DualEncoder,
        knowledge: Knowledge | None = None,
        tokenizer: Tokenizer | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.config = config
        self.pathology_texts = ConceptTexts(knowledge, tokenizer, ("pathology",), config.say, config.name)
        self.anatomy_texts = ConceptTexts(knowledge, tokenizer, ("anatomy",), config.say, config.name)
        encoder: Any = dual.image_encoder
        width, dim = int(encoder.embed_dim), config.dim
        self.gate = nn.Linear(width, width)
        self.query = nn.Linear(dual.embed_dim, dim)
        self.pathology = Stream(width, dim, dual.embed_dim, config)
        self.anatomy = Stream(width, dim, dual.embed_dim, config)
        for module in self.modules():  # `_init_weights` of the authors
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.normal_(module.in_proj_weight, std=0.02)

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        assert encoded.patch_tokens is not None
        x, gather, config = encoded.patch_tokens, encoded.gather, self.config
        with torch.no_grad():
            books = [self._book(texts, encoded) for texts in (self.pathology_texts, self.anatomy_texts)]
        related = self._relations(encoded)  # (B, P, A)
        has_pathology, has_anatomy = self._existence(encoded, related)
        gate = self.gate(x)
        found_p = self.pathology(gate * x, self.query(books[0]))
        found_a = self.anatomy((1 - gate) * x, self.query(books[1]))

        parts = {"relations": relation_loss(found_p, found_a, related, self.anatomy_texts.related, gather)}
        sides = (
            ("pathology", self.pathology, found_p, has_pathology, related == 1, books[1], self.anatomy_texts.related),
            (
                "anatomy",
                self.anatomy,
                found_a,
                has_anatomy,
                (related == 1).transpose(1, 2),
                books[0],
                self.pathology_texts.related,
            ),
        )
        for name, stream, found, exists, lies_in, book, near in sides:
            found = stream.dropout(found)
            parts[f"existence_{name}"] = existence_loss(stream.exists(found), exists, gather)
            parts[f"prototypes_{name}"] = prototype_loss(stream.to_prototypes(found), book, lies_in, near, gather)
        loss = (
            parts["existence_pathology"]
            + parts["existence_anatomy"]
            + config.prototypes * (parts["prototypes_pathology"] + parts["prototypes_anatomy"])
            + config.relations * parts["relations"]
        )
        return loss + self.touched(x), {name: part.detach() for name, part in parts.items()}

    def _book(self, texts: ConceptTexts, encoded: Encoded) -> Tensor:
        return texts.vectors(encoded.dual, torch.arange(len(texts.columns), device=encoded.image.device), encoded.gather)

    def _relations(self, encoded: Encoded) -> Tensor:
        """(B, P, A) 1 where the pathology lies in the part, 0 where it does not, NaN where the report is silent on it."""
        pathology, anatomy = self.pathology_texts.stated(encoded), self.anatomy_texts.stated(encoded)
        relations = encoded.batch.relations
        if relations is None:
            raise DataError(
                "the term 'streams' reads which concepts one sentence states together, but the batch holds no relations"
            )
        together = relations[:, self.pathology_texts.columns][:, :, self.anatomy_texts.columns]
        lies_in = together & (pathology == 1)[:, :, None] & (anatomy == 1)[:, None]
        values = lies_in.to(pathology.dtype)
        return values.masked_fill((pathology.isnan())[:, :, None] & ~lies_in, torch.nan)

    def _existence(self, encoded: Encoded, related: Tensor) -> tuple[Tensor, Tensor]:
        """(B, P) and (B, A): 1 present, 0 denied, NaN nothing said. Something is present in a part that a pathology lies in,
        nothing in one that is named and that none lies in."""
        named = self.anatomy_texts.stated(encoded) == 1
        hit = (related == 1).any(dim=1)
        anatomy = torch.where(hit, 1.0, torch.where(named, 0.0, torch.nan))
        return self.pathology_texts.stated(encoded), anatomy


def existence_loss(logits: Tensor, exists: Tensor, gather: Gather) -> Tensor:
    """Cross entropy of logits (B, C, 2) over the entries of `exists` (B, C), 1 or 0, that are not NaN, of all devices."""
    known = ~exists.isnan()
    losses = F.cross_entropy(at_least_float32(logits[known]), exists[known].long(), reduction="sum")
    return mean_of_sums(losses, known.sum().to(losses.dtype), gather)


def prototype_loss(found: Tensor, book: Tensor, lies_in: Tensor, near: Tensor, gather: Gather) -> Tensor:
    """MeDSLIP's prototypical contrast of one stream with the prototypes of the other.

    For every query q with partners L: `-log(exp(q . m) / (exp(q . m) + sum_j exp(q . c_j)))`, m the mean of the partners'
    prototypes, j all others but the partners' ancestors and descendants; the mean over such queries of all devices.

    Args:
        found: (B, Q, D) what the queries found, in the space of the prototypes; not normalised.
        book: (C, D) prototypes of the other stream.
        lies_in: (B, Q, C) bool, the partners.
        near: (C, C) bool, ancestors and descendants.
    """
    row, query = lies_in.any(dim=2).nonzero(as_tuple=True)
    q, partners = at_least_float32(found[row, query]), lies_in[row, query]
    with torch.autocast(found.device.type, enabled=False):
        scores = q @ book.to(q.dtype).t()
        own = (scores * partners).sum(dim=1) / partners.sum(dim=1).clamp(min=1)  # q . mean = mean of q . c
        no_negative = partners | (partners.float() @ near.float() > 0)
        others = scores.masked_fill(no_negative, -torch.inf)
        losses = torch.cat([own[:, None], others], dim=1).logsumexp(dim=1) - own
        return mean_of_sums(losses.sum(), losses.new_tensor(float(len(losses))), gather)


def relation_loss(pathology: Tensor, anatomy: Tensor, related: Tensor, near: Tensor, gather: Gather) -> Tensor:
    """MeDSLIP's intra-image contrast: binary cross entropy of `pathology . anatomy` against the stated relations.

    Args:
        pathology: (B, P, d); anatomy: (B, A, d), what the queries found.
        related: (B, P, A) 1, 0, or NaN, which does not count.
        near: (A, A) bool: a part related to one where the pathology lies does not count either, unless it lies there too.
    """
    lies_in = related == 1
    known = ~related.isnan() & (lies_in | ~(lies_in.float() @ near.float() > 0))
    with torch.autocast(pathology.device.type, enabled=False):
        logits = at_least_float32(pathology) @ at_least_float32(anatomy).transpose(1, 2)
        losses = F.binary_cross_entropy_with_logits(logits[known], related[known].to(logits.dtype), reduction="sum")
        return mean_of_sums(losses, known.sum().to(losses.dtype), gather)
