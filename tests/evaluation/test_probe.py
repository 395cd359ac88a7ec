"""Linear probe and nearest neighbours on planted features, and end to end on real files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from medfm.data.manifest import read_manifest, write_manifest
from medfm.errors import DataError
from medfm.evaluation import probe
from medfm.evaluation.config import KnnConfig, LinearProbeConfig
from medfm.evaluation.probe_fit import Linear, Neighbours, Part, draw_patients, fit, mean_auroc, out_of_fold
from medfm.weights.load import load_model


def planted(n: int, seed: int, width: int = 12) -> Part:
    """Two findings, readable off features 0 and 1, and off 2 with a few labels missing; two images a patient."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)).astype(np.float32)
    first = (x[:, 0] - x[:, 1] + rng.normal(0, 0.7, n) > 0).astype(float)
    second = (x[:, 2] + rng.normal(0, 1.0, n) > 0.5).astype(float)
    second[rng.random(n) < 0.1] = np.nan
    # A scale and a shift that standardising must undo.
    return Part(x * np.float32(50) + np.float32(7), np.stack([first, second], 1), np.arange(n) // 2)


TRAIN, VAL, TEST = planted(120, 1), planted(60, 2), planted(80, 3)
PENALTIES = (1e-2, 1.0, 100.0, 1e4)


def test_fit__linear_equals_scikit_learn_with_the_penalty_that_val_prefers() -> None:
    done = fit(Linear(PENALTIES), TRAIN, VAL, TEST)
    for column in (0, 1):
        rows, val = (~np.isnan(part.labels[:, column]) for part in (TRAIN, VAL))
        # Standardised by all training rows, as the features are the same for all findings.
        scaler = StandardScaler().fit(TRAIN.features.astype(np.float64))
        losses, predicted = [], []
        for penalty in PENALTIES:
            model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000)
            model.fit(scaler.transform(TRAIN.features[rows]), TRAIN.labels[rows, column])
            losses.append(log_loss(VAL.labels[val, column], model.predict_proba(scaler.transform(VAL.features[val]))[:, 1]))
            predicted.append(model.predict_proba(scaler.transform(TEST.features))[:, 1])
        best = int(np.argmin(losses))
        assert done.chosen[column]["l2"] == PENALTIES[best]
        assert done.chosen[column]["by"] == "val"
        assert sorted(loss for _, loss in done.chosen[column]["tried"]) == pytest.approx(sorted(losses), rel=1e-2)
        np.testing.assert_allclose(done.test[:, column], predicted[best], atol=1e-3)
        assert 0 < best < len(PENALTIES) - 1  # the choice is a real one


def test_fit__neighbours_are_the_weighted_vote_with_the_k_that_val_prefers() -> None:
    ks, temperature = (1, 3, 15, 500), 0.2
    done = fit(Neighbours(ks, temperature), TRAIN, VAL, TEST)

    def vote(query: np.ndarray, column: int, k: int) -> float:
        rows = np.flatnonzero(~np.isnan(TRAIN.labels[:, column]))
        x = TRAIN.features[rows].astype(float)
        cosine = x @ query / np.linalg.norm(x, axis=1) / np.linalg.norm(query)
        near = np.argsort(-cosine)[:k]
        weight = np.exp(cosine[near] / temperature)
        return float((weight * TRAIN.labels[rows[near], column]).sum() / weight.sum())

    for column in (0, 1):
        val = ~np.isnan(VAL.labels[:, column])
        areas = [
            roc_auc_score(VAL.labels[val, column], [vote(q, column, k) for q in VAL.features[val].astype(float)]) for k in ks
        ]
        assert done.chosen[column]["k"] == ks[int(np.argmax(np.round(areas, 6)))]
        expected = [vote(q, column, done.chosen[column]["k"]) for q in TEST.features.astype(float)]
        np.testing.assert_allclose(done.test[:, column], expected, atol=1e-4)


