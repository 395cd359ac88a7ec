from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from medfm.data.phantom import reports
from medfm.data.phantom.findings import FINDINGS, draw
from medfm.errors import ConfigError
from medfm.text.config import ReportConfig
from medfm.text.knowledge import Knowledge, load_knowledge, parse_knowledge
from medfm.text.prompts import load_prompts
from medfm.text.report import prepare

NAN = math.nan


@pytest.fixture(scope="module")
def chest() -> Knowledge:
    return load_knowledge("chest")


def value(knowledge: Knowledge, name: str, *sentences: str) -> float:
    return float(knowledge.stated(sentences)[knowledge.index(name)])


@pytest.mark.parametrize(
    ("name", "sentence", "expected"),
    [
        ("Pleural Effusion", "Small left pleural effusion.", 1),
        ("Pleural Effusion", "Bilateral EFFUSIONS are unchanged.", 1),
        ("Pleural Effusion", "Blunting of the left costophrenic angle.", 1),
        ("Pleural Effusion", "No pneumothorax or pleural effusion.", 0),
        ("Pleural Effusion", "Lungs are clear without effusion.", 0),
        ("Pleural Effusion", "Effusion is not seen.", 0),
        ("Pleural Effusion", "The effusion has resolved.", 0),
        ("Pleural Effusion", "No left effusion.", NAN),  # one side is not both
        ("Pleural Effusion", "No new effusion.", NAN),
        ("Pleural Effusion", "Possible small effusion.", NAN),
        ("Pleural Effusion", "A small effusion cannot be excluded.", NAN),
        ("Pleural Effusion", "An effusion is not excluded.", NAN),
        ("Pleural Effusion", "Pericardial fluid.", NAN),
        # A longer wording of another finding is not this one.
        ("Pleural Effusion", "Trace pericardial effusion.", NAN),
        ("Pleural Effusion", "No pericardial effusion.", NAN),
        ("Pericardial Effusion", "No pericardial effusion.", 0),
        ("Lung Opacity", "No ground-glass opacity.", NAN),
        ("Pleural Effusion", "Effusion of the shoulder; joint effusion.", 1),
        ("Pleural Effusion", "Small joint effusion.", NAN),
        ("Lung Opacity", "The pulmonary arteries are well opacified.", NAN),
        ("Emphysema", "Subcutaneous emphysema in the left chest wall.", NAN),
        ("Emphysema", "Paraseptal emphysema.", 1),
        ("Edema", "Subcutaneous edema.", NAN),
        ("Cavity", "Fluid in the left pleural cavity.", NAN),
        ("Pulmonary Fibrosis", "Cortical scarring of the left kidney.", NAN),
        ("Mass", "Left kidney mass.", NAN),
        ("Nodule", "Liver nodule.", NAN),
        ("Left Lung", "Cyst in the left lobe of the liver.", NAN),
        ("Left Lung", "Calcification in the left thyroid lobe.", NAN),
        ("Mass", "Mass effect on the trachea.", NAN),
        ("Nodule", "Thyroid nodule.", NAN),
        ("Nodule", "Thyroid nodule and a lung nodule.", 1),
        ("Nodule", "There is no nodule larger than 6 mm.", NAN),
        ("Pleural Effusion", "Pleural effusion was not detected.", 0),
        ("Emphysema", "Emphysema is not clearly observed.", 0),
        # What was there before.
        ("Endotracheal Tube", "The endotracheal tube has been removed.", NAN),
        ("Chest Tube", "Interval removal of the left chest tube with a small pneumothorax.", NAN),
        ("Pneumothorax", "Interval removal of the left chest tube with a small pneumothorax.", 1),
        ("Pleural Effusion", "Interval resolution of the left pleural effusion.", NAN),
        ("Pleural Effusion", "The effusion is no longer seen.", NAN),
        ("Pneumothorax", "The pneumothorax has not resolved.", 1),
        ("Pneumothorax", "The pneumothorax has nearly resolved.", 1),
        ("Support Devices", "Lines and tubes: None.", 0),
        ("Pleural Effusion", "No change in the effusion.", 1),
        ("Pleural Effusion", "No pneumothorax, but a small effusion persists.", 1),
        ("Pneumothorax", "No pneumothorax, but a small effusion persists.", 0),
        ("Pneumothorax", "Evaluate for pneumothorax.", NAN),
        ("Consolidation", "Faint opacity may represent consolidation.", NAN),
        ("Lung Opacity", "Faint opacity may represent consolidation.", 1),
        ("Consolidation", "Consolidation, which may represent pneumonia.", 1),
        ("Pneumonia", "Consolidation, which may represent pneumonia.", NAN),
        ("Pneumonia", "No opacity concerning for pneumonia.", 0),
        ("Pneumonia", "Opacity consistent with pneumonia.", 1),
        ("Cardiomegaly", "The heart is not enlarged.", 0),
        ("Cardiomegaly", "The heart is markedly enlarged.", 1),
        ("Cardiomegaly", "The heart size is normal.", 0),
        ("Cardiomegaly", "The heart may be enlarged.", NAN),
        ("Cardiomegaly", "Heart size within normal limits with enlarged hila.", NAN),
        ("Lung Opacity", "The lungs are clear.", 0),
        ("Lung Opacity", "Lungs are well expanded and clear.", 0),
        ("Lung Opacity", "The lungs are not clear.", NAN),
        ("Mass", "Massive effusion.", NAN),  # words, not their beginnings
        ("Support Devices", "Endotracheal tube above the carina.", 1),
        ("Left Lung", "Left upper lobe nodule.", 1),
        ("Right Lung", "Left upper lobe nodule.", NAN),
        ("Left Lung", "Left effusion and right lung nodule.", NAN),
        ("Left Lung", "No left lung nodule.", 1),  # a part of the body is named, not found
    ],
)
def test_stated(chest: Knowledge, name: str, sentence: str, expected: float) -> None:
    found = value(chest, name, sentence)
    assert found == expected or (math.isnan(found) and math.isnan(expected))


