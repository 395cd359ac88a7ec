"""Names, dates, record numbers and addresses out of report text, by rules; clinical words and measurements stay.

The kinds removed are those of the HIPAA Safe Harbor (45 CFR 164.514(b)(2)) that have a form; a year alone stays, as it may.
Names are found by what stands around them (titles, signatures, labels) and by what is already known (headers, table columns). A
name that stands alone and is not known stays in the text: a person must look.

Nothing here logs or raises with report text in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from medfm.text import identifiers as forms
from medfm.text.known import (
    NO_LETTER_AFTER,
    NO_LETTER_BEFORE,
    TOKEN,
    bounded,
    digits_of,
    joined,
    number,
    phrase,
    spelled,
    telling,
    unspaced,
)

# What stands in the text instead; `medfm.text.clean.normalise` reads each as its one placeholder.
_MARKS = {
    "name": "[NAME]",
    "date": "[DATE]",
    "time": "[DATE]",
    "id": "[ID]",
    "phone": "[ID]",
    "email": "[ID]",
    "url": "[ID]",
    "address": "[LOCATION]",
    "hospital": "[HOSPITAL]",
    "age": "[AGE]",
}

# Capitalised words that follow a title or a label and are no name: there a name ends, or none began.
_NO_NAMES = frozenset(
    """
    dr prof mr mrs mrn dob ssn id sex age acc practitioner station manager md do phd mbbs rn np pa-c a about above after
    again all also an and any approximately are as at be been before below between both but by call called can case chest
    clear clinic compared comparison completed conclusion concerning consistent contacted correlate correlation consult
    consultant ct date dated day days department diagnosis dictated discussed done down during ed emergency er evaluate
    evaluation examination exam fax female films final finding findings follow for from further given had has have he head
    her him his history hospital icu if image images imaging immediately impression in including indication inpatient
    intensive is it its known lateral left lung lungs male may medicine mri ms nicu no normal not note noted notified nurse
    nursing of office on one or out outpatient over pa page paged pager patient patients pediatric per phone physician picu
    please portable primary prior procedure pulmonary radiology read received recommend recommendation recommended regarding
    report reported resident result results reviewed right room said saw see seen service she shows signed since staff
    status stat stable study supine surgery surgical team technique telephone that the their then there these they this
    those time to today transcribed trauma unit unknown unremarkable upright urgent until us view views was we were when
    where which who will with x xray yes abdomen angiogram angiography ankle arthrogram brain breast cardiac cervical elbow
    enterography femur foot hand heart hip knee liver lumbar neck neuro orbits pelvis prostate sacrum scan sella sequence
    series shoulder spectroscopy spine thoracic thorax venogram wrist intubated extubated man woman boy girl infant child
    newborn year oncology neurology cardiology medical der die das und mit zum zur am im bei ist war wurde telefonisch
    befund beurteilung
    """.split()  # noqa: SIM905, a paragraph is easier to read
)
_UPPER = "A-ZÀ-ÖØ-ÞĀĂĄĆČĎĐĒĖĘĚĞĢĪĮİĶĹĻŁŃŅŇŌŐŒŔŘŚŞŠŢŤŪŮŰŲŹŻŽ"
_PART = rf"(?:(?:Mc|Mac|[OoDd]['’])?[{_UPPER}\ufffd][\w'’\ufffd]*(?:-[\w'’]+)*)"
_INITIAL = rf"(?:[{_UPPER}]\.(?:-?[{_UPPER}]\.)*|[{_UPPER}](?=[ ,]))"
_PARTICLE = r"(?:(?:van|von|der|den|de|del|della|da|dos|di|la|le|bin|al|el|ter|zu|zum|zur)[ ]+)"
_NAME = rf"(?:(?:{_INITIAL}[ ]*)*{_PARTICLE}{{0,2}}{_PART}(?:[ ]+{_PARTICLE}{{0,2}}(?:{_INITIAL}|{_PART})){{0,3}})"
_LAST_FIRST = rf"(?:{_PART}(?:[ ]{_PART})?,[ ]*{_PART}(?:[ ]+(?:{_INITIAL}|{_PART}))?)"
_DEGREE = (
    r"(?:M\.?D\.?|D\.O\.|Ph\.?D\.?|MBBS|M\.B\.,?[ ]?Ch\.?B\.?|FRCR|FRCPC?|FACR|FRANZCR|MRCP|R\.N\.|RN|N\.P\.|PA-C|R\.?T\.?\(R\)"
    r"|DDS|CRNP|ARNP|MPH)"
)
_SAY_DR = r"(?:(?:Dr|DR|Prof)\.?[ ]*)*"
# MR, MS and DR in capitals are magnetic resonance, multiple sclerosis and digital radiography: as titles they need a stop.
_TITLED = re.compile(
    r"(?<![\w-])(?:(?:Dr|Drs|DRS|Mr|Mrs|MRS|Ms|Miss|Prof|Professor|Doctor|DOCTOR|Nurse|Herrn?|Frau)\b\.?|(?:DR|MR|MS|PROF)\."
    r"|(?:(?<=\bBY )|(?<=\bTO )|(?<=\bWITH )|(?<=\bAND )|(?<=\bPER ))DR\b)"
    rf"(?:[ ]*(?:med|Dr|Prof|habil|dent)\.)*[ ]*(?P<name>{_NAME})"
)
_TITLED_LOWER = re.compile(r"\b(?:dr|drs|mr|mrs|prof)\.?[ ]+(?P<name>[a-z][a-z'’-]{2,})")
_SECOND = re.compile(
    rf"(?<=\[NAME\])(?:,?[ ]+(?:and|und|&|AND)|,|/)[ ]+(?P<name>{_NAME})(?=[ ]*(?:[.,;)\n]|$|[ ](?:at|on|by|via|was|were)\b))"
)
_CREDENTIALED = re.compile(
    rf"(?<![\w.])(?P<name>(?:{_INITIAL}[ ]*){{0,2}}{_PART}(?:[ ]+(?:{_INITIAL}|{_PARTICLE}{{0,2}}{_PART})){{0,3}})"
    rf",?[ ]+{_DEGREE}(?!\w)"
)
_SIGNED = re.compile(
    r"(?i:\b(?:signed|dictated|transcribed|interpreted|verified|approved|authenticated|attested|finali[sz]ed|typed|prepared"
    r"|performed|ordered|requested|referred|reported|read)(?:[ ]+and[ ]+\w+)?[ ]*(?:off[ ]+)?by"
    rf"|\b(?:gez\.|unterzeichnet[ ]von|befundet[ ]von))[ ]*[:\-]?[ ]*{_SAY_DR}(?P<name>{_LAST_FIRST}|{_NAME})"
)
_LABELLED = re.compile(
    r"(?i:\b(?:(?:(?:patient(?:'s)?|last|first|middle|full|family|given|maiden|mother(?:'s)?)[ ]*)?name"
    r"|attending(?:[ ]+\w+)?|radiologist|physician|provider|technologist|sonographer|surgeon|resident|fellow|interpreter"
    r"|transcriptionist|author|cc|patientin|zuweiser|überweiser|arzt|ärztin))"
    rf"[ ]*[:=][ ]*{_SAY_DR}(?P<name>{_LAST_FIRST}|{_NAME})"
)
# "Patient: Intubated." names nobody: two words are asked for.
_PATIENT = re.compile(
    rf"(?i:\b(?:patient|pat\.?|pt))[ ]*[:=][ ]*(?P<name>{_LAST_FIRST}|{_PART}(?:[ ]+(?:{_INITIAL}|{_PART})){{1,3}})"
)
_TOLD = re.compile(
    r"(?i:\b(?:discussed|reviewed|communicated|conferred|spoke|spoken|conveyed|relayed|telephoned|called|paged|phoned|reported"
    r"|given|faxed)(?:[ ]+\w+){0,3}?[ ]+(?:with|to)|\bcourtesy[ ]of|\bcredit[ ](?:to|of))"
    rf"[ ]+(?P<name>(?:{_INITIAL}[ ]*|{_PART}[ ]+){{1,3}}{_PART})"
)
# Initials of who spoke and who typed, on a line of their own: "JKS/ab", "JS:tw".
_INITIALS = re.compile(
    r"(?m)^[ \t]*(?!(?:AP|PA|LAT|CT|MR|US|IV|RT|LT|LL|RL)\b)(?P<name>[A-Z]{2,3}[ ]?[/:][ ]?(?:[a-z]{2,3}|[A-Z]{2,3}))[ \t]*$"
)

# Surnames that are words of reports: alone they stay, beside another part of the name they go.
_WORDS = _NO_NAMES | frozenset(
    """
    apple baker ball bank banks bell best bishop black blood bloom bond bone bones booth bowel bowman brown bush butler
    carpenter carter christian coffin cook cross dean doctor drain dry early east effusion england english falls field fine
    fish flowers ford forest fox freeman french friend frost garden gibbon glass gold good grace grand gray green grey
    ground hall hardy hawk hill hilar holder hope horn house hunter hunt ice joint joy judge key king knight lake lamb land
    lane large lesion light little lobe long love low high luck major marks march mark martin mason mass middle mild miles
    miller mills minor moon moss nail new noble nodule north old olive page park peace pike pleural pole pond pope porter
    post potter power price prime rains ray rib rice rich ring rivers rock root rose rush sage sand savage sellers severe
    sharp short silver singer skinner small smart snow south spring steel stern stone storm street strong subtle summer swan
    swift tall taper taylor temple tissue tube turner vein wade walker wall walls ward waters weaver weeks well wells west
    white wide wild wing winter wise wolf wood woods worth young
    """.split()  # noqa: SIM905
)
_TOKEN = re.compile(r"[^\W\d_](?:[\w'’-]*\w)?")
_PLACE = re.compile(
    r"hospital|clinic|klinik|universit|cent(?:er|re)|institut|radiolog|praxis|krankenhaus|medical|health|imaging|college"
    r"|street|stra(?:ß|ss)e|avenue|road|department|abteilung",
    re.IGNORECASE,
)
_NO_HOSPITALS = _NO_NAMES | frozenset({"admitted", "discharged", "transferred", "transfer", "admission", "outside", "local"})

Test = Callable[[re.Match[str]], bool]


class _Text:
    """A text under work and the counts of what was found in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.counts: Counter[str] = Counter()

    def put(self, pattern: re.Pattern[str], kind: str, group: str = "", test: Test | None = None) -> None:
        """Replace each match (or its named group) by the mark of `kind`."""

        def replace(match: re.Match[str]) -> str:
            if test is not None and not test(match):
                return match.group()
            self.counts[kind] += 1
            start, end = match.span(group or 0)
            return match.string[match.start() : start] + _MARKS[kind] + match.string[end : match.end()]

        self.text = pattern.sub(replace, self.text)

    def put_name(self, pattern: re.Pattern[str], least: int = 1) -> bool:
        """Replace the group `name` up to its first word that is no name, where at least `least` words are left; if it did."""
        before = self.counts["name"]

        def replace(match: re.Match[str]) -> str:
            start, end = match.span("name")
            words = 0
            shouted = match["name"].isupper()
            for token in _TOKEN.finditer(match.string, start, end):
                # In capitals throughout, nothing tells where a name ends: two words and initials.
                initial = len(token.group()) == 1
                # A small word within a name is a particle: "van der Berg".
                ends = token.group().lower() in _NO_NAMES and (words == 0 or token.group()[0].isupper())
                if (ends and not initial) or (shouted and words == 2):
                    end = token.start()
                    break
                words += not initial
            if words < least:
                return match.group()
            name = match.string[start:end].rstrip(" ,")
            self.counts["name"] += 1
            return match.string[match.start() : start] + _MARKS["name"] + match.string[start + len(name) : match.end()]

        self.text = pattern.sub(replace, self.text)
        return self.counts["name"] > before


