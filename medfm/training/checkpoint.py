"""Checkpoints that are whole or absent, and the search for one to go on from."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from medfm.errors import WeightsError
from medfm.io.files import atomic_write

log = logging.getLogger(__name__)

_NAME = re.compile(r"step=(\d+)\.ckpt$")


@dataclass(frozen=True)
class Checkpoint:
    """A training checkpoint that has been read.

    Attributes:
        path: the file.
        state: what it holds: `state_dict`, `optimizer_states`, `global_step`, ...
    """

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.state["global_step"])

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Raises WeightsError where the file is not a whole checkpoint of a run."""
        state = read_checkpoint(path)
        if not isinstance(state, dict) or not {"state_dict", "optimizer_states", "global_step"} <= state.keys():
            raise WeightsError(
                f"'{path}' is no checkpoint of a medfm run: give a file of its checkpoints/, or use init= for weights"
            )
        return cls(path, state)

    def check_fits(self, tensors: Mapping[str, Tensor], groups: Sequence[Mapping[str, Any]]) -> None:
        """Whether a run can go on from here.

        Args:
            tensors: of the run's module, by name.
            groups: the parameter groups of its optimiser.

        Raises:
            WeightsError: names the first tensors that differ, or that the optimiser divides its parameters otherwise.
        """
        theirs: dict[str, Tensor] = self.state["state_dict"]
        differing = [
            f"{name.removeprefix('objective.')} ({_size(theirs.get(name))} there, {_size(tensors.get(name))} in this recipe)"
            for name in dict.fromkeys([*tensors, *theirs])
            if _size(theirs.get(name)) != _size(tensors.get(name))
        ]
        if differing:
            first = "; ".join(differing[:3]) + (f"; and {len(differing) - 3} more" if len(differing) > 3 else "")
            raise WeightsError(f"checkpoint '{self.path}' is of another model: {first}. {_REMEDY}")
        lengths = [[len(group["params"]) for group in made["param_groups"]] for made in self.state["optimizer_states"]]
        if lengths != [[len(group["params"]) for group in groups]]:
            raise WeightsError(
                f"checkpoint '{self.path}' is of another optimiser: its groups of parameters are not those that optimizer.* of "
                f"this recipe makes. {_REMEDY}"
            )


_REMEDY = "Go on with the recipe that it was made by, or start anew in another out= (init= takes weights that fit)"


def _size(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else "x".join(map(str, tensor.shape)) or "one number"


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target, then renames: a full disk or a kill leaves the old file whole. Reads plain data only.

    Args:
        at_hand: a checkpoint that need not be read again; it is let go when it has been asked for.
    """

    def __init__(self, at_hand: Checkpoint | None = None) -> None:
        self._at_hand = at_hand

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        at_hand, self._at_hand = self._at_hand, None
        if at_hand is not None and at_hand.path == Path(path):
            return at_hand.state
        # weights_only whatever is asked: an unpickled checkpoint runs what it holds.
        return read_checkpoint(Path(path), map_location)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path, map_location: Any | None = "cpu") -> dict[str, Any]:
    """A training checkpoint. Raises WeightsError where it is not a whole file of plain data."""
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"checkpoint '{path}' does not exist") from None
    except Exception as error:
        raise WeightsError(
            f"checkpoint '{path}' cannot be read ({type(error).__name__}); it is damaged or not medfm's"
        ) from None


def checkpoint_name(step: int) -> str:
    return f"step={step:08d}.ckpt"


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, file), oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("*.ckpt") if (match := _NAME.search(path.name))]
    return sorted(found)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read; damaged ones are named in a warning and passed over."""
    for _, path in reversed(checkpoints(folder)):
        try:
            return Checkpoint.read(path)
        except WeightsError as error:
            log.warning("%s; going on from an older one", error)
    return None
