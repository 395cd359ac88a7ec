"""Every command of the README is run, in the README's order, on a small phantom."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The README's sizes are for people; a test takes fewer films and steps.
SMALLER = {
    "phantom": ["n=40", "masks=false"],
    "pretrain": ["trainer.max_steps=2", "data.batch_size=8"],
    "evaluate": ["bootstrap=20"],
}


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line]


def test_make_targets__exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {words[1] for words in commands() if words[0] == "make"}
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_commands__run_in_order(tmp_path: Path) -> None:
    ran = 0
    for words in commands():
        if words[0] != "medfm":
            continue
        smaller = SMALLER.get(words[1], [])
        keys = [w for w in words if w.partition("=")[0] not in {s.partition("=")[0] for s in smaller}]
        command = [sys.executable, "-m", "medfm.cli", *keys[1:], *([] if "--help" in words else smaller)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
        ran += 1
    assert ran >= 10
    assert (tmp_path / "runs" / "phantom_demo" / "zero_shot" / "card.html").is_file()
    film = next((tmp_path / "phantom" / "images").rglob("*.dcm"))
    script = blocks("python")[0].replace("film.dcm", str(film))
    script = "\n".join(line for line in script.splitlines() if not line.startswith("medfm.pretrain"))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)h#][^)]*)\)", (ROOT / "README.md").read_text(encoding="utf-8")))
def test_links__lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists(), path
