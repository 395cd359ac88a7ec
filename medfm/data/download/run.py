"""`medfm download`: fetch what a card names, check it, unpack it; or retrieve studies from DICOMweb."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.data.card_download import Download, DownloadFile
from medfm.data.download.http import Policy, Remote, ask_size, digest, fetch, make_root, new_session
from medfm.data.download.unpack import Unpacked, unpack
from medfm.errors import ConfigError, DataError, MedfmError
from medfm.registry import suggest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from medfm.data.cards import DataCard
    from medfm.data.download.dicomweb import Retrieved

_NOTES = ".medfm-download"  # folder below root: what was fetched and unpacked, so that a later run need not


@dataclass(frozen=True)
class FileDone:
    """`checked`: "sha256", "md5", "size" or ""; `again`: it was there already; `files`: unpacked from it."""

    path: str
    bytes: int
    checked: str
    again: bool
    files: int = 0


@dataclass
class DownloadReport:
    """What `run_download` did. `index`: the command that makes a manifest of it."""

    root: Path
    card: str = ""
    licence: str = ""
    files: list[FileDone] = field(default_factory=list)
    retrieved: Retrieved | None = None
    notes: list[str] = field(default_factory=list)
    index: str = ""


def run_download(config: Any, progress: bool = False) -> DownloadReport:
    """Fetch a card's files or DICOMweb studies into `config.root`; run again, it goes on where it stopped.

    Raises:
        ConfigError: the card cannot be fetched by a program (with where and how to apply), an unaccepted licence, unverified
            addresses, an unknown part, a refused login.
        DataError: files that could not be fetched or unpacked, after all others were; a search that finds nothing.
    """
    if config.source is not None:
        return _run_dicomweb(config, progress)
    from medfm.data.cards import load_card

    card = load_card(config.card)
    download = _allowed(card, config)
    files = _chosen(card.name, download, config.parts)
    report = DownloadReport(config.root, card.name, card.licence)
    if progress:
        from rich.console import Console

        Console(stderr=True).print(f"{card.title}. Licence: {card.licence}. {card.where}", markup=False)
    make_root(config.root)
    with _alone(config.root), _bars(progress) as start:
        _fetch_all(files, config, report, start)
    folder = config.root / download.folder if download.folder else config.root
    if download.apply is not None:
        report.notes.append(f"the rest must be had by hand. {_apply(download)}")
    report.index = f"medfm index card={config.card} root={shlex.quote(str(folder))} out={card.name.replace(':', '_')}.parquet"
    return report


def _allowed(card: DataCard, config: Any) -> Download:
    """The card's download section, or why it may not be used. Raises ConfigError."""
    if card.access == "generated":
        raise ConfigError(f"card '{card.name}' is generated, not downloaded: {card.where}")
    download = card.download
    if download is None:
        raise ConfigError(f"card '{card.name}' names no files to download; see {card.where}")
    if not download.files:
        why = "no address of its files is confirmed" if card.access == "open" else "it asks each person for an account"
        raise ConfigError(f"card '{card.name}' ({card.licence}) cannot be fetched by medfm: {why}. {_apply(download)}")
    if download.terms and not config.accept_licence:
        raise ConfigError(
            f"card '{card.name}': its licence must be accepted: {card.licence}. Read it at {card.where}, "
            "then add accept_licence=true"
        )
    if not download.verified and not config.accept_unverified:
        raise ConfigError(
            f"card '{card.name}': its addresses were not confirmed on a public page, and medfm does not guess. "
            f"Compare them with {card.where}, then add accept_unverified=true:\n"
            + "\n".join(f"  {f.url}" for f in download.files)
        )
    return download


def _apply(download: Download) -> str:
    apply = download.apply
    if apply is None:
        return ""
    return f"Go to {apply.url}:\n" + "\n".join(f"  {i}. {step}" for i, step in enumerate(apply.steps, start=1))


