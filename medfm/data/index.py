"""`medfm index`: a folder of images and a table of reports -> a manifest, and an account of what was left out and why."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from medfm.data.check import inside
from medfm.data.index_config import IndexConfig
from medfm.data.index_report import IndexReport, group_reasons, render, write_rejected
from medfm.data.manifest import LABEL_PREFIX, Manifest, complete, counts, write_manifest
from medfm.data.scan import Item, Scan, scan
from medfm.data.sequences import group_sequences
from medfm.data.splits import assign_split, leaks, position, split_name
from medfm.data.values import normalise_age, normalise_modality, normalise_path, normalise_sex, normalise_view, parse_label
from medfm.errors import ConfigError, DataError
from medfm.registry import suggest

if TYPE_CHECKING:
    import pandas as pd

    from medfm.data.cards import DataCard
    from medfm.data.join import Join

# Columns that are taken when they bear exactly this name (any case) and no option names another.
_USUAL = {
    "patient": ("patient_id", "patientid", "patient", "subject_id", "subject"),
    "study": ("study_id", "studyid", "study"),
    "view": ("view", "view_position", "viewposition"),
    "modality": ("modality",),
    "split": ("split",),
    "sex": ("sex", "gender"),
    "age": ("age",),
    "mask": ("mask",),
}
_FIELDS = ("patient_id", "study_id", "view", "modality", "split", "sex", "age", "mask")
_TEXTS = ("report", "report_text", "text")


@dataclass(slots=True)
class _Row:
    """A manifest row before ids are coded and splits are drawn; all values are texts as found."""

    path: str
    patient: str = ""
    study: str = ""
    view: str = ""
    modality: str = ""
    split: str = ""
    report: str = ""
    sex: str = ""
    age: str = ""
    mask: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    header: dict[str, str] = field(init=False, default_factory=dict)  # ids as the header has them
    private: set[str] = field(init=False, default_factory=set)  # ids that are no table's or path's: coded


def index(config: IndexConfig, progress: bool = False) -> IndexReport:
    """Build and write a manifest.

    Ids: a patient or study id that comes from a DICOM header, from a file name, or from a table column that no option names is
    replaced by a code (p000001 in the sorted order of the ids); ids of a named column, and of a card that says they are public,
    stay. Splits are drawn by patient from the raw id, so that adding data moves nobody.

    Raises:
        ConfigError: columns that do not exist, a join that is ambiguous.
        DataError: nothing to index; a table that cannot be read; with on_error=fail, anything rejected, all listed.
    """
    return _from_table(config, progress) if config.card is None else _from_card(config, progress)


def _from_card(config: IndexConfig, progress: bool) -> IndexReport:
    from medfm.data import layout as layouts
    from medfm.data.cards import load_card

    card = load_card(config.card or "")
    root = Path(config.root or config.images or ".")
    found = scan(
        root, layouts.find(root, card.layout), config.check_files, config, _journal(config), progress, tilt=config.tilt
    )
    applied = layouts.apply(root, [i.path for i in found.items], card.layout)
    found.rejected += applied.rejected
    items = [i for i in found.items if i.path in applied.variables]
    found.items = _of_modalities(found, items, card.layout.modalities)
    whole = group_sequences(found, config.sequences) if config.sequences else {}
    items = found.items
    variables = [applied.variables[i.path] for i in items]
    labels = layouts.label_values(variables, card.layout.labels)
    texts: dict[tuple[str, str], tuple[str, str]] = {}
    rows = []
    for i, (item, values) in enumerate(zip(items, variables, strict=True)):
        of = {
            c: layouts.column(values, card.layout, c)
            for c in ("patient_id", "study_id", "view", "modality", "split", "sex", "age", "mask")
        }
        report = layouts.column(values, card.layout, "report")
        if card.layout.reports and not report:
            key = (of["patient_id"], of["study_id"] or item.path)
            if key not in texts:
                texts[key] = layouts.report_text(config.reports or root, values, card.layout)
            report, problem = texts[key]
            if problem:
                found.rejected.append((item.path, problem))
                continue
        row = _Row(
            whole.get(item.path, item.path),
            patient=of["patient_id"],
            study=of["study_id"],
            report=report,
            labels={name: column[i] for name, column in labels.items()},
            **{c: of[c] for c in ("view", "modality", "split", "sex", "age", "mask")},
        )
        if whole:
            row.view = ""  # of the first sequence alone
        rows.append(_with_header(row, item))
    columns: dict[str, str] = {c: " or ".join(v) for c, v in card.layout.columns.items()}
    if card.layout.reports:
        columns["report"] = card.layout.reports[0]
    return _finish(config, found, rows, card=card, public=card.public_ids, columns=columns, notes=applied.notes)


def _of_modalities(found: Scan, items: list[Item], wanted: Collection[str]) -> list[Item]:
    """Without images of another modality than those that a card keeps, where it says so."""
    kept = []
    for item in items:
        if wanted and item.header is not None and item.header.modality not in wanted:
            found.rejected.append((item.path, f"modality is '{item.header.modality}', the card keeps {', '.join(wanted)}"))
        else:
            kept.append(item)
    return kept


def _from_table(config: IndexConfig, progress: bool) -> IndexReport:
    images = Path(config.images or ".")
    root = Path(config.root or images)
    if not images.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"images={images} does not lie in root={root}")
    if images.is_file() or not images.is_dir():
        raise ConfigError(f"images={images} is no folder")
    if config.check_files == "none":
        raise ConfigError("check_files=none needs a card: without one, patients and series are read from the headers")
    # Below the folder as it is spelled by `root`, so that paths are relative to it.
    start = root / images.resolve().relative_to(root.resolve())
    found = scan(root, None, config.check_files, config, _journal(config), progress, start, config.tilt)
    if not found.items:
        detail = "; ".join(f"{n:,} {reason}" for reason, (n, _) in list(group_reasons(found.rejected).items())[:5])
        raise DataError(f"no usable image below '{images}'" + (f": {detail}" if detail else ""))
    whole = group_sequences(found, config.sequences) if config.sequences else {}
    if config.reports is None:
        rows = [_with_header(_Row(whole.get(i.path, i.path)), i) for i in found.items]
        return _finish(config, found, rows, public=False, columns={}, notes=["no report table: reports and labels are empty"])
    from medfm.data.join import find_join
    from medfm.data.table import read_table

    frame = read_table(Path(config.reports), config.encoding)
    columns = _columns(config, frame)
    masks = _set_masks_aside(found, frame, columns.get("mask"))
    other = {columns[r] for r in ("mask", "split", "view", "sex", "age", "modality") if r in columns} | set(columns["labels"])
    join = find_join(found.items, frame, config.on, config.match, Path(config.reports).name, other)
    rows = _joined_rows(config, found, frame, join, columns)
    for row in rows:
        row.path = whole.get(row.path, row.path)
    used = {i for r in join.rows for i in r}
    notes = [f"{masks:,} files are masks of the column '{columns['mask']}'"] if masks else []
    if len(used) < len(frame):
        notes.append(
            f"{len(frame) - len(used):,} of {len(frame):,} rows of {Path(config.reports).name} are about no image here"
        )
    named = {k: v for k, v in columns.items() if isinstance(v, str)}
    origin = {k: f"column '{v}'" for k, v in named.items()}
    origin |= {"report": " + ".join(f"'{c}'" for c in columns["text"])} if columns["text"] else {}
    public = config.patient is not None
    return _finish(
        config, found, rows, public=public, study_public=config.study is not None, columns=origin, notes=notes, joined=str(join)
    )


def _journal(config: IndexConfig) -> Path:
    """Where an interrupted run goes on; deleted when the manifest is written."""
    return config.out.with_name(config.out.name + ".journal")


def _columns(config: IndexConfig, frame: pd.DataFrame) -> dict[str, Any]:
    """Role -> column name; "text" and "labels" -> lists. Raises ConfigError for a column that does not exist."""
    known = [str(c) for c in frame.columns]
    lower = {c.lower(): c for c in known}
    wanted = {k: getattr(config, k) for k in _USUAL}
    for role, name in [*wanted.items(), *(("text", t) for t in config.text), *(("labels", n) for n in config.labels)]:
        if name is not None and name not in known and not name.endswith("*"):
            hint = suggest(name, known) or f"; it has {', '.join(known[:20])}"
            raise ConfigError(f"{role}={name}: table '{config.reports}' has no such column{hint}")
    found: dict[str, Any] = {}
    for role, usual in _USUAL.items():
        column = wanted[role] or next((lower[u] for u in usual if u in lower), None)
        if column is not None:
            found[role] = column
    found["text"] = list(config.text) or _text_columns(frame, lower)
    if not found["text"] and config.text_kind != "none" and not config.labels:
        raise ConfigError(
            f"table '{config.reports}' has no column named {', '.join(_TEXTS)}, findings or impression that holds text: "
            f"name it with text=COLUMN, or set text_kind=none. It has {', '.join(known[:20])}"
        )
    patterns = config.labels or ("label:*",)
    found["labels"] = [c for p in patterns for c in known if c == p or (p.endswith("*") and c.startswith(p[:-1]))]
    if config.labels and not found["labels"]:
        raise ConfigError(
            f"labels={list(config.labels)}: table '{config.reports}' has no such column; it has {', '.join(known[:20])}"
        )
    return found


def _text_columns(frame: pd.DataFrame, lower: dict[str, str]) -> list[str]:
    def filled(name: str) -> bool:
        return name in lower and any(v.strip() for v in frame[lower[name]])

    for name in _TEXTS:
        if filled(name):
            return [lower[name]]
    return [lower[n] for n in ("findings", "impression") if filled(n)]


def _text(values: dict[str, str], columns: list[str]) -> str:
    if len(columns) == 1:
        return values[columns[0]]
    return "\n\n".join(f"{c.upper()}: {values[c].strip()}" for c in columns if values[c].strip())


def _joined_rows(config: IndexConfig, found: Scan, frame: pd.DataFrame, join: Join, columns: dict[str, Any]) -> list[_Row]:
    names = [str(c) for c in frame.columns]
    table = Path(config.reports or "").name
    roles = [c for c in (*(columns.get(r) for r in _USUAL), *columns["text"], *columns["labels"]) if c]
    cells = frame.to_dict("list")
    rows = []
    for item, places in zip(found.items, join.rows, strict=True):
        if not places:
            found.rejected.append((item.path, f"no row in {table} (by {join.column})"))
            continue
        different = {tuple(cells[c][p] for c in roles) for p in places}
        if len(different) > 1:
            found.rejected.append(
                (item.path, f"several different rows in {table} (by {join.column}); join by a column that is unique")
            )
            continue
        values = {c: cells[c][places[0]] for c in names}
        row = _Row(item.path, report=_text(values, columns["text"]) if columns["text"] else "")
        for role in _USUAL:
            if role in columns:
                setattr(row, role, values[columns[role]].strip())
        row.mask = normalise_path(row.mask)
        problem = "" if inside(row.mask, found.root) else "its mask lies outside of root, below which all must lie"
        problem = problem or _read_labels(row, values, columns["labels"])
        if problem:
            found.rejected.append((item.path, problem))
            continue
        rows.append(_with_header(row, item))
    return rows


def _set_masks_aside(found: Scan, frame: pd.DataFrame, column: str | None) -> int:
    """Files that the mask column names, or that lie in a folder it names, are no images of their own. Returns how many."""
    if column is None:
        return 0
    masks = {normalise_path(m) for m in frame[column] if m.strip()}
    kept = [i for i in found.items if masks.isdisjoint((i.path, *(p.as_posix() for p in PurePosixPath(i.path).parents)))]
    aside = len(found.items) - len(kept)
    found.items = kept
    return aside


def _read_labels(row: _Row, values: dict[str, str], columns: list[str]) -> str:
    """Fill `row.labels`; returns why it cannot be done, or ''."""
    for column in columns:
        text = values[column].strip()
        if text.startswith("{"):
            try:
                row.labels |= {
                    str(k): "" if v is None else f"{v:d}" if isinstance(v, bool) else str(v)
                    for k, v in json.loads(text).items()
                }
            except ValueError:
                return f"column '{column}' holds no readable JSON"
        else:
            row.labels[column.removeprefix(LABEL_PREFIX)] = text
    return ""


def _with_header(row: _Row, item: Item) -> _Row:
    """What the table leaves open comes from the header."""
    header = item.header
    if header is not None:
        row.header = {"patient": header.patient_id, "study": header.study_id}
        row.view = row.view or header.view
        row.modality = row.modality or header.modality
        row.sex = row.sex or header.sex
        row.age = row.age or ("" if header.age is None else str(header.age))
    return row


def _fill_ids(rows: list[_Row]) -> None:
    """An id that the table or the path leaves open is the one that they give other images of the same header's id, so that no
    patient becomes two; else the header's."""
    for role in ("patient", "study"):
        given: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if getattr(row, role):
                given[row.header.get(role, "")].add(getattr(row, role))
        for row in rows:
            raw = row.header.get(role, "")
            if raw and not getattr(row, role):
                setattr(row, role, next(iter(given[raw])) if len(given[raw]) == 1 else raw)
                if len(given[raw]) != 1:
                    row.private.add(role)


