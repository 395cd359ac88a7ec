from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfm.objectives.contrastive import ContrastiveObjective
from medfm.objectives.gather import SingleDevice
from medfm.objectives.grad_cache import encode_in_chunks
from medfm.transforms.draws import Draws
from medfm.types import Batch

Make = Callable[..., Any]


def step(objective: ContrastiveObjective, batch: Batch, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    loss = objective(batch, Draws(seed)).loss
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("chunk", [1, 3, 4, 9, 50])
@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_gradients__equal_the_one_batch_gradients(
    make_objective: Make, make_batch: Make, gradients: Make, chunk: int, loss: str
) -> None:
    plain, cached = (
        make_objective(loss=loss, patch_dropout=0.5),
        make_objective(loss=loss, patch_dropout=0.5, cache_chunk=chunk),
    )
    torch.testing.assert_close(step(cached, make_batch()), step(plain, make_batch()), rtol=1e-12, atol=0)
    expected = gradients(plain)
    assert expected["dual.image_encoder.blocks.0.attn.qkv.weight"].abs().max() > 0
    for name, gradient in gradients(cached).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def test_dropout__second_run_repeats_the_first(make_objective: Make, make_batch: Make, gradients: Make) -> None:
    """The gradient is that of what was computed: a small step along it lowers the same-seed loss by its squared norm."""
    objective = make_objective(dropout=0.3, cache_chunk=3)
    before = step(objective, make_batch())
    found = gradients(objective)
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            parameter -= 1e-8 * found[name]
        torch.manual_seed(3)
        after = objective(make_batch(), Draws(3)).loss
    squared = sum((g**2).sum() for g in found.values())
    torch.testing.assert_close((before - after) / 1e-8, squared, rtol=1e-3, atol=0)


def test_generator__draws_inside_a_chunk_are_repeated(make_objective: Make, make_batch: Make, gradients: Make) -> None:
    """`to_float` may draw from the generator it shares with the objective: a chunk sees the same noise in both runs."""
    draws = Draws(0)
    generator = draws.generator
    seen: list[Tensor] = []

    def noisy(images: Tensor) -> Tensor:
        seen.append(torch.randn(images.shape[0], generator=generator))
        return images

    objective = make_objective(to_float=noisy, cache_chunk=5)
    generator.manual_seed(0)
    objective(replace(make_batch(), text_group=torch.arange(10)), draws).loss.backward()
    first, last, again = seen
    assert torch.equal(first, again)
    assert not torch.equal(first, last)
    # Nor does the second run move the generator: what is drawn next is what would have been drawn.
    after = torch.randn(1, generator=generator)
    generator.manual_seed(0)
    torch.randn(5, generator=generator), torch.randn(5, generator=generator)
    assert torch.equal(after, torch.randn(1, generator=generator))


def test_last_chunk__runs_once(make_objective: Make, make_batch: Make) -> None:
    runs = 0

    def count(images: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        return images

    batch = replace(make_batch(), text_group=torch.arange(10))
    step(make_objective(to_float=count, cache_chunk=4), batch)
    assert runs == 3 + 2


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm__averages_move_once_a_chunk(momentum: float | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 3, dtype=torch.float64)
    one, two = nn.BatchNorm1d(3, momentum=momentum).double(), nn.BatchNorm1d(3, momentum=momentum).double()
    for start in range(0, 12, 4):
        one(x[start : start + 4]).square().sum().backward()
    (features,) = encode_in_chunks(lambda part: (two(part),), [x], 4, modules=[two])
    features.square().sum().backward()
    for mine, expected in zip(two.buffers(), one.buffers(), strict=True):
        torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(two.weight.grad, one.weight.grad)
    assert two.momentum == momentum


def test_memory__one_chunk_of_activations_at_a_time() -> None:
    """Counted, not timed: tensors that the encoder saves and that are still alive."""
    alive = most = 0
    layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())

    class Hold(torch.autograd.Function):
        """Identity that keeps a marked tensor for the backward, as an activation."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            nonlocal alive, most
            mark = torch.zeros(len(x))
            alive, most = alive + len(x), max(most, alive + len(x))

            def gone(rows: int = len(x)) -> None:
                nonlocal alive
                alive -= rows

            weakref.finalize(mark, gone)
            ctx.save_for_backward(mark)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (_,) = ctx.saved_tensors
            return grad

    for rows in (16, 64):
        alive = most = 0
        (features,) = encode_in_chunks(lambda part: (Hold.apply(layers(part)),), [torch.randn(rows, 8)], 4)
        features.sum().backward()
        del features
        assert most == 4
        assert alive == 0


def test_devices__run_equally_often() -> None:
    """Sharded weights are gathered in every run: a device with fewer rows runs on, and what it adds has no gradient."""
    sizes: list[int] = []
    layer = torch.nn.Linear(2, 2).double()

    def encode(part: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(part))
        return (layer(part),)

    class Others(SingleDevice):
        world_size = 2

        def max(self, x: Tensor) -> Tensor:
            return x.clamp(min=4)

    x = torch.randn(5, 2, dtype=torch.float64)
    (features,) = encode_in_chunks(encode, [x], 3, gather=Others())
    assert sizes == [3, 2, 1, 1]
    torch.testing.assert_close(features, layer(x))
    mine, alone = (torch.autograd.grad((y**2).sum(), layer.weight)[0] for y in (features, layer(x)))
    torch.testing.assert_close(mine, alone)
    sizes.clear()
    encode_in_chunks(encode, [x], 0, gather=Others())
    assert sizes == [5]


def test_no_grad__chunks_too() -> None:
    sizes: list[int] = []

    def encode(part: Tensor, nothing: None) -> tuple[Tensor, ...]:
        sizes.append(len(part))
        return part * 2, part * 3

    x = torch.arange(5.0)
    with torch.no_grad():
        double, triple = encode_in_chunks(encode, [x, None], 2)
    assert sizes == [2, 2, 1]
    assert torch.equal(double, 2 * x)
    assert torch.equal(triple, 3 * x)
