"""The evaluation card: one HTML file with everything in it, and the JSON and table beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfm.evaluation import plots
from medfm.evaluation.montage import strip
from medfm.evaluation.scoring import LABEL
from medfm.io.files import atomic_write

if TYPE_CHECKING:
    from jinja2 import Environment

    from medfm.data.manifest import Manifest
    from medfm.evaluation.probe import Probed
    from medfm.evaluation.scoring import Scored
    from medfm.evaluation.zero_shot import Evaluation, ZeroShotClassifier

TEMPLATES = Path(__file__).with_name("templates")


def write_zero_shot(
    folder: Path,
    result: dict[str, Any],
    done: Evaluation,
    classifier: ZeroShotClassifier,
    manifest: Manifest,
    pictures: bool = True,
) -> None:
    """Write `predictions.parquet`, `card.html` and, last, `result.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = [finding.name for finding in done.prompts.findings]
    write_predictions(folder / "predictions.parquet", columns, _parts(done, result))
    sections = []
    for entry in result["findings"]:
        case = done.scored[entry["name"]]
        examples = _examples(case, done, classifier, manifest, entry["name"]) if pictures else []
        prompts = next(finding for finding in done.prompts.findings if finding.name == entry["name"])
        sections.append({"entry": entry, "curves": _curves(entry, case), "examples": examples, "prompts": prompts})
    write_html(folder / "card.html", "zero_shot.html.j2", result=result, sections=sections)
    write_json(folder / "result.json", result)


def write_probe(folder: Path, result: dict[str, Any], done: Probed) -> None:
    """Write `predictions.parquet`, `card.html` and, last, `result.json` of a probe into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.parquet", done.findings, _parts(done, result))
    sections = [{"entry": entry, "curves": _curves(entry, done.scored[entry["name"]])} for entry in result["findings"]]
    efficiency = []
    if len(result["label_efficiency"]) > 1:
        figure = plots.efficiency_figure(result["label_efficiency"], result.get("against", {}).get("name", ""))
        efficiency = [{"alt": "Mean AUROC by number of training patients", "uri": plots.curve_uri(figure)}]
    write_html(folder / "card.html", "probe.html.j2", result=result, sections=sections, efficiency=efficiency)
    write_json(folder / "result.json", result)


def _parts(done: Evaluation | Probed, result: dict[str, Any]) -> list[tuple[str, NDArray, NDArray]]:
    data = result["data"]
    return [
        (data["split"], done.rows, done.probabilities),
        (data["val_split"], done.val_rows, done.val_probabilities),
    ]


def write_json(path: Path, result: dict[str, Any]) -> None:
    """JSON without NaN, atomically."""
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_html(path: Path, template: str, **content: Any) -> None:
    """Render a template of `templates/` to a file, atomically."""
    text = _environment().get_template(template).render(**content)
    with atomic_write(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=number,
        estimate=estimate,
        whisker=whisker,
        unreadable_words=unreadable_words,
        grouped=lambda n: f"{n:,}".replace(",", "\u202f"),
    )
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """A score as text; a dash where it is not defined."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def unreadable_words(unreadable: dict[str, Any], what: str = "images") -> str:
    """ "7 images could not be read and were left out: rows 3, 9, 12, 20, 41, ... of the manifest (DataError)"."""
    rows = ", ".join([f"{item['row']:,}" for item in unreadable["first"]])
    more = ", ..." if unreadable["count"] > len(unreadable["first"]) else ""
    kinds = ", ".join(sorted({item["kind"] for item in unreadable["first"]}))
    return f"{unreadable['count']:,} {what} could not be read and were left out: rows {rows}{more} of the manifest ({kinds})"


def estimate(value: dict[str, Any] | None, digits: int = 3) -> str:
    """ "0.912 [0.874, 0.945]", without brackets where there is no interval."""
    if value is None or value["value"] is None:
        return "–"
    if value["low"] is None:
        return number(value["value"], digits)
    return f"{number(value['value'], digits)} [{number(value['low'], digits)}, {number(value['high'], digits)}]"


def whisker(entry: dict[str, Any], width: int = 132, height: int = 16) -> Any:
    """A row of a forest plot as inline SVG: AUROC from 0 to 1 with its interval, random weights as a ring, chance as a line."""
    from markupsafe import Markup

    def x(value: float) -> float:
        return round(5 + value * (width - 10), 1)

    middle = height / 2
    parts = [f'<line class="axis" x1="{x(0)}" x2="{x(1)}" y1="{middle}" y2="{middle}"/>']
    parts.append(f'<line class="half" x1="{x(0.5)}" x2="{x(0.5)}" y1="1" y2="{height - 1}"/>')
    random, model = entry.get("random"), entry["auroc"]
    if random is not None and random["auroc"] is not None and random["auroc"]["value"] is not None:
        parts.append(f'<circle class="random" cx="{x(random["auroc"]["value"])}" cy="{middle}" r="3"/>')
    if model is not None and model["value"] is not None:
        if model["low"] is not None:
            parts.append(f'<line class="interval" x1="{x(model["low"])}" x2="{x(model["high"])}" y1="{middle}" y2="{middle}"/>')
        parts.append(f'<circle class="model" cx="{x(model["value"])}" cy="{middle}" r="4"/>')
    # All numbers in it are ours.
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">{"".join(parts)}</svg>'
    )


def prediction_columns(names: Sequence[str]) -> list[str]:
    """Columns of `predictions.parquet` for findings or structures. Its first columns are `row` and `split`: a finding of either
    name has the manifest's prefix before it, "label:row"."""
    return [f"{LABEL}{name}" if name in ("row", "split") else name for name in names]


def write_predictions(path: Path, columns: Sequence[str], parts: Sequence[tuple[str, NDArray, NDArray]]) -> None:
    """A row an image: its manifest row, split and the probabilities. `parts`: split, rows (n,), probabilities (n, F). See
    `prediction_columns`."""
    import pandas as pd

    columns = prediction_columns(columns)
    frames = [pd.DataFrame(values, columns=columns).assign(row=rows, split=split) for split, rows, values in parts]
    frame = pd.concat(frames, ignore_index=True)
    with atomic_write(path) as temporary:
        frame[["row", "split", *columns]].to_parquet(temporary, index=False)


def _curves(entry: dict[str, Any], case: Scored) -> list[dict[str, str]]:
    point = None
    if entry["sensitivity"] is not None:
        point = (entry["sensitivity"]["value"], entry["specificity"]["value"])
    name = entry["name"]
    figures = (
        (f"ROC curve of {name}", plots.roc_figure(case.target, case.probability, case.baseline, point)),
        (f"Histogram of probabilities of {name}", plots.histogram_figure(case.target, case.probability, case.threshold)),
        (f"Reliability of {name}", plots.reliability_figure(entry["calibration"])),
    )
    return [{"alt": alt, "uri": plots.curve_uri(figure)} for alt, figure in figures]


# What is shown of each finding: right and wrong, and on which side of the threshold.
_KINDS = (
    ("right: finding present", 1, True),
    ("right: finding absent", 0, False),
    ("wrong: called present", 0, True),
    ("wrong: missed", 1, False),
)


def most_confident(case: Scored) -> list[tuple[str, int]]:
    """Of every kind of right and wrong call the image farthest from the threshold: (kind, index into the case). Kinds without
    an image are left out. Without a threshold from val, the median probability stands in."""
    threshold = case.threshold if math.isfinite(case.threshold) else float(np.median(case.probability))
    called = case.probability >= threshold
    chosen = []
    for kind, target, positive in _KINDS:
        candidates = np.flatnonzero((case.target == target) & (called == positive))
        if len(candidates):
            distance = np.abs(case.probability[candidates] - threshold)
            chosen.append((kind, int(candidates[distance.argmax()])))
    return chosen


def _examples(
    case: Scored, done: Evaluation, classifier: ZeroShotClassifier, manifest: Manifest, finding: str
) -> list[dict[str, Any]]:
    load = classifier.model.preprocess.load
    shown = []
    for kind, index in most_confident(case):
        position = int(case.rows[index])
        row = int(done.rows[position])
        image = load(manifest.image_path(row), str(manifest.frame.at[row, "modality"]))
        picture, heat = classifier.similarity_map(image, finding)
        about = {"kind": kind, "right": kind.startswith("right"), "row": row, "probability": float(case.probability[index])}
        shown.append(about | _pictures(picture, heat, classifier))
    return shown


def _pictures(picture: NDArray, heat: NDArray, classifier: ZeroShotClassifier) -> dict[str, str]:
    """The image and its map: `picture` and `overlay`; of a volume `strip`, slices of both."""
    if picture.ndim == 3:
        orientation = classifier.model.preprocess.config.orientation
        return {"strip": plots.jpeg_uri(strip(picture, heat, orientation), 1000)}
    return {"picture": plots.jpeg_uri(picture), "overlay": plots.jpeg_uri(plots.overlay(picture, heat))}
