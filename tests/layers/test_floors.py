"""What must stay light stays light, and nothing in the tree speaks of one machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "medfm",
        "medfm.types",
        "medfm.registry",
        "medfm.training.config",
        "medfm.evaluation.config",
        "medfm.config.resolve",
        "medfm.api",
    ],
)
def test_import__brings_no_heavy_library(module: str) -> None:
    heavy = "{'torch', 'lightning', 'timm', 'transformers', 'pandas', 'pydicom', 'nibabel', 'matplotlib', 'sklearn'}"
    code = f"import sys, {module}; found = {heavy} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_package__every_public_name_resolves() -> None:
    import medfm

    assert all(getattr(medfm, name) is not None for name in medfm.__all__)


def test_wheel__ships_what_is_read_at_run_time(root: Path) -> None:
    import tomllib

    build = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"] == {"recipes": "medfm/_recipes", "data_cards": "medfm/_data_cards"}
