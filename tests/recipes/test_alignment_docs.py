"""The recipe lines of docs/alignment.md are valid, and the page names every alignment term."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from medfm.objectives.config import ContrastiveConfig
from medfm.registry import TERMS

PAGE = (Path(__file__).parents[2] / "docs" / "alignment.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_recipe_lines__are_valid(row: list[str], tmp_path: Path) -> None:
    lines = [line for line in re.findall(r"`([^`]+)`", row[1]) if line.startswith(tuple(ContrastiveConfig.model_fields))]
    assert lines or row[0] in ("CLIP, ConVIRT", "KEEP", "VELVET-Med")
    chosen = [line.replace("DIR", str(tmp_path)) for line in lines]
    values = OmegaConf.to_container(OmegaConf.create("\n".join(chosen))) if chosen else {}
    config = ContrastiveConfig.model_validate(values)
    assert all(getattr(config, key) is not None for key in values)


def test_page__names_every_term() -> None:
    assert set(re.findall(r"name: (\w+)", PAGE)) >= set(TERMS.names())
