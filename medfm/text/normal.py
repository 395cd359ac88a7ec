"""Which reports call the whole examination normal. Conservative: doubt means False.

The rule. A sentence is
  abnormal  where it names a finding or device outside the reach of a negation ("no", "without", "free of"), or a change;
  global    where it calls the examination normal ("No acute cardiopulmonary process.", "Normal chest radiograph.");
  normal    where it denies findings or calls a part normal ("The lungs are clear.", "No pleural effusion.");
  neutral   where it says how the image was made or what it was compared with;
  unknown   otherwise.
A negation reaches to the end of its clause: up to "but", "however", "except", "with", "stable" and the like. "No change in the
effusion" negates nothing. A report is normal when no sentence of its impression or findings is abnormal, and every sentence of
its impression (of its findings where it has no impression; of its remaining text where it has neither) is global, normal or
neutral, at least one global.
So "No pneumonia." alone is not normal, and "No acute process." beside findings of cardiomegaly is not.
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["abnormal", "global", "normal", "neutral", "unknown"]

# Findings and devices, then words of change and doubt.
THING = (
    r"opaci\w*|consolidat\w*|infiltrat\w*|effusions?|pneumothora\w*|pneumomediast\w*|pneumoperiton\w*|hydropneumo\w*"
    r"|edema|oedema|congesti\w*|cardiomegaly|enlarge\w*|engorge\w*|nodul\w*|mass(?:es)?|lesions?|tumou?rs?|metasta\w*"
    r"|malignan\w*|cancer|carcinoma|lymphoma|sarcoid\w*|fractures?|atelecta\w*|collapse[ds]?|scar\w*|fibro\w*"
    r"|emphysem\w*|copd|hyperinflat\w*|hyperexpan\w*|flatten\w*|bronchiect\w*|thicken\w*|calcif\w*|granulom\w*"
    r"|pneumonia|bronchitis|bronchiolitis|pneumonitis|tubercul\w*|tb|covid\S*|ards|abscess\w*|cavit\w*|cysts?|bullae?"
    r"|scolio\w*|kypho\w*|degenerat\w*|spondyl\w*|osteo\w*|compression|deformit\w*|herni\w*|elevat(?:ed|ion)|blunt\w*"
    r"|obscur\w*|prominen\w*|tortuo\w*|unfold\w*|ectasia|ectatic|aneurysm\w*|widen\w*|distort\w*|shift\w*|deviat\w*"
    r"|displac\w*|adenopathy|lymphadenopathy|densit(?:y|ies)|shadow\w*|haz(?:e|y)|interstitial|reticul\w*"
    r"|ground[- ]glass|bronchograms?|crowding|hypo-?inflat\w*|low lung volumes?|catheters?|tubes?|picc|pacemaker|pacer"
    r"|icd|leads?|wires?|clips?|drains?|stents?|prosthe\w*|hardware|sternotomy|valves?|port-?a-?cath|lines?|intubat\w*"
    r"|extubat\w*|tracheostom\w*|foreign bod\w*|abnormal\w*"
    r"|devices?|disease|infection|process|failure|injury"
)
_DOUBTED = (
    r"worse\w*|increas\w*|suspicious|suspect\w*|concern\w*"
    r"|likely|probabl[ey]|possibl[ey]|could|may|might|cannot|suggest\w*|consistent with|compatible with"
    r"|changes?|symptom\w*|positive|sequel\w*|sternal|resect\w*|lobectomy"
    r"|pneumonectomy|mastectomy|free air"
)
_ABNORMAL = re.compile(rf"\b(?:{THING}|{_DOUBTED})\b", re.IGNORECASE)
_NEGATION = re.compile(
    r"\b(?:no|not|without|free of|negative for|absence of|absent|nor|neither|never|clear of|denies|rule[sd]? out|resolved"
    r"|none)\b",
    re.IGNORECASE,
)
# Looks like a negation and is none: the thing is there, unchanged.
_PSEUDO = re.compile(
    r"\b(?:no|without)\s+(?:\w+\s+){0,2}?(?:change|increase|decrease|improvement|worsening|difference|longer)\b"
    r"|\b(?:nearly|almost|partial(?:ly)?|incomplete(?:ly)?|largely|mostly)\s+resolved\b"
    r"|\bnot\s+(?:\w+\s+)?(?:changed|resolved|cleared|excluded|significantly)\b|\bunresolved\b",
    re.IGNORECASE,
)
_NOT_NORMAL = re.compile(r"\bnot\s+(?:(?:an?|the|entirely|completely|quite)\s+)*(?:normal|clear|unremarkable)\b", re.IGNORECASE)
_CLAUSE = re.compile(
    r";|:|(?:,|\band)\s*(?:mild|moderate|severe|small|large|minimal|trace|slight)(?:ly)?\b"
    r"|\b(?:but|however|although|though|except|aside from|apart from|other than|beyond|with|stable|unchanged|persist\w*"
    r"|chronic|known|again|redemonstrat\w*|status post|s/p|there is|there are|is noted|are noted|is seen|remains?|otherwise"
    r"|secondary|due to)\b",
    re.IGNORECASE,
)

_PART = (
    r"(?:cardio-?\s?(?:pulmonary|thoracic|respiratory|vascular)|intra-?thoracic|thoracic|pulmonary|cardiac|chest|lung"
    r"|pleuropulmonary|osseous|bony)"
)
_THING = (
    r"(?:process(?:es)?|disease|abnormalit(?:y|ies)|findings?|patholog(?:y|ies)|changes?|problems?|illness|infiltrates?|disorders?|"
    r"pulmonary disease)"
)
_STUDY = r"(?:chest|exam(?:ination)?|study|radiographs?|x-?rays?|films?|cxr|appearances?|views?|ct|mri|scan|imaging)"
_GLOBAL = re.compile(
    rf"\bno\s+(?:radiographic\s+|convincing\s+|definite\s+|focal\s+)?(?:evidence\s+(?:of|for)\s+)?(?:an?\s+)?(?:acute|active|significant)\s+"
    rf"(?:or\s+active\s+)?(?:(?:{_PART})(?:\s*(?:or|and|,|/)\s*{_PART})*\s+)?{_THING}\b"
    rf"|\bno\s+(?:radiographic\s+)?(?:evidence\s+of\s+)?(?:{_PART})\s+(?:abnormalit(?:y|ies)|patholog(?:y|ies)|disease|process)\b"
    rf"|\bno\s+(?:significant\s+)?abnormalit(?:y|ies)(?:\s+(?:is|are|was|were))?(?:\s+(?:detected|identified|seen|noted|found|demonstrated))?[.\s]*$"
    rf"|\b(?:normal|unremarkable|negative)\s+(?:(?:pa|ap|frontal|lateral|and|single|two|view|portable|supine|upright|adult|paediatric|pediatric)\s+)*"
    rf"{_STUDY}\b"
    rf"|\b{_STUDY}\s+(?:(?:is|are|appears?)\s+)?(?:entirely\s+|completely\s+)?(?:normal|unremarkable|negative|within\s+normal\s+limits)\b"
    rf"|\b(?:examination|study|exam)\s+within\s+(?:the\s+)?(?:limits\s+of\s+the\s+norm|normal\s+limits)\b"
    rf"|^\s*(?:normal|unremarkable|negative|no\s+(?:significant\s+|abnormal\s+|pathologic(?:al)?\s+)?findings?|within\s+normal\s+limits)[.\s]*$",
    re.IGNORECASE,
)
_LOCAL = re.compile(
    r"^\s*(?:there\s+(?:is|are|was|were)\s+)?(?:also\s+)?(?:no|without|neither)\b|\b(?:clear|normal|unremarkable|intact|within\s+normal\s+limits"
    r"|well\s+expanded|sharp|midline|negative\s+for|free\s+of)\b|\bnot\s+(?:seen|identified|enlarged|present|visuali[sz]ed)\b",
    re.IGNORECASE,
)
_NEUTRAL = re.compile(
    r"^\s*(?:(?:pa|ap|frontal|lateral|single|two|portable|upright|supine|semi-?upright|erect|and|the|an?|views?|of|chest|radiographs?|x-?rays?|films?"
    r"|images?|is|are|was|were|obtained|provided|submitted|performed|adult|child|female|male|patient|in|anteroposterior|posteroanterior|woman|man)"
    r"[\s,/.]*)+$|^\s*(?:in\s+)?compar(?:ison|ed)\b|^\s*[_\W]+$",
    re.IGNORECASE,
)
# A report that asks for more is not a plain normal one.
_DOUBT = re.compile(r"\b(?:recommend\w*|follow-?up|clinical(?:ly)?\s+correlat\w*|repeat|further)\b", re.IGNORECASE)


# "The heart is not enlarged": the finding follows; "effusion is absent / not seen": it precedes its negation.
_BACKWARD = re.compile(
    r"\W*(?:absent|resolved|none|not\s+(?:\w+ly\s+)?(?:seen|identified|present|visuali[sz]ed|evident|detected|observed|noted|found"
    r"|visible|demonstrated|appreciated))\b",
    re.IGNORECASE,
)
# What was there once: a sentence of it states nothing that the image shows, and denying it denies nothing.
_GONE = re.compile(
    r"\b(?:resolved|resolution|removed|removal|extubat\w*|disappear\w*|cleared|no longer|(?:is|are) gone)\b", re.IGNORECASE
)
_STILL = re.compile(r"\b(?:not|nearly|almost|partial|partially|incomplete|incompletely|largely|mostly)\b", re.IGNORECASE)


def gone(sentence: str) -> bool:
    """Whether a sentence says that something seen or placed before is there no more, and nothing that takes it back."""
    return _GONE.search(sentence) is not None and _STILL.search(sentence) is None


def clauses(sentence: str) -> list[tuple[str, int]]:
    """The clauses of a sentence, each with the position from which on it is denied: its length where nothing is."""
    found = []
    for clause in _CLAUSE.split(_PSEUDO.sub(" remains ", sentence)):
        negation = _NEGATION.search(clause)
        if negation is None:
            found.append((clause, len(clause)))
        else:
            backward = _BACKWARD.match(clause, negation.start())
            found.append((clause, 0 if backward else negation.start()))
    return found


def _has_abnormal(sentence: str) -> bool:
    if _NOT_NORMAL.search(sentence):
        return True
    return any(_ABNORMAL.search(clause[:denied]) for clause, denied in clauses(sentence))


def classify(sentence: str) -> Kind:
    """The kind of one sentence, by the rule of this module."""
    if _DOUBT.search(sentence):
        return "unknown"
    if _has_abnormal(sentence):
        return "abnormal"
    if _GLOBAL.search(sentence):
        return "global"
    if _LOCAL.search(sentence):
        return "normal"
    return "neutral" if _NEUTRAL.search(sentence) else "unknown"


def sections_are_normal(report: str) -> bool:
    """Whether `report`, with or without section headers, is normal by the rule of this module."""
    from medfm.text.report import ADMINISTRATIVE, parse_sections
    from medfm.text.sentences import split_sentences

    sections = parse_sections(report)
    decisive = sections.get("impression") or sections.get("findings")
    if decisive is None:
        decisive = "\n\n".join(t for name, t in sections.items() if name not in ADMINISTRATIVE)
    sentences = split_sentences(decisive)
    # The cheap question first: most reports call nothing normal as a whole.
    if not any(_GLOBAL.search(s) for s in sentences):
        return False
    kinds = {classify(s) for s in sentences}
    if "global" not in kinds or not kinds <= {"global", "normal", "neutral"}:
        return False
    findings = sections.get("findings", "")
    return findings == decisive or all(classify(s) != "abnormal" for s in split_sentences(findings))
