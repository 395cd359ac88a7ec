"""`medfm deidentify`: every file of a folder through the workers, then the table, the report and, on request, the map."""

from __future__ import annotations

import csv
import json
import os
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.data.deidentify.codes import make_secret, open_private, read_secret
from medfm.data.deidentify.config import DeidentifyOptions
from medfm.data.deidentify.report import DeidentifyReport, collect, render, write
from medfm.data.deidentify.rules import Rules
from medfm.data.deidentify.tables import Lookup, choose_columns, clean_table, known_by_patient
from medfm.data.deidentify.work import Job, key, process
from medfm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from medfm.data.engine import Done

__all__ = ["render", "run_deidentify"]

_LIMIT_S = 900.0  # for one file; whole-slide and 4D files are large


def run_deidentify(config: DeidentifyOptions, progress: bool = False) -> DeidentifyReport:
    """De-identify `config.in` into `config.out`. The same command goes on where it was stopped.

    Raises:
        ConfigError: `in` is no folder, `out` holds something else, the secret cannot be used, a column is missing.
        DataError: `in` holds no file; the report table cannot be read; the disk is full.
    """
    from medfm import __version__
    from medfm.data.engine import run

    source = config.source.resolve()
    if not source.is_dir():
        raise ConfigError(f"in={config.source} is not a folder")
    files, closed = _files(source)
    if not files:
        raise DataError(f"in={config.source} holds no file that could be read")
    rules = Rules(
        config.dates,
        config.retain_uids,
        config.keep_patient_characteristics,
        config.descriptions,
        config.private,
    )
    private = _private_folder(config)
    made = make_secret(config.secret_path)
    codes = read_secret(config.secret_path)
    fingerprint = codes.name("run", f"{source}|{rules}|{config.burned_in}|{__version__}", 26)
    _check_out(config, private, fingerprint)
    if config.reports is not None:
        _check_table(config, config.reports)
    job = Job(
        source=source,
        out=config.out.resolve(),
        quarantine=config.quarantine.resolve(),
        secret=config.secret_path.resolve(),
        rules=rules,
        burned_in=config.burned_in,
        version=__version__,
    )
    config.out.mkdir(parents=True, exist_ok=True)
    _sweep(config.out, config.quarantine)
    finished = {
        done.item: done
        for done in run(
            partial(process, job=job),
            files,
            config,
            key=partial(key, codes, source),
            journal=private / "journal.jsonl",
            fingerprint=fingerprint,
            what="de-identifying",
            progress=progress,
            limit_s=_LIMIT_S,
            preload=("medfm.data.deidentify.work", "medfm.data.deidentify.dataset", "medfm.io.dicom"),
        )
    }
    # Files that someone deleted since the journal was written are made again.
    lost = [item for item, done in finished.items() if done.again and not _is_there(done, job)]
    finished.update((done.item, done) for done in run(partial(process, job=job), lost, config, limit_s=_LIMIT_S))
    results = {item: _result(finished[item]) for item in files}
    report = DeidentifyReport(
        out=config.out,
        quarantine=config.quarantine if any(r.get("place") == "quarantine" for r in results.values()) else None,
        private=private,
        options={**rules.__dict__, "burned_in": config.burned_in},
        again=sum(done.again for done in finished.values()),
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    collect(report, list(results.values()))
    if config.reports is not None:
        report.table = clean_table(config, codes, _lookup(source, results))
    report.notes = _notes(report, config, made, closed)
    _write_left_out(private / "left_out.csv", results)
    if config.map is not None:
        _write_map(config.map, source, results)
    write(report)
    return report


def _files(source: Path) -> tuple[list[str], int]:
    """(every file below `source`, as a relative posix path, sorted; folders that cannot be listed). Links to folders are not
    followed.
    """
    found: list[str] = []
    closed: list[OSError] = []
    for folder, _, names in os.walk(source, onerror=closed.append):
        found += [(Path(folder) / name).relative_to(source).as_posix() for name in names]
    return sorted(found), len(closed)


def _sweep(*folders: Path) -> None:
    """Delete the half files of a run that was killed: the result is made to be handed on."""
    for folder in folders:
        for left in folder.rglob(".tmp-*"):
            left.unlink(missing_ok=True)


def _private_folder(settings: DeidentifyOptions) -> Path:
    private: Path = settings.private_folder
    try:
        private.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"'{private}' cannot be made: {error.strerror or type(error).__name__}") from None
    return private


