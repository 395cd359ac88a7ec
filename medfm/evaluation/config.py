"""Knobs of evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from medfm.registry import Config, InputPath
from medfm.text.config import ReportConfig


class EvaluateDataConfig(Config):
    """Which studies are scored. Pixel values are decided by the contract inside the weight file, not here."""

    manifest: InputPath = Field(description="parquet or CSV table made by `medfm index`")
    root: Path | None = None
    split: str = Field(default="test", description="scored split")
    val_split: str = Field(default="val", description="split that thresholds are chosen on")
    views: tuple[str, ...] = Field(default=(), description="score these views only, e.g. [PA, AP]; empty scores all")
    batch_size: int = Field(default=64, ge=1)
    workers: int = Field(default=2, ge=0)
    on_error: Literal["fail", "skip"] = "fail"


class ZeroShotConfig(Config):
    """`medfm evaluate zero_shot`."""

    model: InputPath = Field(description="run folder or model.safetensors")
    data: EvaluateDataConfig
    prompts: str = Field(default="chexpert", description="name of a shipped prompt set, or a YAML file")
    method: Literal["pair", "multiclass"] | None = Field(default=None, description="default: what the prompt set says")
    findings: tuple[str, ...] = Field(default=(), description="score these only; empty scores all that have labels")
    uncertain: Literal["ignore", "negative", "positive"] = Field(default="ignore", description="how label -1 counts")
    temperature: Literal["none", "model"] = Field(
        default="none",
        description="none: softmax over unscaled cosines, as CheXzero does; model: scaled by the learned logit scale",
    )
    bootstrap: int = Field(default=1000, ge=0, description="resamples, clustered by patient")
    confidence: float = Field(default=0.95, gt=0, lt=1)
    random_baseline: bool = Field(default=True, description="score the same architecture with random weights beside it")
    pictures: bool = Field(
        default=True, description="embed example images in the card; false where the card leaves the hospital"
    )
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path | None = Field(default=None, description="folder of the evaluation card; default: <run>/zero_shot")


class RetrievalConfig(Config):
    """`medfm evaluate retrieval`: image to report and back, R@1/5/10."""

    model: InputPath
    data: EvaluateDataConfig
    report: ReportConfig = Field(default=ReportConfig(), description="which part of a report is matched")
    ks: tuple[int, ...] = (1, 5, 10)
    bootstrap: int = Field(default=1000, ge=0)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    random_baseline: bool = True
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path | None = Field(default=None, description="folder of the result; default: <run>/retrieval")


class EmbedConfig(Config):
    """`medfm embed`: image features of a file, a folder or a manifest."""

    model: InputPath = Field(description="run folder or model.safetensors")
    input: InputPath = Field(description="an image, a folder of images, or a manifest (.parquet or .csv)")
    out: Path = Field(description="file to write: .parquet, .npz or .csv")
    split: str = Field(default="", description="of a manifest: this split only; empty takes all rows")
    root: Path | None = Field(default=None, description="of a manifest: folder that its image paths start from")
    batch_size: int = Field(default=64, ge=1)
    workers: int = Field(default=2, ge=0)
    on_error: Literal["fail", "skip"] = Field(
        default="fail", description="an unreadable image: stop, or leave it out and say so"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("out")
    @classmethod
    def _known_format(cls, value: Path) -> Path:
        if value.suffix not in (".parquet", ".npz", ".csv"):
            raise ValueError(f"'{value.name}' does not end in .parquet, .npz or .csv")
        return value