def scrub(text: str, known: Iterable[str] = ()) -> tuple[str, dict[str, int]]:
    """`text` with what identifies replaced by [NAME], [DATE], [ID], [LOCATION], [HOSPITAL] or [AGE], and what was found.

    Args:
        known: names ("Doe^John^Q", "Doe, John", "John Doe"), numbers and institutions that must not stay, in any case and
            order. A part of a name that is also a word of reports ("Long", "Hill") goes only beside another part of the
            name, or capitalised within a sentence.

    Returns:
        (text, counts): counts by kind: name, date, time, id, phone, email, url, address, hospital, age. Empty where nothing
        was found; then the text is unchanged. Idempotent.
    """
    work = _Text(text)
    work.put(forms.EMAIL, "email")
    work.put(forms.URL, "url")
    for pattern, kind in _known_patterns(frozenset(known)):
        work.put(pattern, kind)
    for pattern, least in (
        (_TITLED, 1),
        (_TITLED_LOWER, 1),
        (_SIGNED, 1),
        (_LABELLED, 1),
        (_PATIENT, 2),
        (_CREDENTIALED, 1),
        (_TOLD, 2),
        (_INITIALS, 0),
    ):
        work.put_name(pattern, least)
    while work.put_name(_SECOND):  # Dr. A, B and C
        pass
    work.put(forms.BIRTH_DATE, "date", "date")
    for pattern in forms.DATES:
        work.put(pattern, "date")
    work.put(forms.SHORT_DATE, "date", test=forms.is_short_date)
    work.put(forms.PARTIAL_DATE, "date", "date", test=forms.is_partial_date)
    work.put(forms.SOCIAL_SECURITY, "id")
    work.put(forms.LABELLED_NUMBER, "id", "id")
    for pattern in forms.PHONES:
        work.put(pattern, "phone", "id" if "id" in pattern.groupindex else "")
    work.put(forms.LONG_NUMBER, "id")
    work.put(forms.TIME, "time")
    for pattern in forms.ADDRESSES:
        work.put(pattern, "address")
    work.put(forms.ROOM, "address", "id")
    work.put(forms.HOSPITAL, "hospital", "name", test=_is_hospital)
    work.put(forms.AGE, "age")
    return work.text, {kind: n for kind, n in work.counts.items() if n}


