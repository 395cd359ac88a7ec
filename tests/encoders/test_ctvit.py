"""Factorised attention against CT-ViT's arithmetic, written out in float64 token by token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medfm.encoders.config import CTViTConfig
from medfm.encoders.ctvit import CTViT
from medfm.errors import WeightsError

TINY: dict[str, Any] = {
    "img_size": (12, 16, 24), "patch_size": (4, 8, 8), "embed_dim": 12, "spatial_depth": 2, "temporal_depth": 2, "num_heads": 2,
    "head_dim": 5,
}  # fmt: skip
GRID = (3, 2, 3)


def ctclip_state(entries: int = 0) -> dict[str, Tensor]:
    """Random tensors under the names that CT-CLIP's image encoder has, with those that its forward pass never reads."""
    draw = torch.Generator().manual_seed(3)

    def some(*shape: int, about: float = 0.0) -> Tensor:
        return about + 0.3 * torch.randn(*shape, generator=draw)

    values, e, inner, hidden = 4 * 8 * 8, 12, 10, int(4 * (2 / 3) * 12)
    state = {
        "to_patch_emb.1.weight": some(values, about=1), "to_patch_emb.1.bias": some(values),
        "to_patch_emb.2.weight": some(e, values), "to_patch_emb.2.bias": some(e),
        "to_patch_emb.3.weight": some(e, about=1), "to_patch_emb.3.bias": some(e),
        "spatial_rel_pos_bias.net.0.0.weight": some(e, 2), "spatial_rel_pos_bias.net.0.0.bias": some(e),
        "spatial_rel_pos_bias.net.1.0.weight": some(e, e), "spatial_rel_pos_bias.net.1.0.bias": some(e),
        "spatial_rel_pos_bias.net.2.weight": some(2, e), "spatial_rel_pos_bias.net.2.bias": some(2),
        "to_patch_emb_first_frame.1.weight": some(64), "to_pixels.0.weight": some(values, e),
    }  # fmt: skip
    for part in ("spatial", "temporal"):
        for n in range(2):
            at = f"enc_{part}_transformer.layers.{n}."
            state |= {
                f"{at}0.dsconv.weight": some(e, 1, 3, 3, 3), f"{at}0.dsconv.bias": some(e),
                f"{at}1.norm.gamma": some(e, about=1), f"{at}1.norm.beta": torch.zeros(e),
                f"{at}1.context_norm.gamma": torch.ones(e), f"{at}1.context_norm.beta": torch.zeros(e),
                f"{at}1.null_kv": torch.zeros(2, 0, 5), f"{at}1.to_q.weight": some(inner, e),
                f"{at}1.to_kv.weight": some(2 * inner, e), f"{at}1.q_scale": some(5, about=1),
                f"{at}1.k_scale": some(5, about=1), f"{at}1.to_out.weight": some(e, inner),
                f"{at}3.0.weight": some(e, about=1), f"{at}3.0.bias": some(e),
                f"{at}3.1.weight": some(2 * hidden, e), f"{at}3.4.weight": some(e, hidden),
            }  # fmt: skip
        state |= {
            f"enc_{part}_transformer.norm_out.gamma": some(e, about=1),
            f"enc_{part}_transformer.norm_out.beta": torch.zeros(e),
        }
    if entries:
        state["vq._codebook.embed"] = F.normalize(some(1, entries, e), dim=-1)
        state["vq._codebook.cluster_size"] = torch.zeros(1, entries)
    return state


