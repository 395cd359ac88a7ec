from __future__ import annotations

import pytest
import torch
from torch import nn

from medfm.encoders.linear import Linear, takes_onednn


@pytest.mark.parametrize("bias", [True, False])
def test_linear__equals_torchs_in_value_and_gradients(bias: bool) -> None:
    torch.manual_seed(0)
    mine, theirs = Linear(256, 192, bias=bias), nn.Linear(256, 192, bias=bias)
    theirs.load_state_dict(mine.state_dict())
    x, y = (torch.randn(4, 40, 256, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    assert takes_onednn(x, mine.weight)
    weight = torch.randn(4, 40, 192)
    (mine(x) * weight).sum().backward()
    (theirs(y) * weight).sum().backward()
    torch.testing.assert_close(mine(x), theirs(y), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-4)


def test_linear__gradients_of_gradients() -> None:
    torch.manual_seed(0)
    layer, x = Linear(256, 192), torch.randn(128, 256, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    first.square().sum().backward()
    exact = layer.weight.detach().double()
    inner = x.detach().double() @ exact.T + layer.bias.detach().double()
    expected = 8 * (inner @ exact) @ exact.T @ exact  # d |2 y W|^2 / dx, y = x W^T + b
    torch.testing.assert_close(x.grad, expected.float(), rtol=1e-3, atol=1e-3)


def test_takes_onednn__where_it_must_not() -> None:
    weight = nn.Parameter(torch.randn(192, 256))
    x = torch.randn(200, 256)
    assert takes_onednn(x, weight)
    assert not takes_onednn(x[:4], weight)  # small
    assert not takes_onednn(x.double(), weight)
    assert not takes_onednn(x.to("meta"), weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not takes_onednn(x, weight)
        assert Linear(256, 192)(x).dtype == torch.bfloat16
