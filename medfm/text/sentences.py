"""Sentence boundaries in radiology reports, by rules: lists, decimals, titles and de-identified names do not end a sentence."""

from __future__ import annotations

import re
from functools import lru_cache

from medfm.text.clean import normalise, normalise_lines

# Never end a sentence: a name, number or example follows.
# fmt: off
_TITLES = frozenset(
    (
        "dr", "drs", "mr", "mrs", "ms", "prof", "rev", "hon", "st", "vs", "fig", "figs", "approx", "ca", "cf", "eg", "ie",
        "e.g", "i.e", "viz", "resp", "dept", "med", "assoc", "asst", "incl", "excl"
    )
)
# End a sentence only before a capital letter.
_SHORT = frozenset(
    (
        "a.m", "p.m", "etc", "yo", "y.o", "ap", "pa", "lat", "cm", "mm", "ml", "mg", "kg", "hr", "hrs", "min", "sec", "wk",
        "wks", "mo", "mos", "yr", "yrs", "s.p", "w.o", "m.d"
    )
)
# fmt: on
_NUMBER_OF = frozenset({"no", "nos", "nr", "series", "image", "im", "se"})  # "No. 3", "series 3"

_ENUMERATED = re.compile(r"(?:(?<=\n)|\A|(?<=[.:;!?] ))\(?\d{1,2}[.)]\s+(?=[A-Z_\"'(])")
_BULLET = re.compile(r"(?:(?<=\n)|\A)[-*•·▪>]+\s+")
_STOP = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")
_WORD = re.compile(r"\w")
_BREAK = "\x1e"  # ASCII record separator: clean text holds no control characters


def _is_boundary(text: str, stop: re.Match[str]) -> bool:
    following = text[stop.end() :].lstrip()
    if not following or stop.group()[0] in "!?":
        return True
    before = text[: stop.start()].rsplit(None, 1)
    word = before[-1].lstrip("(\"'[").lower() if before and not text[: stop.start()][-1:].isspace() else ""
    if word in _TITLES:
        return False
    if word in _NUMBER_OF and following[0].isdigit():
        return False
    # An initial: "J. Smith", "Chong K. Sang". "vitamin C. The" is rarer in reports than initials.
    if len(word) == 1 and word.isalpha() and text[stop.start() - 1].isupper() and following[0].isupper():
        return False
    if following[0].islower():
        return not (word in _SHORT or len(word) == 1 or "." in word)
    return True


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, cleaned (`clean.normalise`), in order, without empty ones.

    Boundaries: `.`, `!`, `?` before white space; a blank line; the start of a list item ("1.", "2)", "-"), whose marker is
    dropped. No boundary: after titles ("Dr. ___ was told."), inside numbers ("2.5 cm"), after initials and abbreviations. A
    single line break is a wrapped line. A placeholder is never split.
    """
    return list(_split(text))


@lru_cache(maxsize=64)
def _split(text: str) -> tuple[str, ...]:
    text = normalise_lines(text)
    text = _BULLET.sub(_BREAK, text)
    text = _ENUMERATED.sub(_BREAK, text)
    sentences = []
    for block in re.split(rf"{_BREAK}|\n\s*\n", text):
        line = normalise(block)
        start = 0
        for stop in _STOP.finditer(line):
            if _is_boundary(line, stop):
                sentences.append(line[start : stop.end()])
                start = stop.end()
        sentences.append(line[start:])
    stripped = (s.strip() for s in sentences)
    return tuple(s for s in stripped if _WORD.search(s))
