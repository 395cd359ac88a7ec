"""Patterns of dates, times, numbers and places in report text. English, with the German forms that differ.

Each says what it must not take: ribs 3/4, grade 3/6, T2, 3.2 x 4.1 cm, May as a verb.
"""

from __future__ import annotations

import re

_MONTH = (
    r"(?:Jan(?:uary|uar)?|Feb(?:ruary|ruar)?|Mar(?:ch)?|März|Mrz|Apr(?:il)?|May|Mai|June?|Juni|July?|Juli|Aug(?:ust)?"
    r"|Sept?(?:ember)?|O[ck]t(?:ober)?|Nov(?:ember)?|De[cz](?:ember)?)"
)
_MONTH_WRITTEN = rf"(?:{_MONTH}|{_MONTH.upper()})"
_YEAR = r"(?:19|20)\d{2}"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_NTH = r"(?:st|nd|rd|th)"
_CLOCK = r"(?:[ T]?\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?"
_PICTURES = r"ribs?|views?|images?|slices?|films?|series|sequences?"
_UNIT_AFTER = r"(?![ ]*(?:mm|cm|[µu]m|ml|mg|cc|x|×|%|/)(?!\w))"
_NO_UNIT = rf"(?![ ]*(?:mm|cm|ml|mg|cc|x|×|%|{_PICTURES})\b)"

DATES = tuple(
    re.compile(p)
    for p in (
        rf"(?<![\d.]){_YEAR}[-/.](?:0?[1-9]|1[0-2])[-/.]{_DAY}(?!\d){_CLOCK}",
        rf"(?<![\d./-]){_DAY}[-/.]{_DAY}[-/.]{_YEAR}(?!\d)",
        rf"(?<![\d.]){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)",
        rf"\b(?i:{_MONTH})\.?[ ]+{_DAY}(?:{_NTH}|\.)?,?[ ]+(?:of[ ]+)?{_YEAR}\b",
        rf"(?<![\d.]){_DAY}(?:{_NTH}|\.)?(?:[ ]+of)?[ ,./-]*(?i:{_MONTH})\.?[ ,./-]*{_YEAR}\b",
        rf"(?<![\d.]){_DAY}[- ](?:{_MONTH_WRITTEN})[- ]'?\d{{2}}\b",
        rf"\b(?i:{_MONTH})\.?,?[ ]+(?:of[ ]+)?{_YEAR}\b",
        rf"(?<![\d./-])(?:0?[1-9]|1[0-2])/{_YEAR}\b",
        rf"(?<![\d./-]){_YEAR}-(?:0[1-9]|1[0-2])(?![\d-])",
        # Without a year: the month capitalised, never "may 5 mm" or "1 may represent".
        rf"\b{_MONTH_WRITTEN}\.?[ ]+{_DAY}{_NTH}?\b(?!\.\d)(?![/-]\d){_NO_UNIT}",
        rf"(?<![\d.]){_DAY}(?:{_NTH}|\.)?(?:[ ]+of)?[ ]+{_MONTH}\b(?![ ]+(?:be|have|represent|reflect|also|not)\b)",
    )
)

# With a year of two digits: 3/4/19, 03.04.19.
SHORT_DATE = re.compile(
    rf"(?<![\w./-])(?:(?P<a>{_DAY})(?P<sep>[/-])(?P<b>{_DAY})(?P=sep)\d{{2}}|(?P<c>\d{{2}})\.(?P<d>\d{{2}})\.\d{{2}})"
    rf"(?![\w/-]|\.\d){_NO_UNIT}"
)
_LIST_BEFORE = re.compile(
    r"\b(?:ribs?|levels?|images?|series|slices?|zones?|stations?|segments?|digits?|metacarpals?|metatarsals?|vertebra[le]?"
    r"|vertebrae|discs?|disks?|grades?|fingers?|toes?|rays?|nerves?|leads?|views?|teeth|tooth|[LTCS])[ #]*$",
    re.IGNORECASE,
)
# Without a year, in figures: only where a word says that a date follows.
PARTIAL_DATE = re.compile(
    r"(?i:\b(?:dated|on|since|(?:compared?|comparison)(?:[ ]+(?:is[ ]+made[ ]+)?(?:to|with))?:?"
    r"(?:[ ]+(?:the|prior|previous|study|exam|examination|film|radiograph|ct|from|of|dated))*"
    r"|(?:study|studies|exam|examination|radiographs?|films?|ct|cxr|x-?ray|mri|scan|prior)[ ]+(?:of|from|dated|on)"
    r"(?:[ ]+the)?))"
    rf"[ ]+(?P<date>(?P<a>{_DAY})/(?P<b>{_DAY}))(?![\d/])"
    rf"(?![ ]*(?i:mm|cm|{_PICTURES}|occasions?|of|the|strength|murmur|systolic|diastolic|motor|power|lobes?)\b|%)"
)
BIRTH_DATE = re.compile(
    r"(?i:\b(?:dob|d\.o\.b\.|date[ ]of[ ]birth|birth[ ]?date|born(?:[ ]on)?|geb(?:\.|oren)?(?:[ ]am)?)[ ]*[:=]?[ ]*)"
    rf"(?P<date>{_DAY}[-/. ]+(?:{_DAY}|(?i:{_MONTH}))[-/. ,]+\d{{2,4}}|{_YEAR})"
)


