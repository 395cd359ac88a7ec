"""A NIfTI file without its free text: header fields for words, extensions, gzip names. Voxels and geometry stay as bytes."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from medfm.errors import DataError
from medfm.io.files import atomic_write

# (offset, length) of fields for words (nifti1.h, nifti2.h); data_type to session_error are ANALYZE's and mean nothing now.
_NIFTI1 = {"analyze": (4, 34), "descrip": (148, 80), "aux_file": (228, 24), "intent_name": (328, 16)}
_NIFTI2 = {"descrip": (240, 80), "aux_file": (320, 24), "intent_name": (508, 16), "unused": (525, 15)}
_CHUNK = 2**22


def clean_nifti(source: Path, target: Path) -> list[str]:
    """Write `target` and name what was removed. Compressed where `target` ends in .gz.

    Raises:
        DataError: not a single-file NIfTI, or truncated.
    """
    import nibabel

    with _opened(source) as file:
        try:
            start = file.read(540)
            sizes = {struct.unpack(order + "i", start[:4])[0]: order for order in "<>"} if len(start) >= 348 else {}
            size = next((n for n in (348, 540) if n in sizes and len(start) >= n), 0)
            magic = start[4:8] if size == 540 else start[344:348]
            if not size or magic[:2] != b"n+":
                raise DataError("is no NIfTI file of one piece")
            kind = nibabel.Nifti2Header if size == 540 else nibabel.Nifti1Header
            header = kind(start[:size], endianness=sizes[size], check=False)
            offset = max(int(header.get_data_offset()), size + 4)
            voxels = int(header.get_data_dtype().itemsize)
            for n in header.get_data_shape():
                voxels *= int(n)
        except DataError:
            raise
        except (OSError, EOFError):
            raise DataError("is truncated or damaged") from None
        except Exception as error:
            raise DataError(f"has a damaged NIfTI header ({type(error).__name__})") from None
        if offset > 2**28:
            raise DataError("has a damaged NIfTI header (extensions of over 256 MiB)")
        return _write(file, start, size, offset, voxels, target)


def _write(file: BinaryIO, start: bytes, size: int, offset: int, voxels: int, target: Path) -> list[str]:
    fields = _NIFTI2 if size == 540 else _NIFTI1
    head = bytearray(start[:size])
    done = []
    for name, (at, length) in fields.items():
        if head[at : at + length].strip(b"\0 "):
            done.append(f"NIfTI {name}")
        head[at : at + length] = bytes(length)
    try:
        between = start[size:]
        between += file.read(max(0, offset - size - len(between)))
        extra = between[offset - size :]
        if between[: offset - size].strip(b"\0"):
            done.append("NIfTI extensions")
        with atomic_write(target) as temporary, _compressed(temporary, target) as out:
            out.write(head + bytes(offset - size))
            left = voxels
            while left > 0:
                chunk = extra[:left] or file.read(min(_CHUNK, left))
                extra = b""
                if not chunk:
                    raise DataError("is truncated")
                out.write(chunk)
                left -= len(chunk)
            while file.read(_CHUNK):  # a gzip checksum is tested at the end of the stream
                pass
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError("is truncated or damaged") from None
    return done


def _opened(path: Path) -> Any:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else open(path, "rb")


def _compressed(path: Path, target: Path) -> Any:
    if not target.name.endswith(".gz"):
        return open(path, "wb")
    from isal import igzip

    # A gzip header holds the file's name and time by default.
    return _Both(igzip.IGzipFile(filename="", mode="wb", fileobj=(raw := open(path, "wb")), mtime=0), raw)


class _Both:
    """A gzip stream and the file below it, closed together."""

    def __init__(self, stream: Any, raw: BinaryIO) -> None:
        self.stream, self.raw = stream, raw

    def __enter__(self) -> Any:
        return self.stream

    def __exit__(self, *error: object) -> None:
        self.stream.close()
        self.raw.close()
