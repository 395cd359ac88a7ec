"""Find what is wrong with a manifest before training starts: counts, first examples, what to do."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from medfm.data.manifest import LABEL_PREFIX, Manifest
from medfm.data.scan import parallel, relative_message
from medfm.data.splits import SPLITS, leaks
from medfm.data.table import is_broken
from medfm.data.values import parse_label
from medfm.errors import DataError, MedfmError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from medfm.types import Image

Level = Literal["headers", "decode", "none"]
EXAMPLES = 3
# How spreadsheets and pandas write a missing patient: as one, they would be a patient with many images.
_NO_PATIENT = ("", "nan", "none", "null", "<na>", "n/a", "na", "nat")
_LONGEST = 200

# Kind of problem -> what is said of it, in the order it is said.
KINDS = {
    "outside": "rows name an image or mask outside of the root, below which all must lie",
    "missing": "image files do not exist",
    "unreadable": "images cannot be read",
    "modality": "images are no CT, which preprocess.window=hu needs",
    "duplicate": "rows name an image that an earlier row names",
    "leak": "rows put their patient into a second split",
    "split": "rows have a split other than train, val and test",
    "patient": "rows have no patient_id",
    "empty": "reports are empty",
    "encoding": "rows hold text that is not UTF-8",
    "label": "rows have a label outside 1, 0, -1 and empty",
}


@dataclass
class Problem:
    """One kind of problem: the rows it makes unusable (labels of `Manifest.frame`'s index) and the first examples in words."""

    kind: str
    rows: list[int]
    examples: list[str]

    def __str__(self) -> str:
        return f"{len(self.rows):,} {KINDS[self.kind]}, first: {'; '.join(self.examples)}"


@dataclass
class CheckReport:
    """All problems of a manifest, by kind, of `checked` rows. Holds row numbers and relative paths, no patient data."""

    checked: int
    level: str
    name: str
    problems: dict[str, Problem] = field(default_factory=dict)

    @property
    def bad_rows(self) -> set[int]:
        return {row for problem in self.problems.values() for row in problem.rows}

    @property
    def counts(self) -> dict[str, int]:
        """Kind -> rows; what a run folder records."""
        return {kind: len(problem.rows) for kind, problem in self.problems.items()}

    def summary(self) -> str:
        lines = "".join(f"\n  {problem}" for problem in self.problems.values())
        bad = len(self.bad_rows)
        return (
            f"{self.name}: {bad:,} of {self.checked:,} rows cannot be used{lines}"
            if bad
            else f"{self.name}: all {self.checked:,} rows usable"
        )

    def clean(self, manifest: Manifest, on_error: str = "fail") -> Manifest:
        """`manifest` without the bad rows (its index keeps the numbers of the file); itself where there are none.

        A patient in two splits loses the rows of the less held-out split: a patient of test and train stays in test.

        Raises:
            DataError: with on_error "fail" and any problem: all of them; with "skip" and no row left.
        """
        if not self.problems:
            return manifest
        if on_error == "fail":
            raise DataError(f"{self.summary()}\nSet data.on_error=skip to go on without these rows")
        bad = self.bad_rows
        frame = manifest.frame[[i not in bad for i in manifest.frame.index]]
        if frame.empty:
            raise DataError(f"{self.summary()}\nNo row is left")
        return Manifest(frame, manifest.root, {**manifest.meta, "skipped": {"rows": len(bad), **self.counts}}, manifest.path)


def check_manifest(
    manifest: Manifest,
    config: Any = None,
    *,
    level: Level | None = None,
    need_text: bool = False,
    splits: Iterable[str] | None = None,
    views: Iterable[str] | None = None,
    preprocess: Callable[[Image], np.ndarray] | None = None,
    workers: int = 8,
    progress: bool = False,
) -> CheckReport:
    """Look for missing files, unreadable images, duplicate rows, patients in two splits, bad labels and texts.

    Args:
        config: a DataConfig or EvaluateDataConfig: its `check_files` and `views` are taken where `level` and `views` are None.
        level: "headers": files exist and their headers parse; "decode": every image decodes; "none": files are not looked at.
        need_text: an empty report makes a row unusable. For what trains or scores on text.
        splits: look at the files of these splits only; splits, labels and duplicates are checked over all rows.
        preprocess: refuse rows whose modality cannot be in Hounsfield units where the contract needs them; with level "decode",
            also what else contradicts the contract. With "headers", a tilted gantry passes where the contract resamples it.
        workers: threads that read files.
    """
    from medfm.text.report import is_empty

    depth = str(level or getattr(config, "check_files", "headers"))
    views = tuple(views if views is not None else getattr(config, "views", ()))
    frame = manifest.frame
    wanted = set(splits) if splits is not None else None
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)

    def example(row: int, extra: str = "") -> str:
        return f"{manifest.row_name(row)} {_shown(frame.at[row, 'image'])}{extra}"

    first: dict[str, int] = {}
    used: list[int] = []
    hounsfield = getattr(getattr(preprocess, "config", None), "window", "") == "hu"
    columns = ("image", "mask", "patient_id", "split", "view", "modality")
    for row, image, mask, patient, split, view, modality in zip(
        frame.index.tolist(), *(frame[column] for column in columns), strict=True
    ):
        if views and view not in views:
            continue
        name = os.path.normpath(image) if image else image
        if name in first:
            found["duplicate"].append((row, example(row, f", as {manifest.row_name(first[name])}")))
        else:
            first[name] = row
        if not (inside(image, manifest.root) and inside(mask, manifest.root)):
            found["outside"].append((row, example(row, "" if not inside(image, manifest.root) else f", mask {_shown(mask)}")))
            continue
        if split not in SPLITS:
            found["split"].append((row, example(row)))
        if patient.strip().lower() in _NO_PATIENT:
            found["patient"].append((row, example(row)))
        if wanted is None or split in wanted:
            if hounsfield and modality not in ("", "CT"):
                found["modality"].append((row, example(row, f" ({modality})" if len(modality) <= 16 else "")))
            else:
                used.append(row)
    leaking = leaks(frame["patient_id"], frame["split"])
    if leaking:
        for row, patient, split in zip(frame.index.tolist(), frame["patient_id"], frame["split"], strict=True):
            if patient in leaking and split in leaking[patient][1:]:
                found["leak"].append((row, example(row, f" is {split}, its patient is also in {leaking[patient][0]}")))
    _check_labels(manifest, found, example)
    usable = set(used)
    for row, report in zip(frame.index.tolist(), frame["report"], strict=True):
        if is_broken(report):
            found["encoding"].append((row, example(row)))
        elif need_text and row in usable and is_empty(report):
            found["empty"].append((row, example(row)))
    if depth != "none":
        _check_files(manifest, used, depth, preprocess, workers, progress, found, example)
    name = manifest.path.name if manifest.path is not None else "manifest"
    report = CheckReport(len(frame), depth, name)
    for kind in KINDS:
        if kind in found:
            entries = sorted(found[kind])
            report.problems[kind] = Problem(kind, [r for r, _ in entries], [e for _, e in entries[:EXAMPLES]])
    return report


