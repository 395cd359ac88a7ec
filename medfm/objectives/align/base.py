"""What an alignment term is, and what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from medfm.encoders.dual import DualEncoder, unit
from medfm.objectives.gather import Gather, SingleDevice
from medfm.transforms.draws import Draws
from medfm.types import Batch


@dataclass
class Encoded:
    """One batch after the encoders; rows without text are left out already. B rows (0 where no row of a device has text),
    D of the joint space.

    Attributes:
        batch: the rows, images as the objective got them; `batch.texts[kind].row` counts these rows.
        dual: the encoders and their projections.
        image, text: (B, D) unit vectors.
        patch_tokens: (B, N, E) of the image encoder, where a term reads patches; `grid` (H, W) or (D, H, W).
        word_tokens: (B, T, E') of the text encoder, where a term reads words; `word_mask` (B, T) 1 for real tokens. T is the
            batch's: other devices may have another.
        texts: kind -> (M, D) unit vectors of `batch.texts[kind]`, a key for every kind that a term asks for; M may be 0.
        groups: (B,) codes; rows with an equal code >= 0 in any of them are no negatives of each other.
        gather: the devices to contrast over.
        draws: random numbers; see `rand`.
        training: whether the objective is in training.
        size, rows: how many rows the batch had with those without text, and which of them these are; None: all.
    """

    batch: Batch
    dual: DualEncoder
    image: Tensor
    text: Tensor
    patch_tokens: Tensor | None = None
    grid: tuple[int, ...] = ()
    word_tokens: Tensor | None = None
    word_mask: Tensor | None = None
    texts: dict[str, Tensor] = field(default_factory=dict)
    groups: Sequence[Tensor] = ()
    gather: Gather = field(default_factory=SingleDevice)
    draws: Draws | None = None
    training: bool = True
    size: int = 0
    rows: Tensor | None = None

    @cached_property
    def projected_patches(self) -> Tensor:
        """(B, N, D) patch tokens in the joint space, with their lengths."""
        assert self.patch_tokens is not None
        projected: Tensor = self.dual.image_projection(self.patch_tokens)
        return projected

    @cached_property
    def projected_words(self) -> Tensor:
        """(B, T, D) word tokens in the joint space, with their lengths."""
        assert self.word_tokens is not None
        projected: Tensor = self.dual.text_projection(self.word_tokens)
        return projected

    @cached_property
    def patches(self) -> Tensor:
        """(B, N, D) patch tokens as unit vectors of the joint space: what zero-shot heat maps compare with."""
        return unit(self.projected_patches)

    @cached_property
    def words(self) -> Tensor:
        """(B, T, D) word tokens as unit vectors of the joint space."""
        return unit(self.projected_words)

    def rand(self, *shape: int) -> Tensor:
        """(B, *shape) float32, uniform in [0, 1): drawn for all rows of the batch, as `draws` asks, and kept for these."""
        if self.draws is None:
            return torch.rand(self.image.shape[0], *shape, device=self.image.device)
        everyone = self.draws.rand(self.size or self.image.shape[0], *shape).to(self.image.device)
        return everyone if self.rows is None else everyone[self.rows]


class Term(nn.Module):
    """One term of `objective.terms`. It may own heads, which training alone needs: a weight file keeps the DualEncoder.

    Every parameter must get a gradient in every step, also where a batch has none of the texts it reads (data-parallel training
    waits for all of them): see `touched`. The encoders' and projections' parameters get theirs from the objective.
    """

    def forward(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar loss, not yet weighted, and detached numbers worth logging, the same on every device."""
        raise NotImplementedError

    def touched(self, *tensors: Tensor) -> Tensor:
        """A zero that every parameter of the term, and each tensor given, has a (zero) gradient from.

        Parameters shared out over devices at this moment (FSDP's blocks) are passed over: nothing waits for them.
        """
        own = [p for p in self.parameters() if not hasattr(p, "to_local")]
        total = sum((p.sum() for p in (*own, *tensors)), start=next(iter(tensors)).new_zeros(()))
        return 0.0 * total

    def weights_loaded(self) -> None:
        """The encoders have been given weights to start from: moving averages begin as copies of them."""

    def after_optimizer_step(self, step: int, total: int) -> None:
        """The weights have moved: time for moving averages to follow."""
