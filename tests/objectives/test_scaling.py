"""Momentum and prototypes that follow batch and data."""

from __future__ import annotations

import pytest

from medfm.objectives.scaling import auto_momentum, auto_out_dim


def test_auto_momentum__is_the_scaling_rule() -> None:
    assert auto_momentum(0.996, 1024, 1024) == 0.996
    assert auto_momentum(0.996, 1024, 256) == pytest.approx(0.9989985, abs=1e-7)
    # Two small steps forget as much as one of twice the batch.
    assert auto_momentum(0.996, 1024, 512) ** 2 == pytest.approx(0.996)
    assert auto_momentum(0.99, 4096, 8192) == pytest.approx(0.99**2)


def test_auto_momentum__stays_within_reason() -> None:
    assert auto_momentum(0.996, 1024, 1) == 0.99999
    assert auto_momentum(0.9, 256, 65536) == 0.9


def test_auto_momentum__forgets_the_start_within_a_short_run() -> None:
    short = auto_momentum(0.996, 1024, 32, total_steps=4000)
    assert short == pytest.approx(0.995)
    assert short**4000 < 1e-8
    assert auto_momentum(0.996, 1024, 1024, total_steps=100_000) == 0.996
    assert auto_momentum(0.996, 1024, 32, total_steps=1) == 0.99
    assert auto_momentum(0.9, 1024, 1024, total_steps=1) == 0.9


@pytest.mark.parametrize("values", [(1.0, 256, 256), (-0.1, 256, 256), (0.9, 0, 256), (0.9, 256, 0)])
def test_auto_momentum__refuses_nonsense(values: tuple[float, int, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        auto_momentum(*values)


@pytest.mark.parametrize(
    ("batch", "images", "expected"),
    [
        (1024, 1_281_167, 65_536),  # DINO
        (3072, 142_000_000, 131_072),  # DINOv2
        (256, 377_000, 16_384),
        (1024, 40_000, 2048),  # the data are what is scarce
        (16, 1_281_167, 1024),  # the batch is
        (256, 5_000, 256),
        (1, 1, 256),
    ],
)
def test_auto_out_dim__keeps_the_papers_densities(batch: int, images: int, expected: int) -> None:
    assert auto_out_dim(batch, images) == expected


def test_auto_out_dim__refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        auto_out_dim(64, 0)
