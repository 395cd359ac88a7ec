"""Knobs of `medfm download`."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, create_model, model_validator

from medfm.data.index_config import Names
from medfm.registry import Config, InputPath


def _secret(value: Any) -> Any:
    if isinstance(value, bool | float):
        raise ValueError("read as a number or a truth value, not as it was written: put quotes within quotes, '\"1.20\"'")
    return str(value) if isinstance(value, int) else value


def _day(value: Any) -> Any:
    """2020-01-31 and 20200131, also where YAML read a number."""
    text = str(value) if isinstance(value, int) else value
    if isinstance(text, str) and len(text) == 8 and text.isdigit():
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    return text


# Query values may name a patient: they stay out of printed and saved configurations.
Private = Annotated[SecretStr | None, BeforeValidator(_secret)]
Day = Annotated[datetime.date | None, BeforeValidator(_day)]
_FILTERS = ("study", "series", "patient", "modality", "from", "to", "everything")


class _DownloadConfig(Config):
    """A data card's files, or studies of a DICOMweb server -> a folder."""

    card: str | None = Field(default=None, description="name or file of a data card, card=msd:hippocampus for a variant")
    source: str | None = Field(
        default=None, description="DICOMweb server: dicomweb://host:port/path (http), dicomwebs://host/path (https)"
    )
    root: Path = Field(description="folder to fill; made where it is missing")
    parts: Names = Field(default=(), description="with a card: only these parts of the data set, as the card names them")
    accept_licence: bool = Field(default=False, description="you have read the licence that is shown and accept it")
    accept_unverified: bool = Field(
        default=False, description="fetch from addresses that medfm's makers did not see on a public page"
    )
    keep_archives: bool = Field(default=False, description="keep archives after they are unpacked")
    study: Private = Field(default=None, description="DICOMweb: Study Instance UID")
    series: Private = Field(default=None, description="DICOMweb: Series Instance UID")
    patient: Private = Field(
        default=None, description="DICOMweb: Patient ID; quote what looks like a number: patient='\"1e5\"'"
    )
    modality: Names = Field(default=(), description="DICOMweb: only series of these modalities, e.g. CT")
    everything: bool = Field(default=False, description="DICOMweb: search without a filter, which may fetch a whole archive")
    token_file: InputPath | None = Field(
        default=None,
        description="DICOMweb: file that holds a bearer token; else the environment's MEDFM_DICOMWEB_TOKEN, or "
        "MEDFM_DICOMWEB_USER and MEDFM_DICOMWEB_PASSWORD",
    )
    ca_bundle: InputPath | None = Field(default=None, description="DICOMweb: PEM file of the authority that signed the server")
    parallel: int = Field(default=4, ge=1, le=16, description="files fetched at once")
    retries: int = Field(default=6, ge=0, description="tries again in a row without progress before a file is given up")
    timeout: float = Field(default=60.0, gt=0, description="seconds without a byte before a connection is given up")

    @property
    def since(self) -> datetime.date | None:
        """The key `from`, whose name Python reserves."""
        day: datetime.date | None = getattr(self, "from")
        return day

    @model_validator(mode="after")
    def _consistent(self) -> _DownloadConfig:
        if (self.card is None) == (self.source is None):
            raise ValueError("give card=NAME, or source=dicomweb://host:port/path")
        given = [k for k in (*_FILTERS, "token_file", "ca_bundle") if getattr(self, k)]
        if self.card is not None and given:
            raise ValueError(f"{given[0]} is for source=dicomweb://..., not for a card")
        if self.source is not None:
            wrong = [k for k in ("parts", "accept_licence", "accept_unverified", "keep_archives") if getattr(self, k)]
            if wrong:
                raise ValueError(f"{wrong[0]} is for a card, not for DICOMweb")
            if not any(getattr(self, k) for k in _FILTERS):
                raise ValueError(
                    "a search without study, series, patient, modality, from or to may fetch a whole archive: give one, "
                    "or everything=true"
                )
            for key in ("patient", "study", "series"):
                secret = getattr(self, key)
                if secret is not None and not secret.get_secret_value().strip("*? "):
                    raise ValueError(f"{key} holds wildcards alone, which may fetch a whole archive: everything=true says so")
            if self.everything and any(getattr(self, k) for k in _FILTERS if k != "everything"):
                raise ValueError("everything=true goes with no other filter")
        if self.since and self.to and self.since > self.to:  # type: ignore[attr-defined]
            raise ValueError("from must not be later than to")
        return self


DownloadConfig = create_model(
    "DownloadConfig",
    __base__=_DownloadConfig,
    __doc__=_DownloadConfig.__doc__,
    **{
        "from": (Day, Field(default=None, description="DICOMweb: first study date, 2020-01-31")),
        "to": (Day, Field(default=None, description="DICOMweb: last study date")),
    },
)  # type: ignore[call-overload]
