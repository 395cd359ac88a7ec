"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from medfm.errors import ConfigError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; after the block it is flushed to disk and takes the place of `path`.

    The temporary name is hidden and keeps the suffixes, since writers choose a format by them. Missing folders are made. If the
    block raises, or leaves nothing behind, `path` stays as it was.

    Raises:
        FileNotFoundError: the block ended without writing the temporary file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{target.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def require_writable(folder: Path, key: str) -> None:
    """Find out, before hours of work, whether files can be written into a folder, which need not be there yet. Leaves nothing.

    Raises:
        ConfigError: they cannot; `key` is the knob that chooses another place.
    """
    made: list[Path] = []
    try:
        for place in (*reversed(folder.parents), folder):
            if not place.exists():
                place.mkdir()
                made.append(place)
        with TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ConfigError(f"{key} '{folder}' cannot be written: {why}; choose another place with {key}=...") from None
    finally:
        for place in reversed(made):
            with suppress(OSError):
                place.rmdir()


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable. File systems that cannot open a folder (Windows, some network mounts) do without."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
