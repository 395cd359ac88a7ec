"""Unpack zip and tar archives from the network: nothing outside of the folder, no links, no bombs; goes on where it stopped.

A member is written to a temporary name and renamed, so that a file of the right size is whole: a later run passes over it.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from medfm.data.download.http import Cancelled
from medfm.errors import DataError

_CHUNK = 1 << 20
MAX_MEMBERS = 5_000_000
MAX_RATIO = 200  # unpacked bytes per packed byte; images reach 3, tables 20
_SLACK = 1 << 28
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
    lzma.LZMAError,
    NotImplementedError,  # a zip method that Python lacks
    UnicodeDecodeError,  # a name that is not the UTF-8 it says
)
_DEEPEST = 64
_TEMPORARY = ".medfm-unpack-"


@dataclass(frozen=True)
class Unpacked:
    """Members as (path below the folder, bytes); `written` of them now, the others were there; `skipped` were left out."""

    members: tuple[tuple[str, int], ...]
    written: int
    skipped: int

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.members)


def unpack(
    archive: Path,
    into: Path,
    kind: str,
    stop: threading.Event | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Unpacked:
    """Unpack `archive` ("zip" or "tar", which may be compressed) below `into`.

    Files that macOS adds (`__MACOSX/`, `._name`) are left out.

    Raises:
        DataError: broken or encrypted archive, a member that leads out of the folder or is a link or a device, more than
            `MAX_RATIO` times the archive's size, or a full disk.
    """
    into.mkdir(parents=True, exist_ok=True)
    writer = _Writer(archive, into, stop or threading.Event(), advance)
    try:
        (_unzip if kind == "zip" else _untar)(archive, writer)
    except _BROKEN as error:
        if kind == "tar":
            # Its sum comes at the end: what was written may be wrong, and would be passed over next time.
            for name, _ in writer.members:
                (into / name).unlink(missing_ok=True)
        raise DataError(
            f"archive '{archive}' is broken or of an unknown kind ({type(error).__name__}): delete it and download it again"
        ) from None
    except RuntimeError as error:
        if "encrypted" in str(error) or "password" in str(error):
            raise DataError(f"archive '{archive}' is encrypted") from None
        raise
    except OSError as error:
        raise DataError(
            f"archive '{archive}' cannot be unpacked to '{into}': {error.strerror or type(error).__name__}"
        ) from None
    return Unpacked(tuple(writer.members), writer.written, writer.skipped)


class _Writer:
    """Places members below a folder, within the limits."""

    def __init__(self, archive: Path, into: Path, stop: threading.Event, advance: Callable[[int], None]) -> None:
        self.archive, self.into, self.stop, self.advance = archive, into, stop, advance
        self.home = into.resolve()
        self.limit = archive.stat().st_size * MAX_RATIO + _SLACK
        self.bytes = self.written = self.skipped = 0
        self.members: list[tuple[str, int]] = []
        self._safe: set[Path] = set()

    def place(self, name: str) -> Path | None:
        """Where a member goes; None for what is left out. Raises DataError for a name that leads out."""
        parts = PurePosixPath(name).parts
        if "__MACOSX" in parts or (parts and parts[-1].startswith("._")):
            self.skipped += 1
            return None
        if len(parts) > _DEEPEST:
            raise DataError(f"archive '{self.archive}' has a member more than {_DEEPEST} folders deep; refused")
        bad = name.startswith("/") or "\\" in name or ".." in parts or ":" in name.split("/")[0]
        if bad or not parts or any(ord(c) < 32 for c in name):
            raise DataError(
                f"archive '{self.archive}' has a member that leads out of the folder or has a forbidden name; refused"
            )
        target = self.into.joinpath(*parts)
        if target.parent not in self._safe:
            # A link that lies in the folder already would lead out too.
            existing = next(p for p in (target.parent, *target.parent.parents) if p.exists())
            if not existing.resolve().is_relative_to(self.home):
                raise DataError(f"archive '{self.archive}': '{target.parent}' is a link out of '{self.into}'; refused")
            target.parent.mkdir(parents=True, exist_ok=True)
            for left in target.parent.glob(f"{_TEMPORARY}*"):  # by a run that was killed; threads of this one are at work
                if not left.name.startswith(f"{_TEMPORARY}{os.getpid()}-"):
                    left.unlink(missing_ok=True)
            self._safe.add(target.parent)
        return target

    def write(self, name: str, size: int, open_member: Callable[[], IO[bytes]]) -> None:
        target = self.place(name)
        if target is None:
            return
        self.members.append((target.relative_to(self.into).as_posix(), size))
        self.bytes += size
        if self.bytes > self.limit or len(self.members) > MAX_MEMBERS:
            raise DataError(
                f"archive '{self.archive}' unpacks to more than {MAX_RATIO} times its size or {MAX_MEMBERS:,} files; refused"
            )
        self.advance(size)
        if target.is_file() and not target.is_symlink() and target.stat().st_size == size:
            return
        temporary = target.with_name(f"{_TEMPORARY}{os.getpid()}-{threading.get_ident()}")
        try:
            with open_member() as source, open(temporary, "wb") as file:
                left = size
                while chunk := source.read(min(_CHUNK, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        raise DataError(f"archive '{self.archive}': a member is longer than it says; refused")
                    file.write(chunk)
                    if self.stop.is_set():
                        raise Cancelled
            if left:
                raise EOFError
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self.written += 1


def _unzip(archive: Path, writer: _Writer) -> None:
    into = writer.into
    with zipfile.ZipFile(archive) as opened:
        members = [m for m in opened.infolist() if not m.is_dir()]
        needed = sum(m.file_size for m in members)
        free = shutil.disk_usage(into).free
        there = sum(m.file_size for m in members if (into / m.filename).is_file()) if needed > free else 0
        if needed - there > free:
            raise DataError(f"'{into}' has {free / 1e9:.1f} GB free, '{archive.name}' unpacks to {needed / 1e9:.1f} GB")
        for member in members:
            kind = member.external_attr >> 28  # the file type bits of Unix modes
            if kind not in (0, 0o10):
                raise DataError(f"archive '{archive}' holds a link or a device; refused")
            writer.write(member.filename, member.file_size, lambda m=member: opened.open(m))  # type: ignore[misc]


def _untar(archive: Path, writer: _Writer) -> None:
    with _tar(archive) as opened:
        for member in opened:
            if writer.stop.is_set():
                raise Cancelled
            if member.isdir():
                continue
            if not member.isreg():
                raise DataError(f"archive '{archive}' holds a link or a device; refused")
            writer.write(member.name.removeprefix("./"), member.size, lambda m=member: _reader(opened, m))  # type: ignore[misc]


def _reader(opened: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    reader = opened.extractfile(member)
    if reader is None:
        raise tarfile.ReadError("no file")
    return reader


@contextmanager
def _tar(archive: Path) -> Iterator[tarfile.TarFile]:
    """Opens a tar file; after the block the compressed stream is read to its end, where its sum is."""
    from isal import igzip, isal_zlib  # twice zlib's speed

    with open(archive, "rb") as file:
        magic = file.read(6)
    opener: Any = (
        igzip.open
        if magic.startswith(b"\x1f\x8b")
        else bz2.open
        if magic.startswith(b"BZh")
        else lzma.open
        if magic.startswith(b"\xfd7zXZ")
        else open
    )
    try:
        with opener(archive, "rb") as stream:
            with tarfile.open(fileobj=stream, mode="r:") as opened:
                yield opened
            while stream.read(_CHUNK):
                pass
    except isal_zlib.error as error:  # type: ignore[misc]
        raise tarfile.ReadError(str(error)) from None
