"""Compositional score: true texts against swapped and negated ones; planted answers win, random ones do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as Pillow
from rich.console import Console

from medfm.data.manifest import Manifest, write_manifest
from medfm.errors import ConfigError, DataError
from medfm.evaluation import compositional
from medfm.evaluation.compositional import KINDS, Pair, pairs_of, told_apart, won
from medfm.evaluation.config import CompositionalConfig
from medfm.registry import TOKENIZERS

BOTH = "Small left pleural effusion. No pneumothorax."


def kinds(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.kind, pair.level) for pair in pairs]


def test_pairs_of__each_sentence_and_the_whole_report() -> None:
    pairs = pairs_of(3, BOTH, ("sentence", "report"))
    assert kinds(pairs) == [
        ("side swapped", "sentence"),
        ("side swapped", "report"),
        ("negated", "sentence"),
        ("negated", "sentence"),
        ("negated", "report"),
    ]
    swapped, whole = pairs[0], pairs[1]
    assert (swapped.true, swapped.false) == ("Small left pleural effusion.", "Small right pleural effusion.")
    assert whole.true == BOTH
    assert whole.false == "Small right pleural effusion. No pneumothorax."
    assert all(pair.row == 3 and pair.true != pair.false for pair in pairs)
    assert [pair.false.lower().startswith("no") for pair in pairs[2:4]] == [True, False]
    assert {pair.level for pair in pairs_of(0, BOTH, ("report",))} == {"report"}
    assert pairs_of(0, "Normal study", ("sentence",)) == [
        p for p in pairs_of(0, "Normal study", ("sentence",)) if p.kind == "negated"
    ]


def test_pairs_of__what_the_report_also_states_is_no_counterfactual() -> None:
    both_sides = "Small left pleural effusion. Small right pleural effusion."
    assert not [pair for pair in pairs_of(0, both_sides, ("sentence", "report")) if pair.kind == "side swapped"]
    once = pairs_of(0, "Left nodule. Left nodule.", ("sentence",))
    assert kinds(once).count(("side swapped", "sentence")) == 1


def test_told_apart__only_within_the_context() -> None:
    tokenizer = TOKENIZERS.build(TOKENIZERS.parse({"name": "clip", "context_length": 10}))
    long = "the lungs are clear and well expanded on both sides without nodules and "
    pairs = [Pair(0, "side swapped", "report", f"{a} effusion", f"{b} effusion") for a, b in (("left", "right"),)]
    pairs.append(Pair(0, "side swapped", "report", long + "left", long + "right"))
    assert told_apart(pairs, tokenizer).tolist() == [True, False]
    assert told_apart([], tokenizer).shape == (0,)


def test_won__ties_count_half() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    true, false = torch.tensor([[1.0, 0.0]]).expand(3, 2), torch.tensor([[0.0, 1.0]]).expand(3, 2)
    assert won(images, true, false).tolist() == [1.0, 0.0, 0.0]
    assert won(images, true, true).tolist() == [0.5] * 3


class SideModel:
    """Pictures that are bright on one side, and texts that say which: the stand-in for a model that has understood.

    Vectors: (left, right, effusion, its absence).
    """

    device = torch.device("cpu")

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        found = []
        for text in texts:
            low = text.lower()
            denied = "no " in low and "effusion" in low
            found.append([float("left" in low), float("right" in low), float("effusion" in low and not denied), float(denied)])
        return torch.nn.functional.normalize(torch.tensor(found), dim=-1)


def test_wins__of_a_model_that_has_understood() -> None:
    texts = ["Left pleural effusion.", "Right pleural effusion."]
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 1, 0], [0, 1.0, 1, 0]]), dim=-1)
    pairs = [pair for row, text in enumerate(texts) for pair in pairs_of(row, text, ("sentence",))]
    assert kinds(pairs) == [("side swapped", "sentence"), ("negated", "sentence")] * 2
    own, alone = compositional._wins(SideModel(), images, pairs, np.array([p.row for p in pairs]))  # type: ignore[arg-type]
    assert own.tolist() == [1, 1, 1, 1]
    # The mean image lies between both sides, and both reports state an effusion: only the sides need the image.
    assert alone[[0, 2]].tolist() == [0.5, 0.5]
    assert alone[[1, 3]].tolist() == [1.0, 1.0]
    wrong, _ = compositional._wins(SideModel(), -images, pairs, np.array([p.row for p in pairs]))  # type: ignore[arg-type]
    assert wrong.tolist() == [0, 0, 0, 0]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        side = ("left", "right")[number % 2]
        Pillow.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        report = f"FINDINGS: Small {side} pleural effusion. No pneumothorax. IMPRESSION: Effusion on the {side}."
        rows.append(
            {
                "image": f"{number}.png",
                "patient_id": f"secret{number // 2}",
                "study_id": str(number),
                "view": "",
                "modality": "DX",
                "split": "test",
                "report": report if number else "",
            }
        )
    write_manifest(Manifest(pd.DataFrame(rows), tmp_path, {}), tmp_path / "manifest.parquet")
    return tmp_path / "manifest.parquet"


def settings(run: Path, study: Path, **more: Any) -> CompositionalConfig:
    data = {"manifest": str(study), "workers": 0}
    return CompositionalConfig.model_validate({"model": str(run), "data": data, "bootstrap": 50, **more})


def test_run_compositional__card_and_result(
    tiny_run: Path, study: Path, tmp_path: Path, page_of: Callable[[Path], Any]
) -> None:
    result = compositional.run_compositional(settings(tiny_run, study, out=str(tmp_path / "out")), progress=False)
    assert [(s["kind"], s["level"]) for s in result["scores"]] == [
        (k, level) for level in ("sentence", "report") for k in KINDS
    ]
    assert result["images"] == 11
    assert result["reports_without_pairs"] == 1
    for score in result["scores"]:
        assert 0 <= score["accuracy"]["low"] <= score["accuracy"]["value"] <= score["accuracy"]["high"] <= 1
        gain = score["accuracy"]["value"] - score["random"]["accuracy"]["value"]
        assert score["random"]["difference"]["accuracy"]["value"] == pytest.approx(gain)
    page = page_of(tmp_path / "out" / "card.html")
    assert "Side swapped, sentence" in page.text
    assert not page.outside
    text = (tmp_path / "out" / "result.json").read_text() + (tmp_path / "out" / "card.html").read_text()
    assert "secret" not in text
    assert "pleural" not in text
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    console = Console(width=120)
    with console.capture() as shown:
        console.print(compositional.render(result))
    assert "chance 0.5" in shown.get()


def test_run_compositional__one_level_without_random_weights(tiny_run: Path, study: Path, tmp_path: Path) -> None:
    config = settings(tiny_run, study, levels=["report", "report"], random_baseline=False, out=str(tmp_path / "o"))
    result = compositional.run_compositional(config, progress=False)
    assert {score["level"] for score in result["scores"]} == {"report"}
    assert all("random" not in score for score in result["scores"])


def test_run_compositional__refuses(tiny_run: Path, study: Path, tmp_path: Path) -> None:
    config = settings(tiny_run, study)
    config = config.model_copy(update={"data": config.data.model_copy(update={"split": "val"})})
    with pytest.raises(DataError, match="no rows of split 'val'"):
        compositional.run_compositional(config, progress=False)
    frame = pd.read_parquet(study).assign(report="Bonjour")
    write_manifest(Manifest(frame, study.parent, {}), tmp_path / "french.parquet")
    with pytest.raises(DataError, match=r"none of the 12 reports .* names a side or states a finding"):
        compositional.run_compositional(settings(tiny_run, tmp_path / "french.parquet"), progress=False)
    with pytest.raises((ConfigError, ValueError), match="at least one"):
        settings(tiny_run, study, levels=[])
