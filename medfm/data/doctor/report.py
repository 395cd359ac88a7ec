"""The doctor's report: a table for the terminal, doctor.json, and doctor.html with a picture of each series."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.data.doctor.verdict import REASONS, REPAIRS, SCHEMA, VERDICTS, WARNINGS, Judged, worst_first
from medfm.io.files import atomic_write

if TYPE_CHECKING:
    from rich.console import RenderableType

TEMPLATES = Path(__file__).with_name("templates")
PAGE = 300  # series on a page
_SHOWN = 20  # series on the terminal
_TITLES = {"reasons": REASONS, "repairs": REPAIRS, "warnings": WARNINGS}


@dataclass
class DoctorReport:
    """All verdicts, the worst first.

    Attributes:
        path: what was looked at.
        out: folder of doctor.html and doctor.json.
        files: image files looked at.
        judged: one a series.
        again: how many files an earlier run had looked at, unchanged since.
        decoded: pixels were read, not only headers.
        seconds: what the run took.
    """

    path: Path
    out: Path
    files: int
    judged: list[Judged]
    again: int = 0
    decoded: bool = True
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Verdict -> series, in the order of VERDICTS."""
        found = Counter(j.verdict for j in self.judged)
        return {verdict: found[verdict] for verdict in VERDICTS}

    @property
    def file_counts(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for one in self.judged:
            found[one.verdict] += one.files
        return {verdict: found[verdict] for verdict in VERDICTS}

    def codes(self, kind: str) -> dict[str, int]:
        """Of "reasons", "repairs" or "warnings": code -> series that have it, the most frequent first."""
        judged = self.judged if kind != "reasons" else [j for j in self.judged if j.verdict == "rejected"]
        found = Counter(code for j in judged for code in {f.code for f in getattr(j, kind)})
        return _ranked(found)

    @property
    def identifying(self) -> dict[str, int]:
        """Keyword of an identifying attribute -> series that hold it."""
        found: Counter[str] = Counter()
        for one in self.judged:
            found.update({_plain(k) for k in one.phi})
        return _ranked(found)

    @property
    def with_phi(self) -> int:
        return sum(1 for j in self.judged if j.phi)

    def __repr__(self) -> str:
        return f"DoctorReport({self.path}: {', '.join(f'{n:,} {v}' for v, n in self.counts.items() if n)})"


def _ranked(found: Counter[str]) -> dict[str, int]:
    """The most frequent first, ties by name: the same data give the same report."""
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def _plain(keyword: str) -> str:
    return "private tags" if keyword.endswith(("private tag", "private tags")) else keyword


def write_json(report: DoctorReport) -> Path:
    """doctor.json: a head, then one series a line, so that a large one can be read line by line. Without patient data."""
    path = report.out / "doctor.json"
    head = {
        "schema": SCHEMA,
        "path": str(report.path),
        "files": report.files,
        "decoded": report.decoded,
        "series": {v: n for v, n in report.counts.items() if n},
        **{kind: report.codes(kind) for kind in _TITLES},
        "identifying": report.identifying,
        "notes": report.notes,
    }
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(head, indent=1)[:-2] + ',\n "judged": [')
        for n, one in enumerate(report.judged):
            file.write(",\n" if n else "\n")
            file.write(json.dumps(one.as_json(), separators=(",", ":")))
        file.write("\n]}\n")
    return path