def _codes(raw: Iterable[str], letter: str, taken: Collection[str]) -> dict[str, str]:
    """A code for each id, in their order, none of them among the ids that stay."""
    free = (code for i in count(1) if (code := f"{letter}{i:06d}") not in taken)
    return dict(zip(sorted(set(raw)), free, strict=False))


def _finish(
    config: IndexConfig,
    found: Scan,
    rows: list[_Row],
    public: bool,
    columns: dict[str, str],
    notes: list[str],
    study_public: bool | None = None,
    card: DataCard | None = None,
    joined: str = "",
) -> IndexReport:
    import pandas as pd

    from medfm.text.report import report_statistics

    findings = list(dict.fromkeys(name for r in rows for name in r.labels))
    rows = _check_labels(rows, found)
    _fill_ids(rows)
    unknown = [r for r in rows if not r.patient]
    for r in unknown:
        r.patient = f"file:{r.path}"
        r.private.add("patient")
    if unknown:
        notes.append(
            f"{len(unknown):,} images name no patient: each is taken for a patient of its own; "
            "if that is wrong, name patient=COLUMN"
        )
    rows = _split(config, card, found, rows, notes)
    if not rows:
        detail = "; ".join(f"{n:,} {reason}" for reason, (n, _) in list(group_reasons(found.rejected).items())[:5])
        raise DataError(f"nothing is left to index of {found.files:,} files: {detail}")
    if config.on_error == "fail" and found.rejected:
        lines = [
            f"  {n:,}  {reason}, first: {', '.join(paths)}" for reason, (n, paths) in group_reasons(found.rejected).items()
        ]
        raise DataError(
            f"{len(found.rejected):,} of {found.files:,} files cannot be indexed:\n"
            + "\n".join(lines)
            + "\nSet on_error=skip to go on without"
        )
    patient = {r.patient: r.patient for r in rows if public and "patient" not in r.private}
    patient |= _codes((r.patient for r in rows if r.patient not in patient), "p", patient)
    studies = public if study_public is None else study_public
    shown = {r.study for r in rows if studies and "study" not in r.private}
    study = _codes((f"{r.patient}\x1f{r.study}" for r in rows if r.study and r.study not in shown), "s", shown)
    frame = pd.DataFrame(
        {
            "image": [r.path for r in rows],
            "patient_id": [patient[r.patient] for r in rows],
            "study_id": [r.study if r.study in shown else study[f"{r.patient}\x1f{r.study}"] if r.study else "" for r in rows],
            "view": [normalise_view(r.view) for r in rows],
            "modality": [normalise_modality(r.modality) for r in rows],
            "split": [r.split for r in rows],
            "report": [r.report.strip() for r in rows],
            "sex": [normalise_sex(r.sex) for r in rows],
            "mask": [r.mask for r in rows],
            "age": [normalise_age(r.age) for r in rows],
            **{LABEL_PREFIX + name: [parse_label(r.labels.get(name, "")) for r in rows] for name in findings},
        }
    )
    frame = complete(frame)
    manifest = Manifest(frame, found.root, _meta(config, card, frame), config.out)
    rejected_path = write_rejected(config.out, found.rejected)
    write_manifest(manifest, config.out)
    _journal(config).unlink(missing_ok=True)
    if found.again:
        notes = [f"{found.again:,} files were read by an earlier run that wrote no manifest", *notes]
    if card is not None:
        from medfm.data.layout import describe
        from medfm.data.questions import write_questions

        notes = [describe(card), *notes, *write_questions(card, manifest)]
    label_counts = {n: _count_labels(frame[LABEL_PREFIX + n]) for n in findings}
    statistics = report_statistics(frame["report"])
    return IndexReport(
        config.out, manifest, found.files, found.rejected, rejected_path, joined, columns, statistics, label_counts, notes
    )  # fmt: skip


