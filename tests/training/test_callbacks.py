"""What happens beside the loop, each callback by itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from medfm.training.callbacks import Checkpoints, Weights
from medfm.training.checkpoint import checkpoint_name, checkpoints
from medfm.weights.load import read_card


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
    weights = Weights(tmp_path, lambda step, loss: saved.append(step), "best")
    weights.on_train_end(_trainer(9), None)  # type: ignore[arg-type]
    assert len(saved) == 1
    weights.on_validation_end(_trainer(9, callback_metrics={"val/loss": torch.tensor(0.5)}), None)  # type: ignore[arg-type]
    weights.on_train_end(_trainer(9), None)  # type: ignore[arg-type]
    assert saved == [9, 9]


def test_weights__without_a_validation_split_are_written_at_the_same_moments(tmp_path: Path) -> None:
    saved: list[int] = []
    weights = Weights(tmp_path, lambda step, loss: saved.append(step), "best")
    for step in (4, 8):
        weights.on_validation_end(_trainer(step, callback_metrics={}), None)  # type: ignore[arg-type]
    assert saved == [4, 8]


def test_weights__a_validation_after_the_checkpoint_is_remembered(tiny_run: Path, tmp_path: Path) -> None:
    """The checkpoint of a step is written before its validation: what that found stands in the weight file."""
    from safetensors.torch import load_file, save_file

    card = read_card(tiny_run)

    def save(step: int, loss: float | None) -> None:
        metadata = {"medfm": json.dumps({**card, "step": step, "val_loss": loss})}
        save_file(load_file(tiny_run / "model.safetensors"), tmp_path / "model.safetensors", metadata)
        saved.append(step)

    def validate(weights: Weights, step: int, loss: float) -> None:
        weights.on_validation_end(_trainer(step, callback_metrics={"val/loss": torch.tensor(loss)}), None)  # type: ignore[arg-type]

    saved: list[int] = []
    weights = Weights(tmp_path, save, "best")
    validate(weights, 2, 0.5)
    checkpoint = weights.state_dict()  # of step 4, before its validation
    validate(weights, 4, 0.3)
    resumed = Weights(tmp_path, save, "best")
    resumed.load_state_dict(checkpoint)
    resumed.on_train_start(_trainer(4), None)  # type: ignore[arg-type]
    validate(resumed, 6, 0.4)
    assert saved == [2, 4]
    # From an earlier step on the file is of a course that was left.
    earlier = Weights(tmp_path, save, "best")
    earlier.on_train_start(_trainer(2), None)  # type: ignore[arg-type]
    validate(earlier, 4, 0.45)
    assert saved == [2, 4, 4]