def write_pages(report: DoctorReport, most: int) -> Path:
    """doctor.html, and doctor-2.html and so on where there are more series than a page holds; `most` series in all.

    Each page stands alone: style and pictures are inside it.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        grouped=lambda n: f"{n:,}".replace(",", "\u202f"), size=_size, clean=lambda s: s.encode("utf-8", "replace").decode()
    )
    template = environment.get_template("doctor.html.j2")
    shown = report.judged[: max(most, PAGE)]
    pages = [shown[i : i + PAGE] for i in range(0, len(shown), PAGE)] or [[]]
    names = ["doctor.html", *(f"doctor-{n}.html" for n in range(2, len(pages) + 1))]
    for stale in report.out.glob("doctor-*.html"):
        if stale.name not in names:
            stale.unlink()
    for n, (name, page) in enumerate(zip(names, pages, strict=True)):
        with atomic_write(report.out / name) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
            # In pieces, so that a page of pictures is never in memory twice.
            file.writelines(
                template.generate(
                    report=report, verdicts=VERDICTS, titles=_TITLES, page=_cards(report.out, page), here=n, names=names,
                    present=[v for v in VERDICTS if any(j.verdict == v for j in page)], shown=len(shown), version=_version(),
                )
            )  # fmt: skip
    return report.out / names[0]


def _cards(out: Path, page: list[Judged]) -> Iterator[dict[str, Any]]:
    for one in page:
        picture = ""
        if one.thumbnail:
            try:
                picture = "data:image/jpeg;base64," + base64.b64encode((out / one.thumbnail).read_bytes()).decode()
            except OSError:
                picture = ""  # deleted by hand: the card does without
        yield {"series": one, "picture": picture}


def _size(one: Judged) -> str:
    """ "512 × 512 × 28, 0.49 × 0.49 × 4 mm"."""
    shape = " × ".join(map(str, one.shape))
    return shape + (", " + " × ".join(f"{s:.3g}" for s in one.spacing) + " mm" if shape and one.spacing else "")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("medfm")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return ""


def render(report: DoctorReport) -> RenderableType:
    """Counts by verdict and by finding, then the worst series."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    total = Table(title=None)
    for heading in ("verdict", "series", "files"):
        total.add_column(heading, justify="left" if heading == "verdict" else "right")
    colours = {"rejected": "red", "repaired": "yellow", "accepted": "green"}
    for verdict, count in report.counts.items():
        if count:
            total.add_row(Text(verdict, colours.get(verdict, "")), f"{count:,}", f"{report.file_counts[verdict]:,}")
    found = Table()
    for heading in ("", "finding", "series"):
        found.add_column(heading, justify="right" if heading == "series" else "left")
    for kind, name in (("reasons", "rejected"), ("repairs", "repaired"), ("warnings", "warning")):
        for code, count in report.codes(kind).items():
            found.add_row(name, _TITLES[kind].get(code, code), f"{count:,}")
    parts: list[RenderableType] = [
        Text(f"{report.path}: {len(report.judged):,} series in {report.files:,} files", "bold"),
        total,
    ]
    if found.row_count:
        parts.append(found)
    worst = [j for j in report.judged if j.verdict in ("rejected", "repaired") or (j.warnings and j.verdict == "accepted")]
    if worst:
        table = Table()
        table.add_column("verdict")
        table.add_column("series", overflow="fold")
        table.add_column("why", overflow="fold")
        for one in worst[:_SHOWN]:
            why = "; ".join(f.text for f in one.reasons or (*one.repairs, *one.warnings))
            table.add_row(Text(one.verdict, colours.get(one.verdict, "")), Text(_short(one.path)), Text(why))
        parts.append(table)
        if len(worst) > _SHOWN:
            parts.append(Text(f"... and {len(worst) - _SHOWN:,} more with findings: see the page"))
    lines = [*report.notes]
    if report.with_phi:
        names = list(report.identifying)
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        lines.append(
            f"identifying attributes in {report.with_phi:,} series: {', '.join(names[:6])}{more}; see `medfm deidentify`"
        )
    if report.again:
        lines.append(f"{report.again:,} files unchanged since an earlier run were not read again")
    lines.append(f"page: {report.out / 'doctor.html'}; all verdicts: {report.out / 'doctor.json'}")
    parts.append(Text("\n".join(lines)))
    return Group(*parts)


def _short(path: str, width: int = 60) -> str:
    return path if len(path) <= width else "…" + path[-width + 1 :]


def sort(judged: list[Judged]) -> list[Judged]:
    return sorted(judged, key=worst_first)
