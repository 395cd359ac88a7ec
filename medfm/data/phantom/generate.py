"""`medfm phantom`: simulate studies in parallel and write them so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from medfm.data.phantom.findings import LABELS
from medfm.data.phantom.study import DEFAULT_SIZE, Kind, Study, View, Visit, image_path, mask_path, schedule, simulate
from medfm.data.splits import assign_split
from medfm.errors import ConfigError, DataError
from medfm.io.files import atomic_write

# Raised when the same seed begins to give other files: folders of older versions are then refused, not mixed.
VERSIONS = {"chest_xray": 1, "chest_ct": 2}  # chest_ct 2: masks carry the names of their values
_FRACTIONS = (0.7, 0.1, 0.2)
_PARTS = ".studies"  # a small file a complete study, which the tables are assembled from


def generate(
    kind: str = "chest_xray",
    n: int = 2000,
    seed: int = 0,
    out: str | Path = "phantom",
    size: int | None = None,
    workers: int = 2,
    masks: bool = True,
    progress: bool = True,
) -> Path:
    """Writes n studies below `out` and returns it. See `README.md` there for what the folder holds.

    Study k of (kind, seed, size) has the same bytes for every n and every number of workers. Complete studies found in `out`
    are kept; `reports.csv` and the other tables hold the first n.

    Raises:
        ConfigError: an argument is out of range.
        DataError: `out` holds something else, or a phantom of other settings.
    """
    if kind not in DEFAULT_SIZE:
        raise ConfigError(f"kind '{kind}' is not one of {', '.join(DEFAULT_SIZE)}")
    size = DEFAULT_SIZE[kind] if size is None else size
    for name, value, low in (("n", n, 1), ("seed", seed, 0), ("size", size, 64), ("workers", workers, 1)):
        if value < low:
            raise ConfigError(f"{name} must be at least {low}, got {value}")
    if size > 1024:
        raise ConfigError(f"size must be at most 1024, got {size}")
    folder = Path(out)
    _claim(folder, {"version": VERSIONS[kind], "kind": kind, "seed": seed, "size": size, "masks": masks})
    visits = list(schedule(kind, n, seed, size))  # type: ignore[arg-type]
    todo = [visit for visit in visits if not _complete(folder, visit)]
    _run(folder, todo, masks, min(workers, len(todo)), progress, kind)
    _tables(folder, visits)
    from medfm.data.phantom.readme import readme

    _write(folder / "README.md", readme(kind, n, seed, size, masks).encode())
    return folder


def _claim(folder: Path, settings: dict[str, object]) -> None:
    """Makes the folder ours, or finds that it already is."""
    mine = folder / "phantom.json"
    if mine.is_file():
        try:
            there = json.loads(mine.read_text(encoding="utf-8"))
        except ValueError:
            raise DataError(f"'{mine}' is not readable; delete the folder, or choose another out=") from None
        wrong = [f"{k}={there.get(k)}, asked for {v}" for k, v in settings.items() if there.get(k) != v]
        if wrong:
            raise DataError(f"'{folder}' holds a phantom with {'; '.join(wrong)}; choose another out=, or delete it")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"'{folder}' exists and is no phantom; choose an empty or new folder for out=")
    _write(mine, (json.dumps(settings, indent=1) + "\n").encode())


def _run(folder: Path, todo: list[Visit], masks: bool, workers: int, progress: bool, kind: str) -> None:
    if not todo:
        return
    if workers <= 1:
        with _bar(len(todo), kind, progress) as advance:
            for visit in todo:
                _make(folder, visit, masks)
                advance()
        return
    import multiprocessing
    import sys
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # Forked where the system forks, as torch's loaders do: nothing is imported twice, and a script needs no main guard.
    context = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        # Runs of studies a task, since a task costs about a millisecond.
        step = max(min(len(todo) // (4 * workers), 16), 1)
        jobs = {
            pool.submit(_make_many, folder, todo[i : i + step], masks): len(todo[i : i + step])
            for i in range(0, len(todo), step)
        }
        try:
            with _bar(len(todo), kind, progress) as advance:
                for job in as_completed(jobs):
                    job.result()
                    advance(jobs[job])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _make_many(folder: Path, visits: list[Visit], masks: bool) -> None:
    for visit in visits:
        _make(folder, visit, masks)


def _make(folder: Path, visit: Visit, masks: bool) -> None:
    """Simulates and writes one study; its part file comes last, so its presence says that the study is complete."""
    study = simulate(visit)
    files: dict[str, int] = {}
    for view in study.views:
        for path, content in (_film_files if view.film is not None else _volume_files)(study, view, masks):
            _put(folder / path, content)
            files[path] = len(content)
    _put(_part(folder, visit), json.dumps({"files": files, **_rows(study, masks)}).encode())


def _complete(folder: Path, visit: Visit) -> bool:
    """Whether all files of a study are there in full length."""
    try:
        files = json.loads(_part(folder, visit).read_bytes())["files"]
        return all((folder / path).stat().st_size == size for path, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _film_files(study: Study, view: View, masks: bool) -> Iterator[tuple[str, bytes]]:
    from medfm.data.phantom.dicom import encode, film_dataset
    from medfm.io.geometry import film_affine

    assert view.film is not None
    dataset = film_dataset(study, view)
    yield image_path(study.visit, view), encode(dataset)
    if masks:
        affine, _ = film_affine(dataset, (view.film.pitch, view.film.pitch))
        yield mask_path(view), _nifti(view.film.mask.T[:, :, None], affine)


def _volume_files(study: Study, view: View, masks: bool) -> Iterator[tuple[str, bytes]]:
    from medfm.data.phantom.dicom import encode, slice_datasets

    assert view.volume is not None
    taken = view.volume
    for k, dataset in enumerate(slice_datasets(study, view), start=1):
        yield f"images/{view.name}/{k:04d}.dcm", encode(dataset)
    affine = np.diag([-taken.spacing[0], -taken.spacing[1], taken.spacing[2], 1.0])
    affine[:3, 3] = -taken.origin[0], -taken.origin[1], taken.origin[2]
    yield image_path(study.visit, view), _nifti(taken.hu, affine)
    if masks:
        from medfm.data.phantom.volume import VALUES
        from medfm.io.masks.labels import label_table

        yield mask_path(view), _nifti(taken.labels, affine, label_table({value: name for name, value in VALUES.items()}))


def _nifti(array: np.ndarray, affine: np.ndarray, labels: bytes = b"") -> bytes:
    """Bytes of a .nii.gz without a time stamp; `labels`, the names of a mask's values, go into its header."""
    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    if labels:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, labels))
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _put(path: Path, content: bytes) -> None:
    """Whole or not at all, but not forced to disk: it would take as long as the simulation, and `_complete` checks lengths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_bytes(content)
    temporary.replace(path)


def _part(folder: Path, visit: Visit) -> Path:
    return folder / _PARTS / f"{visit.study_id}.json"


def _rows(study: Study, masks: bool) -> dict[str, list[dict[str, object]]]:
    """Rows of the three tables."""
    visit = study.visit
    table: dict[str, list[dict[str, object]]] = {"reports": [], "boxes": [], "questions": []}
    for view in study.views:
        image = image_path(visit, view)
        row: dict[str, object] = {
            "image": image,
            "patient_id": visit.patient_id,
            "study_id": visit.study_id,
            "view": view.view if view.volume is None else "",
            "modality": study.modality,
            "sex": study.patient.sex,
            "age": study.age,
            "split": assign_split(visit.patient_id, 0, _FRACTIONS),
            "mask": mask_path(view) if masks else "",
            "cardiothoracic_ratio": f"{study.ratio:.4f}",
            "report": study.report,
        }
        if view.volume is not None:
            row["series"] = f"images/{view.name}"
        row.update({f"label:{name}": study.labels[name] for name in LABELS})
        table["reports"].append(row)
        table["boxes"] += [{"image": image, "study_id": visit.study_id, **vars(box)} for box in view.boxes]
        table["questions"] += [
            {"image": image, "study_id": visit.study_id, "question": q.question, "answer": q.answer, "type": q.kind}
            for q in view.questions
        ]
    return table


_EMPTY_HEADS = {"boxes": ["image", "study_id", "finding", "side", "zone", "x0", "y0", "x1", "y1"]}


def _tables(folder: Path, visits: list[Visit]) -> None:
    """Assembles reports.csv, boxes.csv and questions.csv from the studies' parts."""
    rows: dict[str, list[dict[str, object]]] = {"reports": [], "boxes": [], "questions": []}
    for visit in visits:
        path = _part(folder, visit)
        try:
            part = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise DataError(f"'{path}' is broken; delete it and run again, its study is then made anew") from None
        for name in rows:
            rows[name] += part[name]
    for name, content in rows.items():
        text = io.StringIO(newline="")
        heads = list(content[0]) if content else _EMPTY_HEADS[name]
        writer = csv.DictWriter(text, heads, lineterminator="\n")
        writer.writeheader()
        writer.writerows(content)
        _write(folder / f"{name}.csv", text.getvalue().encode())


@contextmanager
def _bar(total: int, kind: str, show: bool) -> Iterator[Callable[..., None]]:
    if not show:
        yield lambda count=1: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(f"phantom {kind}", total=total)
        yield lambda count=1: bar.advance(task, count)


__all__ = ["Kind", "generate"]