@pytest.mark.parametrize("method", [Linear(PENALTIES), Neighbours((3, 15))])
def test_fit__without_val_patients_of_train_are_kept_apart(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = VAL.where(np.zeros(0, np.int64))
    done = fit(method, TRAIN, empty, TEST)
    assert [choice["by"] for choice in done.chosen] == ["cross-validation"] * 2
    assert done.val.shape == (0, 2)
    assert roc_auc_score(TEST.labels[:, 0], done.test[:, 0]) > 0.7
    seen: list[tuple[int, int]] = []
    predict = type(method).predict

    def watched(self: Any, train: np.ndarray, labels: np.ndarray, queries: list[np.ndarray]) -> Any:
        rows = {value.tobytes(): patient for value, patient in zip(TRAIN.features, TRAIN.patients, strict=True)}
        fitted, asked = ({rows[row.tobytes()] for row in part} for part in (train, queries[0]))
        assert not fitted & asked
        seen.append((len(fitted), len(asked)))
        return predict(self, train, labels, queries)

    monkeypatch.setattr(type(method), "predict", watched)
    out_of_fold(method, TRAIN)
    assert seen == [(48, 12)] * 5


def test_fit__a_finding_without_both_classes_is_not_learned() -> None:
    labels = TRAIN.labels.copy()
    labels[:, 1] = np.where(np.isnan(labels[:, 1]), np.nan, 0)
    for method in (Linear(PENALTIES), Neighbours((3, 15))):
        done = fit(method, Part(TRAIN.features, labels, TRAIN.patients), VAL, TEST)
        assert np.isnan(done.test[:, 1]).all()
        assert np.isfinite(done.test[:, 0]).all()
        assert done.chosen[1]["by"] == ""
        assert mean_auroc(TEST, done.test, [1]) == 0.5


def test_draw_patients__takes_whole_patients_and_larger_shares_hold_smaller_ones() -> None:
    small, large = (draw_patients(TRAIN.patients, share, seed=0, draw=1) for share in (0.1, 0.5))
    assert set(small) < set(large)
    for rows, count in ((small, 6), (large, 30)):
        patients = TRAIN.patients[rows]
        assert len(np.unique(patients)) == count
        assert len(rows) == 2 * count
    assert set(draw_patients(TRAIN.patients, 0.1, seed=0, draw=2)) != set(small)
    assert set(draw_patients(TRAIN.patients, 0.1, seed=1, draw=1)) != set(small)
    assert len(np.unique(TRAIN.patients[draw_patients(TRAIN.patients, 1e-9, 0, 0)])) == 2


@pytest.fixture
def split_file(manifest: Any, tmp_path: Path) -> Path:
    """The manifest of pictures with patients in train, val and test, a finding that is never seen, and an uncertain one."""
    patient = np.arange(48) // 2
    manifest.frame["split"] = np.where(patient < 12, "train", np.where(patient < 17, "val", "test"))
    manifest.frame["label:never"] = 0.0
    manifest.frame["label:unsure"] = np.where(np.arange(48) % 3 == 0, -1.0, manifest.frame["label:bright"])
    write_manifest(manifest, tmp_path / "manifest.parquet")
    return tmp_path / "manifest.parquet"


def settings(kind: type, run: Path, manifest: Path, tmp_path: Path, **changes: Any) -> Any:
    data = {"manifest": manifest, "workers": 0, "batch_size": 16, **changes.pop("data", {})}
    where = {"out": tmp_path / "out", "features": tmp_path / "features"}
    return kind(model=run, data=data, bootstrap=60, **{**where, **changes})


def test_run_linear_probe__equals_a_probe_by_hand(tiny_run: Path, split_file: Path, tmp_path: Path, pictures: Any) -> None:
    config = settings(LinearProbeConfig, tiny_run, split_file, tmp_path, findings=("bright",), l2=(1.0,))
    result = probe.run_linear_probe(config, progress=False)
    table = pd.read_parquet(split_file)
    features = load_model(tiny_run).features([Path(pictures.attrs["root"]) / name for name in table["image"]]).numpy()
    rows = {split: np.flatnonzero(table["split"] == split) for split in ("train", "val", "test")}
    scaler = StandardScaler().fit(features[rows["train"]].astype(np.float64))
    by_hand = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000)
    by_hand.fit(scaler.transform(features[rows["train"]]), table["label:bright"].iloc[rows["train"]])
    expected = by_hand.predict_proba(scaler.transform(features))[:, 1]
    written = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert written.columns.tolist() == ["row", "split", "bright"]
    assert sorted(written["row"]) == sorted([*rows["val"], *rows["test"]])
    np.testing.assert_allclose(written["bright"], expected[written["row"]], atol=1e-3)
    (entry,) = result["findings"]
    test = written[written["split"] == "test"]
    area = roc_auc_score(table["label:bright"].iloc[test["row"]], test["bright"])
    assert entry["auroc"]["value"] == pytest.approx(area)
    assert entry["train"] == {"images": 24, "patients": 12, **_classes(table, rows["train"])}
    assert entry["chosen"]["l2"] == 1.0
    difference = entry["random"]["difference"]["auroc"]
    assert difference["value"] == pytest.approx(area - entry["random"]["auroc"]["value"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert result == json.loads((tmp_path / "out" / "result.json").read_text())


def _classes(table: pd.DataFrame, rows: np.ndarray) -> dict[str, int]:
    labels = table["label:bright"].iloc[rows]
    return {"positives": int((labels == 1).sum()), "negatives": int((labels == 0).sum())}


@pytest.mark.parametrize(("kind", "run"), [(LinearProbeConfig, probe.run_linear_probe), (KnnConfig, probe.run_knn)])
def test_run__card_table_and_repeatable(
    kind: Any, run: Any, tiny_run: Path, split_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_of: Any
) -> None:
    config = settings(kind, tiny_run, split_file, tmp_path, train_share=(0.5, 1.0), draws=2, against=tiny_run)
    result = run(config, progress=False)
    assert {item["name"] for item in result["left_out"]} == {"never"}
    assert [entry["name"] for entry in result["findings"]] == ["bright", "unsure"]
    bright, unsure = result["findings"]
    assert unsure["images"] < bright["images"]
    # Against itself nothing differs.
    assert bright["against"]["difference"]["auroc"] == {**bright["against"]["difference"]["auroc"], "low": 0, "high": 0}
    half, whole = result["label_efficiency"]
    assert (half["patients"], whole["patients"], half["draws"], whole["draws"]) == (6, 12, 2, 1)
    if result["mean"]["findings"]:
        assert whole["model"]["mean"] == pytest.approx(result["mean"]["auroc"]["value"])

    page = page_of(tmp_path / "out" / "card.html")
    assert page.open == []
    assert page.outside == []
    for said in ("the encoder is not trained", "With fewer labels", "50 %", "never", result["command"], "Difference"):
        assert said in page.text
    assert sum(source.startswith("data:image/png") for source in page.images) == 7
    for path in (tmp_path / "out").iterdir():
        assert not re.search(rb"SECRET|CONFIDENTIAL", path.read_bytes()), path.name
    console = Console(record=True, width=100)
    console.print(probe.render(result))
    text = console.export_text()
    assert "SECRET" not in text
    for said in ("bright", "difference", "50 %", "card.html"):
        assert said in text

    # Nothing is decoded again, and nothing is random.
    monkeypatch.setattr("medfm.evaluation.encode.ImageFiles.__call__", lambda *_: pytest.fail("decoded again"))
    again = run(config, progress=False)
    assert {k: v for k, v in again.items() if k != "created"} == {k: v for k, v in result.items() if k != "created"}


def test_run__uncertain_labels_count_as_asked(tiny_run: Path, split_file: Path, tmp_path: Path) -> None:
    counts = {}
    for uncertain in ("ignore", "negative", "positive"):
        config = settings(
            KnnConfig, tiny_run, split_file, tmp_path, findings=("unsure",), uncertain=uncertain, random_baseline=False
        )
        (entry,) = probe.run_knn(config, progress=False)["findings"]
        assert "random" not in entry
        counts[uncertain] = (entry["train"]["positives"], entry["train"]["negatives"])
    assert sum(counts["ignore"]) == 16
    assert counts["negative"] == (counts["ignore"][0], counts["ignore"][1] + 8)
    assert counts["positive"] == (counts["ignore"][0] + 8, counts["ignore"][1])


def test_run__says_what_cannot_be_probed(tiny_run: Path, split_file: Path, tmp_path: Path) -> None:
    def run(**changes: Any) -> None:
        probe.run_linear_probe(settings(LinearProbeConfig, tiny_run, split_file, tmp_path, **changes), progress=False)

    with pytest.raises(DataError, match=r"no column 'label:brigth'; did you mean 'bright'"):
        run(findings=("brigth",))
    with pytest.raises(DataError, match="'never' cannot be probed: 0 positive and 24 negative images in split 'train'"):
        run(findings=("never",))
    with pytest.raises(DataError, match="no rows of split 'training'; it has: test, train, val"):
        run(data={"train_split": "training"})
    with pytest.raises(ValidationError, match="must differ"):
        run(data={"train_split": "test"})
    with pytest.raises(ValidationError, match="no shares"):
        run(train_share=(0.5, 2.0))


def test_run__without_val_rows_there_is_no_threshold(tiny_run: Path, split_file: Path, tmp_path: Path) -> None:
    config = settings(LinearProbeConfig, tiny_run, split_file, tmp_path, findings=("bright",), data={"val_split": ""})
    result = probe.run_linear_probe(config, progress=False)
    (entry,) = result["findings"]
    assert entry["chosen"]["by"] == "cross-validation"
    assert entry["threshold"] is None
    assert result["val_images"] == 0
    assert "†" in (tmp_path / "out" / "card.html").read_text(encoding="utf-8")


def test_run__findings_called_row_and_split_keep_their_columns(tiny_run: Path, split_file: Path, tmp_path: Path) -> None:
    manifest = read_manifest(split_file)
    manifest.frame["label:row"] = manifest.frame["label:split"] = manifest.frame["label:bright"]
    manifest.frame["row"] = "not ours"
    write_manifest(manifest, tmp_path / "named.parquet")
    config = settings(LinearProbeConfig, tiny_run, tmp_path / "named.parquet", tmp_path, findings=("bright", "row", "split"))
    probe.run_linear_probe(config, progress=False)
    written = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert written.columns.tolist() == ["row", "split", "bright", "label:row", "label:split"]
    np.testing.assert_array_equal(written["label:row"], written["bright"])
    np.testing.assert_array_equal(written["label:split"], written["bright"])
    assert set(written["row"]) == set(np.flatnonzero(manifest.frame["split"] != "train"))
    assert set(written["split"]) == {"val", "test"}


def test_run__few_patients_are_said(tiny_run: Path, split_file: Path, tmp_path: Path) -> None:
    config = settings(KnnConfig, tiny_run, split_file, tmp_path, findings=("bright",), random_baseline=False)
    result = probe.run_knn(config, progress=False)
    (said,) = [said for said in result["caveats"] if "patients" in said]
    assert said.startswith(f"Few patients are scored ({result['patients']} patients in all")
    assert said in (tmp_path / "out" / "card.html").read_text()


def test_run__unreadable_images_are_left_out_on_request(tiny_run: Path, split_file: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(read_manifest(split_file).root / "images", tmp_path / "other" / "images")
    (tmp_path / "other" / "images" / "02.png").write_bytes((tmp_path / "other" / "images" / "02.png").read_bytes()[:60])
    data = {"root": tmp_path / "other"}
    with pytest.raises(DataError, match=r"02\.png"):
        probe.run_knn(settings(KnnConfig, tiny_run, split_file, tmp_path, data=data), progress=False)
    result = probe.run_knn(
        settings(KnnConfig, tiny_run, split_file, tmp_path, data={**data, "on_error": "skip"}), progress=False
    )
    assert result["train_images"] == 23
    assert result["unreadable"]["count"] + result["data"]["rows_removed"] == 1


@pytest.mark.parametrize("against", [False, True])
def test_run__a_finding_that_loses_a_class_with_unreadable_images_is_left_out(
    against: bool, tiny_run: Path, split_file: Path, tmp_path: Path
) -> None:
    import shutil

    manifest = read_manifest(split_file)
    shutil.copytree(manifest.root / "images", tmp_path / "other" / "images")
    rare = [int(np.flatnonzero(manifest.frame["split"] == split)[0]) for split in ("train", "test")]
    manifest.frame["label:rare"] = [float(row in rare) for row in range(48)]
    write_manifest(manifest, split_file)
    broken = tmp_path / "other" / manifest.frame["image"].iloc[rare[0]]
    content = bytearray(broken.read_bytes())
    content[60:90] = bytes(30)  # the header is whole: the check passes, decoding does not
    broken.write_bytes(content)
    data = {"root": tmp_path / "other", "on_error": "skip"}
    changes = {"against": tiny_run} if against else {}
    config = settings(
        LinearProbeConfig, tiny_run, split_file, tmp_path, data=data, findings=("bright", "bright", "rare"), **changes
    )
    result = probe.run_linear_probe(config, progress=False)
    assert result["unreadable"]["count"] == 1
    assert [entry["name"] for entry in result["findings"]] == ["bright"]
    (left,) = result["left_out"]
    assert left["name"] == "rare"
    assert "can be read, 0 positive and 23 negative images in split 'train'" in left["reason"]
    assert pd.read_parquet(tmp_path / "out" / "predictions.parquet").columns.tolist() == ["row", "split", "bright"]
    with pytest.raises(DataError, match="'rare' cannot be probed: of the images that can be read"):
        probe.run_linear_probe(config.model_copy(update={"findings": ("rare",)}), progress=False)
