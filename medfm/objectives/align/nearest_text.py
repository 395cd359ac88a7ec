"""Images against the most similar report of former batches: DeCLIP's nearest-neighbour supervision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medfm.encoders.dual import DualEncoder
from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.losses import info_nce

if TYPE_CHECKING:
    from medfm.objectives.align.config import NearestTextConfig


class NearestTextTerm(Term):
    """Each image finds, among the neighbours of all reports of the batch, the neighbour of its own report.

    A bank holds the vectors of the last `bank` reports of all devices. Each report's nearest vector in it stands for the report
    in `info_nce`, image to text, with the learned temperature of the whole contrast; then, in training, the batch's reports
    replace the oldest of the bank.

    Source: Li et al. 2022 (DeCLIP), section on nearest-neighbour supervision, and the authors' declip.py and
    nn_memory_bank.py, of which the arithmetic (`ClipInfoCELoss` of image-to-neighbour similarities, bank of 65536, weight 0.2
    beside a contrast of 0.4) is followed. Other than there the bank starts empty in place of random, and until it holds a
    vector the report itself stands in; a neighbour is never of the same patient, whose report of another epoch it would
    otherwise be; rows with the same neighbour, patient or text are no negatives; reports are not changed (EDA) for a second
    contrast, and there is one view of each image.
    """

    bank: Tensor
    bank_patient: Tensor
    filled: Tensor

    def __init__(self, config: NearestTextConfig, *, dual: DualEncoder, **_: Any) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("bank", torch.zeros(config.bank, dual.embed_dim))
        self.register_buffer("bank_patient", torch.full((config.bank,), -2))
        self.register_buffer(
            "filled", torch.zeros((), dtype=torch.int64)
        )  # vectors ever put in; the next place is this mod bank

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        image, text, gather = encoded.image, encoded.text.detach(), encoded.gather
        # In validation patients are numbered anew.
        patient = encoded.batch.patient if encoded.training else torch.full_like(encoded.batch.patient, -1)
        neighbour, place, similarity = nearest(text, self.bank, self.filled, patient, self.bank_patient)
        groups = [*encoded.groups, place]
        result = info_nce(image, neighbour, encoded.dual.logit_scale, image_weight=1.0, groups=groups, gather=gather)
        sizes = gather.sizes(len(text), text.device)
        mean = gather.sum(similarity.sum()) / max(sum(sizes), 1)
        if encoded.training:
            self._put(gather.rows(text, sizes), gather.rows(encoded.batch.patient, sizes))
        return result.loss, {"similarity": mean, "accuracy": result.image_to_text}

    @torch.no_grad()
    def _put(self, text: Tensor, patient: Tensor) -> None:
        """All devices' reports over the oldest; of too many the last."""
        places = ((self.filled + torch.arange(len(text), device=text.device)) % len(self.bank))[-len(self.bank) :]
        self.bank[places] = text[-len(self.bank) :].to(self.bank.dtype)
        self.bank_patient[places] = patient[-len(self.bank) :]
        self.filled += len(text)


@torch.no_grad()
def nearest(text: Tensor, bank: Tensor, filled: Tensor, patient: Tensor, bank_patient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The most similar vector of the bank to each text, (n, D), its place (n,), and how similar it is (n,).

    Where the bank has none for it, the text itself, at place -1.

    Args:
        text: (n, D) unit vectors; bank: (S, D) unit vectors, those at places below `filled` () are real.
        patient: (n,), bank_patient: (S,): entries of the same patient (a code >= 0) are passed over.
    """
    similarity = text @ bank.to(text.dtype).t()
    no = torch.arange(len(bank), device=bank.device) >= filled
    no = no | ((patient[:, None] == bank_patient) & (patient[:, None] >= 0))
    best, place = similarity.masked_fill(no, -torch.inf).max(dim=1)
    none = best.isneginf()
    found = torch.where(none[:, None], text, bank[place].to(text.dtype))
    own = (text * text).sum(dim=1)
    return found, torch.where(none, -1, place), torch.where(none, own, best)
