"""python -m benchmarks.conformance [--data DIR] [--readers medfm,SimpleITK] [--only WORD]: who reads what rightly."""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import bar, data_dir, machine, table, write
from benchmarks.conformance.asked import asked
from benchmarks.conformance.cases import CATEGORIES, FAULT, FOURD, MUST, NIFTI, OTHER, Case, nifti_cases, real_cases
from benchmarks.conformance.enhanced import enhanced_cases
from benchmarks.conformance.pool import GIB, Answer, Task, run
from benchmarks.conformance.readers import DICOM_READERS, NIFTI_READERS, installed
from benchmarks.conformance.synth import bases, synthetic_faults, synthetic_stacks

RIGHT, REFUSED, WRONG, BROKE = "right", "refused", "WRONG", "crash"
LIMIT_S, MEMORY = 60.0, 4 * GIB


@dataclass(frozen=True)
class Prepared:
    """A case with its truths on disk."""

    case: Case
    truths: tuple[str, ...]
    made_by: str


def collect(data: Path, work: Path) -> list[Case]:
    """Every case: real files, series made of real ones, NIfTI files."""
    parts = bases(data)
    found = [*real_cases(data, work), *synthetic_stacks(parts, work), *synthetic_faults(parts, work)]
    return [*found, *enhanced_cases(data, parts, work), *nifti_cases(data)]


def prepare(cases: Sequence[Case], work: Path) -> list[Prepared]:
    """Write the truths. A case whose truth nobody can make has none: then only a refusal is right."""
    found = []
    for number, case in enumerate(cases):
        truths = []
        if case.truth is not None:
            try:
                truths = case.truth()
            except Exception as error:  # whatever decoders raise
                if case.must:
                    raise RuntimeError(f"no truth for '{case.name}', which must be read") from error
        saved = [str(t.save(work / "truths" / f"{number}-{n}.npz")) for n, t in enumerate(truths)]
        found.append(Prepared(case, tuple(saved), truths[0].made_by if truths else "none: to be refused"))
    return found


def verdict(case: Case, answer: Answer) -> str:
    if answer.kind == "equal":
        return RIGHT
    if answer.kind == "other":
        return RIGHT if case.free else WRONG
    return REFUSED if answer.kind == "refused" else BROKE


def misnamed(case: Case, answer: Answer) -> bool:
    """Whether the refusal of a fault does not name it."""
    return bool(case.fault) and answer.kind == "refused" and not re.search(case.fault, _words(answer.words), re.IGNORECASE)


def _words(words: str) -> str:
    """A refusal without the paths in it, whose names would name the fault by themselves."""
    return re.sub(r"'[^']*/[^']*'", "'...'", words)


def measure(prepared: Sequence[Prepared], readers: Sequence[str]) -> dict[str, list[Answer]]:
    tasks = [Task(str(p.case.path), p.truths) for p in prepared]
    return {name: list(run(name, tasks, LIMIT_S, MEMORY)) for name in readers}


def summary(prepared: Sequence[Prepared], answers: dict[str, list[Answer]], categories: Sequence[str]) -> str:
    rows = []
    for category in categories:
        chosen = [n for n, p in enumerate(prepared) if p.case.category == category]
        if not chosen:
            continue
        row: list[object] = [category, len(chosen)]
        for given in answers.values():
            count = Counter(verdict(prepared[n].case, given[n]) for n in chosen)
            words = [f"{count[v]} {v}" for v in (RIGHT, REFUSED, WRONG, BROKE) if count[v]]
            row.append(", ".join(words))
        rows.append(row)
    return table(["category", "cases", *answers], rows)


def per_case(prepared: Sequence[Prepared], answers: dict[str, list[Answer]]) -> str:
    rows = [
        [p.case.name.replace("|", "/"), p.case.category, p.made_by, *(verdict(p.case, given[n]) for given in answers.values())]
        for n, p in enumerate(prepared)
    ]
    return table(["case", "category", "truth by", *answers], rows)


def refusals(prepared: Sequence[Prepared], given: list[Answer]) -> str:
    """Every case that medfm refused, with its reason."""
    rows = [
        [p.case.name, p.case.category, _words(a.words).replace("|", "/")]
        for p, a in zip(prepared, given, strict=True)
        if a.kind == "refused"
    ]
    return table(["case", "category", "medfm's reason"], rows)


def troubles(prepared: Sequence[Prepared], given: list[Answer]) -> list[tuple[Case, str]]:
    """Where medfm misses its bar: (case, why)."""
    found = []
    for p, a in zip(prepared, given, strict=True):
        what = verdict(p.case, a)
        if what in (WRONG, BROKE) or (what == REFUSED and p.case.must):
            found.append((p.case, f"{what}: {a.words}"))
        elif misnamed(p.case, a):
            found.append((p.case, f"refused by another name: {_words(a.words)}"))
    return found


