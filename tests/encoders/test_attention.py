"""Attention gives the same numbers whichever way it is computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medfm.encoders.attention import PLAIN_BELOW_BACKWARD, PLAIN_BELOW_FORWARD, attend, plain_attention, prefers_plain

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def qkv(length: int = 13, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, length, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3))


def masks() -> dict[str, torch.Tensor | None]:
    keys = torch.ones(2, 1, 1, 13, dtype=torch.bool)
    keys[1, ..., 9:] = False
    return {"none": None, "boolean": keys, "float": torch.randn(13, 13, generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("kind", ["none", "boolean", "float"])
def test_plain_attention__equals_sdpa_with_gradients(kind: str) -> None:
    mask = masks()[kind]
    inputs = qkv()
    plain = plain_attention(*inputs, mask=mask)
    fused = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    torch.testing.assert_close(plain, fused, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(plain)
    for mine, theirs in zip(
        torch.autograd.grad((plain * weight).sum(), inputs), torch.autograd.grad((fused * weight).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_plain_attention__causal_sees_no_later_token() -> None:
    q, k, v = (t.detach() for t in qkv())
    full = plain_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(full, F.scaled_dot_product_attention(q, k, v, is_causal=True), rtol=1e-5, atol=1e-6)
    v[:, :, 5:] += 1.0
    torch.testing.assert_close(plain_attention(q, k, v, is_causal=True)[:, :, :5], full[:, :, :5])


@pytest.mark.parametrize("is_causal", [False, True])
def test_attend__bfloat16_on_cpu_stays_near_float32(is_causal: bool) -> None:
    # bfloat16 inputs take the plain path; the reference is float32 on the same rounded inputs.
    inputs = tuple(t.detach() for t in qkv(dtype=torch.bfloat16))
    assert prefers_plain(CPU, torch.bfloat16, 13, backward=False)
    reference = F.scaled_dot_product_attention(*(t.float() for t in inputs), is_causal=is_causal)
    torch.testing.assert_close(attend(*inputs, is_causal=is_causal).float(), reference, rtol=0.02, atol=0.02)


def test_attend__autocast_keeps_bfloat16() -> None:
    inputs = tuple(t.detach() for t in qkv(dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = attend(*inputs)
    assert inside.dtype == torch.bfloat16
    torch.testing.assert_close(inside, attend(*inputs))


def test_attend__rule_by_device_dtype_length_and_direction() -> None:
    assert not prefers_plain(CPU, torch.float32, 50, backward=True)
    assert not prefers_plain(CUDA, torch.bfloat16, 50, backward=True)
    assert prefers_plain(CPU, torch.bfloat16, PLAIN_BELOW_BACKWARD - 1, backward=True)
    assert not prefers_plain(CPU, torch.bfloat16, PLAIN_BELOW_BACKWARD, backward=True)
    assert not prefers_plain(CPU, torch.bfloat16, PLAIN_BELOW_FORWARD, backward=False)
    assert not prefers_plain(CPU, torch.bfloat16, PLAIN_BELOW_FORWARD, backward=True, is_causal=True)


def test_plain_attention__dropout_keeps_the_mean() -> None:
    q, k, _ = (t.detach() for t in qkv(length=64))
    torch.manual_seed(0)
    dropped = torch.stack([plain_attention(q, k, torch.ones_like(q), dropout=0.5) for _ in range(50)])
    assert dropped.std() > 0.05
    torch.testing.assert_close(dropped.mean(), torch.tensor(1.0), rtol=0, atol=0.02)


@pytest.mark.parametrize("queries", [20, 7])
def test_attend__recomputed_weights_give_the_same_gradients(queries: int) -> None:
    torch.manual_seed(0)
    made = []
    parts = [torch.randn(2, 3, n, 8) for n in (queries, 20, 20)]
    weight = torch.randn(2, 3, queries, 8)
    for recompute in (False, True):
        leaves = [part.bfloat16().requires_grad_() for part in parts]
        out = attend(*leaves, recompute=recompute)
        assert ("Recomputed" in str(out.grad_fn)) == recompute
        (out * weight.bfloat16()).sum().backward()
        made.append([out, *(leaf.grad for leaf in leaves)])
    exact = [part.double().requires_grad_() for part in parts]
    out = attend(*exact)
    (out * weight.bfloat16()).sum().backward()
    for plain, again, truth in zip(*made, [out, *(leaf.grad for leaf in exact)], strict=True):
        torch.testing.assert_close(again.double(), truth, rtol=0.05, atol=0.05)
        torch.testing.assert_close(again, plain, rtol=0.02, atol=0.02)
