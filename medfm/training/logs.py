"""Numbers of a run: a CSV that survives resuming, and learning curves as a picture."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from medfm.io.files import atomic_write


class CsvLogger(Logger):
    """Appends `step,name,value` rows to `metrics.csv`. Rows after the step that a run resumes from are dropped."""

    def __init__(self, path: Path, resumed_step: int = 0) -> None:
        super().__init__()
        self.path = path
        rows = [row for row in read_metrics(path) if row[0] <= resumed_step] if resumed_step else []
        with atomic_write(path) as temporary:
            temporary.write_text("".join(["step,name,value\n", *(f"{s},{n},{v!r}\n" for s, n, v in rows)]), encoding="utf-8")

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run folder holds resolved.yaml instead."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows((step, name, float(value)) for name, value in metrics.items())


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """Rows (step, name, value) of a metrics.csv; a last line cut by a kill is dropped."""
    if not path.is_file():
        return []
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            try:
                rows.append((int(row[0]), row[1], float(row[2])))
            except (ValueError, IndexError):
                continue
    return rows


def draw_curves(metrics: Path, target: Path) -> None:
    """Training and validation curves of a run as one PNG: a panel for each number."""
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in read_metrics(metrics):
        series.setdefault(name, []).append((step, value))
    panels = sorted({name.split("/")[-1] for name in series} - {"epoch"}, key=lambda n: (n != "loss", n))
    if not panels:
        return
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * lines), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(lines, columns, number + 1)
        for name, points in series.items():
            if name.split("/")[-1] == panel:
                label = name.rpartition("/")[0]
                axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 30 else None, markersize=3)
                if label:
                    axes.legend(frameon=False)
        axes.set_title(panel.replace("_", " "))
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(target) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