def reference(state: dict[str, Tensor], x: Tensor, scrambled: bool) -> Tensor:
    """CT-ViT's encoder on x (B, 1, D, H, W) in float64: (B, d, h, w, E)."""
    s = {name: tensor.double() for name, tensor in state.items()}
    b, (d, h, w) = x.shape[0], GRID
    patches = torch.stack(
        [
            x[:, :, 4 * i : 4 * i + 4, 8 * j : 8 * j + 8, 8 * k : 8 * k + 8].flatten(1)
            for i in range(d)
            for j in range(h)
            for k in range(w)
        ],
        dim=1,
    )  # fmt: skip
    tokens = F.layer_norm(patches, (256,), s["to_patch_emb.1.weight"], s["to_patch_emb.1.bias"])
    tokens = F.linear(tokens, s["to_patch_emb.2.weight"], s["to_patch_emb.2.bias"])
    tokens = F.layer_norm(tokens, (12,), s["to_patch_emb.3.weight"], s["to_patch_emb.3.bias"]).view(b, d, h, w, 12)

    bias = torch.zeros(2, h * w, h * w, dtype=torch.float64)
    for p in range(h * w):
        for q in range(h * w):
            offset = torch.tensor([p // w - q // w, p % w - q % w], dtype=torch.float64)
            y = offset.sign() * (offset.abs() + 1).log()
            for n in range(2):
                net = f"spatial_rel_pos_bias.net.{n}.0."
                y = F.leaky_relu(F.linear(y, s[f"{net}weight"], s[f"{net}bias"]), 0.1)
            bias[:, p, q] = F.linear(y, s["spatial_rel_pos_bias.net.2.weight"], s["spatial_rel_pos_bias.net.2.bias"])

    def position(x: Tensor, at: str) -> Tensor:
        x = F.pad(x.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 2, 0))
        return F.conv3d(x, s[f"{at}0.dsconv.weight"], s[f"{at}0.dsconv.bias"], groups=12).permute(0, 2, 3, 4, 1)

    def attention(x: Tensor, at: str, bias: Tensor | float) -> Tensor:
        q = F.linear(F.layer_norm(x, (12,)) * s[f"{at}1.norm.gamma"], s[f"{at}1.to_q.weight"])
        k, v = F.linear(x, s[f"{at}1.to_kv.weight"]).chunk(2, dim=-1)
        outputs = []
        for head in range(2):
            a, c, values = (t[..., 5 * head : 5 * head + 5] for t in (q, k, v))
            a = a / a.norm(dim=-1, keepdim=True) * s[f"{at}1.q_scale"]
            c = c / c.norm(dim=-1, keepdim=True) * s[f"{at}1.k_scale"]
            scores = 8 * a @ c.transpose(-2, -1) + (bias[head] if isinstance(bias, Tensor) else 0)
            outputs.append(scores.softmax(dim=-1) @ values)
        return F.linear(torch.cat(outputs, dim=-1), s[f"{at}1.to_out.weight"])

    def mlp(x: Tensor, at: str) -> Tensor:
        y = F.linear(F.layer_norm(x, (12,), s[f"{at}3.0.weight"], s[f"{at}3.0.bias"]), s[f"{at}3.1.weight"])
        value, gate = y.chunk(2, dim=-1)
        return F.linear(gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))) * value, s[f"{at}3.4.weight"])

    rows = tokens.reshape(b * d, h * w, 12)
    for n in range(2):
        at = f"enc_spatial_transformer.layers.{n}."
        rows = rows + position(rows.reshape(b, d, h, w, 12), at).reshape(rows.shape)
        rows = rows + attention(rows, at, bias)
        rows = rows + mlp(rows, at)
    rows = F.layer_norm(rows, (12,)) * s["enc_spatial_transformer.norm_out.gamma"]
    rows = rows.view(b, d, h, w, 12).permute(0, 2, 3, 1, 4).reshape(b * h * w, d, 12)
    for n in range(2):
        at = f"enc_temporal_transformer.layers.{n}."
        if scrambled:  # tokens in the order (B, H, W, D) read as (B, D, H, W): the code's `x.reshape(*shape, -1)`
            moved = position(rows.reshape(b, d, h, w, 12), at).reshape(rows.shape)
        else:
            grid = rows.view(b, h, w, d, 12).permute(0, 3, 1, 2, 4)
            moved = position(grid, at).permute(0, 2, 3, 1, 4).reshape(rows.shape)
        rows = rows + moved
        rows = rows + attention(rows, at, 0.0)
        rows = rows + mlp(rows, at)
    rows = F.layer_norm(rows, (12,)) * s["enc_temporal_transformer.norm_out.gamma"]
    return rows.view(b, h, w, d, 12).permute(0, 3, 1, 2, 4)


