"""`medfm doctor` on the real DICOM files: are the verdicts right, how fast is it, and how often does it see inverted films?

python -m benchmarks.doctor [--runs 3] [--workers 2]
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, bar, data_dir, table, write

EXPECTED = ROOT / "tests" / "data" / "doctor" / "expected_dicom.csv"
FILES_PER_SECOND = 100
FILMS = ("cxr_kermany", "cxr_hannover", "cxr_ieee8023", "cxr_ieee8023_nc")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    folder = data_dir() / "dicom"
    with tempfile.TemporaryDirectory() as name:
        speed, files, met = _speed(folder, Path(name), options.runs, options.workers)
        right, total, wrong = _verdicts(folder, Path(name) / "judged", options.workers)
    films, alarms, count = _films()
    write(
        "doctor",
        "medfm doctor",
        f"{files} files of shared/data/dicom (394 DICOM files and the NIfTI files beside them), every one decoded, with "
        f"pictures and the page written; the median of {options.runs} runs.",
        table(["", "seconds", "files/s"], speed),
        "Verdicts against those judged by hand (`tests/data/doctor/expected_dicom.csv`):",
        table(["DICOM files", "right", "wrong"], [[total, right, ", ".join(wrong) or "none"]]),
        bar(f"the right verdict for each of {total} files", right == total),
        bar(f">= {FILES_PER_SECOND} files/s with {options.workers} processes, start-up included", met),
        "Chest films as they are and inverted: what the warning 'shown inverted' says. The thresholds were set on the same "
        "films, so other anatomy and other machines may do worse; it is a warning and rejects nothing. `border`: by the border "
        "alone, as for films whose body part is not known; `chest`: by the lungs too.",
        table(["films", "how", "number", "false alarms", "inverted ones found"], films),
        f"False alarms in all: {alarms} of {count} judgements of films that are right.",
    )


def _speed(folder: Path, out: Path, runs: int, workers: int) -> tuple[list[list[object]], int, bool]:
    """Rows of the table, the number of files, and whether the bar holds."""
    words = [str(Path(sys.executable).parent / "medfm"), "doctor", str(folder), f"workers={workers}"]
    whole, files = [], 0
    for n in range(runs):
        start = time.perf_counter()
        subprocess.run([*words, f"out={out / str(n)}"], check=True, capture_output=True)
        whole.append(time.perf_counter() - start)
    start = time.perf_counter()
    subprocess.run([*words, f"out={out / '0'}"], check=True, capture_output=True)
    again = time.perf_counter() - start
    inside, again_inside, alone = [], 0.0, 0.0
    for n in range(runs):
        report = _run(folder, out / f"inside{n}", workers)
        inside.append(report.seconds)
        files = report.files
    again_inside = _run(folder, out / "inside0", workers).seconds
    alone = _run(folder, out / "alone", 0).seconds
    headers = _run(folder, out / "headers", workers, decode=False).seconds
    median = {"whole": sorted(whole)[runs // 2], "inside": sorted(inside)[runs // 2]}
    rows = [
        [f"command line, {workers} processes, start-up included", median["whole"]],
        [f"in Python, {workers} processes, imports excluded", median["inside"]],
        ["in Python, in one process", alone],
        [f"headers only (decode=false), {workers} processes", headers],
        ["command line again, nothing changed", again],
        ["in Python again, nothing changed", again_inside],
    ]
    shown: list[list[object]] = [[what, f"{seconds:.2f}", f"{files / seconds:,.0f}"] for what, seconds in rows]
    return shown, files, files / median["whole"] >= FILES_PER_SECOND


def _run(folder: Path, out: Path, workers: int, **options: Any) -> Any:
    from medfm.data.doctor.config import DoctorConfig
    from medfm.data.doctor.run import run_doctor

    return run_doctor(DoctorConfig(path=folder, out=out, workers=workers, **options))


def _verdicts(folder: Path, out: Path, workers: int) -> tuple[int, int, list[str]]:
    from medfm.data.doctor.look import files_of

    _run(folder, out, workers)
    found: dict[str, dict[str, Any]] = {}
    for one in json.loads((out / "doctor.json").read_text())["judged"]:
        place = folder / one["path"]
        for file in [place] if place.is_file() else files_of(place):
            found[file.relative_to(folder).as_posix()] = one
    with open(EXPECTED, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = []
    for row in rows:
        one = found[row["file"]]
        said = [f["text"] for kind in ("reasons", "repairs", "warnings") for f in one.get(kind, ())]
        codes = [f["code"] for f in one.get("warnings", ())]
        words = all(word in " | ".join(said) for word in row["words"].split("|"))
        if one["verdict"] != row["verdict"] or not words or (row["warning"] and row["warning"] not in codes):
            wrong.append(row["file"])
    return len(rows) - len(wrong), len(rows), wrong


def _films() -> tuple[list[list[object]], int, int]:
    import numpy as np
    from PIL import Image

    from medfm.data.doctor.film import inverted

    counts: Counter[tuple[str, str, str]] = Counter()
    for name in FILMS:
        with open(data_dir() / name / "manifest.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            picture = np.asarray(Image.open(data_dir() / name / row["image"]).convert("L"), np.float32)
            for how in ("border", "chest"):
                if how == "chest" and row["view"] == "L":
                    continue
                counts[name, how, "all"] += 1
                counts[name, how, "alarm"] += bool(inverted(picture, chest=how == "chest"))
                counts[name, how, "found"] += bool(inverted(-picture, chest=how == "chest"))
    shown: list[list[object]] = []
    for name in (*FILMS, "all four"):
        for how in ("border", "chest"):
            n, alarm, right = (
                sum(counts[f, how, what] for f in (FILMS if name == "all four" else (name,)))
                for what in ("all", "alarm", "found")
            )
            shown.append([name, how, n, alarm, f"{right} ({100 * right / n:.0f} %)"])
    total = sum(n for (_, _, what), n in counts.items() if what == "all")
    return shown, sum(n for (_, _, what), n in counts.items() if what == "alarm"), total


if __name__ == "__main__":
    main()
