"""The concepts of a knowledge file as vectors of the joint space, and what reports say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from medfm.encoders.dual import DualEncoder
from medfm.errors import ConfigError, DataError
from medfm.objectives.align.base import Encoded
from medfm.objectives.gather import Gather

if TYPE_CHECKING:
    from medfm.text.knowledge import ConceptKind, Knowledge
    from medfm.text.tokenizers import Tokenizer


class ConceptTexts(nn.Module):
    """What is said of the concepts of some kinds, as token ids. Nothing is learned here and nothing saved.

    Args:
        knowledge: the K concepts of `Batch.concepts`.
        tokenizer: of the text encoder.
        kinds: which concepts take part.
        say: "description" is name, definition and synonyms (`Knowledge.describe`), "name" the name alone.
        term: whose errors these are.

    Attributes:
        columns: (C,) of `Batch.concepts`, those that take part.
        related: (C, C) bool, one is an ancestor of the other in the file's hierarchy.

    Raises:
        ConfigError: no knowledge file, no tokenizer, or no concept of these kinds.
    """

    columns: Tensor
    related: Tensor
    tokens: Tensor
    attention_mask: Tensor

    def __init__(
        self,
        knowledge: Knowledge | None,
        tokenizer: Tokenizer | None,
        kinds: Sequence[ConceptKind],
        say: Literal["description", "name"],
        term: str,
    ) -> None:
        super().__init__()
        if knowledge is None or tokenizer is None:
            raise ConfigError(f"objective.knowledge: the term '{term}' learns from concepts; name a knowledge file, e.g. chest")
        columns = knowledge.of_kind(*kinds)
        if not columns:
            raise ConfigError(f"objective.knowledge: '{knowledge.name}' has no concept of kind {' or '.join(kinds)} ('{term}')")
        names = [knowledge.names[c] for c in columns]
        tokens, mask = tokenizer([knowledge.describe(n) for n in names] if say == "description" else names)
        longest = int(mask.sum(dim=1).max())
        lines = [set(knowledge.ancestors[c]) for c in columns]
        related = [[b in lines[i] or a in lines[j] for j, b in enumerate(columns)] for i, a in enumerate(columns)]
        self.total = len(knowledge)
        self.term = term
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.register_buffer("related", torch.tensor(related), persistent=False)
        self.register_buffer("tokens", tokens[:, :longest], persistent=False)
        self.register_buffer("attention_mask", mask[:, :longest], persistent=False)

    def vectors(self, dual: DualEncoder, which: Tensor, gather: Gather) -> Tensor:
        """(k, D) unit vectors of the concepts `which` (k,), of the C.

        All devices must ask for the same ones: each encodes its share. Gradients reach the encoder by the convention of
        `medfm.objectives.gather`: what uses the vectors returns the loss of all devices' rows.
        """
        shares = which.tensor_split(gather.world_size)
        sizes = [len(share) for share in shares]
        own = shares[gather.rank] if min(sizes) else which  # too few to share out: all encode all
        made = dual.encode_text(self.tokens[own], self.attention_mask[own])
        return gather.rows(made, sizes) if min(sizes) else made

    def stated(self, encoded: Encoded) -> Tensor:
        """(B, C) what each row's report says: 1 present, 0 denied, NaN nothing.

        Raises:
            DataError: the batch holds no concepts, or those of another file.
        """
        found = encoded.batch.concepts
        if found is None or found.shape[1] != self.total:
            what = "no concepts" if found is None else f"{found.shape[1]} concepts, the knowledge file {self.total}"
            raise DataError(f"the term '{self.term}' reads what reports say of concepts, but the batch holds {what}")
        return found[:, self.columns]


def everyone_stated(stated: Tensor, gather: Gather) -> tuple[Tensor, list[int]]:
    """(N, C) of all devices' rows, and how many rows each has."""
    sizes = gather.sizes(stated.shape[0], stated.device)
    return gather.rows(stated, sizes), sizes


def left_out(stated: Tensor, related: Tensor, unstated: Literal["negative", "ignored"]) -> Tensor:
    """(n, C) bool: pairs of report and concept that are neither positive nor negative.

    Where a report states a concept and is silent on an ancestor or descendant of it, that one may well be true: it is left out,
    as KEEP (Zhou et al. 2024, loss.py: `node_reachable`) takes parents and children out of the negatives. What a report denies
    is negative in any case.

    Args:
        stated: (n, C) 1 present, 0 denied, NaN nothing.
        related: (C, C) bool.
        unstated: whether silence means absence.
    """
    silent = stated.isnan()
    if unstated == "ignored":
        return silent
    near = (stated == 1).float() @ related.float() > 0
    return silent & near


def false_negatives(positive: Tensor, stated: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """(N, C) bool: pairs whose report is silent, where another row of the same group (patient, text) states the concept.

    Args:
        positive: (N, C) bool.
        stated: (N, C) 1 present, 0 denied, NaN nothing.
        groups: codes (N,); below 0 groups nothing.
    """
    found = torch.zeros_like(positive)
    for codes in groups:
        same = (codes[:, None] == codes) & (codes[:, None] >= 0)
        found |= same.float() @ positive.float() > 0
    return found & stated.isnan() & ~positive
