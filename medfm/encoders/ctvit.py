"""Factorised attention over long volumes: within slices of patches, then along depth (CT-ViT, CT-CLIP's image encoder)."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.attention import attend
from medfm.encoders.config import CTViTConfig
from medfm.encoders.linear import Linear
from medfm.encoders.patches import split_patches
from medfm.encoders.pretrained import load_strict, read_state_dict
from medfm.encoders.volume import DHW, VolumeEncoder
from medfm.errors import WeightsError


class PositionConv(nn.Module):
    """Position-generating convolution (Chu et al. 2021): depthwise, 3 x 3 x 3, causal along the first axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dsconv = nn.Conv3d(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, D, H, W, E) -> the same shape."""
        made: Tensor = self.dsconv(F.pad(x.movedim(-1, 1), (1, 1, 1, 1, 2, 0))).movedim(1, -1)
        return made


class CosineAttention(nn.Module):
    """Attention by cosines of queries and keys, times 8, each with a learned gain a channel. Keys and values read `x` before
    its norm, as the authors' code does."""

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.heads = (num_heads, head_dim)
        self.norm = nn.LayerNorm(dim, bias=False)
        self.to_q = Linear(dim, inner, bias=False)
        self.to_kv = Linear(dim, 2 * inner, bias=False)
        self.q_scale = nn.Parameter(torch.ones(head_dim))
        self.k_scale = nn.Parameter(torch.ones(head_dim))
        self.to_out = Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, N, E), bias (1, heads, N, N) -> (B, N, E)."""
        b, n, _ = x.shape
        q = self.to_q(self.norm(x)).view(b, n, *self.heads).transpose(1, 2)
        k, v = self.to_kv(x).view(b, n, 2, *self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        # `attend` divides by sqrt(d).
        gain = self.q_scale * (8 * math.sqrt(self.heads[1]))
        q = (F.normalize(q, dim=-1) * gain).to(v.dtype)
        k = (F.normalize(k, dim=-1) * self.k_scale).to(v.dtype)
        read = attend(q, k, v, None if bias is None else bias.to(v.dtype))
        made: Tensor = self.to_out(read.transpose(1, 2).reshape(b, n, -1))
        return made


class GatedMlp(nn.Module):
    """`fc2(a * gelu(b))`, (a, b) = fc1(norm(x)) (GEGLU, Shazeer 2020), two thirds as wide."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = int(ratio * (2 / 3) * dim)
        self.norm = nn.LayerNorm(dim)
        self.fc1 = Linear(dim, 2 * hidden, bias=False)
        self.fc2 = Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(self.norm(x)).chunk(2, dim=-1)
        made: Tensor = self.fc2(F.gelu(gate) * value)
        return made


class FactorisedBlock(nn.Module):
    """Position convolution, attention over one of the two parts of the grid, MLP, each on a residual branch.

    Args:
        spatial: attends within slices; else along depth.
        scrambled: the convolution reads tokens in the order (B, H, W, D) as if it were (B, D, H, W).
    """

    def __init__(self, config: CTViTConfig, spatial: bool, scrambled: bool = False) -> None:
        super().__init__()
        self.spatial, self.scrambled = spatial, scrambled
        self.peg = PositionConv(config.embed_dim)
        self.attn = CosineAttention(config.embed_dim, config.num_heads, config.head_dim)
        self.mlp = GatedMlp(config.embed_dim, config.mlp_ratio)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, D, H, W, E) -> the same shape."""
        if self.scrambled:
            turned = x.permute(0, 2, 3, 1, 4).contiguous()
            shift = self.peg(turned.view(x.shape)).reshape(turned.shape).permute(0, 3, 1, 2, 4)
        else:
            shift = self.peg(x)
        x = x + shift
        rows = (x if self.spatial else x.permute(0, 2, 3, 1, 4)).flatten(0, 1)
        rows = rows.flatten(1, 2) if self.spatial else rows.flatten(0, 1)  # (B D, H W, E) or (B H W, D, E)
        rows = rows + self.attn(rows, bias)
        rows = rows + self.mlp(rows)
        if self.spatial:
            return rows.view(x.shape)
        b, d, h, w, e = x.shape
        return rows.view(b, h, w, d, e).permute(0, 3, 1, 2, 4)


class RelativeBias(nn.Module):
    """Attention bias of two patches of a slice by an MLP of their log-spaced offset (Swin v2, Liu et al. 2022)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(2, dim), nn.Linear(dim, dim), nn.Linear(dim, num_heads)

    def forward(self, height: int, width: int) -> Tensor:
        """(1, heads, H W, H W). The MLP runs once for each of the (2 H - 1)(2 W - 1) offsets, not for each pair."""
        device = self.fc1.weight.device
        rows, columns = (torch.arange(n, device=device) for n in (height, width))
        y = (rows[:, None] - rows)[:, None, :, None].expand(height, width, height, width) + height - 1
        x = (columns[:, None] - columns)[None, :, None, :].expand(height, width, height, width) + width - 1
        offsets = [torch.arange(1 - n, n, device=device, dtype=self.fc1.weight.dtype) for n in (height, width)]
        table = torch.stack(torch.meshgrid(*offsets, indexing="ij"), dim=-1).flatten(0, 1)
        table = table.sign() * (table.abs() + 1).log()
        with torch.autocast(device.type, enabled=False):
            table = F.leaky_relu(self.fc2(F.leaky_relu(self.fc1(table), 0.1)), 0.1)
            table = self.fc3(table)  # (offsets, heads)
        pairs = (y * (2 * width - 1) + x).reshape(-1)
        return table.t()[:, pairs].view(1, -1, height * width, height * width)