def is_short_date(match: re.Match[str]) -> bool:
    """Whether one of the first two figures can be a month, and no list of ribs or levels is being counted."""
    first, second = int(match["a"] or match["c"]), int(match["b"] or match["d"])
    return (
        1 <= min(first, second) <= 12 and max(first, second) <= 31 and not _LIST_BEFORE.search(match.string, 0, match.start())
    )


def is_partial_date(match: re.Match[str]) -> bool:
    return min(int(match["a"]), int(match["b"])) <= 12


_HOUR = r"(?:[01]?\d|2[0-3])"
TIME = re.compile(
    rf"(?<![\d:]){_HOUR}(?::[0-5]\d){{0,2}}[ ]?(?:[ap]\.m\.|[AP]\.M\.|[apAP][mM]\b)"
    rf"|(?<![\d:.]){_HOUR}:[0-5]\d(?::[0-5]\d(?:\.\d+)?)?[ ]?(?:hours|hrs|hr|h|Uhr|EST|EDT|CST|CDT|PST|PDT|UTC|GMT)\b"
    r"|(?<![\d:.])(?:[01]\d|2[0-3])[0-5]\d[ ](?:hours|hrs)\b"
    # "at 10:30", but "at the 10:30 position" is a place in the breast and 1:40 a dilution.
    r"|(?:(?<=\b[Aa]t )|(?<=\bAT )|(?<=@ )|(?<=@)|(?<=\bum )|(?<=ime: )|(?<=\[DATE\] )|(?<=\[DATE\], ))"
    rf"{_HOUR}:[0-5]\d(?::[0-5]\d)?(?![\d:])(?![ -]?(?:o'?clock|position|axis|radian|ratio|dilution|titer))"
)

LABELLED_NUMBER = re.compile(
    r"(?i:\b(?:mrn|mr[ ]?#|medical[ ]record(?:[ ]*(?:number|no\.?|#))?|accession(?:[ ]*(?:number|no\.?|#))?"
    r"|acc(?:\.|(?=:)|[ ]*(?:no\.?|#|number))|(?:patient|pat\.?|pt|case|study|exam|account|acct|order|visit|encounter|record"
    r"|chart|clip|requisition|specimen|file|insurance|policy|licen[sc]e|certificate|serial|device|member)"
    r"[ ]*(?:identification|ident|id|number|no\.?|nr\.?|#)(?:[ ]*\([a-z]+\))?"
    r"|r?id(?=[ ]*[:#=])|ssn|social[ ]security(?:[ ]number)?|fallnummer|fall-?nr\.?|patienten-?(?:nr\.?|nummer|id)"
    r"|pat\.?-?nr\.?))"
    r"[ ]*(?:is[ ]+)?[:#=]*[ ]*(?P<id>(?=[\w./-]*\d)[A-Za-z0-9][\w./-]*\w|\d)(?!\w)"
    rf"{_UNIT_AFTER}"
)
SOCIAL_SECURITY = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
LONG_NUMBER = re.compile(r"(?<![\w.,-])[A-Z]{0,3}\d{7,}(?![\w]|[.,]\d)")
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
URL = re.compile(
    r"\b(?:https?|ftp)://[^\s)>\]]+|\bwww\.[^\s)>\]]+|\b[\w-]{2,}\.(?:com|org|edu|net|gov)\b(?:/\S*)?", re.IGNORECASE
)
PHONES = (
    re.compile(
        r"(?i:\b(?:(?:tele)?phone|tel|fax|pager|beeper|bleep|cell|mobile|telefon|durchwahl)"
        r"(?:[ ]*(?:number|no\.?|nr\.?|#))?\.?)"
        r"[ ]*(?:is[ ]+)?[:#]?[ ]*(?P<id>(?>[+(]?\d[\d ()./-]{1,18}(?<=\d)))(?!\d)"
        rf"{_UNIT_AFTER}(?![ ]*per\b)"
    ),
    re.compile(r"(?i:\b(?:ext|extension)\.?)[ ]*[:#]?[ ]*(?P<id>\d{4,6})\b"),
    re.compile(
        r"(?<![\d.-])(?:\+?\d{1,3}[ .-])?(?:\(\d{3}\)[ ]?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\d-])(?:[ ]*(?:x|ext\.?)[ ]*\d+)?"
    ),
    re.compile(r"(?<![\w.])\+\d{2}[ (]?[\d /().-]{6,16}\d(?!\w)"),
    re.compile(r"(?<![\w.,/-])0\d{2,4}[ ]?[/-][ ]?\d{3,8}(?:[ -]\d{1,6})?(?![\w/.])"),
    re.compile(r"(?<![\w.-])[2-9]\d{2}-\d{4}(?![\w-]|\.\d)"),
)

