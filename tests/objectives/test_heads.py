from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medfm.objectives.heads import DinoHead, WeightNormLinear


def reference(layer: WeightNormLinear) -> nn.Module:
    """torch's weight normalisation with the same numbers."""
    out, in_features = layer.weight_v.shape
    theirs = nn.utils.weight_norm(nn.Linear(in_features, out, bias=False)).to(layer.weight_v.dtype)
    theirs.load_state_dict(layer.state_dict())
    return theirs


def moved(learn_norm: bool = True) -> WeightNormLinear:
    torch.manual_seed(0)
    layer = WeightNormLinear(6, 9, learn_norm).double()
    with torch.no_grad():
        layer.weight_g.copy_(torch.rand(9, 1) + 0.5)
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_linear__equals_torch_forward_and_backward() -> None:
    ours = moved()
    theirs = reference(ours)
    x = torch.randn(4, 6, dtype=torch.float64)
    upstream = torch.randn(4, 9, dtype=torch.float64)
    gradients = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(upstream)
        gradients.append([y.detach(), leaf.grad, layer.weight_v.grad, layer.weight_g.grad])
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-14)


def test_weight_norm_linear__gradcheck() -> None:
    layer = moved()

    def call(x: Tensor, v: Tensor, g: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight_v": v, "weight_g": g}, (x,))

    leaves = [torch.randn(3, 6, dtype=torch.float64), layer.weight_v.detach(), layer.weight_g.detach()]
    assert torch.autograd.gradcheck(call, [leaf.clone().requires_grad_() for leaf in leaves])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_linear__autocast_is_as_near_as_torch() -> None:
    """bfloat16 products, float32 gradients; the error against float64 is not above that of torch's."""
    torch.manual_seed(0)
    layer = WeightNormLinear(64, 200, learn_norm=True)
    x = torch.randn(16, 64)
    upstream = torch.randn(16, 200)
    exact_layer, exact_x = reference(layer).double(), x.double().requires_grad_()
    exact = exact_layer(exact_x)
    exact.backward(upstream.double())
    errors = []
    for candidate in (layer, reference(layer)):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = candidate(leaf)
        y.backward(upstream.bfloat16())
        assert y.dtype == torch.bfloat16
        assert candidate.weight_v.grad.dtype == torch.float32
        pairs = [(y, exact), (leaf.grad, exact_x.grad), (candidate.weight_v.grad, exact_layer.weight_v.grad)]
        errors.append([((a.double() - b).norm() / b.norm()).item() for a, b in pairs])
    for mine, theirs in zip(*errors, strict=True):
        assert mine < max(1.5 * theirs, 1e-7)


def test_dino_head__has_the_names_of_dinos_own() -> None:
    head = DinoHead(5, 11, hidden_dim=7, bottleneck_dim=3)
    mlp = [f"mlp.{place}.{kind}" for place in (0, 2, 4) for kind in ("weight", "bias")]
    assert list(head.state_dict()) == [*mlp, "last_layer.weight_g", "last_layer.weight_v"]
    assert head.state_dict()["last_layer.weight_v"].shape == (11, 3)
    assert set(DinoHead(5, 11, bottleneck_dim=3, layers=1).mlp.state_dict()) == {"weight", "bias"}
    assert head.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.5)


def test_dino_head__is_the_papers_arithmetic() -> None:
    torch.manual_seed(0)
    head = DinoHead(5, 11, hidden_dim=7, bottleneck_dim=3, layers=2).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    state = head.state_dict()
    hidden = torch.nn.functional.gelu(x @ state["mlp.0.weight"].T + state["mlp.0.bias"])
    hidden = hidden @ state["mlp.2.weight"].T + state["mlp.2.bias"]
    unit = hidden / hidden.norm(dim=1, keepdim=True)
    v = state["last_layer.weight_v"]
    torch.testing.assert_close(head(x), unit @ (v / v.norm(dim=1, keepdim=True)).T, rtol=1e-12, atol=1e-14)
    assert head(x).abs().max() <= 1  # cosines


def test_dino_head__prototypes_keep_norm_one_unless_learned() -> None:
    kept, learned = DinoHead(5, 11), DinoHead(5, 11, norm_last_layer=False)
    assert not kept.last_layer.weight_g.requires_grad
    assert learned.last_layer.weight_g.requires_grad
    for head in (kept, learned):
        head(torch.randn(2, 5)).square().sum().backward()
        assert (head.last_layer.weight_g.grad is None) == (head is kept)
        assert head.last_layer.weight_v.grad is not None