class CTViT(VolumeEncoder):
    """The encoder of CT-ViT, with `config.peg="ctclip"` and `codebook_size=8192` the one of CT-CLIP: same numbers, its weights.

    Attention costs N_slice^2 D + D^2 N_slice in place of (N_slice D)^2. A position convolution in each block says where a token
    lies; within slices a bias does too.

    Sources: Hamamci et al. 2023, "GenerateCT" (CT-ViT); Hamamci et al. 2024 (CT-CLIP), transformer_maskgit/ctvit.py and
    attention.py, whose blocks along depth hand their position convolution tokens in another order than it takes them for
    (`peg`). CT-CLIP pools its tokens over depth alone and projects all (H, W, E) of them; here `pool=mean` takes the mean over
    all.

    Raises:
        WeightsError: `config.weights` is missing, broken or does not fit; or was trained with another `peg`.
    """

    def __init__(self, config: CTViTConfig) -> None:
        super().__init__(config, config.patch_size)
        dim = self.embed_dim = config.embed_dim
        self._patch = tuple(config.patch_size[DHW.index(a)] for a in config.axes)
        values = config.in_channels * math.prod(config.patch_size)
        self.patch_embed = nn.Sequential(nn.LayerNorm(values), Linear(values, dim), nn.LayerNorm(dim))
        self.bias = RelativeBias(dim, config.num_heads)
        self.spatial_blocks = nn.ModuleList(FactorisedBlock(config, spatial=True) for _ in range(config.spatial_depth))
        self.spatial_norm = nn.LayerNorm(dim, bias=False)
        self.temporal_blocks = nn.ModuleList(
            FactorisedBlock(config, spatial=False, scrambled=config.peg == "ctclip") for _ in range(config.temporal_depth)
        )
        self.norm = nn.LayerNorm(dim, bias=False)
        self.codebook: Tensor | None
        entries = F.normalize(torch.randn(config.codebook_size, dim), dim=-1) if config.codebook_size else None
        self.register_buffer("codebook", entries)
        if config.weights is not None:
            load_strict(self, _read(config.weights, config), config.weights)

    def layer_groups(self) -> list[tuple[str, ...]]:
        """The norm between the two halves belongs to the block before it."""
        last = len(self.spatial_blocks) - 1
        within = [(f"spatial_blocks.{n}.", *(["spatial_norm."] if n == last else [])) for n in range(last + 1)]
        return [*within, *((f"temporal_blocks.{n}.",) for n in range(len(self.temporal_blocks)))]

    def _embed(self, x: Tensor) -> Tensor:
        """x (B, C, D, H, W) -> (B, d, h, w, E). A patch's values run over channels, then D, H, W."""
        made: Tensor = self.patch_embed(split_patches(x, self._patch).flatten(4))
        return made

    def feature_map(self, x: Tensor) -> Tensor:
        tokens = self.run(self._embed, x)  # a batch's normed patches are its largest tensor
        bias = self.bias(*tokens.shape[2:4])
        for block in self.spatial_blocks:
            tokens = self.run(block, tokens, bias)
        tokens = self.spatial_norm(tokens)
        for block in self.temporal_blocks:
            tokens = self.run(block, tokens)
        tokens = self.norm(tokens)
        if self.codebook is not None:
            tokens = torch.stack([self._nearest(image, self.codebook) for image in tokens])
        return tokens.movedim(-1, 1)

    @staticmethod
    def _nearest(tokens: Tensor, codebook: Tensor) -> Tensor:
        """The codebook's entry of the largest cosine for each token; the gradient passes as if there were no codebook."""
        flat = tokens.detach().flatten(0, -2).to(codebook.dtype)
        with torch.no_grad(), torch.autocast(flat.device.type, enabled=False):
            entries = codebook[(flat @ codebook.t()).argmax(dim=-1)].view(tokens.shape).to(tokens.dtype)
        return tokens + (entries - tokens).detach() if tokens.requires_grad else entries


