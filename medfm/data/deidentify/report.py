"""What a de-identification removed and what a person must look at: JSON, a page, a table on the terminal.

No values and no input paths in any of them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.data.deidentify.tables import TableReport

if TYPE_CHECKING:
    from rich.console import RenderableType

TEMPLATES = Path(__file__).with_name("templates")
_ROWS = 12
_EXAMPLES = 50


@dataclass
class DeidentifyReport:
    """What `run_deidentify` did.

    Attributes:
        out: the folder written.
        quarantine: where images that may show text are, None where there are none.
        private: the folder that stays in the house: secret, journal, list of files left out.
        options: rules of the run by name.
        files: files looked at.
        written: files in `out`, by kind ("dicom", "nifti", "picture").
        quarantined: files in `quarantine`.
        skipped: reason -> files not written.
        actions: what was done -> keyword -> files it was done in.
        burned_in: reason -> output paths of images that may show text.
        faces: reason -> number of files.
        mosaics: Siemens mosaics that no reader can take apart without their private attributes.
        patients, studies, series: different codes written (DICOM).
        alike: patients whose ids differ from another's in case, spaces, punctuation or leading zeros alone.
        again: files that an earlier run of the same command had done.
        table: what became of the reports, None without.
        notes: what else a person should know.
    """

    out: Path
    quarantine: Path | None
    private: Path
    options: dict[str, Any]
    files: int = 0
    written: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    actions: dict[str, dict[str, int]] = field(default_factory=dict)
    burned_in: dict[str, list[str]] = field(default_factory=dict)
    faces: dict[str, int] = field(default_factory=dict)
    mosaics: int = 0
    patients: int = 0
    studies: int = 0
    series: int = 0
    alike: int = 0
    again: int = 0
    table: TableReport | None = None
    notes: list[str] = field(default_factory=list)
    version: str = ""
    created: str = ""

    @property
    def done(self) -> int:
        return sum(self.written.values())

    @property
    def flagged(self) -> int:
        return sum(map(len, self.burned_in.values()))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, without places on this machine."""
        result = asdict(self)
        for key in ("out", "quarantine", "private", "again"):
            del result[key]
        return result


def collect(report: DeidentifyReport, results: list[dict[str, Any]]) -> None:
    """Fill the counts of `report` from what the workers returned."""
    written: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    faces: Counter[str] = Counter()
    actions: dict[str, Counter[str]] = {}
    codes: dict[str, set[str]] = {"patient": set(), "study": set(), "series": set()}
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for result in results:
        if "skipped" in result:
            skipped[result["skipped"]] += 1
            continue
        if result["place"] == "out":
            written[result["kind"]] += 1
        else:
            report.quarantined += 1
        report.mosaics += bool(result.get("mosaic"))
        for keyword, what in result["actions"]:
            actions.setdefault(what, Counter())[keyword] += 1
        if result["burned_in"]:
            report.burned_in.setdefault(result["burned_in"], []).append(result["output"])
        if result["face"]:
            faces[result["face"]] += 1
        if result.get("alike"):
            alike[result["alike"]].add(result["patient"])
        if result["kind"] == "dicom":
            for name, seen in codes.items():
                seen.add(result[name])
    report.alike = sum(len(patients) for patients in alike.values() if len(patients) > 1)
    report.files = len(results)
    report.written, report.skipped, report.faces = dict(written), dict(skipped.most_common()), dict(faces.most_common())
    report.actions = {what: dict(counts.most_common()) for what, counts in sorted(actions.items())}
    report.burned_in = {reason: sorted(paths) for reason, paths in sorted(report.burned_in.items())}
    report.patients, report.studies, report.series = (len(codes[k]) for k in ("patient", "study", "series"))


def write(report: DeidentifyReport) -> None:
    """`deidentify.json` and `deidentify.html` into the folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from medfm.io.files import atomic_write

    result = report.as_dict()
    with atomic_write(report.out / "deidentify.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["grouped"] = lambda n: f"{n:,}".replace(",", "\u202f")
    page = environment.get_template("deidentify.html.j2").render(
        r=result, done=report.done, flagged=report.flagged, most=_EXAMPLES
    )
    with atomic_write(report.out / "deidentify.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(report: DeidentifyReport) -> RenderableType:
    """The report for a terminal: what was written, what was removed most, what a person must look at."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    kinds = ", ".join(f"{n:,} {kind}" for kind, n in report.written.items()) or "nothing"
    title = Text(f"{report.out}: {report.done:,} of {report.files:,} files written ({kinds})", style="bold")
    lines = [
        f"{report.patients:,} patients, {report.studies:,} studies, {report.series:,} series; dates: {report.options['dates']}"
    ]
    if report.again:
        lines.append(f"{report.again:,} files were done before and taken over")
    if report.table is not None:
        words = ", ".join(f"{k} {n:,}" for k, n in report.table.replaced.items()) or "nothing"
        lines.append(f"reports: {report.table.rows:,} rows; replaced: {words}")
    parts: list[RenderableType] = [title, Text("\n".join(lines))]
    removed = Table()
    removed.add_column("attribute")
    removed.add_column("what was done")
    removed.add_column("files", justify="right")
    ranked = sorted(((n, k, what) for what, counts in report.actions.items() for k, n in counts.items()), reverse=True)
    for n, keyword, what in ranked[:_ROWS]:
        removed.add_row(Text(keyword), what, f"{n:,}")
    if len(ranked) > _ROWS:
        removed.add_row(f"{len(ranked) - _ROWS:,} more in deidentify.html", "", "")
    parts.append(removed)
    look = Table()
    look.add_column("look at")
    look.add_column("files", justify="right")
    for reason, paths in report.burned_in.items():
        look.add_row(f"may show text: {reason}", f"{len(paths):,}")
    for reason, n in report.faces.items():
        look.add_row(f"a face may be rebuilt: {reason}", f"{n:,}")
    for reason, n in report.skipped.items():
        look.add_row(f"not written: {reason}", f"{n:,}")
    if look.row_count:
        parts.append(look)
    notes = [*report.notes, "Pixels were not read. Look through the result before it leaves the house: deidentify.html"]
    parts.append(Text("\n".join(notes)))
    return Group(*parts)
