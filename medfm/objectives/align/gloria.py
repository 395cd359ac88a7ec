"""Attention-weighted local contrast of patches and words."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.config import GloriaConfig
from medfm.objectives.align.scores import contrast_tokens


def attended_scores(
    patches: Tensor,
    words: Tensor,
    mask: Tensor,
    attention: float = 4.0,
    match: float = 5.0,
    scale: float = 10.0,
    aggregate: Literal["sum", "mean"] = "sum",
) -> tuple[Tensor]:
    """How well each word of a text is met by the patches that it attends to, for every image with every text: (r, c).

    With p patches and w words of a pair: `a = softmax_words(p w)`, `a = softmax_patches(attention * a)`,
    `v_t = sum_n a_nt p_n`, `scale * log sum_t exp(match * cos(v_t, w_t))`; "mean": the mean over words in place of the sum.

    Args:
        patches: (r, N, D), with their lengths.
        words, mask: (c, T, D), (c, T) bool, true for real words.
        attention, match, scale: GLoRIA's temp1, temp2 and temp3, which multiply.
    """
    (r, n, d), (c, t) = patches.shape, mask.shape
    products = (patches.reshape(r * n, d) @ words.reshape(c * t, d).t()).view(r, n, c, t)
    weights = products.masked_fill(~mask, -torch.inf).softmax(dim=3).mul(attention).softmax(dim=1)
    attended = (weights.flatten(2).transpose(1, 2) @ patches).view(r, c, t, d)
    cosines = F.cosine_similarity(attended, words, dim=3)
    met = cosines.mul(match).masked_fill(~mask, -torch.inf).logsumexp(dim=2)
    if aggregate == "mean":
        met = met - mask.sum(dim=1).log()
    return (scale * met,)


class GloriaTerm(Term):
    """Each word attends to patches; a text fits an image as its words fit what they attend to.

    Source: Huang et al. 2021, "GLoRIA", section 3.3.2, and its code, loss/gloria_loss.py (`local_loss`), whose softmax over
    words before that over patches, and whose temperatures 4, 5, 10, are followed; projected tokens keep their lengths in the
    attention, as there. The loss is the mean of both directions where the code takes the sum. The global loss is the
    objective's own contrast. Not followed: word pieces are not summed into words; the end of a text takes part, as its start
    does there; the last text layer is read, not the sum of the last four; patches share the image's projection, where GLoRIA
    has one for regions; regions are the encoder's last tokens, where GLoRIA reads an earlier stage of a ResNet.
    """

    def __init__(self, config: GloriaConfig, **_: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        assert encoded.word_mask is not None
        knobs = self.config
        score = partial(
            attended_scores,
            attention=knobs.attention,
            match=knobs.match,
            scale=knobs.scale,
            aggregate=knobs.aggregate,
        )
        result = contrast_tokens(
            score,
            encoded.projected_patches,
            encoded.projected_words,
            encoded.word_mask,
            groups=encoded.groups,
            gather=encoded.gather,
            held=knobs.held,
        )
        return result.loss, result.logs()
