"""No planted marker is left anywhere: files, names, report, journal, manifest, log, error text."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.mark.parametrize(
    "options", [{}, {"dates": "remove", "keep_patient_characteristics": False}, {"private": "safe", "burned_in": "copy"}]
)
def test_no_marker_is_left(
    options: dict[str, Any],
    planted_module: ModuleType,
    run: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from rich.console import Console

    import medfm
    from medfm.data.deidentify.report import render

    source = tmp_path / "in"
    planted = planted_module.plant(source)
    assert len(planted.places) >= 100
    present = planted.left([*planted_module.everything(source), (tmp_path / "in.csv").read_bytes()])
    assert set(present) == set(planted.places), set(planted.places) - set(present)

    caplog.set_level(logging.DEBUG)
    out = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = run(source, out, reports=tmp_path / "in.csv", keep=["label"], **options)
    Console().print(render(report))
    medfm.index({"images": out, "out": tmp_path / "m" / "manifest.parquet", "reports": out / "reports.csv", "on": "patient_id"})
    printed = capfd.readouterr()
    blobs = [
        *planted_module.everything(out, tmp_path / "m", *([q] if (q := tmp_path / "out.quarantine").exists() else [])),
        (tmp_path / "out.private" / "journal.jsonl").read_bytes(),
        caplog.text.encode(),
        printed.out.encode(),
        printed.err.encode(),
        repr(report).encode(),
    ]
    assert planted.left(blobs) == {}
    # The sieve is not empty because nothing was written.
    assert report.written["dicom"] >= 9
    assert report.written["nifti"] == 1
    assert report.written["picture"] == 2
    assert (out / "reports.csv").read_text(encoding="utf-8").count("Heart size is normal.") == 1
