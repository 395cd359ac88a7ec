"""Images against images and texts against texts, whole and in part, by a momentum encoder: TCL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from medfm.encoders.dual import DualEncoder, unit
from medfm.encoders.pooling import pooled
from medfm.errors import ConfigError
from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.encode import never_empty
from medfm.objectives.align.second_views import SecondViews
from medfm.objectives.ema import ema_update, make_teacher, teacher_mode
from medfm.objectives.gather import Gather, mean_of_rows
from medfm.objectives.losses import at_least_float32, info_nce

if TYPE_CHECKING:
    from medfm.objectives.align.config import IntraModalConfig
    from medfm.transforms.config import AugmentConfig
    from medfm.transforms.preprocess import Preprocess


class IntraModalTerm(Term):
    """`loss = (IMC_image + IMC_text + LMI_image + LMI_text) / 4`, those asked for by `parts`.

    A momentum encoder, the moving average of both encoders and projections, sees another view of each image, and the report.

    - IMC, intra-modal contrast: the image's vector finds the momentum encoder's vector of its other view among the batch's, and
      the report's vector the momentum encoder's of the same report (`info_nce`, one way).
    - LMI, local mutual information (`local_loss`): an image's vector is nearer to each region's vector of its other view than
      to any region of other images; a report's vector to each of its own words.

    Source: Yang et al. 2022, "Vision-Language Pre-Training with Triple Contrastive Learning", sections on L_imc and L_lmi, and
    the authors' model_pretrain.py (`ALBEF.forward`, `in_batch_g2l_loss`, `patch_pooling`), whose arithmetic is followed: the
    learned temperature is that of the whole contrast, momentum 0.995. TCL's mean is over these four and the two directions of
    its cross-modal contrast: this term's default weight of 2 beside the objective's own contrast is that ratio. Other than
    there negatives are those of all devices' batches in place of a queue and of one device's batch; rows of one patient or
    text are no negatives; the cross-modal contrast is the objective's own, without a momentum encoder's soft targets; all of a
    report's real tokens are local. Masked language modelling is the term `masked_words`, image-text matching is not covered.

    The momentum encoder is in checkpoints of training, never in weight files.

    Raises:
        ConfigError: no preprocessing contract to cut views by, where images are compared.
    """

    def __init__(
        self,
        config: IntraModalConfig,
        *,
        dual: DualEncoder,
        preprocess: Preprocess | None = None,
        augment: AugmentConfig | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.config = config
        self.images = "image" in config.sides
        self.texts = "text" in config.sides
        if self.images and (preprocess is None or augment is None):
            raise ConfigError("objective.terms: intra_modal compares views of images, which need the preprocessing contract")
        self.views = SecondViews(preprocess, augment, config.views) if preprocess is not None and augment is not None else None
        self._student = (dual,)  # not as a submodule: it is the objective's
        self.teacher = make_teacher(dual)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        teacher_mode(self.teacher, mode)
        return self

    def weights_loaded(self) -> None:
        self.teacher.load_state_dict(self._student[0].state_dict())

    def after_optimizer_step(self, step: int, total: int) -> None:
        ema_update(self.teacher, self._student[0], self.config.momentum)

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        parts: dict[str, Tensor] = {}
        if self.images:
            assert self.views is not None
            key, local = self._image_targets(self.views(encoded).to(encoded.batch.images.dtype))
            parts |= self._side("image", encoded.image, key, local, None, encoded)
        if self.texts:
            key, local, real = self._text_targets(encoded)
            parts |= self._side("text", encoded.text, key, local, real, encoded)
        loss = torch.stack(list(parts.values())).mean()
        return loss, {name: part.detach() for name, part in parts.items()}

    def _side(
        self, name: str, vectors: Tensor, key: Tensor, local: Tensor, real: Tensor | None, encoded: Encoded
    ) -> dict[str, Tensor]:
        scale, groups, gather = encoded.dual.logit_scale, encoded.groups, encoded.gather
        parts = {}
        if "imc" in self.config.parts:
            result = info_nce(vectors, key, scale, image_weight=1.0, groups=groups, gather=gather)
            parts[f"imc_{name}"] = result.loss
        if "lmi" in self.config.parts:
            parts[f"lmi_{name}"] = local_loss(vectors, local, scale, real, groups=groups, gather=gather)
        return parts

    @torch.no_grad()
    def _image_targets(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) and pooled regions (B, R, D) of the momentum encoder."""
        encoder: Any = self.teacher.image_encoder
        output, rows = encoder(never_empty(views)), len(views)
        key = unit(self.teacher.image_projection(pooled(output, encoder.pool)))[:rows]
        local = unit(self.teacher.image_projection(output.patch_tokens))
        return key, pool_patches(local, output.grid_size)[:rows]

    @torch.no_grad()
    def _text_targets(self, encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D), words (B, T, D) and which are real (B, T), of the momentum encoder."""
        batch = encoded.batch
        assert batch.tokens is not None
        mask, rows = torch.ones_like(batch.tokens) if batch.attention_mask is None else batch.attention_mask, len(batch.tokens)
        output = self.teacher.text_encoder(never_empty(batch.tokens), never_empty(mask, 1))
        words = unit(self.teacher.text_projection(output.tokens))[:rows]
        return unit(self.teacher.text_projection(output.pooled))[:rows], words, mask[:, : words.shape[1]] == 1


def pool_patches(local: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, N, D) unit vectors on a grid -> (B, R, D): means over about sqrt(n) patches along each axis of n, not of unit norm.

    Source: TCL's `patch_pooling` (16 x 16 patches become 4 x 4), here also for other grids and for volumes.
    """
    size = tuple(max(1, round(n**0.5)) for n in grid)
    volume = local.transpose(1, 2).unflatten(2, grid)
    pool: Any = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    return cast(Tensor, pool(volume, size)).flatten(2).transpose(1, 2)


