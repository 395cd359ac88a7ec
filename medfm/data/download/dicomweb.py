"""Retrieve studies from a DICOMweb server (QIDO-RS search, WADO-RS retrieval; DICOM PS3.18, sections 10.4 and 10.6).

Instances are written to `root/<study>/<series>/<instance>.dcm`. What is asked for and answered stays out of logs and errors:
libraries that log addresses are silenced while this module works, and failures are listed in a file beside the data.
"""

from __future__ import annotations

import csv
import datetime
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from medfm.data.download.dicomweb_session import login_for, new_client, parse_source, patiently, silence
from medfm.data.download.http import DEFAULT, Policy, make_root
from medfm.errors import ConfigError, DataError

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_PAGE = 500
_STUDY, _SERIES, _INSTANCE, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"


@dataclass(frozen=True)
class Instance:
    study: str = field(repr=False)
    series: str = field(repr=False)
    uid: str = field(repr=False)

    def path(self, root: Path) -> Path:
        return root / self.study / self.series / f"{self.uid}.dcm"


@dataclass
class Retrieved:
    """What `retrieve` did.

    Attributes:
        studies, series, instances: found by the search, duplicates left out.
        written, again: retrieved now; there already.
        bytes: of what was retrieved now.
        failed: (path below root, reason) of instances that could not be had; also in `failed_path`.
    """

    studies: int = 0
    series: int = 0
    instances: int = 0
    written: int = 0
    again: int = 0
    bytes: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list, repr=False)
    failed_path: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> str:
        counts = Counter(reason for _, reason in self.failed)
        return "; ".join(f"{n:,} {reason}" for reason, n in counts.most_common(5))


class _Bad(Exception):
    """This instance cannot be had; the text says why, without values."""


def retrieve(
    source: str,
    root: Path,
    *,
    study: str = "",
    series: str = "",
    patient: str = "",
    modality: Collection[str] = (),
    since: datetime.date | None = None,
    until: datetime.date | None = None,
    parallel: int = 4,
    policy: Policy = DEFAULT,
    token_file: Path | None = None,
    ca_bundle: Path | None = None,
    progress: bool = False,
) -> Retrieved:
    """Search `source` and bring what is found to `root/<study>/<series>/<instance>.dcm`, each whole or not at all.

    Files that are there and are the right instance are not fetched again. An instance that fails does not stop the others.

    Args:
        source: dicomweb://host:port/path, dicomwebs:// for TLS.
        since, until: study dates, both inclusive.
        parallel: instances fetched at once; bounds memory too, for an instance is held whole.
        token_file: bearer token; else MEDFM_DICOMWEB_TOKEN, or MEDFM_DICOMWEB_USER and MEDFM_DICOMWEB_PASSWORD.

    Raises:
        ConfigError: a wrong address, or a refused login.
        DataError: the server cannot be reached, or its search fails.
    """
    url = parse_source(source)
    login = login_for(url, token_file)
    make_root(root)
    for left in root.glob("*/*/.tmp-*.dcm"):  # by a run that was killed; another may be at work
        if time.time() - left.stat().st_mtime > 3600:
            left.unlink(missing_ok=True)
    stop = threading.Event()
    clients = threading.local()

    def client() -> Any:
        if not hasattr(clients, "client"):
            clients.client = new_client(url, login, policy, ca_bundle)
        return clients.client

    result = Retrieved()
    with silence(), _bar(progress) as advance:
        found = _search(client, policy, stop, result, study, series, patient, modality, since, until)
        with ThreadPoolExecutor(parallel) as pool:
            jobs: dict[Future[int], Instance] = {}
            try:
                for instance in found:
                    result.instances += 1
                    jobs[pool.submit(_one, instance, root, client, policy, stop)] = instance
                    while len(jobs) >= 4 * parallel:
                        _collect(jobs, result, root, advance)
                while jobs:
                    _collect(jobs, result, root, advance)
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    result.failed_path = _list_failures(root, result.failed)
    return result


def _collect(jobs: dict[Future[int], Instance], result: Retrieved, root: Path, advance: Callable[[], None]) -> None:
    done, _ = wait(jobs, timeout=0.5, return_when=FIRST_COMPLETED)
    for job in done:
        instance = jobs.pop(job)
        try:
            size = job.result()
        except _Bad as problem:
            result.failed.append((instance.path(root).relative_to(root).as_posix(), str(problem)))
        else:
            result.written += size > 0
            result.again += size == 0
            result.bytes += size
        advance()


