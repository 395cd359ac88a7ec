"""What happens beside the loop, each callback by itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from medfm.training.callbacks import Checkpoints, Weights
from medfm.training.checkpoint import checkpoint_name, checkpoints


def _trainer(step: int, **more: Any) -> Any:
    strategy = SimpleNamespace(broadcast=lambda value: value)
    return SimpleNamespace(
        global_step=step,
        is_global_zero=True,
        sanity_checking=False,
        strategy=strategy,
        save_checkpoint=lambda path, weights_only: path.touch(),
        **more,
    )


def test_checkpoints__later_ones_go_when_a_run_goes_on_from_an_earlier_one(tmp_path: Path) -> None:
    for step in (10, 90, 100):
        (tmp_path / checkpoint_name(step)).touch()
    keeper = Checkpoints(tmp_path, every=10, keep=2)
    keeper.save(_trainer(20))
    assert [step for step, _ in checkpoints(tmp_path)] == [10, 20]
    keeper.save(_trainer(30))
    assert [step for step, _ in checkpoints(tmp_path)] == [20, 30]


def test_weights__best_without_a_validation_is_the_last_whatever_was_there(tmp_path: Path) -> None:
    saved: list[int] = []
    (tmp_path / "model.safetensors").touch()  # of the first part of an interrupted run
    weights = Weights(tmp_path, saved.append, "best")
    weights.on_train_end(_trainer(9), None)  # type: ignore[arg-type]
    assert len(saved) == 1
    weights.on_validation_end(_trainer(9, callback_metrics={"val/loss": torch.tensor(0.5)}), None)  # type: ignore[arg-type]
    weights.on_train_end(_trainer(9), None)  # type: ignore[arg-type]
    assert saved == [9, 9]


def test_weights__without_a_validation_split_are_written_at_the_same_moments(tmp_path: Path) -> None:
    saved: list[int] = []
    weights = Weights(tmp_path, saved.append, "best")
    for step in (4, 8):
        weights.on_validation_end(_trainer(step, callback_metrics={}), None)  # type: ignore[arg-type]
    assert saved == [4, 8]
