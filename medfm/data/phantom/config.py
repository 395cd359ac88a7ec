"""Knobs of the phantom."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from medfm.registry import Config


class PhantomConfig(Config):
    """`medfm phantom`: generate studies of a made-up world, deterministic by seed."""

    kind: Literal["chest_xray", "chest_ct"] = "chest_xray"
    n: int = Field(default=2000, ge=1, description="studies")
    seed: int = Field(default=0, ge=0, description="study k of a seed is the same for every n and every number of workers")
    out: Path = Field(description="folder to write; complete studies found there are kept")
    size: int | None = Field(
        default=None, ge=64, le=1024, description="pixels or voxels a side; default: 256 for chest_xray, 96 for chest_ct"
    )
    workers: int = Field(default=2, ge=1, description="processes")
    masks: bool = Field(default=True, description="also write masks")
