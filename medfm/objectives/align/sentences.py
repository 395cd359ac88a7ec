"""Sentences find their patches by similarity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medfm.encoders.dual import unit
from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.config import SentencesConfig
from medfm.objectives.align.segments import by_row, once_a_row, slots
from medfm.objectives.losses import info_nce


def selected_patches(patches: Tensor, sentences: Tensor, row: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The mean of the `top` patches of its own image that are most similar to each sentence, as a unit vector.

    Args:
        patches: (B, N, D) unit vectors.
        sentences, row: (M, D) unit vectors, (M,) the image of each, ascending.

    Returns:
        (M, D), and the places of the selected patches, (M, top); no gradient flows through the choice.
    """
    many = patches.shape[1]
    with torch.no_grad():
        images = torch.arange(len(patches), device=row.device)
        padded, _ = by_row(sentences, row, images)
        place, slot = slots(row, images)
        chosen = (padded @ patches.transpose(1, 2))[place, slot].topk(min(top, many), dim=1).indices
    own = patches.flatten(0, 1)[row[:, None] * many + chosen]
    return unit(own.mean(dim=1)), chosen


class SentencesTerm(Term):
    """Each sentence of a report selects the patches of its image that resemble it most; their mean and the sentence are a pair,
    contrasted with those of the same report and of all others, over all devices.

    Source: Wang et al. 2025, "SimCroP", similarity-driven alignment: the scheme of figure 1b, which is sentence-to-patch
    similarity, the top K patches of each sentence, their average f_align, and InfoNCE between f_sent and f_align. Its
    pre-training code is not public, so that what the figure leaves open is decided here: K and the temperature (the objective's
    own), cosines for similarity, and negatives from all reports of the batch beside the report's own sentences. Equal
    sentences, and sentences of different reports of one patient or of reports that say the same, are no negatives. Not
    followed: the frozen text encoder (`text_encoder.freeze_layers`), masked image modelling (a `sum` with `mae`) and the
    cross-granularity fusion with its report reconstruction.
    """

    def __init__(self, config: SentencesConfig, **_: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        texts = encoded.batch.texts["sentences"]
        kept = once_a_row(texts.row, texts.code)
        row, sentences = texts.row[kept], encoded.texts["sentences"][kept]
        aligned, _ = selected_patches(encoded.patches, sentences, row, self.config.top)
        result = info_nce(
            aligned,
            sentences,
            encoded.dual.logit_scale,
            groups=[texts.code[kept], *(codes[row] for codes in encoded.groups)],
            within=encoded.batch.index[row],
            gather=encoded.gather,
        )
        return result.loss, {
            "accuracy_patches_to_sentence": result.image_to_text,
            "accuracy_sentence_to_patches": result.text_to_image,
        }
