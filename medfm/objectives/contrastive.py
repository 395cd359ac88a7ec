"""Image-report alignment: CLIP, ConVIRT, SigLIP and FLIP as settings of one objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.build import build_dual
from medfm.encoders.dual import DualEncoder
from medfm.errors import DataError
from medfm.objectives.align.base import Encoded, Term
from medfm.objectives.align.encode import encode_texts, pick_texts
from medfm.objectives.base import Objective, Parts
from medfm.objectives.config import ContrastiveConfig
from medfm.objectives.gather import Gather, SingleDevice, current_gather
from medfm.objectives.grad_cache import encode_in_chunks
from medfm.objectives.losses import ContrastiveLoss, info_nce, sigmoid_loss
from medfm.objectives.masking import draw_keep
from medfm.objectives.sum import distinct
from medfm.registry import TERMS
from medfm.transforms.draws import Draws
from medfm.types import Batch, ObjectiveOutput


def build(config: ContrastiveConfig, parts: Parts) -> ContrastiveObjective:
    """The objective of a recipe."""
    dual = build_dual(lambda: parts.image_encoder, config, parts.tokenizer)
    return ContrastiveObjective(config, dual, terms=build_terms(config, dual, parts))


def build_terms(config: ContrastiveConfig, dual: DualEncoder, parts: Parts) -> list[Term]:
    """The objective's alignment terms, with what each may ask for."""
    knowledge = None
    if config.terms and config.knowledge is not None:
        from medfm.text.knowledge import load_knowledge

        knowledge = load_knowledge(config.knowledge)
    given = {"dual": dual, "preprocess": parts.preprocess, "tokenizer": parts.tokenizer, "augment": parts.augment}
    return [TERMS.build(term, knowledge=knowledge, **given) for term in config.terms]


