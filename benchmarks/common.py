"""What every benchmark writes: the command, the machine, the table, and each bar as met or missed."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def data_dir() -> Path:
    """Real images for measuring; MEDFM_TEST_DATA overrides the place."""
    return Path(os.environ.get("MEDFM_TEST_DATA", ROOT.parent / "shared" / "data"))


def index(name: str, manifest: Path, **columns: str) -> None:
    """Write the manifest of a data set of `data_dir()`, whose own table says images, patients and splits.

    Args:
        columns: further columns of the table (`labels`, `view`, ...), and how its texts came about (`text_kind`).
    """
    import medfm

    source = data_dir() / name
    table = {"images": source / "images", "root": source, "reports": source / "manifest.csv", "out": manifest}
    medfm.index({**table, "on": "image", "patient": "patient_id", "split": "split", **columns})


def command() -> str:
    """The command line of this run, from the project's root."""
    return shlex.join(["python", "-m", _module(), *sys.argv[1:]])


def _module() -> str:
    return ".".join(Path(sys.argv[0]).resolve().relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")


def machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "timm"))
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def bar(text: str, met: bool) -> str:
    """One bar of the result."""
    return f"- {'met' if met else '**missed**'}: {text}"


def write(name: str, title: str, *paragraphs: str) -> Path:
    """benchmarks/results/<name>.md."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.md"
    path.write_text("\n\n".join([f"# {title}", f"`{command()}`", machine(), *paragraphs]) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
    return path


def interval(value: dict[str, float]) -> str:
    """A score with its confidence interval, as evaluation's results hold it."""
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
