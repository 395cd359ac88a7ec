"""Knobs of `medfm deidentify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model, model_validator

from medfm.data.engine_config import EngineConfig
from medfm.registry import InputPath


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""One name or several."""


class DeidentifyOptions(EngineConfig):
    """A folder of images (and a table of reports) -> the same without the people."""

    out: Path = Field(description="folder to write; new, or that of the same command interrupted")
    secret: Path | None = Field(
        default=None,
        description="file of the secret that decides codes and date shifts, made where it is missing; default: "
        "<out>.private/secret. Keep it: the same secret gives the same codes. Whoever has it can find patients again",
    )
    dates: Literal["shift", "remove", "keep"] = Field(
        default="shift", description="shift: whole days, one distance a patient, times of day stay; remove; or keep as they are"
    )
    retain_uids: bool = Field(default=False, description="keep UIDs as they are (PS3.15 Retain UIDs Option)")
    keep_patient_characteristics: bool = Field(
        default=True, description="keep age (above 89: 90), sex, size and weight (PS3.15 Retain Patient Characteristics Option)"
    )
    descriptions: Literal["remove", "clean"] = Field(
        default="remove",
        description="series, study and protocol descriptions and names of contours: remove, or clean by the rules for reports",
    )
    private: Literal["remove", "safe"] = Field(
        default="remove",
        description="private attributes: remove all, or keep the safe ones of PS3.15 table E.3.10-1 (b-values, PET factors)",
    )
    burned_in: Literal["quarantine", "copy", "skip"] = Field(
        default="quarantine",
        description="images that by their header may show text: to <out>.quarantine for a person to see, to out, or nowhere",
    )
    reports: InputPath | None = Field(default=None, description="CSV, TSV or parquet table; written to out/reports.csv")
    text: Names = Field(default=(), description="columns of report text; default: report, text, findings, impression")
    patient: str | None = Field(default=None, description="column of patient ids; default: by its usual names")
    ids: Names = Field(default=(), description="columns of DICOM UIDs and accession numbers; default: by their usual names")
    paths: Names = Field(default=(), description="columns of image paths below `in`; default: image, path")
    keep: Names = Field(default=(), description="columns to copy as they are, such as labels; all others are left out")
    encoding: str = Field(default="utf-8", description="of the report table")
    map: Path | None = Field(
        default=None, description="CSV to write, readable by you alone: which code belongs to which original. Never ship it"
    )

    @property
    def source(self) -> Path:
        """The folder `in`, whose name Python reserves."""
        return Path(getattr(self, "in"))

    @property
    def private_folder(self) -> Path:
        """Where the secret, the journal and the list of input files left out are: beside `out`, never inside it."""
        return self.out.with_name(self.out.name + ".private")

    @property
    def quarantine(self) -> Path:
        return self.out.with_name(self.out.name + ".quarantine")

    @property
    def secret_path(self) -> Path:
        return self.secret if self.secret is not None else self.private_folder / "secret"

    @model_validator(mode="after")
    def _apart(self) -> DeidentifyOptions:
        out, source = self.out.resolve(), self.source.resolve()
        if out == source or source in out.parents or out in source.parents:
            raise ValueError("out and in must not lie inside one another")
        for key in ("secret", "map"):
            path = getattr(self, key)
            if path is not None and (out == path.resolve() or out in path.resolve().parents):
                raise ValueError(f"{key} must lie outside of out, which is made to be handed on")
        if self.reports is None:
            named = [k for k in ("text", "patient", "ids", "paths", "keep") if getattr(self, k)]
            if named:
                raise ValueError(f"{named[0]} names a column of reports=FILE, which is not given")
        return self


DeidentifyConfig = create_model(
    "DeidentifyConfig",
    __base__=DeidentifyOptions,
    __doc__=DeidentifyOptions.__doc__,
    **{"in": (InputPath, Field(description="folder of DICOM, NIfTI, PNG and JPEG files, searched to the bottom; only read"))},
)  # type: ignore[call-overload]
