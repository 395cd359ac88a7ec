"""Contrast at the levels of a report: its sections, and its sentences."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.config import LevelsConfig
from medfm.objectives.align.gloria import attended_scores
from medfm.objectives.align.scores import contrast_tokens
from medfm.objectives.align.segments import by_row
from medfm.objectives.losses import info_nce


class LevelsTerm(Term):
    """The image against its report's sections, and its patches against its report's sentences.

    Three levels with the objective's own contrast of study and report: (1) findings and impression, each by itself, against the
    image's vector, a softmax contrast under the objective's temperature; (2) the sentences of a report as a set of tokens
    against the patches, by attention (`medfm.objectives.align.gloria.attended_scores`, temperatures 4, 5, 10, on unit vectors).
    Word level is the term `gloria`.

    Source: Zhang et al. 2025, "VELVET-Med", hierarchical contrastive learning, and its code, modeling/losses.py
    (`HierarchicalCLIPLoss`), followed for the sentences. Sections are not in the paper, whose levels are report, sentence and
    word. Not followed: TriBERT (the text encoder encodes sentences one by one), a head a level (the joint space is one), visual
    features of earlier stages for the finer levels, label smoothing 0.1 of the report level, and its self-supervised losses.
    """

    def __init__(self, config: LevelsConfig, **_: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        knobs, logs = self.config, dict[str, Tensor]()
        loss = self.touched(encoded.image)
        for kind in ("findings", "impression") if knobs.sections else ():
            texts = encoded.batch.texts[kind]
            result = info_nce(
                encoded.image[texts.row],
                encoded.texts[kind],
                encoded.dual.logit_scale,
                groups=[texts.code, *(codes[texts.row] for codes in encoded.groups)],
                gather=encoded.gather,
            )
            loss = loss + knobs.sections * result.loss / 2
            logs |= {f"loss_{kind}": result.loss.detach(), f"accuracy_{kind}": result.image_to_text}
        if knobs.sentences:
            texts = encoded.batch.texts["sentences"]
            rows = texts.row.unique()
            tokens, mask = by_row(encoded.texts["sentences"], texts.row, rows)
            local = contrast_tokens(
                partial(attended_scores, attention=knobs.attention, match=knobs.match, scale=knobs.scale),
                encoded.patches[rows],
                tokens,
                mask,
                groups=[codes[rows] for codes in encoded.groups],
                gather=encoded.gather,
                held=knobs.held,
            )
            loss = loss + knobs.sentences * local.loss
            logs |= {"loss_sentences": local.loss.detach(), "accuracy_sentences": local.image_to_text}
        return loss, logs
