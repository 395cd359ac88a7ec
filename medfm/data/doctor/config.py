"""Knobs of `medfm doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from medfm.data.engine_config import EngineConfig
from medfm.registry import ImagePath, InputPath


class DoctorConfig(EngineConfig):
    """A folder or a manifest -> a verdict on every series: accepted, repaired or rejected, and why."""

    path: ImagePath = Field(
        description="folder, searched to the bottom, manifest (.parquet, .csv), or one image as a manifest names it"
    )
    out: Path = Field(default=Path("doctor"), description="folder for doctor.html, doctor.json and what a later run reuses")
    root: InputPath | None = Field(
        default=None, description="folder that a manifest's paths start from; default: what the manifest says"
    )
    decode: bool = Field(
        default=True, description="decode every image: thumbnails and checks of values; false reads headers only"
    )
    tilt: Literal["refuse", "resample"] = Field(
        default="refuse", description="gantry tilt: reject the series, or call it repaired, as load_image(tilt='resample') does"
    )
    thumbnails: int = Field(default=2000, ge=0, description="pictures on the page at most; the worst series come first")
    limit_s: float = Field(default=300.0, gt=0, description="seconds that one series may take, on local processes")
    strict: bool = Field(default=False, description="end with an error (exit code 2) when a series is rejected")