def _chosen(name: str, download: Download, parts: tuple[str, ...]) -> list[DownloadFile]:
    unknown = next((p for p in parts if p not in download.parts), None)
    if unknown is not None:
        known = f"it has {', '.join(download.parts)}" if download.parts else "it has no parts: leave parts= out"
        raise ConfigError(f"parts={unknown}: card '{name}' has no such part{suggest(unknown, download.parts)}; {known}")
    return [f for f in download.files if not f.part or (f.part in parts if parts else not f.optional)]


def _fetch_all(files: list[DownloadFile], config: Any, report: DownloadReport, start: Bars) -> None:
    policy = Policy(config.retries, config.timeout)
    stop = threading.Event()
    session = new_session()
    todo = []
    for file in files:
        known = _known(config.root, file)
        if known is not None:
            report.files.append(known)
        else:
            todo.append(file)
    sizes = {f.target: ask_size(Remote(f.url, f.bytes), session, config.timeout) for f in todo}
    _space(config.root, todo, sizes)
    failures: list[str] = []
    with ThreadPoolExecutor(config.parallel) as pool:
        jobs: set[Future[FileDone]] = {
            pool.submit(_one, f, config.root, policy, config.keep_archives, stop, start(f.target, sizes[f.target]))
            for f in todo
        }
        try:
            while jobs:
                done, jobs = wait(jobs, timeout=0.5, return_when=FIRST_COMPLETED)
                for job in done:
                    try:
                        report.files.append(job.result())
                    except MedfmError as error:
                        failures.append(str(error))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    order = {f.target: i for i, f in enumerate(files)}
    report.files.sort(key=lambda f: order[f.path])
    report.notes += [
        f"{f.path}: its source publishes no sum; checked by size only" for f in report.files if f.checked == "size"
    ]
    report.notes += [f"{f.path}: neither sum nor size is published" for f in report.files if not f.checked]
    if failures:
        raise DataError(
            f"{len(failures)} of {len(files)} files could not be had:\n"
            + "\n".join(f"  {f}" for f in failures)
            + f"\n{len(report.files)} are in '{config.root}'; run the same command again to go on"
        )


def _space(root: Path, files: list[DownloadFile], sizes: dict[str, int | None]) -> None:
    """Raises DataError where the disk is too small for what is known; an archive unpacks to its own size at least."""
    needed = 0
    for file in files:
        size = sizes[file.target] or 0
        part = root / (file.target + ".part")
        needed += size * (2 if file.unpack else 1) - min(part.stat().st_size if part.exists() else 0, size)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise DataError(f"'{root}' has {free / 1e9:.1f} GB free; the download needs at least {needed / 1e9:.1f} GB")


def _one(
    file: DownloadFile, root: Path, policy: Policy, keep: bool, stop: threading.Event, advance: Callable[[int], None]
) -> FileDone:
    target = root / file.target
    checked, again = _found(file, target, policy, stop), True
    if checked is None:
        # A session of its own: requests does not promise that one may be shared between threads.
        fetched = fetch(Remote(file.url, file.bytes, file.md5, file.sha256), target, new_session(), policy, advance, stop)
        checked, again = fetched.checked, False
    size = target.stat().st_size
    unpacked: Unpacked | None = None
    if file.unpack:
        unpacked = unpack(target, root / file.into, file.unpack, stop)
    _note(root, file, size, checked, unpacked)
    if file.unpack and not keep:
        target.unlink()
    return FileDone(file.target, size, checked, again, len(unpacked.members) if unpacked else 0)


def _found(file: DownloadFile, target: Path, policy: Policy, stop: threading.Event) -> str | None:
    """By what a file that lies there already was judged right; None where there is none. Raises DataError for a wrong one."""
    if not target.exists():
        return None
    remote = Remote(file.url, file.bytes, file.md5, file.sha256)
    algorithm, published = remote.sum
    size = target.stat().st_size
    expected = ask_size(remote, new_session(), policy.timeout) if not algorithm else file.bytes
    right = size == expected if expected is not None else bool(algorithm)
    if right and algorithm:
        right = digest(target, algorithm, stop) == published
    if not right:
        raise DataError(f"'{target}' is there and is not the file of {remote.shown}: move it away to download it again")
    return algorithm or "size"


