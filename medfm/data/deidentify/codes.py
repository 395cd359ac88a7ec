"""Codes that a secret decides: the same original gives the same code, and no code leads back without the secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from medfm.errors import ConfigError

STANDARD_ROOT = "1.2.840.10008."
"""UIDs below it are the standard's own (SOP classes, well-known frames of reference): they identify nothing."""

# Some writers hang dates and numbers on a class's UID to name an instance: "1.2.840.10008.5.1.4.1.1.2.20190304.7".
_STANDARD = re.compile(r"1\.2\.840\.10008(?:\.\d{1,3}){1,9}")
_FEWEST_BYTES = 16
_DAYS = 3650  # dates move back by 1 to 3,650 days


class Codes:
    """Codes of one secret: HMAC-SHA256 of the original, each kind of original in a space of its own (RFC 2104)."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _digest(self, kind: str, original: str) -> bytes:
        message = kind.encode() + b"\0" + original.encode("utf-8", "surrogateescape")
        return hmac.new(self._secret, message, hashlib.sha256).digest()

    def name(self, kind: str, original: str, letters: int = 12) -> str:
        """A code of capital letters and digits 2 to 7, five bits each."""
        return base64.b32encode(self._digest(kind, original)).decode()[:letters]

    def uid(self, original: str) -> str:
        """A valid UID below 2.25 (PS3.5 section B.2) of at most 44 characters; the standard's own UIDs stay."""
        original = original.strip().strip("\0")
        if not original or _STANDARD.fullmatch(original):
            return original
        return f"2.25.{int.from_bytes(self._digest('uid', original)[:16], 'big')}"

    def patient(self, original: str) -> str:
        """The code of a patient id: DICOM PatientID, PatientName and folder alike, 60 bits."""
        return "P" + self.name("patient", original.strip())

    def number(self, original: str) -> str:
        """The code of an accession number; 16 characters, the most that VR SH holds."""
        return self.name("number", original.strip(), 16) if original.strip() else ""

    def days(self, patient: str) -> int:
        """By how many days a patient's dates move: -3650 to -1."""
        return -1 - int.from_bytes(self._digest("days", patient.strip())[:8], "big") % _DAYS

    @property
    def fingerprint(self) -> str:
        """Tells secrets apart without telling them."""
        return self.name("fingerprint", "", 16)


def shifted(day: str, days: int) -> str:
    """A DICOM date (YYYYMMDD, also the old YYYY.MM.DD) moved by `days`; "" where it is no whole date or leaves the calendar."""
    digits = day.strip().strip("\0").replace(".", "") if day.count(".") in (0, 2) else ""
    if len(digits) != 8 or not digits.isascii() or not digits.isdigit():
        return ""
    try:
        moved = date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) + timedelta(days)
    except (ValueError, OverflowError):
        return ""
    return f"{moved:%Y%m%d}".rjust(8, "0")


def read_secret(path: Path) -> Codes:
    """The codes of the secret in `path`.

    Raises:
        ConfigError: missing, unreadable, or too short to be one.
    """
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"secret '{path}' cannot be read: {error.strerror or type(error).__name__}") from None


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> Codes:
    # A worker asks once a file; `changed` makes a new secret in an old place a new question.
    secret = path.read_bytes().strip()
    if len(secret) < _FEWEST_BYTES:
        raise ConfigError(f"secret '{path}' holds {len(secret)} bytes; at least {_FEWEST_BYTES} random ones are needed")
    return Codes(secret)


def make_secret(path: Path) -> bool:
    """Write 32 random bytes, in hexadecimal, to `path`, for its owner alone, unless it exists. Whether it was made.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open_private(path, exclusive=True) as file:
            file.write(secrets.token_hex(32) + "\n")
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError(f"secret '{path}' cannot be written: {error.strerror or type(error).__name__}") from None
    return True


def open_private(path: Path, exclusive: bool = False) -> TextIO:
    """A text file to write that only its owner can read (mode 0600, from its first byte on)."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if exclusive else os.O_TRUNC)
    descriptor = os.open(path, flags, 0o600)
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="")
