"""From encoded patches and words to the masked ones of both."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medfm.encoders.positions import sincos_positions
from medfm.objectives.mae_decoder import MaeDecoder
from medfm.objectives.masking import Masks, TextMasks
from medfm.types import EncoderOutput


def run_block(
    block: nn.Module, x: Tensor, visible: Tensor, queries: slice | None = None, checkpointing: bool = False
) -> Tensor:
    """A ViT block over x (B, N, E) in which tokens attend to those that are `visible` (B, 1, 1, N)."""
    if checkpointing:
        return checkpoint(block, x, False, queries, False, visible, use_reentrant=False)
    return block(x, queries=queries, mask=visible)


class M3aeDecoder(MaeDecoder):
    """MAE's decoder over the tokens of two kinds, with a mask token and a kind's vector for each.

    Tokens stand in the order class token, seen patches, seen words, masked patches, masked words; see `MaeDecoder`.

    Source: Geng et al. 2022, m3ae/model.py, `forward_decoder`.

    Args:
        in_dim, grid_size, patch_values, dim, depth, num_heads, mlp_ratio, gradient_checkpointing: as in `MaeDecoder`.
        vocab_size, context_length: of the tokenizer.
    """

    text_positions: Tensor

    def __init__(
        self,
        in_dim: int,
        grid_size: tuple[int, ...],
        patch_values: int,
        vocab_size: int,
        context_length: int,
        *,
        dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            in_dim,
            grid_size,
            patch_values,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.text_mask_token = nn.Parameter(torch.empty(dim))
        self.image_type, self.text_type = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))
        for vector in (self.text_mask_token, self.image_type, self.text_type):
            nn.init.normal_(vector, std=0.02)
        self.register_buffer("text_positions", sincos_positions((context_length,), dim)[0], persistent=False)
        self.text_pred = nn.Linear(dim, vocab_size)
        nn.init.xavier_uniform_(self.text_pred.weight)
        nn.init.zeros_(self.text_pred.bias)

    def forward(  # type: ignore[override]
        self, encoded: EncoderOutput, text: Tensor, masks: Masks, words: TextMasks
    ) -> tuple[Tensor, Tensor]:
        """Predicted pixels (B, M, P * C) of the masked patches, and features (B, M', dim) of the masked words for `text_pred`.

        Args:
            encoded, masks: as in `MaeDecoder`.
            text: (B, V, E), encoded words in the order of `words.seen`.
        """
        at_image = self.positions(encoded.grid_size) + self.image_type
        at_text = self.text_positions + self.text_type
        assert self.mask_token is not None
        parts = [
            self.embed(encoded.patch_tokens) + at_image[masks.keep],
            self.embed(text) + at_text[words.seen],
            self.mask_token + at_image[masks.masked],
            self.text_mask_token + at_text[words.masked],
        ]
        if encoded.cls_token is not None:
            parts.insert(0, self.embed(encoded.cls_token)[:, None])
        tokens = torch.cat(parts, dim=1)
        real = words.seen_real.new_ones(len(tokens), tokens.shape[1] - words.seen.shape[1] - words.masked.shape[1])
        before, after = real[:, : -masks.masked.shape[1]], real[:, -masks.masked.shape[1] :]
        visible = torch.cat([before, words.seen_real, after, words.masked_real], dim=1)[:, None, None]
        wanted = slice(tokens.shape[1] - masks.masked.shape[1] - words.masked.shape[1], None)
        checkpointing = self.gradient_checkpointing and self.training
        for block in self.blocks[:-1]:
            tokens = run_block(block, tokens, visible, checkpointing=checkpointing)
        tokens = run_block(self.blocks[-1], tokens, visible, wanted, checkpointing)
        patches, hidden = self.norm(tokens).split([masks.masked.shape[1], words.masked.shape[1]], dim=1)
        return self.pred(patches), hidden
