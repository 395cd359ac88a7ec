"""Knobs of `medfm index`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from medfm.data.engine_config import EngineConfig
from medfm.registry import InputPath


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""One name or several."""


class IndexConfig(EngineConfig):
    """Images (and a table of reports) -> a manifest. Column names are those of the report table."""

    images: InputPath | None = Field(
        default=None, description="folder of DICOM, NIfTI, PNG and JPEG files, searched to the bottom"
    )
    reports: InputPath | None = Field(
        default=None, description="CSV, TSV or parquet table of reports; with a card: folder of report files"
    )
    card: str | None = Field(default=None, description="name or file of a data card that knows the data set's layout")
    root: InputPath | None = Field(
        default=None, description="the data set's folder (with a card); else where image paths start: images"
    )
    out: Path = Field(default=Path("manifest.parquet"), description="manifest to write, .parquet or .csv")
    on: str | None = Field(
        default=None, description="column that says which image a row belongs to; found by itself where clear"
    )
    match: Literal["auto", "path", "name", "stem", "image", "series", "study", "patient", "folder"] = Field(
        default="auto",
        description="what `on` holds: relative path, file name, name without suffix, a DICOM id, or a folder's name",
    )
    text: Names = Field(default=(), description="column(s) of report text; default: report, text, or findings and impression")
    text_kind: Literal["report", "label sentences", "none"] = Field(
        default="report", description="'label sentences' for text made from labels: scores then say so"
    )
    patient: str | None = Field(default=None, description="column of patient ids, kept as they are; default: coded p000001 ...")
    study: str | None = Field(default=None, description="column of study ids, kept as they are")
    view: str | None = Field(default=None, description="column of views; default: the DICOM header")
    modality: str | None = None
    split: str | None = Field(default=None, description="column of splits; default: drawn by patient")
    sex: str | None = None
    age: str | None = None
    mask: str | None = Field(default=None, description="column of mask paths, relative as image paths are")
    labels: Names = Field(
        default=(), description="label columns; one column of JSON objects; 'label:*' takes the columns so named"
    )
    encoding: str = Field(default="utf-8", description="of the report table")
    fractions: tuple[float, float, float] = Field(default=(0.8, 0.1, 0.1), description="patients in train, val, test")
    seed: int = Field(default=0, ge=0, description="of the split")
    on_error: Literal["skip", "fail"] = Field(
        default="skip", description="unusable files and rows: list them in <out>.rejected.csv and go on, or stop"
    )
    check_files: Literal["headers", "decode", "none"] = Field(
        default="headers", description="read every header; decode every image; or trust names (cards only)"
    )
    sequences: Names = Field(
        default=(),
        description="endings of file names that together are one image with channels, e.g. [_t1.nii.gz, _t2.nii.gz]",
    )
    tilt: Literal["refuse", "resample"] = Field(
        default="refuse", description="gantry tilt: reject the series, or keep it for preprocess.tilt=resample"
    )

    @model_validator(mode="after")
    def _consistent(self) -> IndexConfig:
        if self.card is None and self.images is None:
            raise ValueError("give images=DIR, or card=NAME root=DIR")
        if self.card is not None and self.root is None and self.images is None:
            raise ValueError("card=NAME needs root=DIR, the data set's folder")
        if self.card is not None:
            taken = [
                k
                for k in ("on", "text", "patient", "study", "view", "split", "sex", "age", "labels", "mask")
                if getattr(self, k)
            ]
            if taken:
                raise ValueError(f"the card says which columns are what: leave out {', '.join(taken)}")
        if len(self.sequences) == 1 or len(set(self.sequences)) < len(self.sequences) or "" in self.sequences:
            raise ValueError(f"sequences must be two or more different endings of file names, got {list(self.sequences)}")
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must sum to 1, got {list(self.fractions)}")
        if self.out.suffix not in (".parquet", ".csv"):
            raise ValueError(f"out must end in .parquet or .csv, got '{self.out.name}'")
        return self