def bars(prepared: Sequence[Prepared], given: list[Answer]) -> list[str]:
    lines = []
    pairs = list(zip(prepared, given, strict=True))
    for category in MUST:
        chosen = [(p.case, a) for p, a in pairs if p.case.category == category]
        right = sum(verdict(c, a) == RIGHT for c, a in chosen)
        lines.append(bar(f"{category}: {right} of {len(chosen)} right", right == len(chosen)))
    faults = [(p.case, a) for p, a in pairs if p.case.category == FAULT]
    good = sum(verdict(c, a) in (RIGHT, REFUSED) and not misnamed(c, a) for c, a in faults)
    lines.append(bar(f"{FAULT}: {good} of {len(faults)} right or refused by name", good == len(faults)))
    for category in (FOURD, OTHER):
        chosen = [(p.case, a) for p, a in pairs if p.case.category == category]
        good = sum(verdict(c, a) in (RIGHT, REFUSED) for c, a in chosen)
        lines.append(bar(f"{category}: {good} of {len(chosen)} right or refused", good == len(chosen)))
    wrong = sum(verdict(p.case, a) == WRONG for p, a in pairs)
    broke = sum(verdict(p.case, a) == BROKE for p, a in pairs)
    return [*lines, bar(f"silently wrong: {wrong}", wrong == 0), bar(f"crashed or untyped: {broke}", broke == 0)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_dir())
    parser.add_argument("--readers", default="", help="some only, comma-separated; then nothing is written")
    parser.add_argument("--only", default="", help="cases whose name or category holds this word; then nothing is written")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        work = Path(folder)
        cases = [c for c in collect(options.data, work) if options.only in f"{c.name} {c.category}"]
        prepared = prepare(cases, work)
        dicom = [p for p in prepared if not p.case.path.name.endswith((".nii", ".nii.gz"))]
        nifti = [p for p in prepared if p.case.path.name.endswith((".nii", ".nii.gz"))]
        chosen = set(filter(None, options.readers.split(",")))
        names, absent = installed(DICOM_READERS)
        first = measure(dicom, [n for n in names if not chosen or n in chosen])
        second = measure(nifti, [n for n in NIFTI_READERS if not chosen or n in chosen])
        wishes = [] if chosen else [[name, _asked(check)] for name, check in asked(cases)]
    for some, answers in ((dicom, first), (nifti, second)):
        for case, why in troubles(some, answers.get("medfm", [])) if "medfm" in answers else []:
            print(f"medfm: {case.name} [{case.category}] {case.path.name}: {why}")
    if chosen or options.only:
        print(summary(dicom, first, CATEGORIES), summary(nifti, second, CATEGORIES), sep="\n\n")
        return
    _write(dicom, first, nifti, second, absent, wishes)


def _asked(check: Callable[[], str]) -> str:
    from medfm.errors import MedfmError

    try:
        return check() or RIGHT
    except MedfmError as error:
        return f"refused: {_words(str(error))}"


def _write(
    dicom: list[Prepared],
    first: dict[str, list[Answer]],
    nifti: list[Prepared],
    second: dict[str, list[Answer]],
    absent: list[str],
    wishes: list[list[str]],
) -> None:
    medfm = [*first["medfm"], *second["medfm"]]
    together = [*dicom, *nifti]
    missed = troubles(together, medfm)
    write(
        "conformance",
        "Conformance: who reads what rightly",
        "Cases: real DICOM files and series (this project's test images; what pydicom and nibabel carry), series and "
        "multi-frame objects made from real ones in other orders, encodings and with geometry faults, and NIfTI files. "
        "Truth: the header worked out in float64 by a few lines of the benchmark, checked against dcm2niix and the shipped "
        "reference NIfTIs where they speak (column `truth by`; `not dcm2niix`: it holds one rescale for slices that have "
        "several); nibabel for NIfTI. Compared in world space, all corners within 0.02 mm + 2 % of a voxel, values to "
        "float32 rounding (lossy JPEG: two stored units).",
        "`right`: the values and the place of every voxel. `refused`: an exception (medfm: a DataError). `WRONG`: a result "
        "that differs, without a word; for a folder that mixes series, taking one of them silently counts so. `crash`: the "
        "process died, hung, or medfm raised anything but its own error."
        + (f" Not installed, so left out: {', '.join(absent)}." if absent else ""),
        "\n".join(bars(together, medfm)),
        "## DICOM\n\n" + summary(dicom, first, CATEGORIES),
        "## NIfTI\n\n" + summary(nifti, second, (NIFTI, OTHER)),
        *(["## Where medfm misses\n\n" + table(["case", "why"], [[c.name, w] for c, w in missed])] if missed else []),
        "## What medfm reads when it is asked to\n\nFaults that it refuses by default: a tilted gantry resampled "
        "(`tilt=resample`; truth: the slices interpolated linearly at the new places, to half a unit), each series of a "
        "mixed folder and each moment of a time series by its reference.\n\n" + table(["case", "medfm"], wishes),
        "## What medfm refused\n\n" + refusals(together, medfm),
        "## Case by case\n\n" + per_case(dicom, first),
        per_case(nifti, second),
    )


__all__ = ["collect", "machine", "prepare", "troubles", "verdict"]

if __name__ == "__main__":
    main()