def test_stated__sentences_together(chest: Knowledge) -> None:
    assert value(chest, "Pleural Effusion", "No effusion.", "Small effusion.") == 1
    assert math.isnan(value(chest, "Pleural Effusion", "No effusion.", "Possible effusion."))
    assert value(chest, "Pleural Effusion", "No left effusion.", "No right effusion.") == 0
    assert value(chest, "No Finding", "No acute cardiopulmonary process.", "The heart size is normal.") == 1
    assert value(chest, "No Finding", "No acute cardiopulmonary process.", "Cardiomegaly.") == 0
    assert math.isnan(value(chest, "No Finding", "No effusion."))
    assert np.isnan(chest.stated([])).all()


def test_stated__the_hierarchy(chest: Knowledge) -> None:
    # What is present is of its parents' kind; a part of the body lies in its parents; findings are not parts of the body.
    assert value(chest, "Lung Lesion", "Pulmonary nodule.") == 1
    assert value(chest, "Lung Opacity", "Pulmonary nodule.") == 1
    assert math.isnan(value(chest, "Lung Lesion", "No nodule."))
    assert value(chest, "Mass", "No focal lung lesion.") == 0
    assert value(chest, "Nodule", "No lung lesion.", "Nodule.") == 1
    assert math.isnan(value(chest, "Nodule", "No lung lesion.", "Possible nodule."))
    assert value(chest, "Mediastinum", "The heart is normal.") == 1
    assert value(chest, "Pacemaker", "No support devices.") == 0


