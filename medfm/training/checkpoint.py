"""Checkpoints that are whole or absent, and the search for one to go on from."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from medfm.errors import WeightsError
from medfm.io.files import atomic_write

log = logging.getLogger(__name__)

_NAME = re.compile(r"step=(\d+)\.ckpt$")


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target, then renames: a full disk or a kill leaves the old file whole. Reads plain data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
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


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read; damaged ones are named in a warning and passed over."""
    for _, path in reversed(checkpoints(folder)):
        try:
            read_checkpoint(path)
        except WeightsError as error:
            log.warning("%s; going on from an older one", error)
            continue
        return path
    return None
