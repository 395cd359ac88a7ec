"""Knobs of `medfm cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medfm.data.engine_config import EngineConfig
from medfm.registry import InputPath


class CacheConfig(EngineConfig):
    """A manifest's images, decoded and preprocessed by a recipe's contract -> a store that `data.cache=DIR` reads."""

    manifest: InputPath = Field(description="parquet or CSV table made by `medfm index`")
    root: Path | None = Field(
        default=None, description="folder that relative image paths start from; default: the manifest says"
    )
    recipe: str = Field(description="recipe of `medfm pretrain` whose `preprocess` section is the contract")
    preprocess: dict[str, Any] = Field(
        default={}, description="changes of that section, as they will be given to pretrain, e.g. preprocess.dtype=int16"
    )
    out: Path = Field(description="folder of the store; one store holds any number of manifests and contracts")
    views: tuple[str, ...] = Field(default=(), description="these views only, e.g. [PA, AP]; empty takes all")
    on_error: Literal["skip", "fail"] = Field(
        default="fail",
        description="unusable images: all are listed in any case; then end with an error, or with what could be cached",
    )
    verify: bool = Field(default=False, description="first read everything stored and make damaged images anew")
    shard_gb: float = Field(default=2.0, gt=0, le=64, description="largest size of one file of the store, 10^9 bytes")
