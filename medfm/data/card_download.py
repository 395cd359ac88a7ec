"""The part of a data card that says how the data set is had: addresses with sums, or where and how to apply."""

from __future__ import annotations

import datetime
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator, model_validator

from medfm.registry import Config


class DownloadFile(Config):
    """One file of a data set.

    A file is fetched when its `part` is asked for; files without a part always, an `optional` part only by name.
    """

    url: str = Field(description="https address, without a login")
    path: str = Field(default="", description="where below root; default: the name at the end of the address")
    bytes: int | None = Field(default=None, gt=0, description="size that the source publishes")
    md5: str = Field(default="", pattern=r"^([0-9a-f]{32})?$", description="sum that the source publishes")
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    unpack: Literal["", "zip", "tar"] = Field(default="", description="archive kind; tar may be compressed")
    into: str = Field(default=".", description="folder below root that the archive is unpacked to")
    part: str = ""
    optional: bool = Field(default=False, description="only fetched where parts= names its part")

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        if not parts.hostname or (parts.scheme != "https" and not (local and parts.scheme == "http")):
            raise ValueError("not an https address")
        if parts.username or parts.password:
            raise ValueError("an address must hold no login")
        return value

    @field_validator("path", "into")
    @classmethod
    def _below(cls, value: str) -> str:
        pure = PurePosixPath(value)
        if pure.is_absolute() or ".." in pure.parts or "\\" in value:
            raise ValueError("not a path below the data set's folder")
        return value

    @model_validator(mode="after")
    def _named(self) -> DownloadFile:
        if self.target in ("", ".", "..") or "\\" in self.target or "\0" in self.target:
            raise ValueError("the address ends in no file name: give path")
        if self.optional and not self.part:
            raise ValueError("an optional file needs a part, its name for parts=")
        return self

    @property
    def target(self) -> str:
        """Relative path, posix."""
        return self.path or PurePosixPath(unquote(urlsplit(self.url).path)).name

    @property
    def published(self) -> str:
        """'sha256', 'md5' or ''."""
        return "sha256" if self.sha256 else "md5" if self.md5 else ""


class Apply(Config):
    """For data that a person must ask for."""

    url: str
    steps: tuple[str, ...] = Field(min_length=1, description="what to do, one sentence each")


class Download(Config):
    """Files to fetch, or where to apply; both where only some of the set is open.

    `verified`: each address was seen on a public page, named in `seen`, on the date `checked`. Otherwise `medfm download`
    fetches nothing before `accept_unverified=true`.
    """

    files: tuple[DownloadFile, ...] = ()
    verified: bool = False
    checked: datetime.date | None = None
    seen: tuple[str, ...] = Field(default=(), description="public pages that give the addresses and sums")
    terms: bool = Field(default=False, description="the licence must be accepted: accept_licence=true")
    apply: Apply | None = None
    folder: str = Field(default="", description="folder below root that `medfm index` takes, where archives bring one")

    @model_validator(mode="after")
    def _consistent(self) -> Download:
        if not self.files and self.apply is None:
            raise ValueError("give files, or apply with url and steps")
        if self.verified and not (self.seen and self.checked):
            raise ValueError("verified addresses need `seen`, the public pages that show them, and `checked`, the date")
        targets = [f.target for f in self.files]
        twice = sorted({t for t in targets if targets.count(t) > 1})
        if twice:
            raise ValueError(f"two files are stored as '{twice[0]}'")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(f.part for f in self.files if f.part))
