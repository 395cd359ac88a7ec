"""Shared fixtures: real data where it exists, one thread, no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real images. Tests that need them skip on a machine without them; under CI=true their absence is a failure."""
    folder = Path(os.environ.get("MEDFM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no real test images at {folder}; set MEDFM_TEST_DATA")
        pytest.skip(f"no real test images at {folder}; set MEDFM_TEST_DATA")
    return folder
