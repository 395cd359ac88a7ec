"""An image against its own text and counterfactuals of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.config import HardNegativesConfig
from medfm.objectives.align.segments import segment_logsumexp
from medfm.objectives.gather import mean_of_sums
from medfm.types import Batch, Texts


class HardNegativesTerm(Term):
    """`mean_i -log exp(s t_i) / (exp(s t_i) + sum_k exp(s n_ik))`, t_i the cosine of image i with its text, n_ik those with the
    counterfactuals of that text, s = exp(logit_scale) of the objective; the mean over images, of all devices, that have any.
    A counterfactual whose change lies behind the end of the text encoder's context is none.

    In a batch of reports a text seldom differs from another in its side or a negation alone, so that the plain contrast can be
    won without reading either.

    Source: Yuksekgonul et al. 2023, "When and Why Vision-Language Models Behave like Bags-of-Words" (NegCLIP), section 4, which
    adds generated negatives to the texts that an image is contrasted with. Here they are rules' (see
    `medfm.text.counterfactual`), an image meets its own alone, and other images' texts stay with the plain contrast beside the
    term. NegCLIP's hard negative images are not followed.
    """

    def __init__(self, config: HardNegativesConfig, **_: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        """Logs how often the image is nearer to its text than to each kind of counterfactual."""
        scale, image, gather = encoded.dual.logit_scale.exp(), encoded.image, encoded.gather
        own = (image * encoded.text).sum(dim=1)
        values, rows = [scale * own], [torch.arange(len(own), device=own.device)]
        has = torch.zeros_like(own)
        logs = {}
        for kind in self.config.texts:
            texts = encoded.batch.texts[kind]
            row, other = texts.row, differs(texts, encoded.batch)
            cosines = (image[row] * encoded.texts[kind]).sum(dim=1)
            right = gather.sum(((own[row] > cosines) & other).sum().to(own.dtype))
            logs[f"accuracy_{kind}"] = right / gather.sum(other.sum().to(own.dtype)).clamp(min=1)
            values.append((scale * cosines).masked_fill(~other, -torch.inf))  # scaled first: 0 * -inf is a NaN of the scale
            rows.append(row)
            has = has.index_add(0, row, other.to(own.dtype))
        row = torch.cat(rows)
        loss = segment_logsumexp(torch.cat(values), row, len(own)) - scale * own
        has = has.clamp(max=1)
        return mean_of_sums((loss * has).sum(), has.sum(), gather), logs


def differs(texts: Texts, batch: Batch) -> Tensor:
    """(M,) bool: whether the token ids of `texts` are others than those of their rows' own text."""
    assert batch.tokens is not None
    width = min(texts.tokens.shape[1], batch.tokens.shape[1])
    own = batch.tokens[texts.row]
    # Columns that only one of both has are padding, or there are more real tokens there.
    real = torch.ones_like(own) if batch.attention_mask is None else batch.attention_mask[texts.row]
    return (texts.tokens[:, :width] != own[:, :width]).any(dim=1) | (texts.attention_mask.sum(dim=1) != real.sum(dim=1))