def save(state: dict[str, Tensor], path: Path, whole: bool = False) -> Path:
    if whole:
        others = {"temperature": torch.ones(()), "text_transformer.x": torch.ones(2), "to_visual_latent.weight": torch.ones(2)}
        state = {**{f"visual_transformer.{name}": tensor for name, tensor in state.items()}, **others}
    torch.save(state, path)
    return path


@pytest.mark.parametrize("whole", [True, False])
def test_ctvit__ct_clips_weights_give_ct_clips_tokens(whole: bool, tmp_path: Path) -> None:
    state = ctclip_state()
    model = CTViT(CTViTConfig(**TINY, peg="ctclip", weights=save(state, tmp_path / "ctclip.pt", whole))).double()
    x = torch.randn(2, 1, 12, 16, 24, dtype=torch.float64)
    output = model(x)
    assert output.grid_size == GRID
    torch.testing.assert_close(
        output.patch_tokens.view(2, *GRID, 12), reference(state, x, scrambled=True), rtol=1e-9, atol=1e-9
    )


def test_ctvit__on_the_grid_the_convolution_sees_neighbours(tmp_path: Path) -> None:
    state = ctclip_state()
    model = CTViT(CTViTConfig(**TINY, peg="ctclip", weights=save(state, tmp_path / "ctclip.pt"))).double()
    grid = CTViT(CTViTConfig(**TINY)).double()
    grid.load_state_dict(model.state_dict())
    x = torch.randn(1, 1, 12, 16, 24, dtype=torch.float64)
    expected = reference(state, x, scrambled=False)
    torch.testing.assert_close(grid(x).patch_tokens.view(1, *GRID, 12), expected, rtol=1e-9, atol=1e-9)
    assert (model(x).patch_tokens - grid(x).patch_tokens).abs().max() > 0.01


def test_ctvit__tokens_become_the_nearest_entries_and_gradients_pass(tmp_path: Path) -> None:
    state = ctclip_state(entries=7)
    path = save(state, tmp_path / "ctclip.pt")
    model = CTViT(CTViTConfig(**TINY, peg="ctclip", weights=path, codebook_size=7))
    x = torch.randn(2, 1, 12, 16, 24)
    book = state["vq._codebook.embed"][0]
    plain = reference(state, x.double(), scrambled=True).flatten(1, 3)
    nearest = F.normalize(plain, dim=-1) @ book.double().t()
    output = model(x)
    torch.testing.assert_close(output.patch_tokens.detach(), book[nearest.argmax(dim=-1)], rtol=1e-4, atol=1e-5)
    output.patch_tokens.sum().backward()
    assert model.patch_embed[1].weight.grad.abs().sum() > 0
    assert "codebook" not in dict(model.named_parameters())


def test_ctvit__files_that_would_mislead_are_refused(tmp_path: Path) -> None:
    path = save(ctclip_state(), tmp_path / "ctclip.pt")
    with pytest.raises(WeightsError, match=r"set encoder.peg=ctclip"):
        CTViT(CTViTConfig(**TINY, weights=path))
    with pytest.raises(WeightsError, match="codebook"):
        CTViT(CTViTConfig(**TINY, peg="ctclip", codebook_size=7, weights=path))
    state = ctclip_state()
    save({**state, "enc_spatial_transformer.layers.0.2.to_q.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"layers\.0\.2.to_q.weight"):
        CTViT(CTViTConfig(**TINY, peg="ctclip", weights=path))


def test_config__first_axis_is_depth() -> None:
    with pytest.raises(ValueError, match="first axis is depth"):
        CTViTConfig(axes="WHD")
    with pytest.raises(ValueError, match="not a multiple of the"):
        CTViTConfig(img_size=(241, 480, 480))
