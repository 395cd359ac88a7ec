"""Start-up: `medfm --help`, and `medfm validate` on a typo. Whole processes, the median of many.

python -m benchmarks.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import ROOT, bar, table, write

RUNS = 20


def measure(words: list[str], folder: Path, status: int) -> tuple[float, float, str]:
    """Median and largest wall seconds of `medfm words`, and what it printed."""
    times, text = [], ""
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        done = subprocess.run([str(Path(sys.executable).parent / "medfm"), *words], cwd=folder, capture_output=True, text=True)
        times.append(time.perf_counter() - start)
        text = done.stdout + done.stderr
        assert done.returncode == status, text
        assert "Traceback" not in text
    return statistics.median(times[1:]), max(times[1:]), text


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "manifest.parquet").write_bytes(b"")
        help_, help_worst, _ = measure(["--help"], folder, 0)
        words = [
            "validate",
            "recipe=chest_xray",
            "data.manifest=manifest.parquet",
            "trainer.devces=8",
            "objective.image_weight=75",
        ]
        typo, typo_worst, text = measure(words, folder, 2)
    assert "trainer.devices" in text
    assert "75 is above 1" in text
    rows = [
        ["`medfm --help`", f"{help_:.2f}", f"{help_worst:.2f}", "0.4"],
        ["`medfm validate` with two problems", f"{typo:.2f}", f"{typo_worst:.2f}", "0.6"],
    ]
    bars = [
        bar(f"`medfm --help` <= 0.4 s: {help_:.2f} s", help_ <= 0.4),
        bar(f"`medfm validate` with a typo <= 0.6 s, exit 2, no traceback, all problems listed: {typo:.2f} s", typo <= 0.6),
    ]
    table_ = table(["command", "median s", "worst s", "bar s"], rows)
    write(
        "startup",
        "Start-up",
        f"{RUNS} runs after one warm-up.",
        table_,
        f"```\n{text.rstrip().replace(str(ROOT), '.')}\n```",
        "\n".join(bars),
    )


if __name__ == "__main__":
    main()
