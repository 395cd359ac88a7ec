"""Cleaning of report text: white space, and the placeholders that de-identification leaves."""

from __future__ import annotations

import re
import unicodedata

PLACEHOLDER = "___"
"""The one word that stands for anything de-identification removed (MIMIC-CXR's own spelling)."""

# MIMIC-CXR writes ___, Open-i XXXX, MIMIC-II/III [** first name **], commercial tools <ORG> or [REDACTED].
_PLACEHOLDERS = re.compile(
    r"\[\*\*.*?\*\*\]"
    r"|<[A-Z][A-Z]+(?:[ _-][A-Z]+)*(?:[ _-]?\d+)?>"
    r"|\[(?:REDACTED|REMOVED|DEIDENTIFIED|DE-IDENTIFIED|NAME|DATE|PERSON|HOSPITAL|LOCATION|ORG|AGE|ID)(?:[ _-]?\d+)?\]"
    r"|(?<![A-Za-z])[Xx]{3,}(?![A-Za-z])"
    r"|_{2,}",
    re.DOTALL,
)
# Dashes and quotes that differ by typesetter only; degree, plus-minus and micro signs carry meaning and stay.
_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\u00a0": " ", "\u00ad": "", "\ufeff": ""}
)


# Controls (Cc but white space) and formats (Cf: zero-width joiners, direction marks) are no text.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]"
)


def has_placeholder(text: str) -> bool:
    """Whether de-identification removed something from `text`."""
    return _PLACEHOLDERS.search(text) is not None


def normalise_placeholders(text: str) -> str:
    """`text` with every placeholder spelled `___`; line breaks outside placeholders stay."""
    # Most reports have none: three look-ups cost less than the pattern.
    if "__" in text or "[" in text or "<" in text or "xx" in text.lower():
        return _PLACEHOLDERS.sub(PLACEHOLDER, text)
    return text


def _printable(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY)
    return _INVISIBLE.sub("", text)


def normalise_lines(text: str) -> str:
    """As `normalise`, with line breaks kept (one blank line at most), for section parsing."""
    text = normalise_placeholders(_printable(text)).replace("\r\n", "\n").replace("\r", "\n")
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def normalise(text: str) -> str:
    """One line of clean text: runs of white space become one space, every placeholder becomes `___`.

    Applied before tokenising in training and to prompts alike. Letters keep their case (the tokenizer decides) and words stay.
    Idempotent: `normalise(normalise(t)) == normalise(t)`.
    """
    return " ".join(normalise_placeholders(_printable(text)).split())
