"""python -m benchmarks.fuzz [--n 2000] [--readers medfm,...] [--only WORD]: damaged DICOM and NIfTI files."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from benchmarks.common import bar, table, write
from benchmarks.conformance.pool import Answer
from benchmarks.conformance.readers import installed
from benchmarks.fuzz import corpus
from benchmarks.fuzz.judge import (
    CRASH,
    FAILURES,
    GOOD_REFUSED,
    HANG,
    LIMIT_S,
    MEMORY,
    OUTCOMES,
    UNTYPED,
    WRONG,
    answers,
    outcome,
)

DICOM_READERS = ("medfm", "SimpleITK", "MONAI PydicomReader", "highdicom")
NIFTI_READERS = ("medfm", "SimpleITK", "MONAI NibabelReader", "nibabel")
Result = list[tuple[corpus.Input, Answer]]


def summary(results: dict[str, Result]) -> str:
    rows = []
    for name, result in results.items():
        count = Counter(outcome(i, a) for i, a in result)
        peak = max((a.peak for _, a in result), default=0) / 2**20
        slowest = max((a.seconds for _, a in result), default=0.0)
        rows.append([name, len(result), *(count[o] for o in OUTCOMES), f"{peak:.0f}", f"{slowest:.1f}"])
    return table(["reader", "inputs", *OUTCOMES, "highest peak, MiB", "slowest, s"], rows)


def by_family(results: dict[str, Result]) -> str:
    """Inputs of each kind of damage, and how many each reader got wrong (wrong values, crash, hang, memory)."""
    families = sorted({i.mutant.family for result in results.values() for i, _ in result})
    rows = []
    for family in families:
        row: list[object] = [family, max(sum(i.mutant.family == family for i, _ in r) for r in results.values())]
        for result in results.values():
            chosen = [outcome(i, a) for i, a in result if i.mutant.family == family]
            bad = Counter(o for o in chosen if o in FAILURES)
            row.append(", ".join(f"{n} {o}" for o, n in bad.items()) or ("-" if chosen else ""))
        rows.append(row)
    return table(["damage", "inputs", *results], rows)


def bars(result: Result) -> list[str]:
    count = Counter(outcome(i, a) for i, a in result)
    lines = [bar(f"{len(result):,} inputs (at least 1,000)", len(result) >= 1000)]
    for name in (WRONG, GOOD_REFUSED, CRASH, HANG, MEMORY, UNTYPED):
        lines.append(bar(f"{name}: {count[name]}", count[name] == 0))
    return lines


def failures(name: str, result: Result) -> list[str]:
    """A line for each input that the reader failed on."""
    found = []
    for given, answer in result:
        what = outcome(given, answer)
        if what in FAILURES:
            found.append(f"{name}: {given.mutant.family} | {given.mutant.name} | {what}: {answer.words}")
    return found


def fingerprint(mutants: list[corpus.Mutant]) -> str:
    digest = hashlib.sha256()
    for mutant in mutants:
        for name, raw in sorted(mutant.files.items()):
            digest.update(name.encode() + raw)
    return digest.hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--readers", default="", help="some only, comma-separated; then nothing is written")
    parser.add_argument("--only", default="", help="inputs whose name or damage holds this word; then nothing is written")
    parser.add_argument("--keep", type=Path, help="a folder to leave the inputs in, one folder each, numbered")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    mutants = corpus.corpus(options.n)
    digest = fingerprint(mutants)
    chosen = set(filter(None, options.readers.split(",")))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        inputs = corpus.write([m for m in mutants if options.only in f"{m.name} {m.family}"], options.keep or Path(folder))
        dicom = [i for i in inputs if i.mutant.kind == "dicom"]
        nifti = [i for i in inputs if i.mutant.kind == "nifti"]
        results = []
        for some, readers in ((dicom, DICOM_READERS), (nifti, NIFTI_READERS)):
            names = [n for n in installed(readers)[0] if not chosen or n in chosen]
            results.append({n: list(zip(some, answers(n, some), strict=True)) for n in names})
    medfm = [line for part in results for line in failures("medfm", part.get("medfm", []))]
    print(*medfm, sep="\n")
    if chosen or options.only:
        for part in results:
            print(*(line for name in part if name != "medfm" for line in failures(name, part[name])), sep="\n")
            print(summary(part))
        return
    write(
        "fuzz",
        "Damaged files: who notices",
        f"{len(mutants):,} inputs, made deterministically from small files whose content is known (corpus {digest}); "
        f"{sum(m.good for m in mutants)} of them are sound, if odd, and must be read. Each is loaded in a child process of at "
        f"most 2 GiB of private memory and {LIMIT_S:g} s.",
        "`read rightly`: equal to the undamaged content, or, where nobody can know of the damage (a flipped bit of an "
        "uncompressed pixel, another number in a header), to what the damaged bytes state, decoded by the benchmark without "
        "medfm. `WRONG`: anything else that was returned without a word. `refused`: an exception; of medfm only its own "
        "DataError, any other is an `untyped error`. `memory`: over 2 GiB, or an allocation that failed. The highest peak is "
        "resident memory above that before the case. Where medfm says of its result that it has no spacing or orientation "
        "(`Image.spaced`, `Image.oriented`), it is held to what it does say; sound inputs must be read with their place.",
        "\n".join(bars([pair for part in results for pair in part["medfm"]])),
        "## DICOM\n\n" + summary(results[0]),
        "## NIfTI\n\n" + summary(results[1]),
        "## By damage, DICOM\n\n" + by_family(results[0]),
        "## By damage, NIfTI\n\n" + by_family(results[1]),
        *(["## Where medfm fails\n\n" + "\n".join(f"- {line}" for line in medfm)] if medfm else []),
    )


if __name__ == "__main__":
    main()