class ContrastiveObjective(Objective):
    """Pulls an image and its own report together and apart from the others of the batch, over all devices.

    Rows without text take no part. Pairs of the same patient, or with the same or both normal reports, are no negatives.
    With `patch_dropout` a random share of patches is hidden from the image encoder in training; with `cache_chunk` the
    encoders run over chunks and gradients stay exact (see `medfm.objectives.grad_cache`). Alignment terms (see
    `medfm.objectives.align`) are added to the loss; the encoders run once for all of them.

    Args:
        config: loss, temperature bounds, masking, dropout and caching.
        dual: the encoders; owned here, saved by `medfm.weights`.
        to_float: the contract's pixels-to-float step, run a chunk at a time; None where the batch is float already.
        gather: the devices to contrast over; None is the default process group where one runs.
        terms: of `config.terms`, in their order.

    Raises:
        DataError: a batch has no text, or lacks what a term reads.
        ConfigError: patch dropout with an encoder that cannot leave patches out.
    """

    def __init__(
        self,
        config: ContrastiveConfig,
        dual: DualEncoder,
        to_float: Callable[[Tensor], Tensor] | None = None,
        gather: Gather | None = None,
        terms: Sequence[Term] = (),
    ) -> None:
        super().__init__()
        self.config = config
        self.dual = dual
        self.to_float = to_float
        self.gather = gather
        self.terms = nn.ModuleList(terms)
        self.names = distinct([term.name for term in config.terms])
        self.reads_patches = any(term.reads_patches for term in config.terms)
        self.reads_words = any(term.reads_words for term in config.terms)

    def forward(self, batch: Batch, draws: Draws | None = None) -> ObjectiveOutput:
        """One batch to a loss and numbers to log. `draws` says which patches are dropped."""
        # In validation every device sees the whole split.
        gather = self.gather or (current_gather() if self.training else SingleDevice())
        with_text, rows, dropped = _rows_with_text(batch)
        features = self._encode(with_text, self._keep(batch, rows, draws), draws, gather)
        paired = batch.images.shape[0] - dropped  # 0 where a single row stands in for a batch without any text
        image, text, *tokens = [x[:paired] for x in features]
        groups = self._groups(with_text, paired)
        logs: dict[str, Tensor] = {}
        total: Tensor | None = None
        if self.config.weight:
            result = self._loss(image, text, groups, gather)
            total = result.loss if self.config.weight == 1 else self.config.weight * result.loss
            logs = {
                **{f"loss_{name}": value for name, value in result.terms.items()},
                "accuracy_image_to_text": result.image_to_text,
                "accuracy_text_to_image": result.text_to_image,
                "masked_negatives": result.masked,
            }
        if self.config.terms:
            encoded = self._encoded(with_text, rows, paired, image, text, tokens, gather)
            encoded.groups, encoded.gather, encoded.draws, encoded.size = groups, gather, draws, batch.images.shape[0]
            total, more = self._add_terms(total, encoded)
            logs |= more
        assert total is not None
        logs = {
            "loss": total.detach(),
            **logs,
            "logit_scale": self.dual.logit_scale.detach().exp(),
            "rows_without_text": torch.tensor(float(dropped)),
        }
        if self.dual.logit_bias is not None:
            logs["logit_bias"] = self.dual.logit_bias.detach().clone()
        return ObjectiveOutput(total, logs)

    def _add_terms(self, total: Tensor | None, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        """`total` and the weighted terms, and what they log."""
        # Each parameter gets a gradient in each step, though no term may read what it makes: devices wait for all of them.
        read = [encoded.image, encoded.text, self.dual.logit_scale, self.dual.logit_bias, *encoded.texts.values()]
        start = encoded.image.new_zeros(()) if total is None else total
        total = sum((0.0 * x.sum() for x in read if x is not None), start=start)
        logs: dict[str, Tensor] = {}
        for name, config, term in zip(self.names, self.config.terms, self.terms, strict=True):
            loss, more = term(encoded)
            total = total + config.weight * loss
            logs |= {f"loss_{name}": loss.detach(), **{f"{name}_{key}": value for key, value in more.items()}}
        return total, logs

    @torch.no_grad()
    def after_optimizer_step(self, step: int, total: int) -> None:
        """Keep the learned logit scale at or below its bound (CLIP, section 2.5)."""
        if self.dual.logit_scale.requires_grad:
            self.dual.logit_scale.clamp_(max=math.log(self.config.max_logit_scale))
        for term in self.terms:
            cast(Term, term).after_optimizer_step(step, total)

    def model(self) -> DualEncoder:
        return self.dual

    def weights_loaded(self) -> None:
        for term in self.terms:
            cast(Term, term).weights_loaded()

    def _keep(self, batch: Batch, rows: Tensor | None, draws: Draws | None) -> Tensor | None:
        """Patches that stay, drawn for the whole batch before any row or chunk is set apart: devices and chunks then see what
        one batch would have seen."""
        if not self.training or self.config.patch_dropout == 0:
            return None
        patches = math.prod(self.dual.image_encoder.grid_size)  # type: ignore[arg-type]
        keep = draw_keep(batch.images.shape[0], patches, self.config.patch_dropout, device=batch.images.device, draws=draws)
        return keep if rows is None else keep[rows]

    def _encode(self, batch: Batch, keep: Tensor | None, draws: Draws | None, gather: Gather) -> tuple[Tensor, ...]:
        """Image and text vectors; then patch tokens and word tokens, of which those that terms read."""
        return encode_in_chunks(
            self._encode_chunk,
            [batch.images, batch.tokens, batch.attention_mask, keep],
            self.config.cache_chunk,
            modules=[self.dual],
            generators=[] if draws is None else [draws.generator],
            gather=gather,
        )

    def _encode_chunk(
        self, images: Tensor, tokens: Tensor, attention_mask: Tensor | None, keep: Tensor | None
    ) -> tuple[Tensor, ...]:
        images = images if self.to_float is None else self.to_float(images)
        image, of_image = self.dual.encode_image_and_patches(images, keep)
        text, of_text = self.dual.encode_text_and_words(tokens, attention_mask)
        features = [image, text]
        if self.reads_patches:
            features.append(of_image.patch_tokens)
        if self.reads_words:  # text encoders may leave out columns that are padding in every row of the chunk
            features.append(F.pad(of_text.tokens, (0, 0, 0, tokens.shape[1] - of_text.tokens.shape[1])))
        return tuple(features)

    def _encoded(
        self,
        batch: Batch,
        rows: Tensor | None,
        paired: int,
        image: Tensor,
        text: Tensor,
        tokens: list[Tensor],
        gather: Gather,
    ) -> Encoded:
        """What the terms are given of the rows with text."""
        if rows is not None:
            rows = rows[:paired]
            batch = _pick(batch, slice(0, paired))  # none of the row that stands in for a batch without any text
        assert batch.tokens is not None
        encoded = Encoded(batch, self.dual, image, text, training=self.training, rows=rows)
        if self.reads_patches:
            encoded.patch_tokens, encoded.grid = tokens[0], tuple(self.dual.image_encoder.grid_size)  # type: ignore[arg-type]
        if self.reads_words:
            mask = batch.attention_mask
            encoded.word_tokens = tokens[-1]
            encoded.word_mask = torch.ones_like(batch.tokens) if mask is None else mask
        kinds = self.config.further_texts.kinds
        encoded.texts = encode_texts(self.dual, batch.texts, kinds, self.config.cache_chunk, text, gather)
        return encoded

    def _groups(self, batch: Batch, paired: int) -> list[Tensor]:
        """Codes of rows that are no negatives of each other."""
        groups = []
        if self.config.mask_same_patient:
            groups.append(batch.patient[:paired])
        if self.config.mask_same_text:
            groups.append(batch.text_group[:paired])
            if batch.drawn is not None:  # sampling sentences can draw the same one from different reports
                groups.append(batch.drawn[:paired])
        return groups

    def _loss(self, image: Tensor, text: Tensor, groups: list[Tensor], gather: Gather) -> ContrastiveLoss:
        tile, scale = self.config.tile, self.dual.logit_scale
        if self.config.loss == "sigmoid":
            assert self.dual.logit_bias is not None
            return sigmoid_loss(image, text, scale, self.dual.logit_bias, groups=groups, gather=gather, tile=tile)
        return info_nce(image, text, scale, image_weight=self.config.image_weight, groups=groups, gather=gather, tile=tile)


def _rows_with_text(batch: Batch) -> tuple[Batch, Tensor | None, int]:
    """The batch without its rows that have no text, the rows that stayed (None: all), and how many were left out.

    They are taken out before the encoders: a text of padding alone gives NaN in many of them, and NaN times a zero gradient
    is NaN.
    A batch without any text keeps one row, so that every device has parameters to synchronise.
    """
    if batch.tokens is None:
        raise DataError("the contrastive objective learns from reports, but the batch has no text; index with reports=...")
    with_text = batch.text_group >= 0
    if batch.drawn is not None:
        with_text &= batch.drawn >= 0
    has_text = with_text.nonzero().squeeze(1)
    size = batch.text_group.shape[0]
    dropped = size - has_text.numel()
    if dropped == 0:
        return batch, None, 0
    rows = has_text if dropped < size else has_text.new_zeros(1)
    return _pick(batch, rows), rows, dropped


def _pick(batch: Batch, rows: Tensor | slice) -> Batch:
    """Those rows of a batch, with their further texts."""
    size = batch.images.shape[0]
    picked: dict[str, Any] = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    if not batch.texts:
        return replace(batch, **picked)
    numbers = torch.arange(size, device=batch.images.device)[rows] if isinstance(rows, slice) else rows
    return replace(batch, **picked, texts=pick_texts(batch.texts, numbers, size))
