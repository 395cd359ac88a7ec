"""An image against its own text and counterfactuals of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.config import HardNegativesConfig
from medfm.objectives.align.segments import segment_logsumexp
from medfm.objectives.gather import mean_of_sums


class HardNegativesTerm(Term):
    """`mean_i -log exp(s t_i) / (exp(s t_i) + sum_k exp(s n_ik))`, t_i the cosine of image i with its text, n_ik those with the
    counterfactuals of that text, s = exp(logit_scale) of the objective; the mean over images, of all devices, that have any.

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
        values, rows = [own], [torch.arange(len(own), device=own.device)]
        logs = {}
        for kind in self.config.texts:
            row = encoded.batch.texts[kind].row
            cosines = (image[row] * encoded.texts[kind]).sum(dim=1)
            right = gather.sum((own[row] > cosines).sum().to(own.dtype))
            logs[f"accuracy_{kind}"] = right / gather.sum(own.new_tensor(float(len(row)))).clamp(min=1)
            values.append(cosines)
            rows.append(row)
        row = torch.cat(rows)
        loss = segment_logsumexp(scale * torch.cat(values), row, len(own)) - scale * own
        has = torch.zeros_like(own).index_fill(0, torch.cat(rows[1:]), 1.0)
        return mean_of_sums((loss * has).sum(), has.sum(), gather), logs
