"""The Vision Transformer, in two or three dimensions by the length of its tuples."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medfm.encoders.attention import attend
from medfm.encoders.config import VitConfig
from medfm.encoders.inflate import inflate_kernel, inflate_positions
from medfm.encoders.linear import Linear
from medfm.encoders.mlp import Mlp, SwiGlu
from medfm.encoders.patches import patch_grid, split_patches, take_patches
from medfm.encoders.positions import resample_positions, sincos_positions
from medfm.encoders.pretrained import adapt_input_channels, load_strict, read_state_dict
from medfm.encoders.windows import window_attend
from medfm.errors import ConfigError, WeightsError
from medfm.types import EncoderOutput


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): a residual branch is left out of a whole sample with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)


class LayerScale(nn.Module):
    """A learned gain a channel on a residual branch (Touvron et al. 2021, "Going deeper with Image Transformers")."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection `qkv`."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.recompute = False  # see `attend`
        self.window: tuple[int, ...] | None = None  # see `window_attend`
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, queries: slice | None = None, mask: Tensor | None = None, grid: tuple[int, ...] | None = None
    ) -> Tensor:
        """x (B, N, E) -> (B, N, E), or of the tokens `queries` alone, which attend to all. `mask`: as in `attend`; `grid`: of
        the patches, for attention within `window`."""
        b, n, e = x.shape
        heads = (self.num_heads, e // self.num_heads)
        if queries is None:
            q, k, v = self.qkv(x).view(b, n, 3, *heads).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = nn.functional.linear(x[:, queries], weight[:e], None if bias is None else bias[:e])
            q = q.view(b, -1, *heads).transpose(1, 2)
            kv = nn.functional.linear(x, weight[e:], None if bias is None else bias[e:])
            k, v = kv.view(b, n, 2, *heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.window is not None and grid is not None and queries is None and mask is None:
            read = window_attend(q, k, v, grid, self.window, recompute=self.recompute)
        else:
            read = attend(q, k, v, mask, recompute=self.recompute)
        return self.proj_drop(self.proj(read.transpose(1, 2).reshape(b, -1, e)))

    def class_token(self, x: Tensor) -> Tensor:
        """x (B, N, E) -> (B, 1, E): what forward gives the first token, without projecting the others to keys and values.

        Projections commute with the weighted sum: `q . (W_k x_n) = (W_k^T q) . x_n`, `sum a_n W_v x_n = W_v sum a_n x_n`. A
        key's bias adds the same to all scores of a softmax and cancels. A fifth of the time of projecting them.
        """
        b, _, e = x.shape
        heads, d = self.num_heads, e // self.num_heads
        query, key, value = self.qkv.weight.chunk(3)
        bias = None if self.qkv.bias is None else self.qkv.bias.chunk(3)
        q = nn.functional.linear(x[:, 0], query, None if bias is None else bias[0]).view(b, heads, d)
        reader = torch.einsum("bhd,hde->bhe", q * d**-0.5, key.view(heads, d, e))
        weights = (reader @ x.transpose(1, 2)).softmax(dim=-1)
        read = torch.einsum("bhe,hde->bhd", weights @ x, value.view(heads, d, e)).reshape(b, 1, e)
        return self.proj_drop(self.proj(read if bias is None else read + bias[2]))

    def values(self, x: Tensor) -> Tensor:
        """What forward gives if every token attends to itself alone."""
        e = x.shape[-1]
        bias = None if self.qkv.bias is None else self.qkv.bias[2 * e :]
        return self.proj(nn.functional.linear(x, self.qkv.weight[2 * e :], bias))


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each on a residual branch."""

    def __init__(self, config: VitConfig, drop_path: float) -> None:
        super().__init__()
        dim = config.embed_dim

        def scale() -> nn.Module:
            return LayerScale(dim, config.init_values) if config.init_values else nn.Identity()

        def drop() -> nn.Module:
            return DropPath(drop_path) if drop_path else nn.Identity()

        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, config.num_heads, config.qkv_bias, config.dropout)
        self.ls1, self.drop_path1 = scale(), drop()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        mlp = SwiGlu if config.mlp == "swiglu" else Mlp
        self.mlp = mlp(dim, int(dim * config.mlp_ratio), config.dropout)
        self.ls2, self.drop_path2 = scale(), drop()

    def forward(
        self,
        x: Tensor,
        values_only: bool = False,
        queries: slice | None = None,
        class_only: bool = False,
        mask: Tensor | None = None,
        grid: tuple[int, ...] | None = None,
    ) -> Tensor:
        """x (B, N, E) -> (B, N, E), or of the tokens `queries` alone: what a full block gives them, for less where a last
        block's other tokens are not used; `class_only`: of the first token, for less again. `values_only` lets every token
        attend to itself alone. `mask` (B, 1, 1, N) is True where a token may be attended to. `grid`: see `Attention`."""
        normed = self.norm1(x)
        if class_only:
            queries, attended = slice(0, 1), self.attn.class_token(normed)
        else:
            attended = self.attn.values(normed) if values_only else self.attn(normed, queries, mask, grid)
        x = (x if queries is None else x[:, queries]) + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class PatchEmbed(nn.Module):
    """Non-overlapping patches (2D or 3D) to tokens.

    `proj` is stored as the convolution that timm has, and applied as the matrix product that it is: patches that are not
    kept then cost nothing, and on a CPU all patches are 1.1x (float32) to 1.7x (bfloat16) a convolution's speed.
    """

    def __init__(self, patch_size: tuple[int, ...], in_channels: int, embed_dim: int) -> None:
        super().__init__()
        conv = nn.Conv2d if len(patch_size) == 2 else nn.Conv3d
        self.patch_size = patch_size
        self.proj = conv(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)  # type: ignore[arg-type]

    def forward(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, tuple[int, ...]]:
        """x (B, C, *spatial) -> tokens (B, N or K, E) and the grid; `keep` (B, K) are flat grid indices."""
        axes = len(self.patch_size)
        if x.ndim != axes + 2 or x.shape[1] != self.proj.in_channels:
            raise ConfigError(
                f"the encoder takes images of {self.proj.in_channels} channels and {axes} axes, got {tuple(x.shape)}"
            )
        grid = patch_grid(tuple(x.shape[2:]), self.patch_size)
        patches = take_patches(split_patches(x, self.patch_size), grid, keep)
        return nn.functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias), grid


class VisionTransformer(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021) with class and register tokens, 2D or 3D.

    State-dict names and arithmetic follow timm's `VisionTransformer` (fc_norm=False), so timm's weights load as they are.
    `dropout` acts after the attention projection and in the MLP (timm's `proj_drop_rate`); drop path rises linearly over the
    blocks.

    Attributes:
        embed_dim: E.
        grid_size: patches along each axis at the configured image size.
        patch_size: pixels along each axis that a patch token stands for.
        pool: which feature stands for the image, for `medfm.encoders.pooling.pooled`.
        drops_patches: `keep` leaves patches out; not with windows.
        mask_dim: width of a `mask_token`.

    Raises:
        ConfigError: an image whose channels or axes do not fit, or whose size is not a multiple of the patch size, or whose
            patches the window does not divide; or `keep` with windows.
        WeightsError: `config.weights` is missing, broken or does not fit; every tensor must, the classifier's aside.
    """

    pos_embed: Tensor

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.embed_dim = self.mask_dim = config.embed_dim
        self.patch_size, self.in_channels = config.patch_size, config.in_channels
        self.pool = config.pool
        self.gradient_checkpointing = config.gradient_checkpointing
        self.drops_patches = config.window is None
        self.grid_size = tuple(n // p for n, p in zip(config.img_size, config.patch_size, strict=True))
        self.num_prefix_tokens = int(config.class_token) + config.reg_tokens
        self.no_embed_class = config.no_embed_class
        self.init = config.init
        self.fixed_positions = config.pos_embed == "sincos"

        self.patch_embed = PatchEmbed(config.patch_size, config.in_channels, config.embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.embed_dim)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, config.reg_tokens, config.embed_dim)) if config.reg_tokens else None
        # Positions that prefix tokens have of their own; MAE gives the class token a zero one, as is done for sin-cos here.
        self.pos_prefix = 0 if config.no_embed_class or self.fixed_positions else self.num_prefix_tokens
        if self.fixed_positions:
            self.register_buffer("pos_embed", sincos_positions(self.grid_size, config.embed_dim), persistent=False)
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid_size) + self.pos_prefix, config.embed_dim))
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / max(config.depth - 1, 1)) for i in range(config.depth))
        for number in config.windowed_blocks:
            self.blocks[number].attn.window = config.window  # type: ignore[union-attr]
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self._init_weights()
        if config.weights is not None:
            self._load(config)

    def _load(self, config: VitConfig) -> None:
        assert config.weights is not None
        state = read_state_dict(config.weights)
        self._inflate(state, config)
        adapt_input_channels(state, "patch_embed.proj.weight", self.patch_embed.proj.weight)
        positions = state.get("pos_embed")
        if positions is not None and self.fixed_positions:
            # MAE's files hold the fixed table as a parameter: dropped where it is the same one, refused below where it is not.
            theirs = positions[:, -self.pos_embed.shape[1] :]
            if theirs.shape == self.pos_embed.shape and torch.allclose(theirs.float(), self.pos_embed, atol=1e-3):
                del state["pos_embed"]
        elif positions is not None and positions.shape != self.pos_embed.shape:
            # timm's files do not say their grid; of another count than ours it is square or cubic.
            axes, count = len(self.grid_size), positions.shape[1] - self.pos_prefix
            side = round(max(count, 0) ** (1 / axes))
            if side**axes == count:
                state["pos_embed"] = resample_positions(positions, (side,) * axes, self.grid_size, self.pos_prefix)
        # A full MAE file holds its decoder too, and the decoder's mask token.
        load_strict(self, state, config.weights, unused=("head.", "head_dist.", "decoder_", "mask_token"))

    def _inflate(self, state: dict[str, Tensor], config: VitConfig) -> None:
        """Makes a volume's patch projection and positions of a 2D file's, in place."""
        kernel, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
        if len(self.grid_size) != 3 or kernel is None or kernel.ndim != 4:
            return
        if config.inflate is None:
            raise WeightsError(
                f"{config.weights}: weights of a 2D encoder; set encoder.inflate=average to start a 3D one from them"
            )
        state["patch_embed.proj.weight"] = inflate_kernel(kernel, config.patch_size[0], config.inflate)
        if positions is None or positions.ndim != 3 or self.fixed_positions:
            state.pop("pos_embed", None)
            return
        side = math.isqrt(max(positions.shape[1] - self.pos_prefix, 0))
        if side**2 + self.pos_prefix == positions.shape[1]:
            state["pos_embed"] = inflate_positions(positions, (side, side), self.grid_size, self.pos_prefix)

    def _init_weights(self) -> None:
        """timm's initialisation, with MAE's Xavier for the patch projection seen as the linear layer that it is; or MAE's own
        (models_mae.py: initialize_weights): that of all linear layers, and tokens as wide as positions elsewhere."""
        mae = self.init == "mae"
        for module in self.modules():
            if isinstance(module, nn.Linear):
                (nn.init.xavier_uniform_ if mae else partial(nn.init.trunc_normal_, std=0.02))(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        if self.patch_embed.proj.bias is not None and not mae:  # MAE's keeps a convolution's usual start
            nn.init.zeros_(self.patch_embed.proj.bias)
        if not self.fixed_positions:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02 if mae else 1e-6)

    def positions(self, grid: tuple[int, ...]) -> Tensor:
        """(1, pos_prefix + prod(grid), E): the positions, resampled where `grid` is not the configured one."""
        if grid == self.grid_size:
            return self.pos_embed
        if self.fixed_positions:
            return sincos_positions(grid, self.embed_dim).to(self.pos_embed)
        return resample_positions(self.pos_embed, self.grid_size, grid, self.pos_prefix)

    def embed(
        self, x: Tensor, keep: Tensor | None = None, masked: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, ...]]:
        """What enters the first block: prefix tokens and patches with their positions, (B, prefix + N, E), and the grid."""
        if keep is not None and not self.drops_patches:
            raise ConfigError("patch dropout: attention within windows encodes all patches; set objective.patch_dropout=0")
        tokens, grid = self.patch_embed(x, keep)
        if masked is not None:
            assert mask_token is not None
            tokens = torch.where(masked.reshape(*tokens.shape[:2], 1), mask_token.to(tokens.dtype), tokens)
        positions = self.positions(grid)
        head, body = positions[:, : self.pos_prefix], positions[:, self.pos_prefix :]
        tokens = tokens + (body if keep is None else body[0][keep])
        prefix: list[Tensor] = [t for t in (self.cls_token, self.reg_token) if t is not None]
        if prefix:
            front = torch.cat(prefix, dim=1)
            front = front + head if self.pos_prefix else front
            tokens = torch.cat([front.expand(x.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        return tokens, grid

    def _output(self, tokens: Tensor, grid: tuple[int, ...]) -> EncoderOutput:
        tokens = self.norm(tokens)
        return EncoderOutput(
            patch_tokens=tokens[:, self.num_prefix_tokens :],
            cls_token=tokens[:, 0] if self.cls_token is not None else None,
            grid_size=grid,
        )

    def forward(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        masked: Tensor | None = None,
        mask_token: Tensor | None = None,
        class_only: bool = False,
    ) -> EncoderOutput:
        """x (B, C, *spatial) -> features after the last norm.

        Args:
            keep: (B, K) flat grid indices of the patches that are encoded; the others are dropped before the first block.
            masked: (B, N) or (B, *grid) bool; in the place of these patches `mask_token` (E values) is encoded.
            class_only: the class token alone is read, so the last block computes no other; `patch_tokens` is (B, 0, E). The
                class token and all gradients are what they are without it.
        """
        tokens, grid = self.embed(x, keep, masked, mask_token)
        assert self.cls_token is not None or not class_only
        blocks: list[Callable[[Tensor], Tensor]] = [partial(block, grid=grid) for block in self.blocks]
        if class_only:
            blocks[-1] = partial(self.blocks[-1], class_only=True)
        for block in blocks:
            if self.gradient_checkpointing and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return self._output(tokens, grid)

    def forward_blocks(self, x: Tensor, blocks: int) -> list[EncoderOutput]:
        """x (B, C, *spatial) -> features after each of the last `blocks` blocks and the last norm, the earliest first.

        Raises:
            ConfigError: there are fewer blocks.
        """
        if not 1 <= blocks <= len(self.blocks):
            raise ConfigError(f"blocks={blocks}: the encoder has {len(self.blocks)} blocks")
        tokens, grid = self.embed(x)
        outputs = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, grid=grid)
            if number > len(self.blocks) - blocks:
                outputs.append(self._output(tokens, grid))
        return outputs

    def forward_dense(self, x: Tensor) -> EncoderOutput:
        """As forward, but in the last block every token attends to itself alone.

        A class token trained against text gathers the *values* of patches; their own outputs never met the text. Passing each
        patch's value through the rest of the block puts it where the class token's feature is.

        Source: Zhou et al. 2022, "Extract Free Dense Labels from CLIP" (MaskCLIP), section 3.2.
        """
        tokens, grid = self.embed(x)
        for block in self.blocks[:-1]:
            tokens = block(tokens, grid=grid)
        return self._output(self.blocks[-1](tokens, values_only=True), grid)
