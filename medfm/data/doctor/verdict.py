"""What the doctor says of a series: a verdict, and findings under codes that stay the same while their words may change."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "medfm.doctor/1"

VERDICTS = {
    "rejected": "load_image refuses it, or it is a copy of another image",
    "repaired": "load_image reads it and mends what is wrong",
    "accepted": "load_image reads it as it is",
    "mask": "segments or contours on an image, for load_mask",
    "not an image": "reports, presentation states and other objects without an image",
}
"""Verdict -> what it means, the worst first."""

# Code -> what is said of it in tables. Rejections, then repairs, then warnings.
REASONS = {
    "copy": "copy of another image (same SOP Instance UID, same pixels)",
    "conflict": "one SOP Instance UID, different pixels",
    "tilt": "gantry tilt",
    "missing": "missing slices",
    "spacing": "slice spacing is not uniform",
    "orientation": "mixed or unusable orientations",
    "duplicate": "several images at one position",
    "mixed": "slices do not belong together",
    "position": "slices without a position",
    "syntax": "transfer syntax that cannot be decoded",
    "damaged": "damaged, truncated or not what its name says",
    "crash": "kills or hangs its reader",
    "absent": "named by the manifest, not found",
    "refused": "multi-frame without positions, or of another kind that is not read",
}
REPAIRS = {
    "tilt": "gantry tilt, resampled upright",
    "mixed": "stacks of one series set apart",
    "scouts": "scouts or other objects set apart",
    "copies": "copies dropped",
    "values": "values that are not finite replaced",
    "axes": "turned or converted as the file's header says",
    "other": "other repairs",
}
WARNINGS = {
    "inverted": "shown inverted, as it seems",
    "hu": "CT values that are not Hounsfield units",
    "8 bit": "8-bit CT: windowed or quantised",
    "processing": "FOR PROCESSING: raw detector values",
    "burned in": "its pixels may show text or a face",
    "no spacing": "no pixel spacing",
    "placeholder": "a spacing or thickness that the file does not give, or not in the patient",
    "orientation": "orientation unknown or contradictory",
    "blank": "all pixels have one value",
    "copy": "shares images with another series",
    "note": "other notes",
}

# The first pattern that fits a sentence of load_image names its code.
_REASON_WORDS = (
    ("tilt", r"gantry tilt"),
    ("missing", r"missing"),
    ("duplicate", r"duplicate|same image|at one position|at each of|occur twice|images? lie at"),
    ("orientation", r"orientation|sform|qform"),
    ("spacing", r"not uniform|uneven|pixel spacing|off an even grid|increment"),
    ("position", r"position|no spacing|cannot be ordered"),
    ("syntax", r"transfer syntax|decoder|cannot be decoded"),
    ("mixed", r"differ in|holds \d+ series|mixe[sd]|do not belong|several series|frames? of reference"),
    ("damaged", r"damaged|truncated|not (a|an|readable) |is no |empty|claims|broken|not finite|cannot be read|singular|shape"),
)
_REPAIR_WORDS = (
    ("mixed", r"one of \d+ stacks"),
    ("tilt", r"tilt"),
    ("scouts", r"scout|localizer|set apart|left out"),
    ("copies", r"cop(y|ies)|twice|duplicate"),
    ("values", r"not finite"),
    ("axes", r"EXIF|converted to mm|turned|flipped"),
)
_WARNING_WORDS = (
    ("hu", r"not HU|not in HU|rescale type|Hounsfield|HU rescale"),
    ("processing", r"FOR PROCESSING"),
    ("orientation", r"sform|qform|orientation"),
    ("placeholder", r"placeholder|ImagerPixelSpacing|NominalScannedPixelSpacing|magnification"),
)
# Notes of load_image that tell of a repair, not of a conversion that the standard asks for.
_REPAIRING = re.compile(r"not finite|EXIF|converted to mm|tilt|cop(y|ies) (was|were)|set apart|left out of the volume|dropped")
_ORDINARY = re.compile(r"^padding |^PixelPaddingValue|transparency was dropped|VOI|^16-bit colour|localizer \(scout\)")


@dataclass(frozen=True)
class Finding:
    """`code` is a key of REASONS, REPAIRS or WARNINGS; `text` says it of this series, without patient data."""

    code: str
    text: str


def _coded(text: str, words: tuple[tuple[str, str], ...], other: str) -> Finding:
    # The pattern that fits first in the sentence: what follows a semicolon is said as well.
    places = [(m.start(), code) for code, pattern in words if (m := re.search(pattern, text, re.IGNORECASE))]
    return Finding(min(places, key=lambda p: p[0])[1] if places else other, text)


def reason(text: str) -> Finding:
    """A refusal of load_image under its code."""
    return _coded(text, _REASON_WORDS, "refused")


def repair(text: str) -> Finding:
    return _coded(text, _REPAIR_WORDS, "other")


def sort_note(note: str) -> tuple[str, Finding] | None:
    """A note of load_image as ("repair" or "warning", finding); None where it tells of something ordinary."""
    if _ORDINARY.search(note):
        return None
    if _REPAIRING.search(note):
        return "repair", repair(note)
    return "warning", _coded(note, _WARNING_WORDS, "note")


@dataclass
class Judged:
    """One series with its verdict.

    Attributes:
        path: reference for load_image, relative to the folder looked at (posix).
        verdict: a key of VERDICTS.
        kind: of `medfm.io.group.Series`, or "nifti" or "picture".
        files: how many it consists of.
        shape: (i, j, k), then time or colour; () where it is not known.
        spacing: mm; () where it is not known.
        syntax: name of the DICOM transfer syntax.
        phi: keywords of identifying attributes that are present, never their values.
        thumbnail: name of a JPEG in the output folder, "" where there is none.
    """

    path: str
    verdict: str
    kind: str
    modality: str = ""
    files: int = 1
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    syntax: str = ""
    reasons: list[Finding] = field(default_factory=list)
    repairs: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    phi: tuple[str, ...] = ()
    thumbnail: str = ""

    def reject(self, code: str, text: str) -> None:
        self.verdict = "rejected"
        self.reasons.append(Finding(code, text))

    def as_json(self) -> dict[str, Any]:
        """Without what is empty."""
        values: dict[str, Any] = {"path": self.path, "verdict": self.verdict, "kind": self.kind, "files": self.files}
        for name in ("modality", "syntax", "thumbnail"):
            if getattr(self, name):
                values[name] = getattr(self, name)
        for name in ("shape", "spacing", "phi"):
            if getattr(self, name):
                values[name] = list(getattr(self, name))
        for name in ("reasons", "repairs", "warnings"):
            found = getattr(self, name)
            if found:
                values[name] = [{"code": f.code, "text": f.text} for f in found]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Judged:
        def findings(name: str) -> list[Finding]:
            return [Finding(f["code"], f["text"]) for f in values.get(name, ())]

        return cls(
            path=values["path"],
            verdict=values["verdict"],
            kind=values["kind"],
            modality=values.get("modality", ""),
            files=values["files"],
            shape=tuple(values.get("shape", ())),
            spacing=tuple(values.get("spacing", ())),
            syntax=values.get("syntax", ""),
            reasons=findings("reasons"),
            repairs=findings("repairs"),
            warnings=findings("warnings"),
            phi=tuple(values.get("phi", ())),
            thumbnail=values.get("thumbnail", ""),
        )


def worst_first(judged: Judged) -> tuple[int, int, str]:
    """Sort key: by verdict, those with warnings first within one, then by path."""
    return list(VERDICTS).index(judged.verdict), -len(judged.warnings), judged.path
