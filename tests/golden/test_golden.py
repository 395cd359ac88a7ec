from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("recapture", FOLDER / "recapture.py")
assert _spec is not None
assert _spec.loader is not None
recapture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recapture)


@pytest.mark.parametrize("name", sorted(recapture.CASES))
def test_numbers__are_the_captured_ones(name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    now = recapture.CASES[name]()
    assert list(now) == list(golden), f"cases differ; if that is meant: python tests/golden/recapture.py {name}"
    for case, expected in golden.items():
        assert now[case] == pytest.approx(expected, rel=1e-8, abs=1e-12), (
            f"{name}, {case}: numbers moved; if that is meant, say why in the commit and run: "
            f"python tests/golden/recapture.py {name}"
        )