def test_stated__agrees_with_what_the_phantom_drew(chest: Knowledge) -> None:
    """On generated reports: no finding missed, none made up, nothing in doubt decided."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        found = draw("PA", rng)
        values = chest.stated(prepare(reports.report(found, ("PA",), False, rng), ReportConfig()))
        for name in FINDINGS:
            there = [f for f in found if f.name == name]
            said = values[chest.index(name)]
            if any(not f.hedged for f in there):
                assert said == 1
            elif there:
                assert np.isnan(said)
            else:
                assert said != 1
        assert (values[chest.index("No Finding")] == 1) == (not found)


def test_chest__covers_prompt_sets_and_describes_itself(chest: Knowledge) -> None:
    for name in ("chexpert", "phantom"):
        for finding in load_prompts(name).findings:
            assert finding.name in chest.names
            if finding.name != "No Finding":
                agreed = [value(chest, finding.name, text) == 1 for text in finding.positive]
                assert sum(agreed) >= 0.6 * len(agreed), (finding.name, finding.positive)
    assert all(c.definition and c.synonyms for c in chest.concepts)
    assert {c.kind for c in chest.concepts} == {"anatomy", "pathology", "device", "normal"}
    assert chest.describe("Pleural Effusion").startswith("Pleural Effusion: fluid in the pleural space")
    assert chest.describe("Pleural Effusion").endswith("Also called effusion, pleural fluid, hydrothorax.")


def test_parse__order_ancestors_hash() -> None:
    content = {"concepts": {"A": {}, "B": {"parents": ["A"]}, "C": {"kind": "anatomy", "parents": ["B"]}}}
    knowledge = parse_knowledge(content)
    assert knowledge.names == ("A", "B", "C")
    assert knowledge.ancestors == ((), (0,), (1, 0))
    assert knowledge.of_kind("pathology", "device") == (0, 1)
    assert knowledge.hash() == parse_knowledge(content).hash()
    assert knowledge.hash() != parse_knowledge({"concepts": {"A": {}, "B": {}, "C": {"kind": "anatomy"}}}).hash()
    assert knowledge.describe("A") == "A."


def test_parse__wildcards() -> None:
    knowledge = parse_knowledge({"concepts": {"X": {"wordings": ["heart * enlarged", "valv* disease"]}}})
    assert value(knowledge, "X", "The heart is quite markedly enlarged.") == 1
    assert math.isnan(value(knowledge, "X", "Heart and left hilum enlarged."))
    assert value(knowledge, "X", "Valvular disease.") == 1
    assert value(knowledge, "X", "No valvular diseases.") == 0


def test_parse__all_problems_at_once() -> None:
    content = {
        "concept": 1,
        "concepts": {
            "A": {"kind": "organ", "synonym": ["a"], "wordings": ["*"]},
            "B": {"parents": ["a"]},
            "C": 3,
            "D": {"definition": 4},
        },
    }
    with pytest.raises(ConfigError) as caught:
        parse_knowledge(content, where="k.yaml")
    text = str(caught.value)
    assert text.startswith("7 problems in k.yaml")
    for part in (
        "concept: unknown key; did you mean 'concepts'?",
        "concepts.A.kind: 'organ'",
        "concepts.A.synonym: unknown key; did you mean 'synonyms'?",
        "concepts.A.wordings: '*' would match",
        "concepts.B.parents: unknown concept 'a'",
        "concepts.C: must be a mapping",
        "concepts.D.definition: 4 is not text",
    ):
        assert part in text
    with pytest.raises(ConfigError, match="is its own ancestor"):
        parse_knowledge({"concepts": {"A": {"parents": ["B"]}, "B": {"parents": ["A"]}}})
    with pytest.raises(ConfigError, match="at least one concept"):
        parse_knowledge({"concepts": {}})


def test_load__by_name_and_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown knowledge 'chst'; did you mean 'chest'"):
        load_knowledge("chst")
    with pytest.raises(ConfigError, match="does not exist"):
        load_knowledge(tmp_path / "none.yaml")
    file = tmp_path / "mine.yaml"
    file.write_text("concepts: {A: {synonyms: alpha}}")
    assert load_knowledge(file).name == "mine"
    assert load_knowledge(str(file)).concepts[0].synonyms == ("alpha",)
    with pytest.raises(ConfigError, match="has no concept 'B'"):
        load_knowledge(file).index("B")
