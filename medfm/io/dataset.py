"""A DICOM file as a pydicom Dataset, and the little helpers that every reader of one needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from medfm.errors import DataError
from medfm.io.quiet import quiet
from medfm.io.raw import has, raw_bytes, raw_integer
from medfm.io.walk import Unusual, walk_header

if TYPE_CHECKING:
    from pydicom import Dataset

_CODE = re.compile(r"[A-Z0-9 _]{1,16}")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Private elements beyond this size (raw data of a vendor) are read from the file only when they are asked for.
_DEFER = 2**18
# (0002,xxxx) or one of the first elements of group 8 at the very start, with a VR or a short length (implicit VR).
_BARE = re.compile(rb"(?:\x02\0[\x00-\x18]\0|\x08\0[\0\x05\x08\x12-\x16\x18]\0)(?:UL|OB|UI|CS|DA|TM|[\x02-\x40]\0\0\0)")
# (7FE0,0010), (7FE0,0008) and (7FE0,0009) as they begin in a file, little- and big-endian.
_PIXEL_TAGS = {b"\xe0\x7f" + bytes((n, 0)) for n in (0x10, 8, 9)} | {b"\x7f\xe0" + bytes((0, n)) for n in (0x10, 8, 9)}


@dataclass(eq=False)
class Header:
    """A file's dataset without its pixels, and where these begin.

    Attributes:
        pixels_at: offset of the pixel data element in the file; None where it is unknown (a deflated file) or there is none.
    """

    path: Path
    dataset: Dataset
    pixels_at: int | None


def has_magic(path: Path) -> bool:
    """Whether the file has the DICM prefix after its 128-byte preamble, or begins at once with DICOM's first elements."""
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or _BARE.match(head) is not None


def series_files(folder: Path) -> list[Path]:
    """The DICOM files directly inside `folder`, sorted by name; hidden files and DICOMDIR are left out.

    Files without a suffix are known by their content, so that damage hides them. One that is numbered and empty, or begins with
    zeros only, is taken for a DICOM file that was not copied whole where others are numbered: reading it names the fault.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        files = sorted(
            p for p in folder.iterdir() if not p.name.startswith(".") and p.name.upper() != "DICOMDIR" and p.is_file()
        )
        found = [p for p in files if p.suffix.lower() in DICOM_SUFFIXES or has_magic(p)]
        if any(_is_numbered(p) for p in found):
            known = set(found)
            found = [p for p in files if p in known or (_is_numbered(p) and _is_blank(p))]
        return found
    except OSError as error:
        raise DataError(f"'{folder}' cannot be read: {error.strerror or type(error).__name__}") from None


def _is_numbered(path: Path) -> bool:
    """IM000012 or 1.2.840.7: a number and no suffix, as scanners and archives name their files."""
    return path.suffix[1:].isdigit() if path.suffix else any(c.isdigit() for c in path.name)


def _is_blank(path: Path) -> bool:
    with open(path, "rb") as file:
        return not any(file.read(132))


def read_dataset(path: str | Path) -> Dataset:
    """The file as a pydicom Dataset that has a transfer syntax.

    Files without preamble are read where their content is plainly DICOM.

    Raises:
        DataError: the file is missing, empty, truncated within its header, or no DICOM.
    """
    path = Path(path)
    with _open(path) as file:
        return _parse(file, path, stop_before_pixels=False)


def read_header(path: str | Path) -> Header:
    """The file's dataset up to its pixels.

    Raises:
        DataError: as `read_dataset`.
    """
    path = Path(path)
    with _open(path) as file:
        try:
            with quiet():
                dataset, offset = walk_header(file)
            return Header(path, dataset, offset)
        except Unusual:
            file.seek(0)
        except OSError as error:
            raise DataError(f"'{path}' cannot be read: {error.strerror or type(error).__name__}") from None
        except Exception as error:  # a value of the file meta that pydicom cannot parse
            raise DataError(f"'{path}' is not readable DICOM ({type(error).__name__}); the file is damaged") from None
        dataset = _parse(file, path, stop_before_pixels=True, defer_size=_DEFER)
        # pydicom leaves the file where it stopped. Whether that is the pixel data is looked up, not believed: a deflated
        # file ends elsewhere.
        offset = file.tell()
        head = file.read(4)
    return Header(path, dataset, offset if head in _PIXEL_TAGS else None)


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or type(error).__name__}") from None


def _parse(file: BinaryIO, path: Path, **options: Any) -> Dataset:
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    read: Callable[..., Dataset] = pydicom.dcmread
    try:
        with quiet():
            try:
                dataset = read(file, **options)
            except InvalidDicomError:
                file.seek(0)
                dataset = read(file, force=True, **options)
                if "SOPClassUID" not in dataset:
                    raise DataError(f"'{path}' is not a DICOM file") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or type(error).__name__}") from None
    except DataError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged bytes, and quotes values in them
        raise DataError(f"'{path}' is not readable DICOM ({type(error).__name__}); the file is damaged") from None
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def text(dataset: Dataset, keyword: str) -> str:
    """A value as stripped text, "" where it is absent."""
    if not has(dataset, keyword):
        return ""
    plain = raw_bytes(dataset, keyword)
    if plain is not None and b"\\" not in plain:
        return plain.decode("ascii")
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def integer(dataset: Dataset, keyword: str) -> int:
    """A whole number of the header, 0 where it is absent or no number."""
    if not has(dataset, keyword):
        return 0
    plain = raw_integer(dataset, keyword)
    if plain is not None:
        return plain
    digits = raw_bytes(dataset, keyword)
    if digits is not None and digits.isdigit():
        return int(digits)
    try:
        return int(dataset.get(keyword) or 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def frame_count(dataset: Dataset) -> int:
    """NumberOfFrames, 1 where it is absent or unreadable."""
    return max(1, integer(dataset, "NumberOfFrames"))


def image_type(dataset: Dataset, keyword: str = "ImageType") -> tuple[str, ...]:
    """The values of ImageType (or FrameType), in capitals."""
    if not has(dataset, keyword):
        return ()
    plain = raw_bytes(dataset, keyword)
    if plain is not None:
        return tuple(v.strip().upper() for v in plain.decode("ascii").split("\\")) if plain else ()
    value = dataset.get(keyword) or []
    return tuple(str(v).strip().upper() for v in ([value] if isinstance(value, str) else value))


def sop_name(dataset: Dataset) -> str:
    """The SOP class in words; "no SOP class" where there is none. Never the value itself, which damage may have put there."""
    uid = text(dataset, "SOPClassUID")
    return (_uid_name(uid) or "an unknown SOP class") if uid else "no SOP class"


@cache
def _uid_names() -> dict[str, str]:
    from pydicom._uid_dict import UID_dictionary

    return {uid: words[0] for uid, words in UID_dictionary.items()}


def _uid_name(uid: str) -> str:
    return _uid_names().get(uid, "")


def code(dataset: Dataset, keyword: str) -> str:
    """A code string in capitals, "" where the value is none: what damage puts there may be anything, and codes get printed."""
    value = text(dataset, keyword).upper()
    return value if _CODE.fullmatch(value) else ""


def is_encapsulated(dataset: Dataset, path: str) -> bool:
    """Whether the pixel data are compressed.

    Raises:
        DataError: the transfer syntax is none.
    """
    try:
        return bool(dataset.file_meta.TransferSyntaxUID.is_encapsulated)
    except (AttributeError, ValueError):
        raise DataError(f"'{path}': its transfer syntax is none that DICOM knows; the file is damaged") from None