def local_loss(
    vectors: Tensor,
    local: Tensor,
    logit_scale: Tensor,
    real: Tensor | None = None,
    *,
    groups: Any = (),
    gather: Gather,
) -> Tensor:
    """Each vector against its own parts, one at a time, and the parts of all others:
    `mean_i mean_r -log(exp(A_ir) / (exp(A_ir) + sum_{j != i, r'} exp(A_ijr')))`, `A_ijr = exp(logit_scale) v_i . l_jr`.

    Source: TCL, `in_batch_g2l_loss`; see `IntraModalTerm` for devices and groups.

    Args:
        vectors: (n, D) unit vectors.
        local: (n, R, D) parts, through which no gradient flows; R may differ between devices.
        real: (n, R) bool, parts that are there; None: all.
        groups: codes (n,); rows that share one >= 0 are no negatives.
        gather: the devices to contrast over.
    """
    real = torch.ones(local.shape[:2], dtype=torch.bool, device=local.device) if real is None else real
    longest = int(gather.max(torch.tensor(float(local.shape[1]), device=local.device)))
    sizes = gather.sizes(len(vectors), vectors.device)
    extra = longest - local.shape[1]
    with torch.no_grad():
        everyone = gather.rows(F.pad(local.detach(), (0, 0, 0, extra)), sizes)
        there = gather.rows(F.pad(real, (0, extra)).to(torch.uint8), sizes) == 1
    first = sum(sizes[: gather.rank])
    rows = torch.arange(first, first + len(vectors), device=vectors.device)
    same = rows[:, None] == torch.arange(sum(sizes), device=vectors.device)
    for codes in groups:
        all_codes = gather.rows(codes, sizes)
        same |= (codes[:, None] == all_codes) & (codes[:, None] >= 0)
    with torch.autocast(vectors.device.type, enabled=False):
        scaled = at_least_float32(vectors) * at_least_float32(logit_scale).exp()
        everyone = everyone.to(scaled.dtype)
        own = (everyone[rows] * scaled[:, None]).sum(dim=2)  # (n, R)
        others = (scaled @ everyone.flatten(0, 1).t()).unflatten(1, (sum(sizes), longest))
        others = others.masked_fill(same[:, :, None] | ~there, -torch.inf).flatten(1)
        # Without any negative the sum is that of the own part alone: -inf would have no gradient.
        lowest = torch.finfo(others.dtype).min
        negatives = torch.where(others.isneginf().all(dim=1), lowest, others.clamp(min=lowest).logsumexp(dim=1))
        losses = torch.logaddexp(own, negatives[:, None].expand_as(own)) - own
        mine = there[rows]
        each = torch.where(mine, losses, 0.0).sum(dim=1) / mine.sum(dim=1).clamp(min=1)
    return mean_of_rows(each, gather)
