"""Knobs of `medfm plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from medfm.registry import Config


class PlanConfig(Config):
    """What a pre-training recipe needs of a GPU. Every key of `medfm pretrain` can be given as well, and changes the recipe."""

    recipe: str = Field(description="recipe of `medfm pretrain`")
    gpu: str = Field(
        default="",
        description="a card (h100, a100_80gb, rtx_4090, l4, ...) or its memory (24GB, 10^9 bytes); default: the one at hand",
    )
    devices: int = Field(default=1, ge=1, description="GPUs that share a batch")
    images: int | None = Field(
        default=None, ge=1, description="training images, for the hours; default: the manifest's where it is there"
    )
    mfu: float = Field(
        default=0.35, gt=0, le=1, description="share of the card's matrix rate that training is assumed to reach"
    )
    proposals: int = Field(default=4, ge=1, le=20, description="ways shown at most, the fastest first")
    measure: bool = Field(default=False, description="run real steps on the device at hand and show them beside the estimate")
    measure_batch: int | None = Field(
        default=None, ge=1, description="images of the measured steps; default: the first proposal's, 2 on a CPU"
    )
    out: Path | None = Field(default=None, description="JSON file for the plan")
    changes: dict[str, Any] = Field(
        default={}, description="changes of the recipe; encoder.depth=24 on the command line arrives here"
    )
