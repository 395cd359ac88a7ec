"""The page that gathers what was scored of one model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import medfm


def test_evaluate__gathers_scores_of_the_same_weights(
    tiny_run: Path, manifest_file: Path, tmp_path: Path, page_of: Callable[[Path], Any]
) -> None:
    keys = {"model": str(tiny_run), "data.manifest": str(manifest_file), "data.workers": 0, "bootstrap": 20}
    medfm.evaluate("retrieval", {**keys, "out": str(tmp_path / "runs" / "retrieval")})
    stranger = tmp_path / "runs" / "other"
    stranger.mkdir()
    result = json.loads((tmp_path / "runs" / "retrieval" / "result.json").read_text())
    (stranger / "result.json").write_text(json.dumps({**result, "task": "knn", "model": {"sha256": "0"}}))
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "result.json").write_text("{")
    medfm.evaluate("retrieval", {**keys, "random_baseline": False, "out": str(tmp_path / "runs" / "again")})
    page = page_of(tmp_path / "runs" / "evaluation.html")
    assert page.text.count("Image–report retrieval") == 2
    assert "Nearest neighbours" not in page.text
    assert "Image to report: recall at 1" in page.text
    assert sorted(page.outside) == ["again/card.html", "retrieval/card.html"]
