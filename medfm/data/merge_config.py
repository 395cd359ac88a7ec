"""Knobs of `medfm merge`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from medfm.registry import Config, InputPath


class MergeConfig(Config):
    """Manifests of several data sets -> one, to train on all of them."""

    manifests: tuple[InputPath, ...] = Field(min_length=2, description="tables made by `medfm index`")
    names: tuple[str, ...] = Field(
        default=(), description="put before patient and study ids, one a manifest; default: the cards', else the files' names"
    )
    same_patients: bool = Field(
        default=False,
        description="ids mean the same people in all manifests (one hospital): kept as they are, and checked for leaks",
    )
    out: Path = Field(default=Path("merged.parquet"), description="manifest to write, .parquet or .csv")

    @model_validator(mode="after")
    def _consistent(self) -> MergeConfig:
        if self.names and len(self.names) != len(self.manifests):
            raise ValueError(f"{len(self.names)} names for {len(self.manifests)} manifests")
        if len(set(self.names)) < len(self.names) or "" in self.names:
            raise ValueError(f"names must differ, or patients of two data sets become one: {list(self.names)}")
        if self.out.suffix not in (".parquet", ".csv"):
            raise ValueError(f"out must end in .parquet or .csv, got '{self.out.name}'")
        return self
