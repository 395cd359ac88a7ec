"""The notebooks run from top to bottom, and are committed without outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from PIL import Image as Pillow

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "recipes" / "notebooks").glob("*.ipynb"))
SIDE = 16


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__is_clean_and_valid(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert "parameters" in code[0].metadata.tags


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Callable[..., None]) -> dict[str, str]:
    """A tiny untrained model, 40 pictures and a prompt set, as the environment variables that the notebook reads."""
    from medfm.data.manifest import Manifest, write_manifest

    folder = tmp_path_factory.mktemp("notebook")
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(40):
        level = int(rng.integers(40, 215))
        pixels = np.clip(rng.normal(level, 8, size=(SIDE, SIDE)), 0, 255).astype(np.uint8)
        Pillow.fromarray(pixels).save(folder / f"{number:02d}.png")
        common = {"patient_id": f"p{number // 2}", "split": "test" if number < 28 else "val", "report": "A field."}
        rows.append({"image": f"{number:02d}.png", **common, "label:bright": float(level > 128)})
    write_manifest(Manifest(pd.DataFrame(rows), folder, {"text_kind": "report"}), folder / "manifest.parquet")
    save_tiny_model(folder / "run", SIDE, text_kind="report")
    (folder / "prompts.yaml").write_text("findings: {Bright: {label: bright, positive: bright field, negative: dark field}}\n")
    return {
        "MEDFM_MODEL": str(folder / "run"),
        "MEDFM_MANIFEST": str(folder / "manifest.parquet"),
        "MEDFM_PROMPTS": str(folder / "prompts.yaml"),
    }


def test_zero_shot_pathology__runs_and_shows_what_it_promises(world: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    path = ROOT / "recipes" / "notebooks" / "zero_shot_pathology.ipynb"
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    tables = [output["data"]["text/plain"] for output in outputs if "text/html" in output.get("data", {})]
    # Images, ROC curves, similarity maps; prompts, probabilities, scores, one's own words.
    assert len(pictures) == 3
    assert len(tables) == 4
    assert "bright field" in tables[0]
    assert "auroc_low" in tables[2]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