# CT-CLIP's files as our names; what is empty, constant or never used by the encoder is dropped.
_NAMES = (
    (r"^to_patch_emb\.([123])\.", lambda m: f"patch_embed.{int(m[1]) - 1}."),
    (r"^spatial_rel_pos_bias\.net\.([01])\.0\.", lambda m: f"bias.fc{int(m[1]) + 1}."),
    (r"^spatial_rel_pos_bias\.net\.2\.", lambda m: "bias.fc3."),
    (r"^enc_spatial_transformer\.norm_out\.", lambda m: "spatial_norm."),
    (r"^enc_temporal_transformer\.norm_out\.", lambda m: "norm."),
    (r"^enc_(spatial|temporal)_transformer\.layers\.(\d+)\.0\.", lambda m: f"{m[1]}_blocks.{m[2]}.peg."),
    (r"^enc_(spatial|temporal)_transformer\.layers\.(\d+)\.1\.", lambda m: f"{m[1]}_blocks.{m[2]}.attn."),
    (r"^enc_(spatial|temporal)_transformer\.layers\.(\d+)\.3\.0\.", lambda m: f"{m[1]}_blocks.{m[2]}.mlp.norm."),
    (r"^enc_(spatial|temporal)_transformer\.layers\.(\d+)\.3\.1\.", lambda m: f"{m[1]}_blocks.{m[2]}.mlp.fc1."),
    (r"^enc_(spatial|temporal)_transformer\.layers\.(\d+)\.3\.4\.", lambda m: f"{m[1]}_blocks.{m[2]}.mlp.fc2."),
    (r"\.gamma$", lambda m: ".weight"),
)
_DROPPED = re.compile(r"\.beta$|\.null_kv$|\.context_norm\.|^(to_patch_emb_first_frame|to_pixels|dec_|discr|vgg|vq)[._]")
_OTHER_SIDE = ("text_transformer.", "to_text_latent", "to_visual_latent", "temperature", "logit_scale")


def _read(path: Path, config: CTViTConfig) -> dict[str, Tensor]:
    """A file of CT-CLIP (`visual_transformer.*` taken), of CT-ViT alone, or of this encoder, as the encoder's state dict."""
    state = read_state_dict(path)
    if any(name.startswith("visual_transformer.") for name in state):
        rest = [name for name in state if not name.startswith(("visual_transformer.", *_OTHER_SIDE))]
        if rest:
            raise WeightsError(f"{path}: beside a CT-CLIP model it holds tensors of no known use: {', '.join(rest[:5])}")
        state = {n.removeprefix("visual_transformer."): t for n, t in state.items() if n.startswith("visual_transformer.")}
    if not any(name.startswith("enc_spatial_transformer.") for name in state):
        return state
    if config.peg != "ctclip":
        raise WeightsError(f"{path}: CT-CLIP's weights were trained with its order of tokens; set encoder.peg=ctclip")
    made = {}
    for name, tensor in state.items():
        if name == "vq._codebook.embed":
            if config.codebook_size:
                made["codebook"] = tensor.flatten(0, -2)
            continue
        if _DROPPED.search(name):
            continue
        for pattern, rename in _NAMES:
            name = re.sub(pattern, rename, name)
        made[name] = tensor
    return made
