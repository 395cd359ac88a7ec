"""From encoded patches to the pixels of masked ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medfm.encoders.config import VitConfig
from medfm.encoders.linear import Linear
from medfm.encoders.positions import sincos_positions
from medfm.encoders.vit import Block
from medfm.objectives.masking import Masks
from medfm.types import EncoderOutput


class MaeDecoder(nn.Module):
    """MAE's decoder in two or three dimensions: a narrow ViT over seen patches and mask tokens, with sin-cos positions.

    Tokens stand in the order class token, seen patches, masked patches: attention does not ask for the grid's order once
    positions are added, so nothing is sorted back, and what the loss reads is one slice. Only that slice goes through the last
    block as queries, through the norm and the projection: what the others would give is not used.

    State-dict names are those of models_mae.py without `decoder_`.

    Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", models_mae.py.

    Args:
        in_dim: E of the encoder.
        grid_size: the encoder's patches along each axis.
        patch_values: pixels of a patch times channels.
        mask_tokens: False where the encoder has seen mask tokens already, and gives all patches.
    """

    pos_embed: Tensor

    def __init__(
        self,
        in_dim: int,
        grid_size: tuple[int, ...],
        patch_values: int,
        *,
        dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        mask_tokens: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        config = VitConfig(embed_dim=dim, depth=max(depth, 1), num_heads=num_heads, mlp_ratio=mlp_ratio)
        self.grid_size = grid_size
        self.gradient_checkpointing = gradient_checkpointing
        self.embed = Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim)) if mask_tokens else None
        self.register_buffer("pos_embed", sincos_positions(grid_size, dim), persistent=False)
        self.blocks = nn.ModuleList(Block(config, 0.0) for _ in range(depth))
        for block in self.blocks:
            # All patches and many narrow heads: kept weights would be a quarter of the memory.
            block.attn.recompute = True  # type: ignore[union-attr]
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pred = Linear(dim, patch_values)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    def positions(self, grid: tuple[int, ...]) -> Tensor:
        """(N, dim)."""
        if grid == self.grid_size:
            return self.pos_embed[0]
        return sincos_positions(grid, self.pos_embed.shape[-1])[0].to(self.pos_embed)

    def forward(self, encoded: EncoderOutput, masks: Masks, everything: bool = False) -> Tensor:
        """Predicted pixels of the masked patches, (B, M, P * C), laid out as `medfm.encoders.patches.patchify`.

        Args:
            encoded: of the seen patches, in the order of `masks.keep`; of all patches where the encoder got mask tokens.
            masks: which they are.
            everything: predict the seen patches too, (B, K + M, P * C), seen ones first.
        """
        positions = self.positions(encoded.grid_size)
        prefix = [] if encoded.cls_token is None else [self.embed(encoded.cls_token)[:, None]]
        patches = self.embed(encoded.patch_tokens)
        if self.mask_token is None:
            order = torch.cat([masks.keep, masks.masked], dim=1)
            patches = (patches + positions).gather(1, order[..., None].expand(-1, -1, patches.shape[-1]))
            tokens = torch.cat([*prefix, patches], dim=1)
        else:
            tokens = torch.cat([*prefix, patches + positions[masks.keep], self.mask_token + positions[masks.masked]], dim=1)
        wanted = slice(len(prefix) if everything else tokens.shape[1] - masks.masked.shape[1], None)
        for block in self.blocks[:-1]:
            tokens = self._run(block, tokens)
        tokens = self._run(self.blocks[-1], tokens, wanted) if len(self.blocks) else tokens[:, wanted]
        return self.pred(self.norm(tokens))

    def _run(self, block: nn.Module, tokens: Tensor, queries: slice | None = None) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, tokens, False, queries, use_reentrant=False)
        return block(tokens, queries=queries)


class LinearHead(nn.Module):
    """SimMIM's head: one linear layer from a token to the pixels of its patch.

    The 1 x 1 convolution and pixel shuffle of the authors' code, with another order of the output channels; where the encoder
    has merged patches (Swin) a token stands for a square of `final stride` pixels.

    Source: Xie et al. 2022, "SimMIM: a Simple Framework for Masked Image Modeling", section 3.3.
    """

    def __init__(self, in_dim: int, patch_values: int) -> None:
        super().__init__()
        self.pred = nn.Linear(in_dim, patch_values)
        nn.init.xavier_uniform_(self.pred.weight)
        nn.init.zeros_(self.pred.bias)

    def forward(self, encoded: EncoderOutput, masks: Masks, everything: bool = False) -> Tensor:
        """As `MaeDecoder.forward`, of an encoder that gives all patches."""
        order = torch.cat([masks.keep, masks.masked], dim=1) if everything else masks.masked
        tokens = encoded.patch_tokens.gather(1, order[..., None].expand(-1, -1, encoded.patch_tokens.shape[-1]))
        return self.pred(tokens)
