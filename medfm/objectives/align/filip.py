"""Token-wise maximum similarity."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.config import FilipConfig
from medfm.objectives.align.scores import contrast_tokens


def filip_scores(patches: Tensor, words: Tensor, mask: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity image-to-text and text-to-image of every image with every text, times `scale`: two (r, c) matrices.

    Of a patch the most similar real word is taken, and the mean over patches; of a word the most similar patch, and the mean
    over the text's real words.

    Args:
        patches: (r, N, D) unit vectors.
        words, mask: (c, T, D) unit vectors, (c, T) bool, true for real words, at least one a text.
        scale: () or a number.
    """
    (r, n, d), (c, t) = patches.shape, mask.shape
    cosines = (patches.reshape(r * n, d) @ words.reshape(c * t, d).t()).view(r, n, c, t)
    to_text = cosines.masked_fill(~mask, -torch.inf).amax(3).mean(1)
    to_image = (cosines.amax(1) * mask).sum(2) / mask.sum(1)
    return scale * to_text, scale * to_image


class FilipTerm(Term):
    """Every patch finds its word, every word its patch; images and texts are contrasted by the mean of these, over all devices.

    Source: Yao et al. 2021, "FILIP: Fine-grained Interactive Language-Image Pre-Training", equations 3 to 5 for the similarity,
    2 for the loss, with the objective's learned temperature. Padding takes no part; start and end of a text do. Not followed:
    the choice of a quarter of the tokens before they are sent to other devices, half precision (similarities are float32),
    prompt templates. With `objective.weight: 0` the loss is FILIP's own; zero-shot then reads pooled vectors that nothing has
    trained, so that a weight above 0 is the rule here.
    """

    def __init__(self, config: FilipConfig, **_: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        assert encoded.word_mask is not None
        score = partial(filip_scores, scale=encoded.dual.logit_scale.exp())
        result = contrast_tokens(
            score,
            encoded.patches,
            encoded.words,
            encoded.word_mask,
            groups=encoded.groups,
            gather=encoded.gather,
            held=self.config.held,
        )
        return result.loss, result.logs()