def _is_hospital(match: re.Match[str]) -> bool:
    """Whether another word than "The" or "Medical" stands before "Hospital"."""
    words = _TOKEN.findall(match["name"])
    return any(w.lower() not in _NO_HOSPITALS for w in words[:-1] if w.lower() not in ("of", "medical", "health"))


@lru_cache(maxsize=256)
def _known_patterns(known: frozenset[str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Patterns of what is known: whole phrases first, then parts of names beside one another, then parts alone."""
    phrases: dict[str, set[str]] = {"id": set(), "hospital": set()}
    parts: set[str] = set()
    for entry in known:
        text = entry.strip(" ^=,\0")
        if any(c.isdigit() for c in text) and "^" not in text:
            phrases["id"].update(number(t) for t in (text, digits_of(text)) if len(re.sub(r"\W", "", t)) >= 3)
        elif _PLACE.search(text) or ("^" not in text and len(_TOKEN.findall(text)) > 4):
            phrases["hospital"].add(phrase(text))
        else:
            parts.update(w for w in TOKEN.findall(text) if len(w) > 1 or w.isupper() or unspaced(w))
    return tuple(_build(phrases, parts))


def _build(phrases: dict[str, set[str]], parts: set[str]) -> Iterator[tuple[re.Pattern[str], str]]:
    for kind, patterns in phrases.items():
        if patterns:
            yield re.compile("|".join(sorted(patterns, key=len, reverse=True)), re.IGNORECASE), kind
    for pattern in joined(parts):
        yield re.compile(pattern, re.IGNORECASE), "name"
    # Written without spaces: no rule of letters, words and capitals holds.
    wide = sorted((re.escape(p) for p in parts if unspaced(p) and telling(p)), key=len, reverse=True)
    if wide:
        yield re.compile("|".join(wide)), "name"
    plain = sorted((p for p in parts if len(p) > 1 and not unspaced(p)), key=len, reverse=True)
    if not plain:
        return
    word = f"(?:{'|'.join(map(spelled, plain))})"
    joint = r"(?:,[ ]*|[ _]+|[-^][ ]?)"
    # "Hill, John A.", "J. Hill": beside another part or an initial every part counts, a word of reports too.
    beside = rf"{NO_LETTER_BEFORE}{word}(?:{joint}(?:{word}|[A-Za-z]\.|[A-Z](?=\W)))*{joint}{word}{NO_LETTER_AFTER}"
    yield re.compile(beside, re.IGNORECASE), "name"
    initials = "".join(sorted({p[0].upper() for p in parts if not unspaced(p)}))
    yield re.compile(rf"{NO_LETTER_BEFORE}(?:[{initials}]\.[ ]?)+(?i:{word}){NO_LETTER_AFTER}"), "name"
    alone = [bounded(w) for w in plain if len(w) > 2 and w.lower() not in _WORDS]
    if alone:
        yield re.compile("|".join(alone), re.IGNORECASE), "name"
    # "told House on": capitalised within a sentence, and not in a title ("the Normal Heart Size").
    capital = [re.escape(w.capitalize()) for w in plain if len(w) > 2 and w.lower() in _WORDS]
    if capital:
        yield re.compile(rf"(?<=[a-z][ ])(?:{'|'.join(capital)})(?!\w)(?![ ][A-Z])"), "name"
