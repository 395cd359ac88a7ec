"""The planted hospital, de-identified once for all tests of the module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def planted_module(root: Path) -> ModuleType:
    """benchmarks/deidentify/planted.py: the test and the published table plant the same markers."""
    spec = importlib.util.spec_from_file_location("planted", root / "benchmarks" / "deidentify" / "planted.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def deidentify(source: Path, out: Path, **values: Any) -> Any:
    """Run the verb in this process."""
    from medfm.data.deidentify.config import DeidentifyConfig
    from medfm.data.deidentify.run import run_deidentify

    return run_deidentify(DeidentifyConfig(**{"in": source, "out": out, "workers": 0, **values}))


@pytest.fixture(scope="session")
def run() -> Any:
    return deidentify