def _one(instance: Instance, root: Path, client: Callable[[], Any], policy: Policy, stop: threading.Event) -> int:
    """Bytes written, 0 where the instance was there. Raises _Bad."""
    from medfm.io.files import atomic_write

    path = instance.path(root)
    if is_whole(path, instance.uid):
        return 0
    dataset = patiently(lambda: client().retrieve_instance(instance.study, instance.series, instance.uid), policy, stop, _Bad)
    if str(dataset.get("SOPInstanceUID", "")) != instance.uid:
        raise _Bad("the server sent another instance than the one asked for")
    try:
        with atomic_write(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
    except (ValueError, TypeError, AttributeError, KeyError):
        raise _Bad("the server sent an instance that cannot be written as a DICOM file") from None
    except OSError as error:
        raise DataError(f"'{root}' cannot be written: {error.strerror or type(error).__name__}") from None
    return path.stat().st_size


def is_whole(path: Path, uid: str) -> bool:
    """Whether `path` is a DICOM file of that SOP Instance UID whose last element is not cut off."""
    import pydicom

    if not path.is_file():
        return False
    try:
        dataset = pydicom.dcmread(path, defer_size=1024)
        if str(dataset.get("SOPInstanceUID", "")) != uid or not len(dataset):
            return False
        size = path.stat().st_size
        last = dataset.get_item(max(dataset.keys()), keep_deferred=True)
        length, where = getattr(last, "length", 0), getattr(last, "value_tell", 0)
        return length == 0xFFFFFFFF or where + length <= size
    except Exception:
        return False


def _search(
    client: Callable[[], Any],
    policy: Policy,
    stop: threading.Event,
    result: Retrieved,
    study: str,
    series: str,
    patient: str,
    modality: Collection[str],
    since: datetime.date | None,
    until: datetime.date | None,
) -> Iterator[Instance]:
    """Instances, study by study. Counts studies and series; rejects what could not be a path."""
    filters: dict[str, str] = {}
    if patient:
        filters["PatientID"] = patient
    if study:
        filters["StudyInstanceUID"] = study
    if since or until:
        filters["StudyDate"] = (
            f"{since:%Y%m%d}-"
            if since and not until
            else f"-{until:%Y%m%d}"
            if not since
            else (f"{since:%Y%m%d}-{until:%Y%m%d}")
        )
    for name, value in (("study", study), ("series", series)):
        if value and not _is_uid(value):
            raise ConfigError(f"{name} is no DICOM UID: digits and dots, at most 64 characters")
    seen: set[Instance] = set()
    skipped: Counter[str] = Counter()

    def pages(what: str, search: Callable[..., list[dict[str, Any]]], tag: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Entries of all pages; ends where a page brings nothing new, as with servers that know no offset."""
        known: set[str] = set()
        while True:
            page = patiently(partial(search, limit=_PAGE, offset=len(known), **arguments), policy, stop, _search_failed)
            new = [e for e in page if isinstance(e, dict) and _value(e, tag) not in known]
            for entry in new:
                uid = _value(entry, tag)
                if uid in known:
                    continue
                known.add(uid)
                if _is_uid(uid):
                    yield entry
                else:
                    skipped[what] += 1
            if len(page) < _PAGE or not new:
                return

    # A study is searched for even where it is named: the login may not see it, and the answer says so early.
    for study_entry in pages("studies", client().search_for_studies, _STUDY, search_filters=filters):
        study_uid = _value(study_entry, _STUDY)
        if study and study_uid != study:
            continue
        taken = False
        wanted = {"SeriesInstanceUID": series} if series else {}
        for kind in sorted(modality) or [""]:
            arguments = {"study_instance_uid": study_uid, "search_filters": {**wanted, **({"Modality": kind} if kind else {})}}
            for entry in pages("series", client().search_for_series, _SERIES, **arguments):
                series_uid = _value(entry, _SERIES)
                # Servers may pay no heed to a filter.
                if (series and series_uid != series) or (kind and _value(entry, _MODALITY) not in ("", kind)):
                    continue
                result.studies += not taken
                taken = True
                result.series += 1
                of = {"study_instance_uid": study_uid, "series_instance_uid": series_uid}
                for found in pages("instances", client().search_for_instances, _INSTANCE, **of):
                    instance = Instance(study_uid, series_uid, _value(found, _INSTANCE))
                    if instance not in seen:
                        seen.add(instance)
                        yield instance
    result.notes += [f"{n:,} {what} have a UID that is none: left out" for what, n in skipped.items()]


def _is_uid(text: str) -> bool:
    return 0 < len(text) <= 64 and _UID.fullmatch(text) is not None


def _value(entry: dict[str, Any], tag: str) -> str:
    """The first value of an attribute of DICOM JSON (PS3.18, annex F), '' where it is absent."""
    try:
        return str(entry[tag]["Value"][0])
    except (KeyError, IndexError, TypeError):
        return ""


def _search_failed(reason: str) -> Exception:
    return DataError(f"the DICOMweb search failed: {reason}")


@contextmanager
def _bar(show: bool) -> Iterator[Callable[[], None]]:
    if not show:
        yield lambda: None
        return
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(SpinnerColumn(), TextColumn("retrieving instances"), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task("", total=None)
        yield lambda: bar.advance(task)


def _list_failures(root: Path, failed: list[tuple[str, str]]) -> Path | None:
    from medfm.io.files import atomic_write

    path = root / "failed.csv"
    if not failed:
        path.unlink(missing_ok=True)
        return None
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(sorted(failed))
    return path
