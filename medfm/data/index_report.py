"""What `medfm index` accepted and rejected, and why: for a person, and as a CSV of the rejected files."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.data.manifest import Manifest

if TYPE_CHECKING:
    from rich.console import RenderableType

_EXAMPLES = 3


@dataclass
class IndexReport:
    """What `index` did.

    Attributes:
        out: the manifest written.
        manifest: its content.
        files: image files looked at.
        rejected: (relative path, reason) of each file or row left out; also in `rejected_path`.
        rejected_path: CSV of them, None where there are none.
        joined: how the table was joined, "" without a table.
        columns: manifest column -> where it came from.
        reports: counts over report texts (`medfm.text.report.report_statistics`).
        labels: finding -> {"1": n, "0": n, "-1": n, "": n}.
        notes: what else a person should know.
    """

    out: Path
    manifest: Manifest
    files: int
    rejected: list[tuple[str, str]]
    rejected_path: Path | None
    joined: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    reports: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, tuple[int, list[str]]]:
        """Reason -> (count, first paths); the most frequent first."""
        return group_reasons(self.rejected)


def group_reasons(rejected: list[tuple[str, str]]) -> dict[str, tuple[int, list[str]]]:
    """Reasons that differ only in the file they name are one."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, reason in rejected:
        general = re.sub(r"^copy of '.*?' \(", "copy of another file (", reason)
        general = general.replace(f"'{path}'", "the file").replace(path, "the file") if path else general
        found[general].append(path)
    return {r: (len(p), p[:_EXAMPLES]) for r, p in sorted(found.items(), key=lambda kv: -len(kv[1]))}


def write_rejected(out: Path, rejected: list[tuple[str, str]]) -> Path | None:
    from medfm.io.files import atomic_write

    path = out.with_name(out.name + ".rejected.csv")
    if not rejected:
        path.unlink(missing_ok=True)
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(sorted(rejected))
    return path


def render(report: IndexReport) -> RenderableType:
    """The report for a terminal: splits, columns, reports, labels, and what was rejected and why."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    frame = report.manifest.frame
    total = report.manifest.meta["counts"]
    title = Text(f"{report.out}: {total['images']:,} images of {total['patients']:,} patients", style="bold")
    splits = Table()
    for heading in ("split", "images", "patients", "with report"):
        splits.add_column(heading, justify="left" if heading == "split" else "right")
    for split, n in total["splits"].items():
        with_report = int((frame.loc[frame["split"] == split, "report"] != "").sum())
        splits.add_row(split, f"{n['images']:,}", f"{n['patients']:,}", f"{with_report:,}")
    parts: list[RenderableType] = [title, splits]
    lines = [f"views: {_listing(total['views'])}" if total["views"] else "", f"modalities: {_listing(total['modalities'])}"]
    if report.joined:
        lines.append(f"joined by {report.joined}")
    lines += [f"{name} from {origin}" for name, origin in report.columns.items()]
    texts = report.reports
    if texts and texts["total"] > texts["empty"]:
        lines.append(
            f"reports: {texts['total'] - texts['empty']:,}, {texts['distinct']:,} distinct, {texts['normal']:,} normal; "
            f"{texts['empty']:,} images without; median {texts['words']['median']:g} words"
        )
    lines += report.notes
    parts.append(Text("\n".join(line for line in lines if line)))
    if report.labels:
        labels = Table()
        for heading in ("finding", "present", "absent", "uncertain", "not stated"):
            labels.add_column(heading, justify="left" if heading == "finding" else "right")
        for name, n in report.labels.items():
            labels.add_row(Text(name), *(f"{n[k]:,}" for k in ("1", "0", "-1", "")))
        parts.append(labels)
    if report.rejected:
        parts.append(Text(f"rejected: {len(report.rejected):,}; all in {report.rejected_path}", style="bold"))
        rejected = Table()
        rejected.add_column("count", justify="right")
        rejected.add_column("reason")
        rejected.add_column("first")
        for reason, (n, paths) in report.reasons.items():
            rejected.add_row(f"{n:,}", Text(reason), Text(", ".join(paths)))
        parts.append(rejected)
    return Group(*parts)


def _listing(values: dict[str, int]) -> str:
    return ", ".join(f"{k} {v:,}" for k, v in values.items())