def _check_labels(rows: list[_Row], found: Scan) -> list[_Row]:
    kept = []
    for row in rows:
        wrong = next((name for name, text in row.labels.items() if parse_label(text) is None), None)
        if wrong is None:
            kept.append(row)
        else:
            found.rejected.append((row.path, f"label '{wrong}' is outside 1, 0, -1 and empty"))
    return kept


def _split(config: IndexConfig, card: DataCard | None, found: Scan, rows: list[_Row], notes: list[str]) -> list[_Row]:
    """Fill in splits; reject unknown words and rows that would put a patient into two."""
    kept, drawn = [], 0
    official = {split_name(r.split) for r in rows if r.split}
    for row in rows:
        name = split_name(row.split)
        if name is None:
            found.rejected.append((row.path, f"split '{row.split}' is none of train, val, test"))
            continue
        drawn += not name
        row.split = name or assign_split(row.patient, config.seed, config.fractions)
        kept.append(row)
    if official - {None} and drawn:
        notes.append(f"{drawn:,} images have no official split: drawn by patient")
    if card is not None and card.layout.val_from_train and "val" not in official:
        train, val, _ = config.fractions
        for row in kept:
            if row.split == "train" and position(row.patient, config.seed) >= train / max(train + val, 1e-9):
                row.split = "val"
        notes.append("the official split has no val: drawn by patient out of train")
    leaking = leaks((r.patient for r in kept), (r.split for r in kept))
    if leaking:
        out = [r for r in kept if r.patient in leaking and r.split != leaking[r.patient][0]]
        pairs = Counter(" and ".join(reversed(splits)) for splits in leaking.values())
        found.rejected += [(r.path, f"its patient is also in {leaking[r.patient][0]}: taken out of {r.split}") for r in out]
        notes.append(f"{len(leaking):,} patients are in two splits ({', '.join(f'{n:,} in {p}' for p, n in pairs.items())})")
        gone = {id(r) for r in out}
        kept = [r for r in kept if id(r) not in gone]
    here = Counter(r.split for r in kept)
    empty = [s for s, share in zip(("train", "val", "test"), config.fractions, strict=True) if share > 0 and not here[s]]
    if empty and kept:
        notes.append(
            f"no patient fell into {' or '.join(empty)}: too few patients for the fractions; change seed= or fractions="
        )
    return kept


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("medfm")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return ""


def _meta(config: IndexConfig, card: DataCard | None, frame: pd.DataFrame) -> dict[str, Any]:
    modalities = set(frame["modality"])
    units = card.intensity_units if card is not None else "HU" if modalities == {"CT"} else "arbitrary"
    return {
        "card": card.name if card is not None else "",
        "text_kind": card.text_kind if card is not None else config.text_kind,
        "intensity_units": units,
        "licence": card.licence if card is not None else "",
        "language": card.language if card is not None else "",
        **({"mask_labels": card.mask_labels} if card is not None and card.mask_labels else {}),
        "medfm_version": _version(),
        "split_seed": config.seed,
        "fractions": list(config.fractions),
        "counts": counts(frame),
    }


def _count_labels(column: pd.Series) -> dict[str, int]:
    return {f"{value:g}": int((column == value).sum()) for value in (1.0, 0.0, -1.0)} | {"": int(column.isna().sum())}


__all__ = ["IndexReport", "index", "render"]