def _check_out(settings: DeidentifyOptions, private: Path, fingerprint: str) -> None:
    """Refuse a folder in use, unless by this very command; then note whose it is."""
    marker = private / "run.json"
    mine = ""
    if marker.is_file():
        try:
            mine = json.loads(marker.read_text(encoding="utf-8")).get("fingerprint", "")
        except (OSError, ValueError, AttributeError):
            mine = ""
    if mine != fingerprint:
        used = [p for p in (settings.out, settings.quarantine) if p.exists() and (not p.is_dir() or any(p.iterdir()))]
        if used:
            raise ConfigError(
                f"'{used[0]}' is not empty and not from this command (same in, options, secret and version); "
                "nothing was written. Choose another out=, or delete it"
            )
        with open_private(marker) as file:
            json.dump({"fingerprint": fingerprint}, file)


def _check_table(settings: DeidentifyOptions, path: Path) -> None:
    """Find a wrong column before hours of work, not after."""
    from medfm.data.table import read_table

    frame = read_table(path, settings.encoding)
    roles = choose_columns([str(c) for c in frame.columns], settings)
    if "text" not in roles.values():
        columns = ", ".join(map(str, frame.columns[:20]))
        raise ConfigError(f"no column of report text among {columns}; name it with text=COLUMN")


def _is_there(done: Done[str], job: Job) -> bool:
    result = done.result
    if not isinstance(result, dict) or "output" not in result:
        return True
    return ((job.out if result["place"] == "out" else job.quarantine) / result["output"]).is_file()


def _result(done: Done[str]) -> dict[str, Any]:
    return done.result if isinstance(done.result, dict) else {"skipped": done.failure or "no result"}


def _lookup(source: Path, results: dict[str, dict[str, Any]]) -> Lookup:
    written = {item: r for item, r in results.items() if "output" in r}
    known = known_by_patient((source / item, r["patient"], r["study"]) for item, r in written.items() if r["kind"] == "dicom")
    return Lookup(known, {item: r["output"] for item, r in written.items() if r["place"] == "out"})


def _notes(report: DeidentifyReport, settings: DeidentifyOptions, made: bool, closed: int) -> list[str]:
    notes = []
    if closed:
        notes.append(f"folders that could not be listed, of which nothing is in the result: {closed:,}")
    if made:
        notes.append("a new secret was made; keep it, and keep it away from the result: with it patients can be found again")
    elif os.name == "posix" and settings.secret_path.stat().st_mode & 0o077:
        notes.append("the secret can be read by others than its owner; restrict it (chmod 600)")
    if report.quarantine is not None:
        notes.append(
            "images that may show text are in the quarantine folder, not in the result: look, then move or delete them"
        )
    if report.alike:
        notes.append(
            f"{report.alike:,} patients have ids that differ in nothing but case, spaces, punctuation or leading zeros: "
            "they got codes and date shifts of their own; correct the ids first where they are one person"
        )
    if report.mosaics:
        notes.append(f"{report.mosaics:,} Siemens mosaics lost the private count of their tiles; private=safe keeps it")
    if report.written.get("picture"):
        notes.append("PNG and JPEG files say nothing of what is drawn into them: look at each")
    if report.written.get("nifti"):
        notes.append("NIfTI files do not say what they show: deface those of heads where the data leave the house")
    if report.faces:
        notes.append("faces can be rebuilt from heads; deface them where the data leave the house")
    if report.table is not None and report.table.paths_missing:
        notes.append(f"{report.table.paths_missing:,} image paths in the table lead to no file written")
    return notes


def _write_left_out(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """The one list with input paths, for the house: what was not written, what is in quarantine, and why."""
    with open_private(path) as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason", "quarantined as"])
        for item, result in results.items():
            if "skipped" in result:
                writer.writerow([item, result["skipped"], ""])
            elif result["place"] == "quarantine":
                writer.writerow([item, result["burned_in"], result["output"]])


def _write_map(path: Path, source: Path, results: dict[str, dict[str, Any]]) -> None:
    """Original -> code, one row a file, with the patient, study and accession that its header states."""
    from medfm.io.dicom import read_dataset
    from medfm.io.pixels import quiet

    keywords = ("PatientID", "PatientName", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open_private(path) as file:
            writer = csv.writer(file)
            writer.writerow(["path", *keywords, "patient code", "output"])
            for item, result in results.items():
                if "output" not in result:
                    continue
                values = [""] * len(keywords)
                if result["kind"] == "dicom":
                    try:
                        with quiet():
                            dataset = read_dataset(source / item)
                            values = [str(dataset.get(k) or "") for k in keywords]
                    except DataError:
                        pass
                writer.writerow([item, *values, result["patient"], result["output"]])
    except OSError as error:
        raise ConfigError(f"map '{path}' cannot be written: {error.strerror or type(error).__name__}") from None
