"""Knobs of the data module."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from medfm.registry import Config, InputPath
from medfm.text.config import ReportConfig


class DataConfig(Config):
    """Where studies come from and how they are batched."""

    manifest: InputPath = Field(description="parquet or CSV table made by `medfm index`")
    root: Path | None = Field(
        default=None, description="folder that relative image paths start from; default: the manifest says"
    )
    report: ReportConfig = ReportConfig()
    views: tuple[str, ...] = Field(default=(), description="keep these views only, e.g. [PA, AP]; empty keeps all")
    batch_size: int = Field(default=64, ge=1, description="pairs a step, over all devices")
    eval_batch_size: int = Field(default=64, ge=1)
    workers: int = Field(default=2, ge=0, description="loader processes a device")
    cache: str = Field(
        default="none",
        description="none; memory keeps preprocessed images in shared memory; or the folder that `medfm cache` made",
    )
    shuffle: Literal["global", "shard"] = Field(
        default="global",
        description="order of training: all images mixed; or, for a cache on spinning disks, a few shards of it at a time",
    )
    cache_gb: float = Field(default=4.0, gt=0, description="largest size of the memory cache")
    on_error: Literal["fail", "skip"] = Field(
        default="fail", description="what bad rows do: stop before training, or be left out"
    )
    check_files: Literal["headers", "decode", "none"] = Field(
        default="headers", description="before training: files exist and headers parse; every image decodes; or no check"
    )

    @field_validator("cache", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value
