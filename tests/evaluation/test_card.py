"""`medfm evaluate` end to end on real files: what is written, what is said, and what must never be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from medfm.data.check import CheckReport
from medfm.data.manifest import write_manifest
from medfm.errors import ConfigError, DataError
from medfm.evaluation import retrieval, zero_shot
from medfm.evaluation.card import estimate, most_confident, whisker
from medfm.evaluation.config import RetrievalConfig, ZeroShotConfig
from medfm.evaluation.provenance import caveats, command, file_hash
from medfm.evaluation.scoring import Scored
from medfm.weights.load import load_model

PROMPTS = """
findings:
  Bright: {label: bright, positive: [bright field], negative: [dark field]}
  Absent: {positive: [something], negative: [nothing]}
"""


def settings(kind: type, run: Path, manifest: Path, tmp_path: Path, **changes: Any) -> Any:
    data = {"manifest": manifest, "workers": 0, "batch_size": 16, **changes.pop("data", {})}
    return kind(model=run, data=data, bootstrap=60, out=tmp_path / "out", **changes)


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    path = tmp_path / "brightness.yaml"
    path.write_text(PROMPTS, encoding="utf-8")
    return path


def test_run_zero_shot__writes_the_card_the_numbers_and_the_predictions(
    tiny_run: Path, manifest_file: Path, prompt_file: Path, tmp_path: Path, pictures: pd.DataFrame, page_of: Any
) -> None:
    config = settings(ZeroShotConfig, tiny_run, manifest_file, tmp_path, prompts=str(prompt_file))
    result = zero_shot.run_zero_shot(config, progress=False)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["card.html", "predictions.parquet", "result.json"]
    assert json.loads((out / "result.json").read_text()) == result

    predictions = pd.read_parquet(out / "predictions.parquet")
    assert list(predictions.columns) == ["row", "split", "Bright"]
    assert predictions["split"].value_counts().to_dict() == {"test": 32, "val": 16}
    test = predictions[predictions["split"] == "test"]
    expected = roc_auc_score(pictures["label:bright"].loc[test["row"]], test["Bright"])
    entry = result["findings"][0]
    assert entry["auroc"]["value"] == pytest.approx(expected)
    assert entry["auroc"]["resamples"] + entry["auroc"]["dropped"] == 60
    assert 0 <= entry["random"]["auroc"]["value"] <= 1
    reason = "the manifest has no column 'label:Absent'"
    assert result["left_out"] == [{"name": "Absent", "reason": reason}]
    assert result["model"]["sha256"] == file_hash(tiny_run / "model.safetensors")

    page = page_of(out / "card.html")
    assert page.open == []
    assert page.outside == []
    for said in (
        f"{expected:.3f}",
        "Trained on label sentences: images were aligned with label words, not with reports.",
        "trained on generated images (phantom)",
        reason,
        result["model"]["sha256"],
        result["model"]["preprocess_hash"],
        result["data"]["hash"],
        result["command"],
        "32 images of 16 patients",
        "Not a medical device",
    ):
        assert said in page.text
    # Three curves, and two pictures for each example.
    assert sum(source.startswith("data:image/png") for source in page.images) == 3
    assert sum(source.startswith("data:image/jpeg") for source in page.images) in (4, 6, 8)


def test_run_zero_shot__tells_no_patient_and_no_report(
    tiny_run: Path, manifest_file: Path, prompt_file: Path, tmp_path: Path
) -> None:
    result = zero_shot.run_zero_shot(
        settings(ZeroShotConfig, tiny_run, manifest_file, tmp_path, prompts=str(prompt_file)), progress=False
    )
    retrieval.run_retrieval(
        settings(RetrievalConfig, tiny_run, manifest_file, tmp_path).model_copy(update={"out": tmp_path / "out2"}),
        progress=False,
    )
    written = [path for folder in ("out", "out2") for path in (tmp_path / folder).iterdir()]
    assert len(written) == 5
    for path in written:
        assert not re.search(rb"SECRET|CONFIDENTIAL", path.read_bytes()), path.name
    console = Console(record=True, width=100)
    console.print(zero_shot.render(result))
    assert not re.search("SECRET|CONFIDENTIAL", console.export_text())


def test_run_zero_shot__is_repeatable(tiny_run: Path, manifest_file: Path, prompt_file: Path, tmp_path: Path) -> None:
    config = settings(ZeroShotConfig, tiny_run, manifest_file, tmp_path, prompts=str(prompt_file), pictures=False)
    first, second = (zero_shot.run_zero_shot(config, progress=False) for _ in range(2))
    assert {k: v for k, v in first.items() if k != "created"} == {k: v for k, v in second.items() if k != "created"}


def test_run_zero_shot__pictures_can_be_left_out(
    tiny_run: Path, manifest_file: Path, prompt_file: Path, tmp_path: Path, page_of: Any
) -> None:
    config = settings(ZeroShotConfig, tiny_run, manifest_file, tmp_path, prompts=str(prompt_file), pictures=False)
    zero_shot.run_zero_shot(config, progress=False)
    page = page_of(tmp_path / "out" / "card.html")
    assert all(source.startswith("data:image/png") for source in page.images)
    assert "This page embeds images" not in page.text


def test_run_zero_shot__bad_rows_stop_it_or_are_counted(
    tiny_run: Path, manifest: Any, prompt_file: Path, tmp_path: Path, page_of: Any
) -> None:
    manifest.frame.loc[4, "image"] = "images/none.png"
    write_manifest(manifest, tmp_path / "m.parquet")
    config = settings(ZeroShotConfig, tiny_run, tmp_path / "m.parquet", tmp_path, prompts=str(prompt_file))
    with pytest.raises(DataError, match=r"1 image files do not exist.*none\.png"):
        zero_shot.run_zero_shot(config, progress=False)
    assert not (tmp_path / "out").exists()
    config = settings(
        ZeroShotConfig, tiny_run, tmp_path / "m.parquet", tmp_path, prompts=str(prompt_file), data={"on_error": "skip"}
    )
    result = zero_shot.run_zero_shot(config, progress=False)
    assert result["images"] == 31
    assert result["data"]["rows_removed"] == 1
    assert "1 rows of the manifest were left out" in page_of(tmp_path / "out" / "card.html").text


@pytest.mark.parametrize("task", ["zero_shot", "retrieval"])
def test_run__a_result_holds_no_path_of_the_data(
    task: str, tiny_run: Path, manifest: Any, prompt_file: Path, tmp_path: Path, page_of: Any
) -> None:
    """Folders and files are named after patients: none of these names may leave."""
    folder = tmp_path / "DOE^JANE"
    for row, name in enumerate(manifest.frame["image"]):
        source, name = manifest.root / name, f"ROE^RICHARD/{row}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(source.read_bytes() if row not in (3, 7) else source.read_bytes()[:60])
        manifest.frame.loc[row, "image"] = name
    write_manifest(manifest, folder / "m.parquet")
    kind, run, more = (
        (ZeroShotConfig, zero_shot.run_zero_shot, {"prompts": str(prompt_file), "pictures": False})
        if task == "zero_shot"
        else (RetrievalConfig, retrieval.run_retrieval, {})
    )
    data = {"on_error": "skip", "root": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "medfm.data.check.checked", lambda manifest, *_, **__: (manifest, CheckReport(48, "quick", "m"))
        )  # else it drops them
        result = run(settings(kind, tiny_run, folder / "m.parquet", tmp_path, data=data, **more), progress=False)
    assert result["unreadable"] == {"count": 2, "first": [{"row": row, "kind": "DataError"} for row in (3, 7)]}
    assert result["data"]["manifest"] == "m.parquet"
    assert " data.manifest=m.parquet data.root=... " in result["command"]
    said = "2 images could not be read and were left out: rows 3, 7 of the manifest (DataError)"
    assert said in page_of(tmp_path / "out" / "card.html").text
    console = Console(record=True, width=200)
    console.print(zero_shot.render(result) if task == "zero_shot" else retrieval.render(result))
    assert said in console.export_text()
    for path in (tmp_path / "out").iterdir():
        assert b"JANE" not in path.read_bytes(), path.name
        assert b"RICHARD" not in path.read_bytes(), path.name


@pytest.mark.parametrize("task", ["zero_shot", "retrieval", "linear_probe", "knn", "segmentation_probe"])
def test_run__a_folder_that_cannot_be_written_is_told_before_any_work(task: str, tiny_run: Path, tmp_path: Path) -> None:
    import medfm

    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    (tmp_path / "m.parquet").write_text("no manifest", encoding="utf-8")  # nobody gets so far as to read it
    keys = {"model": str(tiny_run), "data.manifest": str(tmp_path / "m.parquet"), "out": str(tmp_path / "file" / "out")}
    with pytest.raises(
        ConfigError, match=r"out '.*file/out' cannot be written: Not a directory; choose another place with out="
    ):
        medfm.evaluate(task, keys)


def test_run_zero_shot__few_patients_are_said(tiny_run: Path, manifest: Any, prompt_file: Path, tmp_path: Path) -> None:
    test = manifest.frame["split"] == "test"
    manifest.frame.loc[test, "label:bright"] = [1.0] * 8 + [0.0] * 24
    manifest.frame.loc[test, "patient_id"] = [f"p{row // 2}" for row in range(32)]
    write_manifest(manifest, tmp_path / "m.parquet")
    config = settings(ZeroShotConfig, tiny_run, tmp_path / "m.parquet", tmp_path, prompts=str(prompt_file), pictures=False)
    result = zero_shot.run_zero_shot(config, progress=False)
    said = "Few patients are scored (16 patients in all; 4 with Bright): the intervals are unreliable."
    assert said in result["caveats"]
    assert said in (tmp_path / "out" / "card.html").read_text()
    console = Console(record=True, width=200)
    console.print(zero_shot.render(result))
    assert said in console.export_text()


def test_run_zero_shot__multiclass_card(tiny_run: Path, manifest: Any, tmp_path: Path, page_of: Any) -> None:
    manifest.frame["label:dark"] = 1 - manifest.frame["label:bright"]
    write_manifest(manifest, tmp_path / "m.parquet")
    prompts = tmp_path / "classes.yaml"
    prompts.write_text("method: multiclass\nfindings: {bright: {positive: bright}, dark: {positive: dark}}", encoding="utf-8")
    result = zero_shot.run_zero_shot(
        settings(ZeroShotConfig, tiny_run, tmp_path / "m.parquet", tmp_path, prompts=str(prompts)), progress=False
    )
    assert np.sum(result["classes"]["confusion"]) == result["classes"]["images"] == 32
    # Two classes that exclude each other mirror each other.
    assert result["findings"][0]["auroc"]["value"] == pytest.approx(result["findings"][1]["auroc"]["value"])
    assert "Top-1 accuracy, 2 classes" in page_of(tmp_path / "out" / "card.html").text
    # A third class, of which the manifest has no labels, takes images from both.
    grey = prompts.read_text().replace("}}", "}, grey: {positive: bright}}")
    prompts.write_text(grey, encoding="utf-8")
    result = zero_shot.run_zero_shot(
        settings(ZeroShotConfig, tiny_run, tmp_path / "m.parquet", tmp_path, prompts=str(prompts)), progress=False
    )
    assert np.shape(result["classes"]["confusion"]) == (2, 3)
    assert "a class without labels" in page_of(tmp_path / "out" / "card.html").text


def test_zero_shot__thresholds_are_never_chosen_on_what_is_scored(tiny_run: Path, manifest_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both 'val': thresholds would be chosen on what is scored"):
        settings(ZeroShotConfig, tiny_run, manifest_file, tmp_path, data={"split": "val"})
    classifier = zero_shot.ZeroShotClassifier(load_model(tiny_run), "phantom")
    with pytest.raises(ConfigError, match="both 'val': thresholds would be chosen on what is scored"):
        classifier.score(manifest_file, split="val")


def test_render__names_every_finding_and_the_card(
    tiny_run: Path, manifest_file: Path, prompt_file: Path, tmp_path: Path
) -> None:
    result = zero_shot.run_zero_shot(
        settings(ZeroShotConfig, tiny_run, manifest_file, tmp_path, prompts=str(prompt_file)), progress=False
    )
    console = Console(record=True, width=200)
    console.print(zero_shot.render(result))
    text = console.export_text()
    for said in (
        "Bright",
        estimate(result["findings"][0]["auroc"]),
        "mean of 1",
        "not scored: Absent",
        "label words",
        "card.html",
    ):
        assert said in text


def test_run_retrieval__against_its_own_embeddings(
    tiny_run: Path, manifest_file: Path, tmp_path: Path, pictures: pd.DataFrame, page_of: Any
) -> None:
    from medfm.weights.load import load_model

    result = retrieval.run_retrieval(settings(RetrievalConfig, tiny_run, manifest_file, tmp_path), progress=False)
    test = pictures[pictures["split"] == "test"]
    distinct = list(dict.fromkeys(test["report"]))
    model = load_model(tiny_run)
    images = model.encode_images([Path(pictures.attrs["root"]) / name for name in test["image"]]).double()
    similarity = (images @ model.encode_texts(distinct).double().T).numpy()
    own = np.array([distinct.index(report) for report in test["report"]])
    best = np.argsort(-similarity, axis=1)
    to_report, to_image = result["directions"]
    assert result["texts"] == len(distinct)
    assert to_report["candidates"] == len(distinct)
    assert to_image["candidates"] == result["images"] == 32
    for k in (1, 5, 10):
        hits = (best[:, :k] == own[:, None]).any(axis=1)
        assert to_report["recall"][str(k)]["value"] == pytest.approx(hits.mean())
        assert to_report["chance"][str(k)] == pytest.approx(k / len(distinct))
    assert {"recall", "median_rank"} <= set(to_image["random"])
    page = page_of(tmp_path / "out" / "card.html")
    assert page.open == []
    assert page.outside == []
    assert estimate(to_report["recall"]["5"]) in page.text
    console = Console(record=True, width=160)
    console.print(retrieval.render(result))
    assert "image to report  R@10" in console.export_text()


def test_run_retrieval__needs_two_reports(tiny_run: Path, manifest: Any, tmp_path: Path) -> None:
    manifest.frame["report"] = "the same."
    write_manifest(manifest, tmp_path / "m.parquet")
    with pytest.raises(DataError, match="32 reports, fewer than two distinct"):
        retrieval.run_retrieval(settings(RetrievalConfig, tiny_run, tmp_path / "m.parquet", tmp_path), progress=False)


def test_command__names_what_differs_from_the_defaults() -> None:
    config = ZeroShotConfig(
        model="runs/a b",
        data={"manifest": "m.parquet", "split": "valid"},
        findings=("Edema", "Pleural Effusion"),
        random_baseline=False,
    )
    assert command("evaluate zero_shot", config) == (
        "medfm evaluate zero_shot 'model=runs/a b' data.manifest=m.parquet data.split=valid "
        "'findings=[Edema,Pleural Effusion]' random_baseline=false"
    )


@pytest.mark.parametrize(
    ("kind", "cards", "expected"),
    [
        ("report", ["mimic_cxr"], []),
        (
            "label sentences",
            ["kermany"],
            ["Trained on label sentences: images were aligned with label words, not with reports."],
        ),
        ("", [], ["Neither the weight file nor the manifest says what kind of text the model was trained on."]),
    ],
)
def test_caveats__say_what_the_text_was(kind: str, cards: list[str], expected: list[str]) -> None:
    assert caveats({"text_kind": kind, "data_cards": cards}, {"text_kind": "", "card": "x"}) == expected


def test_most_confident__picks_the_farthest_of_each_kind() -> None:
    target = np.array([1, 1, 0, 0, 0, 1])
    probability = np.array([0.9, 0.8, 0.7, 0.6, 0.1, 0.45])
    case = Scored(np.arange(6), target, probability, None, 0.5)
    assert most_confident(case) == [
        ("right: finding present", 0),
        ("right: finding absent", 4),
        ("wrong: called present", 2),
        ("wrong: missed", 5),
    ]


def test_whisker__places_the_dot_by_value() -> None:
    entry = {"auroc": {"value": 0.75, "low": 0.5, "high": 1.0}, "random": {"auroc": {"value": 0.5}}}
    drawn = str(whisker(entry, width=110))
    assert '<circle class="model" cx="80.0"' in drawn
    assert '<circle class="random" cx="55.0"' in drawn
    assert '<line class="interval" x1="55.0" x2="105.0"' in drawn
