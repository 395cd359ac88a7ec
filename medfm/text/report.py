"""Radiology reports: sections, the text that is learned from, duplicates, counts.

Nothing here logs or raises with report text in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from medfm.text.clean import PLACEHOLDER, has_placeholder, normalise, normalise_lines
from medfm.text.sentences import split_sentences

if TYPE_CHECKING:
    import numpy as np

    from medfm.text.config import ReportConfig

__all__ = ["is_normal", "parse_sections", "prepare", "report_statistics", "select_text", "split_sentences", "text_key"]

PREAMBLE = "preamble"
BODY = "body"
"""Paragraphs after an administrative section that carry no header of their own (common in MIMIC-CXR)."""

_ALIASES = {
    "findings": "findings|finding|radiographic findings|chest findings|report|interpretation|observations?",
    "impression": "impressions?|imp|conclusions?|opinion|diagnosis|summary|final diagnosis|assessment"
    "|impression/recommendations?",
    "indication": "indications?|reason for (?:exam|examination|study|this examination)|reason"
    "|clinical (?:indication|information|statement|details)",
    "history": "history|clinical history|patient history|medical history|hx|clinical data",
    "comparison": "comparisons?|compared? to|comparison exams?|prior studies|comparison studies",
    "technique": "techniques?|procedure|protocol|views?|number of views",
    "examination": "exam|examination|exam type|type of exam(?:ination)?|study|procedure name|examination type",
    "recommendation": r"recommendations?|recommendation\(s\)|recommend",
    "notification": r"notifications?|notification\(s\)|communication|critical results?",
    "wet read": "wet read|preliminary (?:read|report)|prelim",
    "final report": "final report",
    "addendum": "addend(?:um|a)",
    "signature": "(?:electronically )?signed(?: by)?|dictated by|reported by|attestation|attending|transcribed by"
    "|report approval date",
}
_ALIAS = [(re.compile(f"(?:{pattern})", re.IGNORECASE), name) for name, pattern in _ALIASES.items()]
_BOTH = re.compile(r"(?:findings?\s*(?:and|&|/|,)\s*impressions?|impressions?\s*(?:and|&|/|,)\s*findings?)", re.IGNORECASE)

# Sections that say why, how and by whom; never what the image shows.
ADMINISTRATIVE = frozenset(
    (
        "indication",
        "history",
        "comparison",
        "technique",
        "examination",
        "recommendation",
        "notification",
        "signature",
        "addendum",
    )
)
# A bare "final report" line opens the report; its own text, if any, is a report without headers.
_TRANSPARENT = frozenset({"final report"})
_HEADERLESS_AFTER = frozenset(("indication", "history", "comparison", "technique", "examination", "final report", "wet read"))

# "LUNGS: clear." inside FINDINGS is part of the findings, not a section of its own.
_ANATOMY = re.compile(
    r"\b(?:lungs?|airways?|trachea|heart|cardiac|cardiomediast\w*|mediastin\w*|hila\w*|hilum|pleura\w*|bones?|osseous"
    r"|skeletal|spine|soft tissues?|chest wall|diaphragms?|abdomen|upper abdomen|lines?|tubes?|devices?|catheters?"
    r"|vessels?|vascular|vasculature|aorta|thyroid|esophagus|liver|other|lower neck|ribs?|support)\b",
    re.IGNORECASE,
)
# "PA AND LATERAL VIEWS OF THE CHEST:" heads the findings where no FINDINGS header does.
_EXAM = re.compile(
    r"\b(?:chest|views?|radiographs?|x-?rays?|portable|frontal|lateral|upright|supine|ct|cta|mri|cxr|film)\b", re.IGNORECASE
)

_LINE_HEADER = re.compile(
    r"^[ \t*#_]*(?P<name>[A-Z][A-Z0-9 ,/&()\-'.]{1,70}?|[A-Z][A-Za-z/&()\- ]{2,40}?)[ \t*_]*:[ \t*]*", re.MULTILINE
)
_BARE_HEADER = re.compile(r"^[ \t*#]*(?P<name>[A-Z][A-Z &/()]{2,40})[ \t*]*$", re.MULTILINE)
_KNOWN = "|".join([_BOTH.pattern, *(p.pattern for p, _ in _ALIAS)])
# Run-in headers: a known name that starts a sentence and is capitalised, "... is clear. Impression: normal."
_RUN_IN = re.compile(rf"(?:(?<=[.!?;:] )|(?<=[.!?;:]  )|(?<=\n)|\A)(?=[A-Z])(?P<name>(?i:{_KNOWN}))[ \t]*:[ \t]*")


def _known_section(name: str) -> str | None:
    name = " ".join(name.split()).strip(" .*_-")
    if _BOTH.fullmatch(name):
        return "both"
    for pattern, section in _ALIAS:
        if pattern.fullmatch(name):
            return section
    return None


def _headers(text: str) -> list[tuple[int, int, str]]:
    """(start, end, section) of every header, in order. Sections of exam-like headers come as 'exam:'."""
    found: dict[int, tuple[int, int, str]] = {}
    for match in _LINE_HEADER.finditer(text):
        name = match["name"]
        section = _known_section(name)
        if section is None:
            upper = name == name.upper() and sum(c.isalpha() for c in name) >= 3
            if not upper or (_ANATOMY.search(name) and not _EXAM.search(name)):
                continue
            section = "exam:" if _EXAM.search(name) else " ".join(name.split()).lower()
        found[match.start("name")] = (match.start(), match.end(), section)
    for match in _BARE_HEADER.finditer(text):
        section = _known_section(match["name"])
        if section is not None:
            found.setdefault(match.start("name"), (match.start(), match.end(), section))
    for match in _RUN_IN.finditer(text):
        section = _known_section(match["name"])
        if section is not None:
            found.setdefault(match.start("name"), (match.start("name"), match.end(), section))
    headers: list[tuple[int, int, str]] = []
    for _, header in sorted(found.items()):
        if not headers or header[0] >= headers[-1][1]:
            headers.append(header)
    return headers


def parse_sections(text: str) -> dict[str, str]:
    """Section name -> text (line breaks kept, placeholders as `___`), in the order of the report; only sections that hold text.

    Names are lower-case and canonical: findings, impression, indication, history, comparison, technique, examination,
    recommendation, notification, wet read, addendum, signature; an unknown upper-case header gives its own name in lower case.
    `preamble` is text before the first header, `body` a headerless paragraph after an administrative section.
    "FINDINGS AND IMPRESSION:" fills both with the same text. A section that comes twice is joined. Headers may stand alone on
    a line, open a line, or run in after a sentence; "LUNGS:" and the like stay inside their section; a header that names the
    examination ("PA AND LATERAL VIEWS OF THE CHEST:") heads the findings where no FINDINGS header does.
    """
    return dict(_sections(text))


@lru_cache(maxsize=16)
def _sections(text: str) -> tuple[tuple[str, str], ...]:
    # A report is parsed several times in a row: for its text, its key, whether it is normal.
    text = normalise_lines(text)
    headers = _headers(text)
    explicit = {section for _, _, section in headers}
    parts: list[tuple[str, str]] = []
    first = headers[0][0] if headers else len(text)
    parts.append((PREAMBLE, text[:first]))
    for i, (_, end, section) in enumerate(headers):
        stop = headers[i + 1][0] if i + 1 < len(headers) else len(text)
        content = text[end:stop].strip("\n")
        if section == "exam:":
            section = "examination" if explicit & {"findings", "both"} else "findings"
        if section in _HEADERLESS_AFTER:
            own, _, rest = content.partition("\n\n")
            content = own
            if section in _TRANSPARENT:
                section = BODY
            parts += [(section, content), (BODY, rest)]
        elif section == "both":
            parts += [("findings", content), ("impression", content)]
        else:
            parts.append((section, content))
    sections: dict[str, str] = {}
    for name, content in parts:
        content = content.strip()
        if any(c.isalnum() or c == "_" for c in content):
            sections[name] = f"{sections[name]}\n\n{content}" if name in sections else content
    return tuple(sections.items())


def _kept(report: str, sections: tuple[str, ...]) -> list[str]:
    parsed = parse_sections(report)
    kept = [parsed[name.lower()] for name in sections if name.lower() in parsed]
    if not kept:
        # Neither findings nor impression: what is not administrative; a preliminary read only where there is nothing else.
        kept = [t for name, t in parsed.items() if name not in ADMINISTRATIVE and name != "wet read"]
        kept = kept or [t for name, t in parsed.items() if name == "wet read"] or [report]
    return list(dict.fromkeys(kept))


def prepare(report: str, config: ReportConfig) -> tuple[str, ...]:
    """The sentences of the kept text, in order: what `choose` draws from. () for an empty report."""
    return tuple(s for part in _kept(report, config.sections) for s in split_sentences(part))


def section_text(report: str, name: str) -> str:
    """One section of a report on one line, clean; "" where the report has none of that name, or one of placeholders alone."""
    text = " ".join(split_sentences(parse_sections(report).get(name, "")))
    return "" if is_empty(text) else text


def choose(sentences: tuple[str, ...], config: ReportConfig, rng: np.random.Generator | None) -> str:
    """One training or evaluation text out of prepared sentences; see `select_text`."""
    if rng is None or config.sample == "all" or not sentences:
        return " ".join(sentences)
    enough = [s for s in sentences if len(s.split()) >= config.min_words] or list(sentences)
    if config.sample == "sentence":
        return enough[int(rng.integers(len(enough)))]
    length = int(rng.integers(1, len(enough) + 1))
    start = int(rng.integers(0, len(enough) - length + 1))
    return " ".join(enough[start : start + length])


def select_text(report: str, config: ReportConfig, rng: np.random.Generator | None) -> str:
    """The text of `report` that goes into a batch: clean, one line, "" for an empty report.

    `config.sections` in their order; where the report has none of them, everything that is not administrative (indication,
    technique, signature ...), and failing that the whole text. `rng` None, or sample=all, gives all of it. sample=sentence
    gives one sentence of at least `min_words` words with equal probability (Zhang et al. 2020, ConVIRT, section 2.3);
    sample=sentences a contiguous run of uniformly drawn length and start. Sentences shorter than `min_words` are used where
    there are no others.
    """
    return choose(prepare(report, config), config, rng)


_NOT_KEY = re.compile(r"[^\w%<>+/.-]+|(?<!\d)[.\-]|[.\-](?!\d)")


def text_key(report: str) -> str:
    """Equal for reports that say the same: case, white space and punctuation are ignored, numbers and placeholders are not."""
    return " ".join(_NOT_KEY.sub(" ", normalise(report).casefold()).split())


def is_normal(report: str) -> bool:
    """Whether the report calls the whole examination normal; see `medfm.text.normal` for the rule. Doubt means False."""
    from medfm.text.normal import sections_are_normal

    return sections_are_normal(report)


def report_statistics(texts: Iterable[str]) -> dict[str, Any]:
    """Counts over reports; holds numbers only.

    Returns: total, empty, distinct (of the non-empty, by `text_key`), duplicates (non-empty minus distinct), normal,
    placeholders (reports with any), words (median, p95, longest; of the non-empty), sections (name -> reports that have it).
    """
    import statistics

    texts = list(texts)
    counts = Counter(texts)  # equal strings are analysed once
    words: list[int] = []
    keys: set[str] = set()
    sections: Counter[str] = Counter()
    result = {"total": len(texts), "empty": 0, "normal": 0, "placeholders": 0}
    for text, n in counts.items():
        key = text_key(text)
        if not key:
            result["empty"] += n
            continue
        keys.add(key)
        words += [len(normalise(text).split())] * n
        result["normal"] += n * is_normal(text)
        result["placeholders"] += n * has_placeholder(text)
        sections.update(dict.fromkeys(parse_sections(text), n))
    present = len(texts) - result["empty"]
    words.sort()
    return {
        **result,
        "distinct": len(keys),
        "duplicates": present - len(keys),
        "words": {
            "median": statistics.median(words) if words else 0,
            "p95": words[min(len(words) - 1, int(0.95 * len(words)))] if words else 0,
            "longest": words[-1] if words else 0,
        },
        "sections": {k: v for k, v in sections.most_common() if k in _ALIASES or k in (PREAMBLE, BODY)},
    }


def is_empty(report: str) -> bool:
    """Whether nothing is left of `report` but white space, punctuation and placeholders."""
    return not text_key(report).replace(PLACEHOLDER, "").strip()
