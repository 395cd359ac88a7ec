"""The table of reports: text scrubbed by rules and by what the images know, ids and paths as the codes of the images."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medfm.data.deidentify.codes import Codes
from medfm.data.deidentify.config import DeidentifyOptions
from medfm.errors import ConfigError
from medfm.registry import suggest

_TEXT = ("report", "text", "report_text", "findings", "impression")
_PATIENT = ("patient_id", "patientid", "subject_id", "patient", "subject", "mrn")
_IDS = frozenset(
    {
        "studyinstanceuid", "study_instance_uid", "study_uid", "seriesinstanceuid", "series_instance_uid", "series_uid",
        "sopinstanceuid", "sop_instance_uid", "accessionnumber", "accession_number", "accession", "study_id", "dicom_id",
    }
)  # fmt: skip
_PATHS = frozenset({"image", "path", "image_path", "file", "filename", "dicom_path"})
# Columns left out whose cells may name the patient or the staff: their words are searched for in the row's text.
_TELLING = re.compile(
    r"name|patient|mrn|phys|doctor|radiolog|refer|attend|author|sign|hospital|instit|clinic|address|phone|acc|id$|operator|techn"
    r"|reader|provider|staff|nurse|dictat|transcri|verif|approv|arzt|ärzt|zuweis|überweis|ueberweis|einweis|befunder|befundet"
    r"|untersucher|einsender|klinik|\bnom\b|prenom|prénom|m[eé]decin|nombre|apellido|m[eé]dico|cognome",
    re.IGNORECASE,
)
# Their cells speak of illness and technique: "Pneumonia" in a column of the clinical history must stay in the text.
_CLINICAL = re.compile(
    r"clinical|histor|indicat|procedure|exam|modalit|label|finding|diagnos|sign(?!ed|er|atur|_?off)|symptom|body|protocol|series"
    r"|sex$|gender|class|file|descr|vaccin|accura|acceler|status|type$|view|dose|technique|study_?name|anamnes|diagnose",
    re.IGNORECASE,
)
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)+")


@dataclass
class TableReport:
    """What became of the table: counts and column names, no cells."""

    rows: int = 0
    written: str = ""
    text: list[str] = field(default_factory=list)
    coded: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    replaced: dict[str, int] = field(default_factory=dict)
    paths_missing: int = 0


@dataclass
class Lookup:
    """What the images of this run know, in memory only.

    Attributes:
        known: patient code -> names, numbers, places of its files.
        outputs: input path below `in` (posix) -> output path.
    """

    known: Mapping[str, frozenset[str]]
    outputs: Mapping[str, str]


def _column(columns: list[str], name: str, key: str) -> str:
    if name not in columns:
        hint = suggest(name, columns) or f"; it has {', '.join(columns[:20])}"
        raise ConfigError(f"{key}={name}: the table of reports has no such column{hint}")
    return name


def choose_columns(columns: list[str], config: DeidentifyOptions) -> dict[str, str]:
    """Column -> "text", "patient", "id", "path", "keep" or "drop".

    Raises:
        ConfigError: a column named in the config is not there, or is named for two purposes.
    """
    named: dict[str, str] = {}
    asked = [
        *(("text", "text", c) for c in config.text),
        *(("patient", "patient", c) for c in (config.patient,) if c),
        *(("ids", "id", c) for c in config.ids),
        *(("paths", "path", c) for c in config.paths),
        *(("keep", "keep", c) for c in config.keep),
    ]
    for key, role, name in asked:
        if named.get(_column(columns, name, key), role) != role:
            raise ConfigError(f"{key}={name}: the column is already named as {named[name]}")
        named[name] = role
    taken = set(named.values())
    chosen: dict[str, str] = {}
    for column in columns:
        plain = column.strip().lower().replace(" ", "_")
        role = named.get(column, "drop")
        if role == "drop":
            if "text" not in taken and plain in _TEXT:
                role = "text"
            elif "patient" not in taken and plain in _PATIENT and "patient" not in chosen.values():
                role = "patient"
            elif "id" not in taken and plain in _IDS:
                role = "id"
            elif "path" not in taken and plain in _PATHS:
                role = "path"
        chosen[column] = role
    return chosen


def clean_table(config: DeidentifyOptions, codes: Codes, lookup: Lookup) -> TableReport:
    """Write out/reports.csv.

    Raises:
        ConfigError: a named column is missing; no column of text is found.
        DataError: the table cannot be read.
    """
    from medfm.data.table import read_table
    from medfm.io.files import atomic_write
    from medfm.text.deidentify import scrub

    if config.reports is None:
        raise ValueError("no table of reports is configured")
    frame = read_table(config.reports, config.encoding)
    columns = [str(c) for c in frame.columns]
    roles = choose_columns(columns, config)
    report = TableReport(rows=len(frame))
    report.text = [c for c in columns if roles[c] == "text"]
    report.coded = [c for c in columns if roles[c] in ("patient", "id", "path")]
    report.kept = [c for c in columns if roles[c] == "keep"]
    report.dropped = [c for c in columns if roles[c] == "drop"]
    if not report.text:
        raise ConfigError(f"no column of report text among {', '.join(columns[:20])}; name it with text=COLUMN")
    patient_column = next((c for c in columns if roles[c] == "patient"), None)
    telling = [c for c in columns if _tells(c, roles[c])]
    everyone: frozenset[str] = frozenset()
    if patient_column is None:
        everyone = everyone.union(*lookup.known.values())
    counts: Counter[str] = Counter()
    for index, row in zip(frame.index, frame.to_dict("records"), strict=True):
        patient = codes.patient(row[patient_column]) if patient_column is not None and row[patient_column].strip() else ""
        mine = {_as_known(c, row[c]) for c in telling if 1 < len(row[c].strip()) <= 80}
        for column in report.text:
            text = row[column]
            # Two passes: patterns of `everyone` are built once, those of a row for the row.
            for known in (mine | lookup.known.get(patient, frozenset()), everyone):
                text, found = scrub(text, known)
                counts.update(found)
            frame.at[index, column] = text
        for column in report.coded:
            frame.at[index, column] = _coded(row[column], roles[column], codes, lookup, report)
    report.replaced = dict(counts.most_common())
    frame = frame[[c for c in columns if roles[c] != "drop"]]
    target = config.out / "reports.csv"
    with atomic_write(target) as temporary:
        frame.to_csv(temporary, index=False)
    report.written = target.name
    return report


def _tells(column: str, role: str) -> bool:
    """Whether the cells of a column may hold names or numbers that the text must not."""
    if role in ("patient", "id"):
        return True
    return role == "drop" and _TELLING.search(column) is not None and _CLINICAL.search(column) is None


def _as_known(column: str, cell: str) -> str:
    text = cell.strip()
    person = not any(c.isdigit() for c in text) and not re.search(r"hospital|instit|clinic|address", column, re.IGNORECASE)
    return f"{text}^" if person else text


def _coded(value: str, role: str, codes: Codes, lookup: Lookup, report: TableReport) -> str:
    text = value.strip()
    if not text:
        return ""
    if role == "patient":
        return codes.patient(text)
    if role == "id":
        return codes.uid(text) if _UID.fullmatch(text) else codes.number(text)
    plain = text.replace("\\", "/").removeprefix("./")
    if plain not in lookup.outputs:
        report.paths_missing += 1
        return ""
    return lookup.outputs[plain]


def known_by_patient(files: Iterable[tuple[Path, str, str]]) -> dict[str, frozenset[str]]:
    """Patient code -> what its images know, from one file a study.

    Args:
        files: (input file, patient code, study code).
    """
    from medfm.data.deidentify.known import known_of
    from medfm.errors import DataError
    from medfm.io.dicom import read_dataset
    from medfm.io.pixels import quiet

    found: dict[str, set[str]] = defaultdict(set)
    seen: set[tuple[str, str]] = set()
    for path, patient, study in files:
        if (patient, study) in seen:
            continue
        seen.add((patient, study))
        try:
            with quiet():
                found[patient] |= known_of(read_dataset(path))
        except DataError:  # it was readable a moment ago
            continue
    return {patient: frozenset(words) for patient, words in found.items()}
