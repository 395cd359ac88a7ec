"""Splits by patient: no patient in two, and no assignment changes when data are added."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from medfm.errors import ConfigError

SPLITS = ("train", "val", "test")
# The most held-out first: where a patient must be taken out of a split, it stays in the first of these.
_HELD_OUT = ("test", "val", "train")
_ALIASES = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "tune", "tuning"), "val"),
    **dict.fromkeys(("test", "testing", "te", "holdout", "held-out"), "test"),
}


def split_name(value: str) -> str | None:
    """'validate' -> 'val'; '' stays ''; None for a word that names no split."""
    value = value.strip().lower()
    return _ALIASES.get(value) if value else ""


def position(patient: str, seed: int) -> float:
    """A number in [0, 1) that depends on the patient and the seed alone, uniform over patients."""
    digest = hashlib.sha256(f"{seed}\x1f{patient}".encode("utf-8", errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_split(patient: str, seed: int, fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> str:
    """The split of a patient. Adding or removing other patients never changes it; the shares hold on average.

    Raises:
        ConfigError: `fractions` are not three numbers from 0 to 1 that sum to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"split fractions must be three numbers that sum to 1 (train, val, test), got {list(fractions)}")
    place = position(patient, seed)
    if place < fractions[0]:
        return "train"
    return "val" if place < fractions[0] + fractions[1] or fractions[2] == 0 else "test"


def leaks(patients: Iterable[str], splits: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Patients with rows in more than one split -> those splits, the most held-out first."""
    seen: dict[str, set[str]] = {}
    for patient, split in zip(patients, splits, strict=True):
        if patient and split:
            seen.setdefault(patient, set()).add(split)
    return {p: tuple(s for s in _HELD_OUT if s in found) for p, found in seen.items() if len(found) > 1}
