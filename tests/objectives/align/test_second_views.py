from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from medfm.objectives.align.base import Encoded
from medfm.objectives.align.second_views import RowDraws, SecondViews
from medfm.transforms.config import AugmentConfig, PreprocessConfig, ViewsConfig
from medfm.transforms.draws import Draws
from medfm.transforms.preprocess import Preprocess

Make = Callable[..., Any]
CONTRACT = Preprocess(PreprocessConfig.model_validate({"size": [8, 8], "window": "none", "mean": [0.4], "std": [0.2]}))


def encoded_of(images: torch.Tensor, make_batch: Make, **knobs: Any) -> Encoded:
    batch = make_batch(max(len(images), 6))
    batch.images = images
    return Encoded(batch, None, images.new_zeros(len(images), 2), images.new_zeros(len(images), 2), **knobs)  # type: ignore[arg-type]


def test_views__of_the_whole_image_are_the_image(make_batch: Make) -> None:
    views = SecondViews(
        CONTRACT, AugmentConfig(), ViewsConfig(local_count=0, global_scale=(1, 1), ratio=(1, 1), blur_p=(0, 0, 0))
    )
    unit = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = CONTRACT.normalise(unit)
    before = images.clone()
    made = views(encoded_of(images, make_batch))
    torch.testing.assert_close(made, torch.cat([images, images]), rtol=0, atol=1e-5)
    assert torch.equal(images, before)


def test_views__are_crops_and_differ(make_batch: Make) -> None:
    views = SecondViews(CONTRACT, AugmentConfig(window_jitter=0.3), ViewsConfig(local_count=0, global_scale=(0.2, 0.5)))
    ramp = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8).expand(3, -1, -1, -1)
    made = views(encoded_of(CONTRACT.normalise(ramp), make_batch, draws=Draws(3)))
    assert made.shape == (6, 1, 8, 8)
    spans = (made.amax((1, 2, 3)) - made.amin((1, 2, 3))) * 0.2
    assert spans.max() < 0.95  # parts of the ramp
    assert (made[:3] - made[3:]).abs().amax((1, 2, 3)).min() > 0.1


def test_views__of_devices_with_other_rows_are_drawn_alike(make_batch: Make) -> None:
    """Rows 0, 2, 3 of four have text: their views are those that they would have in a batch with text in all rows."""
    config = AugmentConfig(noise=0.1, gamma=0.3)
    views = SecondViews(CONTRACT, config, ViewsConfig(local_count=0, global_count=1, jitter_p=(1, 1, 1)))
    images = CONTRACT.normalise(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    rows = torch.tensor([0, 2, 3])
    everyone = views(encoded_of(images, make_batch, draws=Draws(5)))
    some = views(encoded_of(images[rows], make_batch, draws=Draws(5), size=4, rows=rows))
    torch.testing.assert_close(some, everyone[rows], rtol=0, atol=1e-6)
    assert views(encoded_of(images[:0], make_batch)).shape == (0, 1, 8, 8)


def test_row_draws__keep_rows() -> None:
    rows = torch.tensor([0, 2])
    kept = RowDraws(Draws(1), 3, rows)
    whole = Draws(1)
    assert torch.equal(kept.rand(2, 4), whole.rand(3, 4)[rows])
    assert torch.equal(kept.randint(100, 2), whole.randint(100, 3)[rows])
    assert torch.equal(kept.noise(2, 2), whole.noise(3, 2)[rows])
