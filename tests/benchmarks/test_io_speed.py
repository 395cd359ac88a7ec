"""The reading benchmarks run on tiny inputs, check that all readers agree, and write their tables."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

from benchmarks import common

TINY = {
    "io_nifti": ["--shape", "24", "20", "6"],
    "io_series": ["--shape", "24", "20", "6"],
    "io_resample": ["--crop", "12"],
    "io_window": ["--shape", "40", "30"],
    "io_decode": ["--shape", "72", "64"],
}
PEERS = {"io_nifti": ("monai", "torchio"), "io_series": ("monai", "dicom2nifti"), "io_resample": ("monai", "torchio")}


@pytest.mark.parametrize("name", TINY)
def test_main__tiny(name: str, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(importlib.util.find_spec(peer) is None for peer in PEERS.get(name, ())):
        assert os.environ.get("CI") != "true", "CI installs the peers"
        pytest.skip("needs the peers of the extra 'bench'")
    module = importlib.import_module(f"benchmarks.speed.{name}")
    monkeypatch.setattr(module, "one_thread", lambda: None)  # would stay for the tests after this one
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setenv("MEDFM_TEST_DATA", str(data_dir))
    monkeypatch.setattr(sys, "argv", [str(common.ROOT / "benchmarks" / "speed" / f"{name}.py"), *TINY[name], "--runs", "1"])
    module.main()
    text = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "| medfm" in text or "| transfer syntax | medfm" in text or "medfm best ms" in text
    assert "met:" in text or "**missed**:" in text
    assert os.listdir(tmp_path) == [f"{name}.md"]