_STREET = (
    r"(?:Street|Avenue|Road|Boulevard|Lane|Drive|Court|Way|Place|Terrace|Square|Highway|Parkway"
    r"|STREET|AVENUE|ROAD|BOULEVARD|LANE|DRIVE|(?:St|Ave|Rd|Blvd|Ln|Pkwy|Hwy)\b\.?)"
)
_STATE = r"(?:A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[AT]|W[AIVY])"
_TOWN = r"(?:[A-Z][\w.]+[ ]){0,2}[A-Z][\w.]+"
ADDRESSES = (
    re.compile(
        rf"(?<![\w./-])\d{{1,5}}[A-Za-z]?[ ]+(?:[NSEW]\.?[ ]+)?(?:[A-Z0-9][\w'’]*[ ]+){{1,3}}?{_STREET}(?!\w)"
        rf"(?:,?[ ]+(?:Apt|Suite|Ste|Unit|#)\.?[ ]*\w+)?(?:,[ ]*{_TOWN})?(?:,?[ ]*{_STATE}(?:[ ]+\d{{5}}(?:-\d{{4}})?)?\b)?"
    ),
    re.compile(
        r"\b[A-ZÄÖÜ][\w-]*(?:straße|strasse|str\.|weg|allee|gasse|platz)[ ]+\d{1,4}[a-z]?\b"
        r"(?:,?[ ]+(?:D-)?\d{5}[ ]+[A-ZÄÖÜ][\w-]+)?"
    ),
    re.compile(r"\bP\.?[ ]?O\.?[ ]Box[ ]+\d+", re.IGNORECASE),
    re.compile(rf"\b(?:{_TOWN},[ ]+)?{_STATE}[ ]+\d{{5}}(?:-\d{{4}})?\b"),
    re.compile(r"\bD-\d{5}[ ]+[A-ZÄÖÜ][\w-]+"),
)
ROOM = re.compile(
    r"(?i:\b(?:room|rm|bed)[ ]*(?:no\.?|number|#)?[ ]*[:#]?[ ]*)(?P<id>\d{2,5}[A-Za-z]?)\b(?![ ]*(?:mm|cm|degrees|minutes))"
)
HOSPITAL = re.compile(
    r"(?<![\w-])(?P<name>(?:[A-ZÄÖÜ][\w'’&.-]+[ ]+(?:(?:of|for|and)[ ]+)?){0,4}?[A-ZÄÖÜ][\w'’&.-]+[ ]+"
    r"(?:Hospital|Medical[ ]Cent(?:er|re)|Clinic|Infirmary|Health[ ]System|Klinikum|Krankenhaus|Hospice)"
    r"(?:[ ]+of(?:[ ][A-Z][\w'’]+){1,3})?)(?!\w)"
)
# Above 89 a person stands out.
AGE = re.compile(
    r"\b(?:9\d|1[0-2]\d)(?=[ -]*(?:years?|yrs?|y)[ .-]*(?:old|o\b)|[ ]*(?:yo|y/o|y\.o\.)(?!\w)|-?[ ]?jährig|[ ]?Jahre[ ]alt"
    r"|[ -]+year\b|[ ]?[MF]\b(?![\w-]))"
    r"|(?:(?<=\b[Aa]ged )|(?<=\b[Aa]ge )|(?<=\b[Aa]ge: )|(?<=\bAGE: )|(?<=\bAGE ))(?:9\d|1[0-2]\d)\b(?![ ]*(?:mm|cm|%|-))"
)
