"""Training steps keep the device fed: nothing in a forward pass waits for it, but for what its sizes follow from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medfm.encoders.config import VitConfig
from medfm.encoders.vit import VisionTransformer
from medfm.objectives.config import MaeConfig
from medfm.objectives.mae import MaeObjective
from medfm.transforms.draws import Draws
from medfm.types import Batch

_WAITS = {
    "aten.lift_fresh": "a tensor made of Python numbers",  # which lie in memory that a GPU copies from while all wait
    "aten._local_scalar_dense": "a number read back",
    "aten.nonzero": "places of a mask",
    "aten.masked_select": "places of a mask",
}


class Waits(TorchDispatchMode):
    """Counts operations for which a host waits, or whose operand it has to bring, where tensors live on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        if name in _WAITS:
            self.found[_WAITS[name]] += 1
        if name in ("aten.index", "aten.index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.found["places of a mask"] += 1
        return func(*args, **(kwargs or {}))


def _waits(objective: Any, batch: Batch) -> dict[str, int]:
    objective.before_step(0, 10)
    with Waits() as waits:
        objective(batch, Draws(0)).loss.backward()
        objective.after_backward(0, 10)
        objective.after_optimizer_step(1, 10)
    return dict(waits.found)


def test_waits__are_seen() -> None:
    x = torch.arange(3.0)
    with Waits() as waits:
        x.new_tensor(2.0)
        _ = x[x > 1]
        float(x.sum())
    assert dict(waits.found) == dict.fromkeys(_WAITS.values(), 1)


@pytest.mark.parametrize("name", ["simclr", "moco", "byol", "barlow"])
def test_two_views__wait_for_nothing(name: str, make_two_views: Callable[..., Any], make_batch: Callable[..., Batch]) -> None:
    assert _waits(make_two_views(name), make_batch(8)) == {}


def test_mae__waits_for_nothing() -> None:
    vit = VitConfig(img_size=(8, 8), patch_size=(2, 2), embed_dim=12, depth=1, num_heads=2, pos_embed="sincos")
    objective = MaeObjective(MaeConfig(decoder_dim=12, decoder_depth=1, decoder_heads=2), VisionTransformer(vit))
    rows = torch.arange(4)
    assert _waits(objective, Batch(torch.randn(4, 1, 8, 8), None, None, rows, rows, torch.zeros(4, 0), rows)) == {}


def test_dino__waits_once_for_the_masks(make_dino: Callable[..., Any], make_batch: Callable[..., Batch]) -> None:
    assert _waits(make_dino(koleo_weight=0.1), make_batch(8)) == {}
    knobs = {"ibot_weight": 1.0, "centring": "sinkhorn"}
    assert _waits(make_dino(**knobs), make_batch(8)) == {"places of a mask": 1}


def test_m3ae__waits_once_for_the_words(make_m3ae: Callable[..., Any], make_batch: Callable[..., Batch]) -> None:
    assert _waits(make_m3ae(), make_batch(8)) == {"places of a mask": 1}
