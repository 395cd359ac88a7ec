"""Patterns of names and numbers that are known beforehand: from headers, from other columns of a table.

A name is found as it is spelled elsewhere: "MUELLER^JOERG" is also Müller, Jörg; "T1_MUELLER", "MuellerJoerg" and "mueller1"
hold it; in Chinese, Japanese and Korean no space need stand around it. A number is found behind letters and leading zeros
("MRN00123456" holds 123456), not within another number or, where it is short, before a unit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

TOKEN = re.compile(r"[^\W\d_](?:[^\W_]|['’-](?=\w))*")
NO_LETTER_BEFORE, NO_LETTER_AFTER = r"(?<![^\W\d_])", r"(?![^\W\d_])"
# Scripts that are written without spaces: Han, kana, Hangul.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f]")
_KANA = re.compile(r"[\u3040-\u30ff\uff66-\uff9f]+")
_UNIT = r"(?:[µun]?m|[mcd]m|m?[lL]|cc|m?g|k[gV]|kVp|mAs?|HU|H[zZ]|ms|sec|s|min|T|mGy\w*|cGy|Gy|%|mm?Hg|x|×)"
_DIGRAPHS = {"ae": "ä", "oe": "ö", "ue": "ü", "ss": "ß"}
_TWO = {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "æ": "ae", "œ": "oe", "ø": "oe", "å": "aa", "þ": "th"}
_SPECIAL = {"ß": "ss", "ø": "o", "đ": "d", "ł": "l", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "ı": "i"}


def _accented() -> dict[str, str]:
    """Base letter -> that letter and its forms with a mark, Latin-1 and Latin Extended-A, in small letters."""
    found: dict[str, str] = {}
    for code in range(0xC0, 0x180):
        letter = chr(code).lower()
        base = _SPECIAL.get(letter, unicodedata.normalize("NFD", letter)[0])
        if base.isascii() and base.isalpha() and len(base) == 1 and letter not in found.get(base, ""):
            found[base] = found.get(base, base) + letter
    return found


_ACCENTED = _accented()


def spelled(word: str) -> str:
    """A pattern (for IGNORECASE) of a name and its other spellings: with and without marks, umlauts as two letters."""
    word = unicodedata.normalize("NFC", word)
    if len(word) < 4:
        return re.escape(word)
    out = []
    at = 0
    small = word.lower()
    if len(small) != len(word):  # letters whose small form is longer
        return re.escape(word)
    while at < len(word):
        pair, letter = small[at : at + 2], small[at]
        if pair in _DIGRAPHS:
            out.append(f"(?:{_letter(pair[0])}{_letter(pair[1])}|{_DIGRAPHS[pair]})")
            at += 2
            continue
        two = _TWO.get(letter, "")
        out.append(f"(?:{two}|{_letter(letter)})" if two else _letter(letter))
        at += 1
    return "".join(out)


def _letter(letter: str) -> str:
    base = _SPECIAL.get(letter, unicodedata.normalize("NFD", letter)[0])
    forms = _ACCENTED.get(base, "") if len(base) == 1 else ""
    if not forms:
        return re.escape(letter)
    return f"[{forms if letter in forms else forms + letter}]"


def unspaced(text: str) -> bool:
    """Whether it is written in a script that puts no spaces between words."""
    return _UNSPACED.search(text) is not None


def telling(part: str) -> bool:
    """Whether a part of a name in such a script is long enough to be searched for alone: 王 and はる are in many words."""
    return len(part) >= (3 if _KANA.fullmatch(part) else 2)


def bounded(part: str) -> str:
    """A pattern of a part of a name with what may not stand around it."""
    return re.escape(part) if unspaced(part) else f"{NO_LETTER_BEFORE}{spelled(part)}{NO_LETTER_AFTER}"


def joined(parts: Iterable[str]) -> Iterator[str]:
    """Patterns of two parts of a name written as one word: "DoeJane", 山田太郎."""
    named = [p for p in parts if not p.isascii() or p.isalpha()]
    wide = sorted({re.escape(p) for p in named if unspaced(p)}, key=len, reverse=True)
    if wide:
        either = f"(?:{'|'.join(wide)})"
        yield f"{either}(?:[ 　・]?{either})+"
    narrow = sorted({spelled(p) for p in named if len(p) >= 4 and not unspaced(p)}, key=len, reverse=True)
    if narrow:
        either = f"(?:{'|'.join(narrow)})"
        yield f"{NO_LETTER_BEFORE}{either}{{2,}}{NO_LETTER_AFTER}"


def number(text: str) -> str:
    """A pattern of an identifier: digits alone may follow letters and leading zeros, others stand alone or between "_"."""
    plain = text.strip()
    if plain.isascii() and plain.isdigit():
        digits = plain.lstrip("0") or plain
        no_unit = rf"(?![ -]*{_UNIT}(?!\w))" if len(digits) < 6 else ""
        return rf"(?<!\d)(?<!\d[.,])0*{digits}(?!\d|[.,]\d){no_unit}"
    return r"(?<![^\W_])" + _words(plain) + r"(?![^\W_])"


def phrase(text: str) -> str:
    """A pattern of words in a row, such as an institution's name."""
    return r"(?<!\w)" + _words(text) + r"(?!\w)"


def _words(text: str) -> str:
    return r"\W+".join(map(re.escape, text.split()))


def digits_of(text: str) -> str:
    """The number within an identifier ("MRN7654321"), "" where there is none of six digits or more."""
    found = re.findall(r"\d{6,}", text)
    return found[0] if len(found) == 1 and text.strip() != found[0] and len(re.sub(r"\D", "", text)) == len(found[0]) else ""
