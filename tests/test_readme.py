"""Every command of the README is run, in the README's order, on a small phantom."""

from __future__ import annotations

import multiprocessing
import os
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


README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN_DATA = "Chest CT and reports"  # the section whose commands need nothing of the others


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)\n", README, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str = README) -> list[list[str]]:
    lines = [line.split(" #")[0].strip() for block in blocks("bash", text) for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line]


# A server that has imported the heavy libraries forks a fresh process for each command: twenty imports less.
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["torch", "lightning", "monai.transforms", "medfm.cli"])


def _command(words: list[str], folder: Path, log: Path) -> None:
    os.chdir(folder)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from medfm.cli import main

    sys.exit(main(words))


def run(words: list[str], folder: Path) -> None:
    smaller = ["n=40", "size=64"] if "kind=chest_ct" in words else SMALLER.get(words[1], [])
    keys = [w for w in words if w.partition("=")[0] not in {s.partition("=")[0] for s in smaller}]
    log = folder / "said.txt"
    process = FRESH.Process(target=_command, args=([*keys[1:], *([] if "--help" in words else smaller)], folder, log))
    process.start()
    process.join(timeout=280)
    alive = process.is_alive()
    process.kill()
    assert not alive, f"{shlex.join(words)} goes on for over 280 s"
    assert process.exitcode == 0, f"{shlex.join(words)}\n{log.read_text(encoding='utf-8', errors='replace')}"


def test_make_targets__exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {words[1] for words in commands() if words[0] == "make"}
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_commands__run_in_order(tmp_path: Path) -> None:
    several = [
        words for title, text in sections().items() if title != OWN_DATA for words in commands(text) if words[0] == "medfm"
    ]
    assert len(several) >= 10
    for words in several:
        run(words, tmp_path)
    assert (tmp_path / "runs" / "phantom_demo" / "zero_shot" / "card.html").is_file()
    film = next((tmp_path / "phantom" / "images").rglob("*.dcm"))
    script = blocks("python")[0].replace("film.dcm", str(film))
    script = "\n".join(line for line in script.splitlines() if not line.startswith("medfm.pretrain"))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_commands__of_chest_ct_run_in_order(tmp_path: Path) -> None:
    several = commands(sections()[OWN_DATA])
    assert len(several) >= 7
    for words in several:
        run(words, tmp_path)
    assert (tmp_path / "heatmap" / "montage.png").is_file()


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)h#][^)]*)\)", README))
def test_links__lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists(), path
