"""Texts that say the opposite of a report: sides changed, findings denied or asserted. Rules, for English reports.

They are the hard negatives of contrastive training and the wrong answers of the compositional score, so a changed text must be
untrue of the image and read like a report. Where no rule gives that the answer is None: doubt means None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from medfm.text.normal import THING, classify, clauses, gone
from medfm.text.report import text_key
from medfm.text.sentences import split_sentences

if TYPE_CHECKING:
    import numpy as np

_OTHER = {
    "left": "right", "leftward": "rightward", "lt": "rt", "lll": "rll", "lul": "rul", "llz": "rlz", "luz": "ruz", "lmz": "rmz",
}  # fmt: skip
_OTHER |= {b: a for a, b in _OTHER.items()}
# The right middle lobe (RML) and the lingula have no counterpart; a single letter is more often a vertebra or a litre.
_SIDE = re.compile(
    r"\b(?i:left|right|leftward|rightward|lll|rll|lul|rul|llz|rlz|luz|ruz|lmz|rmz)\b(?!-hand\b)|\b(?:Lt|Rt|LT|RT)\b"
)
# "left and right" exchanged says the same; chambers are the heart's, whatever the side of the device that leads to them.
_FIXED = re.compile(
    r"\b(?:left|right)\s*(?:and|or|&|/|as well as)\s*(?:the\s+)?(?:left|right)\b"
    # "a left effusion and a right effusion": the same part on both sides.
    r"|\b(?:left|right)\s+(?P<part>\w+(?:\s+\w+){0,3}?)\s+(?:and|or|as well as)\s+(?:(?:in|the|an?)\s+){0,2}"
    r"(?:left|right)\s+(?P=part)\b"
    r"|\b(?:lll|rll)\s*(?:and|or|&|/|,|as well as)\s*(?:lll|rll)\b|\b(?:lul|rul)\s*(?:and|or|&|/|,|as well as)\s*(?:lul|rul)\b"
    r"|\b(?:left|right)\s+(?:atri\w+|ventric\w+|heart(?!\s+border)|lingula\w*)"
    r"|\bright\s+(?:(?:upper|lower)(?:\s+lobes?)?\s*(?:and|or|&|/|,)\s*)?middle\b(?!\s+(?:lung|zone|third|field))",
    re.IGNORECASE,
)

_CLAUSE = re.compile(r"[,;:]|\b(?:and|or|as well as|with)\b", re.IGNORECASE)


def swap_sides(text: str) -> str | None:
    """`text` with left and right exchanged throughout.

    None where that would say nothing untrue: no side is named, or only beside what is normal, denied ("No left effusion.") or
    gone ("The left effusion has resolved."), in "left and right", or in the name of a heart chamber or of a lobe that the other
    lung lacks; both sides of the same part are named; or the sentences are the same ones afterwards.
    """
    sentences = split_sentences(text)
    if not any(_side_matters(s) for s in sentences):
        return None
    changed = _exchange(text)
    return changed if tells_otherwise(changed, sentences) else None


def tells_otherwise(text: str, stated: Iterable[str]) -> bool:
    """Whether a changed text says something that the report's sentences `stated` do not: "Right effusion." is no counterfactual
    of a "Left effusion." where the report states both."""
    return not {text_key(s) for s in split_sentences(text)} <= {text_key(s) for s in stated}


def _exchange(text: str) -> str:
    fixed = [m.span() for m in _FIXED.finditer(text)]

    def other(match: re.Match[str]) -> str:
        if any(start <= match.start() < end for start, end in fixed):
            return match.group()
        word = match.group()
        return _like(_OTHER[word.lower()], word)

    return _SIDE.sub(other, text)


def _parts(sentence: str) -> list[str]:
    """The sides that a sentence names, each with what follows it in its clause: "nodules in the left lung, right lung" has the
    same ones after an exchange."""
    return sorted(
        clause[m.start() :].strip().lower() for clause in _CLAUSE.split(sentence.rstrip(". ")) for m in _SIDE.finditer(clause)
    )


@lru_cache(maxsize=4096)
def _side_matters(sentence: str) -> bool:
    kind = classify(sentence)
    return (
        not gone(sentence)
        and _parts(_exchange(sentence)) != _parts(sentence)
        and (kind == "abnormal" or (kind == "unknown" and not _STATES_NORMAL.search(sentence)))
    )


def _like(word: str, model: str) -> str:
    """`word` in the case of `model`."""
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word


# Negation.
_THING = re.compile(rf"\b(?:{THING})\b", re.IGNORECASE)
_DEGREE = (
    r"(?:very |tiny|trace|small|minimal|mild|slight|moderate|medium|large|extensive|sizeable|massive|marked|severe|minor|"
    r"subtle|faint|new|stable|unchanged|persistent|possible|questionable|suspected|probable|likely|early|developing|borderline|dense|"
    r"patchy|confluent|solitary|single|residual|improv(?:ed|ing)|decreas(?:ed|ing)|worsen(?:ed|ing)|resolving|enlarging|"
    r"\d+(?:\.\d+)?\s?(?:mm|cm))(?:[- ]sized)?"
)
_LEAD = re.compile(
    rf"^(?:(?:an?|the|some|several|multiple|few|again|is|are)\s+|{_DEGREE}(?:\s+to\s+{_DEGREE})?[\s,]+)+", re.IGNORECASE
)
_SIZE = re.compile(
    r"\s*(?:,|\b(?:of|measuring)\b)?\s*\b(?:up to |approximately |about )?\d+(?:\.\d+)?\s?(?:mm|cm)\b", re.IGNORECASE
)
_ADVERB = r"(?:mildly|slightly|moderately|markedly|severely|borderline|partly|partially|grossly|diffusely|mild|now|again|still)"
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|appears?|remains?|shows?|demonstrates?|reveals?|measures?|projects?|ends?|terminates?|represents?|"
    r"indicates?|suggests?|obscures?|covers?|extends?|lies|may|might|could|can|cannot|seems?)\b",
    re.IGNORECASE,
)
_BE = r"(?:is|are|was|were)"
_SEEN = r"(?:present|seen|noted|identified|demonstrated|visuali[sz]ed|visible|evident|observed|detected|found|in place)"
_CONCLUDES = re.compile(
    r"\b(?:consistent with|compatible with|in keeping with|(?:may |could |might |likely |probably )?represent(?:s|ing)?|"
    r"indicat(?:es|ing|e)|suggest(?:s|ing|ive of)?)\s+(?P<what>[^:;]+)",
    re.IGNORECASE,
)
_ABNORMAL_STATE = (
    r"enlarged|increased|elevated|widened|blunted|obscured|collapsed|thickened|prominent|tortuous|dilated|congested|hyperinflated|"
    r"hyperexpanded|displaced|shifted|deviated|flattened|fractured|calcified|abnormal|opacified"
)
_NORMAL_STATE = (
    r"normal|clear|unremarkable|intact|sharp|within normal limits|(?:fully|well)[- ](?:expanded|inflated|aerated)|midline"
)
_STATES_NORMAL = re.compile(rf"\b(?:{_NORMAL_STATE})\b", re.IGNORECASE)
_COUNT = re.compile(
    r"\b(?:effusion|pneumothorax|nodule|mass|lesion|tumou?r|fracture|opacity|infiltrate|abscess|cyst|hernia|aneurysm|granuloma|"
    r"abnormality|process|catheter|tube|pacemaker|pacer|line|drain|stent|device|deformity|density|shift|cavity|consolidation)$",
    re.IGNORECASE,
)
_ASIDE = re.compile(r"\s*\([^()]*\)")
# What is said of a change does not say what the image shows: "Interval decrease in the effusion."
_CHANGE = re.compile(
    r"\b(?:decrease|increase|improvement|worsening|clearing|progression|reduction|change|development|placement)\s+(?:of|in)\b",
    re.IGNORECASE,
)
_IN_DOUBT = re.compile(r"\b(?:cannot|can not|not) be (?:\w+ly )?(?:excluded|ruled out)\b|\bif any\b", re.IGNORECASE)
_TAIL = re.compile(r"\s*(?:,|;|:|\b(?:with|without|which|that|by|but|however|beyond)\b).*$", re.IGNORECASE)


def negate(text: str, rng: np.random.Generator | None = None) -> str | None:
    """`text` with one stated finding denied, or one denied finding asserted, in every sentence that says so of that finding.

    The sentence is the first that a rule fits, or one drawn by `rng`; those that name a finding go before "The bones are
    normal.". The text comes back as one line. None where no rule fits.
    """
    sentences = split_sentences(text)
    changed = [(i, new) for i, s in enumerate(sentences) if (new := _negated(s)) is not None]
    if not changed:
        return None
    choices = [i for i, _ in changed if _about(sentences[i])] or [i for i, _ in changed]
    chosen = choices[0 if rng is None else int(rng.integers(len(choices)))]
    about, kind = _about(sentences[chosen]), _states(sentences[chosen])
    for i, new in changed:
        if i == chosen or (about & _about(sentences[i]) and _states(sentences[i]) == kind):
            sentences[i] = new
    return " ".join(sentences)


def _about(sentence: str) -> frozenset[str]:
    """The findings named, by the beginnings of their words: "effusions" is "effusion"."""
    return frozenset(m.group().lower()[:7] for m in _THING.finditer(sentence))


def _states(sentence: str) -> bool:
    return classify(sentence) in ("abnormal", "unknown")


@lru_cache(maxsize=4096)
def _negated(sentence: str) -> str | None:
    body = sentence.strip().rstrip(".").strip()
    if not body or sentence.endswith("?") or _IN_DOUBT.search(body) or gone(body):
        return None
    for rule in _RULES:
        new = rule(body)
        if new is not None:
            new = re.sub(r"\s+", " ", new).strip()
            return f"{new[0].upper()}{new[1:]}." if new and new.lower() != body.lower() else None
    return None


def _asserted(what: str) -> str | None:
    """ "effusion or pneumothorax" -> "a pleural effusion and a pneumothorax"; None where it is more than a list of findings."""
    if not _THING.search(what) or _VERB.search(what) or len(clauses(what)) > 1:
        return None
    if re.search(r"\b(?:no|not|nor|than|change)\b", what, re.IGNORECASE):
        return None
    what = re.sub(r"^(?:an?|any)\s+", "", what.strip(), flags=re.IGNORECASE)
    parts = [p.strip() for p in re.split(r",\s*(?:or|and)?\s+|\s+(?:or|and)\s+", what) if p.strip()]
    if not parts:
        return None
    named = [_article(p) for p in parts]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _article(noun: str) -> str:
    head = re.split(r"\s+(?:in|of|on|at|within|along)\s+", noun)[0]
    if not _COUNT.search(head) or (head.lower().endswith("consolidation") and "focal" not in head.lower()):
        return noun
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _denied(noun: str) -> str | None:
    """ "a small left pleural effusion" -> "no left pleural effusion"; None where it names no finding."""
    noun = _SIZE.sub("", _TAIL.sub("", _ASIDE.sub("", noun.strip())))
    noun = _LEAD.sub("", f"{noun} ").strip()
    head = re.split(r"\s+(?:in|of|on|at|over|within|along)\s+", noun)[0]
    if (
        not _THING.search(noun)
        or _CHANGE.search(noun)
        or re.search(r"(?:ed|ent|al)$", head)
        or re.search(r"\b(?:no|not|without|normal|clear)\b", noun, re.IGNORECASE)
    ):
        return None
    return "no " + (noun if noun[:2].isupper() else noun[0].lower() + noun[1:])


# Each rule: the sentence without its full stop -> the changed one, or None where the rule does not fit.


def _no_evidence(body: str) -> str | None:
    """Denied: "No X", "There is no X", "No evidence of X", "No X is seen", "On the left, no X", "Negative for X"."""
    match = re.fullmatch(
        rf"(?P<lead>(?:on the (?:left|right),?|there (?P<be>{_BE})"
        r"|(?:the )?(?:lungs?|study|exam\w*) (?:is|are) (?=negative|free)))?\s*"
        rf"(?:no|without|negative for|free of|absence of)\s+(?:(?:\w+\s+)?(?:evidence|signs?|indications?)\s+(?:of|for)\s+)?"
        rf"(?P<what>.+?)(?P<seen>\s+{_BE}\s+{_SEEN})?(?P<rest>\s+on the (?:left|right))?",
        body,
        re.IGNORECASE,
    )
    if match is None or (what := _asserted(match["what"])) is None:
        return None
    lead, rest = match["lead"] or "", match["rest"] or ""
    if lead.lower().startswith("on the"):
        return f"{lead} {what}{match['seen'] or ''}"
    if match["seen"] and not rest:
        many = " and " in what or (what.endswith("s") and not re.search(r"(?:sis|thorax|us)$", what))
        return f"{what} {'are' if many else 'is'} {match['seen'].split(None, 1)[1]}"
    be = match["be"] or "is"
    return f"there {be} {what}{rest}"


def _not_there(body: str) -> str | None:
    """Denied: "X is not seen", "X is absent", "The heart is not enlarged"."""
    match = re.fullmatch(
        rf"(?P<what>.+?)\s+(?P<be>{_BE})\s+(?:not\s+(?P<seen>{_SEEN}|{_ABNORMAL_STATE})|absent)", body, re.IGNORECASE
    )
    if match is None or re.search(r"\bno(?:t|r)?\b", match["what"], re.IGNORECASE):
        return None
    return f"{match['what']} {match['be']} {match['seen'] or 'present'}"


def _normal_state(body: str) -> str | None:
    """Normal: "The lungs are clear", "Heart size is normal", "Normal heart size", "Unremarkable bones"."""
    match = re.fullmatch(
        rf"(?P<what>[^,;:]+?)\s+(?P<be>{_BE}|appears?)\s+(?P<state>{_NORMAL_STATE})(?P<tail>\s+(?:and|in|bilaterally)\b.*)?",
        body,
        re.IGNORECASE,
    )
    if match is not None and not _THING.search(match["what"]) and not re.search(r"\bno[tr]?\b", body, re.IGNORECASE):
        be, state = match["be"], match["state"]
        if be.lower().startswith("appear"):
            return f"{match['what']} {'does' if be.lower() == 'appears' else 'do'} not appear {state}"
        return f"{match['what']} {be} abnormal" if state in ("normal", "unremarkable") else f"{match['what']} {be} not {state}"
    match = re.fullmatch(r"(?:normal|unremarkable)\s+(?P<what>[^,;:]+?)(?:\s+with(?:out)?\s+.*)?", body, re.IGNORECASE)
    return f"abnormal {match['what']}" if match is not None and not _VERB.search(match["what"]) else None


def _concludes(body: str) -> str | None:
    """Stated: "Blunting of the left angle, in keeping with an effusion": its conclusion is denied."""
    if any(denied < len(clause) for clause, denied in clauses(body)):
        return None
    match = _CONCLUDES.search(body)
    # "Consolidation, which may represent pneumonia": the consolidation is what is stated.
    if match is not None and re.search(r"\bwhich\s+$", body[: match.start()], re.IGNORECASE):
        return None
    return _denied(match["what"]) if match is not None else None


def _after_colon(body: str) -> str | None:
    """Stated: "A pleural line is seen: small left pneumothorax"."""
    _, colon, what = body.rpartition(": ")
    return _denied(what) if colon and not _VERB.search(what) else None


def _there_is(body: str) -> str | None:
    """Stated: "There is a small left pleural effusion"."""
    match = re.match(rf"(?P<lead>.*?\bthere {_BE})\s+(?P<what>(?!no\b|not\b).+)", body, re.IGNORECASE)
    if match is None or (what := _denied(match["what"])) is None:
        return None
    return f"{match['lead']} {what}"


def _is_seen(body: str) -> str | None:
    """Stated: "A small effusion is seen", "On the left, a small effusion is seen"."""
    match = re.fullmatch(
        rf"(?P<lead>(?:on|in|at|within|over) [^,]+,\s*)?(?P<what>[^,:;]+?)\s+(?P<be>{_BE})\s+(?:again\s+|now\s+)?"
        rf"(?P<seen>{_SEEN})(?P<rest>\b.*)?",
        body,
        re.IGNORECASE,
    )
    if match is None or (what := _denied(match["what"])) is None:
        return None
    return f"{match['lead'] or ''}{what} {match['be']} {match['seen']}{_TAIL.sub('', match['rest'] or '')}"


def _is_abnormal(body: str) -> str | None:
    """Stated: "The heart is mildly enlarged", "The left lung is collapsed by a pneumothorax"."""
    match = re.match(
        rf"(?P<what>[^,;:]+?)\s+(?P<be>{_BE}|may be)\s+(?:{_ADVERB}\s+)*(?P<state>{_ABNORMAL_STATE})\b", body, re.IGNORECASE
    )
    if match is None or re.search(r"\bno[tr]?\b", match["what"], re.IGNORECASE):
        return None
    return f"{match['what']} {'is' if match['be'].lower() == 'may be' else match['be']} not {match['state']}"


def _shows(body: str) -> str | None:
    """Stated: "The left lung shows a consolidation in its lower zone"."""
    match = re.match(
        r"(?P<lead>[^,;:]+? (?:shows?|demonstrates?|reveals?|contains?))\s+(?P<what>(?!no\b).+)", body, re.IGNORECASE
    )
    if match is None or (what := _denied(match["what"])) is None:
        return None
    return f"{match['lead']} {what}"


def _noun(body: str) -> str | None:
    """Stated: "Small left pleural effusion", "Nodule in the left zone measures 12 mm", "The tube ends above the carina"."""
    if any(denied < len(clause) for clause, denied in clauses(body)):
        return None
    verb = _VERB.search(body)
    if verb is not None and verb.group().lower() in ("projects", "project"):
        what = _denied(body[: verb.start()])
        return f"{what} {body[verb.start() :]}" if what else None
    return _denied(body[: verb.start()] if verb is not None else body)


_RULES: tuple[Callable[[str], str | None], ...] = (
    _no_evidence, _not_there, _normal_state, _concludes, _after_colon, _there_is, _is_seen, _is_abnormal, _shows, _noun,
)  # fmt: skip
