"""Labels and probabilities to scores, against scikit-learn and hand counts."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from medfm.errors import DataError
from medfm.evaluation.scoring import LabelledFinding, Settings, available, few_patients, labelled_rows, patient_codes, score
from medfm.evaluation.statistics import youden_threshold
from medfm.text.prompts import PromptSet, parse_prompts

NAN = math.nan


def prompts_of(*names: str, method: str = "pair", where: dict | None = None) -> PromptSet:
    findings = {name: {"positive": name, "negative": f"no {name}", **({"where": where} if where else {})} for name in names}
    return parse_prompts({"method": method, "findings": findings})


def table(n: int, seed: int = 0, findings: tuple[str, ...] = ("A", "B")) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"patient_id": [f"p{i // 2}" for i in range(n)]})
    columns = []
    for name in findings:
        target = (rng.random(n) < 0.4).astype(float)
        frame[f"label:{name}"] = target
        columns.append(1 / (1 + np.exp(-(rng.normal(size=n) + target))))
    return frame, np.stack(columns, axis=1)


@pytest.mark.parametrize(
    ("uncertain", "rows", "targets"),
    [("ignore", [0, 1], [1, 0]), ("negative", [0, 1, 2], [1, 0, 0]), ("positive", [0, 1, 2], [1, 0, 1])],
)
def test_labelled_rows__uncertain_and_missing(uncertain: str, rows: list[int], targets: list[int]) -> None:
    frame = pd.DataFrame({"label:A": [1.0, 0.0, -1.0, NAN]})
    found, target = labelled_rows(frame, prompts_of("A").findings[0], uncertain)
    assert found.tolist() == rows
    assert target.tolist() == targets


def test_labelled_rows__where_restricts() -> None:
    frame = pd.DataFrame({"label:A": [1.0, 0.0, 1.0, 0.0], "label:sick": [1.0, 1.0, 0.0, NAN]})
    found, _ = labelled_rows(frame, prompts_of("A", where={"sick": 1}).findings[0], "ignore")
    assert found.tolist() == [0, 1]


def test_patient_codes__a_missing_id_is_a_patient_of_its_own() -> None:
    codes = patient_codes(pd.DataFrame({"patient_id": ["a", "", None, "a", " "]}))
    assert codes[0] == codes[3]
    assert len(set(codes.tolist())) == 4


def test_available__says_what_is_missing() -> None:
    frame = pd.DataFrame({"label:Edema": [1.0], "label:Other": [0.0]})
    kept, left_out = available(frame, prompts_of("Edema", "Oter"))
    assert [finding.name for finding in kept.findings] == ["Edema"]
    assert left_out == [{"name": "Oter", "reason": "the manifest has no column 'label:Oter'; did you mean 'Other'?"}]
    with pytest.raises(DataError, match="finding 'Oter' cannot be scored"):
        available(frame, prompts_of("Edema", "Oter"), explicit=True)
    with pytest.raises(DataError, match=r"none of the 1 findings of prompt set 'custom' is labelled; labels: Edema, Other"):
        available(frame, prompts_of("X"))


def test_score__agrees_with_scikit_learn_and_means_are_means() -> None:
    frame, probabilities = table(200)
    val_frame, val_probabilities = table(80, seed=1)
    result, scored = score(
        frame, prompts_of("A", "B"), probabilities, Settings(bootstrap=200), (val_frame, val_probabilities), 1 - probabilities
    )
    for column, entry in enumerate(result["findings"]):
        target = frame[f"label:{entry['name']}"]
        assert entry["auroc"]["value"] == pytest.approx(roc_auc_score(target, probabilities[:, column]))
        assert entry["auprc"]["value"] == pytest.approx(average_precision_score(target, probabilities[:, column]))
        assert entry["random"]["auroc"]["value"] == pytest.approx(1 - entry["auroc"]["value"])
        threshold = youden_threshold(val_frame[f"label:{entry['name']}"].to_numpy(), val_probabilities[:, column])
        assert entry["threshold"] == threshold == scored[entry["name"]].threshold
        assert entry["accuracy"]["value"] == pytest.approx(((probabilities[:, column] >= threshold) == target).mean())
        assert entry["patients"] == 100
        assert entry["auroc"]["low"] < entry["auroc"]["value"] < entry["auroc"]["high"]
    mean = result["mean"]
    values = [entry["auroc"]["value"] for entry in result["findings"]]
    widths = [entry["auroc"]["high"] - entry["auroc"]["low"] for entry in result["findings"]]
    assert mean["auroc"]["value"] == pytest.approx(np.mean(values))
    # Independent findings: their mean is known better than either.
    assert mean["auroc"]["high"] - mean["auroc"]["low"] < min(widths)
    json.dumps(result, allow_nan=False)


def test_score__differences_are_paired() -> None:
    frame, probabilities = table(200)
    # A twin that ranks as the model does, and one that is a little worse on the very same images.
    worse = probabilities + np.random.default_rng(3).normal(0, 0.05, probabilities.shape)
    findings = [LabelledFinding(name, name) for name in ("A", "B")]
    result, _ = score(frame, findings, probabilities, Settings(bootstrap=200), baseline=probabilities**3, against=worse)
    for entry in (*result["findings"], result["mean"]):
        same, other = entry["random"]["difference"]["auroc"], entry["against"]["difference"]["auroc"]
        assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
        assert other["value"] == pytest.approx(entry["auroc"]["value"] - entry["against"]["auroc"]["value"])
        assert other["low"] < other["value"] < other["high"]
        # Two models that err alike are told apart better than their own intervals would say.
        assert other["high"] - other["low"] < 0.7 * (entry["auroc"]["high"] - entry["auroc"]["low"])


def test_score__rare_findings_are_shown_but_not_averaged() -> None:
    frame, probabilities = table(60, findings=("A", "B", "C"))
    frame["label:B"] = [1.0] * 4 + [0.0] * 56
    frame["label:C"] = 0.0
    result, scored = score(frame, prompts_of("A", "B", "C"), probabilities, Settings(bootstrap=50))
    assert [entry["name"] for entry in result["findings"]] == ["A", "B"]
    assert result["mean"]["findings"] == ["A"]
    assert result["mean"]["auroc"]["value"] == result["findings"][0]["auroc"]["value"]
    assert result["mean"]["not_in_mean"] == [{"name": "B", "reason": "4 positive and 56 negative images, below 5"}]
    assert result["left_out"] == [{"name": "C", "reason": "0 positive and 60 negative images"}]
    assert set(scored) == {"A", "B"}


def test_score__without_val_there_is_no_threshold() -> None:
    frame, probabilities = table(40)
    result, _ = score(frame, prompts_of("A", "B"), probabilities, Settings(bootstrap=0))
    entry = result["findings"][0]
    assert entry["threshold"] is entry["accuracy"] is result["mean"]["accuracy"] is None
    assert entry["auroc"]["value"] is not None
    assert entry["auroc"]["low"] is None


def test_score__nothing_to_score_is_an_error() -> None:
    frame, probabilities = table(10, findings=("A",))
    frame["label:A"] = 1.0
    with pytest.raises(DataError, match="A: 10 positive and 0 negative images"):
        score(frame, prompts_of("A"), probabilities, Settings(bootstrap=0))


def test_score__multiclass_confusion_by_hand() -> None:
    frame = pd.DataFrame(
        {
            "patient_id": list("abcde"),
            "label:A": [1.0, 1.0, 0.0, 0.0, 1.0],
            "label:B": [0.0, 0.0, 1.0, 1.0, 1.0],
        }
    )
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.1, 0.9], [0.5, 0.5]])
    result, _ = score(frame, prompts_of("A", "B", method="multiclass"), probabilities, Settings(bootstrap=20))
    classes = result["classes"]
    # The last image belongs to both classes and is left out.
    assert classes["confusion"] == [[1, 1], [0, 2]]
    assert classes["images"] == 4
    assert classes["accuracy"]["value"] == pytest.approx(0.75)
    # A class without labels takes the last image of B.
    others = np.array([0.1, 0.1, 0.1, 0.95, 0.1])
    result, _ = score(frame, prompts_of("A", "B", method="multiclass"), probabilities, Settings(bootstrap=20), others=others)
    assert result["classes"]["confusion"] == [[1, 1, 0], [0, 1, 1]]
    assert result["classes"]["called"] == ["A", "B", "a class without labels"]
    assert result["classes"]["accuracy"]["value"] == pytest.approx(0.5)


def entry(name: str, positive: int, negative: int) -> dict[str, Any]:
    return {"name": name, "positive_patients": positive, "negative_patients": negative}


def test_few_patients__one_sentence_with_what_is_few() -> None:
    assert few_patients(20, [entry("a", 5, 5)]) == []
    assert few_patients(19, [entry("a", 5, 5)]) == [
        "Few patients are scored (19 patients in all): the intervals are unreliable."
    ]
    assert few_patients(30, [entry("a", 4, 26), entry("b", 30, 0)]) == [
        "Few patients are scored (4 with a; 0 without b): the intervals are unreliable."
    ]
    (many,) = few_patients(30, [entry(str(number), 1, 29) for number in range(14)])
    assert many.endswith("1 with 4; and 9 more findings or classes as rare): the intervals are unreliable.")


def test_score__counts_the_patients_of_each_class() -> None:
    frame = pd.DataFrame({"patient_id": [*"aabbcc", "", ""], "label:f": [1, 0, 1, 1, 0, 0, 1, 0.0]})
    result, _ = score(frame, [LabelledFinding("f", "f")], np.linspace(0, 1, 8)[:, None], Settings(bootstrap=0))
    (found,) = result["findings"]
    assert (found["patients"], found["positive_patients"], found["negative_patients"]) == (5, 3, 3)