def _note_path(root: Path, file: DownloadFile) -> Path:
    return root / _NOTES / (file.target.replace("/", "__") + ".json")


def _note(root: Path, file: DownloadFile, size: int, checked: str, unpacked: Unpacked | None) -> None:
    from medfm.io.files import atomic_write

    members = list(unpacked.members) if unpacked else [(file.target, size)]
    note = {"url": file.url, "sum": file.sha256 or file.md5, "bytes": size, "checked": checked, "members": members}
    with atomic_write(_note_path(root, file)) as temporary:
        temporary.write_text(json.dumps(note), encoding="utf-8")


def _known(root: Path, file: DownloadFile) -> FileDone | None:
    """What an earlier run noted, if all its files still have their sizes."""
    try:
        note = json.loads(_note_path(root, file).read_text(encoding="utf-8"))
        if note["url"] != file.url or note["sum"] != (file.sha256 or file.md5):
            return None
        base = root / file.into if file.unpack else root
        if any((base / name).stat().st_size != size for name, size in note["members"]):
            return None
        return FileDone(file.target, note["bytes"], note["checked"], True, len(note["members"]) if file.unpack else 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Two downloads into one folder would write the same parts. The lock goes with its process."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder = root / _NOTES
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another medfm download is at work in '{root}'") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


Bars = Callable[[str, int | None], Callable[[int], None]]


@contextmanager
def _bars(show: bool) -> Iterator[Bars]:
    """A function that opens a bar for a file and gives the function that moves it."""
    if not show:
        yield lambda name, total: lambda n: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bars:

        def start(name: str, total: int | None) -> Callable[[int], None]:
            task = bars.add_task(name, total=total)
            return lambda n: bars.advance(task, n)

        yield start


def _run_dicomweb(config: Any, progress: bool) -> DownloadReport:
    from medfm.data.download.dicomweb import retrieve

    def value(secret: Any) -> str:
        return secret.get_secret_value() if secret is not None else ""

    found = retrieve(
        config.source,
        config.root,
        study=value(config.study),
        series=value(config.series),
        patient=value(config.patient),
        modality=config.modality,
        since=config.since,
        until=config.to,
        parallel=config.parallel,
        policy=Policy(config.retries, config.timeout),
        token_file=config.token_file,
        ca_bundle=config.ca_bundle,
        progress=progress,
    )
    report = DownloadReport(config.root, retrieved=found, notes=list(found.notes))
    if found.failed:
        raise DataError(
            f"{len(found.failed):,} of {found.instances:,} instances could not be retrieved: {found.reasons}. "
            f"They are listed in '{found.failed_path}'; run the same command again to try them once more"
        )
    if not found.instances:
        raise DataError("the search found nothing: look at the filters, and whether the login may see the studies")
    report.index = f"medfm index images={shlex.quote(str(config.root))} text_kind=none out=manifest.parquet"
    return report


def render(report: DownloadReport) -> RenderableType:
    """What was fetched, by what it was checked, and the command that comes next."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    if report.files:
        table = Table()
        for heading in ("file", "size", "checked by", "unpacked"):
            table.add_column(heading, justify="left" if heading in ("file", "checked by") else "right")
        for f in report.files:
            checked = (f.checked or "nothing") + (", was there" if f.again else "")
            table.add_row(Text(f.path), f"{f.bytes / 1e6:,.1f} MB", checked, f"{f.files:,} files" if f.files else "")
        parts.append(table)
    if report.retrieved is not None:
        r = report.retrieved
        parts.append(
            Text(
                f"{r.written:,} instances of {r.series:,} series of {r.studies:,} studies retrieved, {r.again:,} were there; "
                f"{r.bytes / 1e6:,.1f} MB"
            )
        )
    lines = [*report.notes, f"licence: {report.licence}" if report.licence else "", f"next: {report.index}"]
    parts.append(Text("\n".join(line for line in lines if line)))
    return Group(*parts)
