"""Knobs of work that is spread over processes or machines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medfm.registry import Config


class EngineConfig(Config):
    """Where items of work run. The verbs that walk many files inherit it."""

    engine: Literal["local", "dask"] = Field(default="local", description="processes of this machine, or a Dask cluster")
    workers: int | None = Field(
        default=None, ge=0, description="local processes; default: one a core; 0 works in this process, without protection"
    )
    scheduler: str = Field(default="", description="address of the Dask scheduler, tcp://host:8786, for engine=dask")

    @model_validator(mode="after")
    def _addressed(self) -> EngineConfig:
        if (self.engine == "dask") != bool(self.scheduler):
            raise ValueError("engine=dask and scheduler=tcp://host:port go together")
        if self.engine == "dask" and self.workers is not None:
            raise ValueError("workers is for engine=local; a Dask cluster has its own")
        return self