def _shown(image: object) -> str:
    """A path for a message. What is no path (a cell that swallowed its neighbours) may be a report: it is not shown."""
    if is_broken(image):
        return "(its path is not UTF-8)"
    text = str(image)
    if not text.strip():
        return "(no path)"
    return repr(text) if len(text) <= _LONGEST and text.isprintable() else "(what it holds is no path)"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file system takes
        return False


def inside(image: str, root: Path) -> bool:
    """Whether a path stays below the root, by its words alone: a link is its owner's choice."""
    from medfm.io.sequences import split_sequences

    home = os.path.abspath(root)
    paths = [os.path.normpath(part) for part in split_sequences(os.path.join(home, image))]
    return all(path == home or path.startswith(home.rstrip(os.sep) + os.sep) for path in paths)


def _check_labels(manifest: Manifest, found: dict[str, list[tuple[int, str]]], example: Callable[..., str]) -> None:
    frame = manifest.frame
    bad: dict[int, list[str]] = defaultdict(list)
    for column in frame.columns:
        if not column.startswith(LABEL_PREFIX):
            continue
        values = frame[column]
        if values.dtype.kind == "f":
            wrong = values[values.notna() & ~values.isin((1.0, 0.0, -1.0))].index
        else:
            wrong = values.index[[parse_label(v) is None for v in values]]
        for row in wrong:
            bad[row].append(column.removeprefix(LABEL_PREFIX))
    for row, names in bad.items():
        found["label"].append((row, example(row, f" ({', '.join(names[:3])})")))


def _check_files(
    manifest: Manifest,
    rows: list[int],
    level: str,
    preprocess: Callable[[Image], np.ndarray] | None,
    workers: int,
    progress: bool,
    found: dict[str, list[tuple[int, str]]],
    example: Callable[..., str],
) -> None:
    from medfm.io.load import load_image, peek
    from medfm.io.reference import split_reference
    from medfm.io.sequences import split_sequences

    images, modality = manifest.frame["image"], manifest.frame["modality"]
    # A contract reads files its own way (a tilted gantry resampled, large films at reduced resolution).
    load = getattr(preprocess, "load", load_image)
    resampled = getattr(getattr(preprocess, "config", None), "tilt", "refuse") == "resample"

    def look(row: int) -> tuple[str, str]:
        path = manifest.image_path(row)
        try:
            if not str(images.at[row]).strip() or not all(_exists(split_reference(p)[0]) for p in split_sequences(path)):
                backslash = "\\" in path.name and os.sep == "/"
                return "missing", " (write / between folders)" if backslash else ""
            if level == "headers":
                problem = peek(path).problem
                return ("unreadable", f": {problem}") if problem and not (resampled and "gantry tilt:" in problem) else ("", "")
            image = load(path, str(modality.at[row]))
            if preprocess is not None:
                preprocess(image)
        except MedfmError as error:
            # The message names the file again; the example does so already.
            return "unreadable", f": {relative_message(error, manifest.root)}"
        except (OSError, ValueError) as error:
            return "unreadable", f": {type(error).__name__}"
        return "", ""

    for row, (kind, why) in zip(rows, parallel(look, rows, workers, "checking images", progress), strict=True):
        if kind:
            found[kind].append((row, example(row, why)))


def checked(manifest: Manifest, config: Any, **options: Any) -> tuple[Manifest, CheckReport]:
    """`check_manifest`, then `clean` by `config.on_error`. Raises DataError as `clean` does."""
    report = check_manifest(manifest, config, **options)
    return report.clean(manifest, config.on_error), report


def prepare(manifest: Manifest, config: Any, *, need_text: bool = True, progress: bool = False, **options: Any) -> Manifest:
    """What training does first: `checked`, for the splits that it uses. A warning and meta["skipped"] count the rows left out.

    Raises:
        DataError: with config.on_error=fail and any problem; or no row is left.
    """
    import logging

    options = {"splits": ("train", "val"), **options}
    kept, report = checked(manifest, config, need_text=need_text, progress=progress, **options)
    if report.problems:
        logging.getLogger("medfm").warning("%s\nLeft out, as data.on_error=skip says", report.summary())
    return kept
