from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medfm.data.phantom import reports
from medfm.data.phantom.findings import Finding, draw
from medfm.text.config import ReportConfig
from medfm.text.counterfactual import negate, swap_sides
from medfm.text.knowledge import load_knowledge
from medfm.text.prompts import load_prompts
from medfm.text.report import prepare
from medfm.text.sentences import split_sentences


def phantom_reports(count: int) -> Iterator[tuple[list[Finding], tuple[str, ...]]]:
    rng = np.random.default_rng(5)
    for _ in range(count):
        found = draw("PA", rng)
        yield found, prepare(reports.report(found, ("PA",), False, rng), ReportConfig())


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Small left pleural effusion.", "Small right pleural effusion."),
        ("LEFT lower lobe opacity, Right apex clear.", "RIGHT lower lobe opacity, Left apex clear."),
        ("Left-sided pacemaker.", "Right-sided pacemaker."),
        ("LLL consolidation and RUL nodule.", "RLL consolidation and LUL nodule."),
        ("Mediastinal shift leftward from a right effusion.", "Mediastinal shift rightward from a left effusion."),
        # Leads lie in the right heart on whichever side the generator is.
        ("Left pacemaker, leads in the right atrium.", "Right pacemaker, leads in the right atrium."),
        ("The right heart border is obscured.", "The left heart border is obscured."),
        ("Effusions, right greater than left.", "Effusions, left greater than right."),
        ("Nodule in the right mid zone, effusion on the left.", "Nodule in the left mid zone, effusion on the right."),
        # What is denied or normal moves along where something else is stated.
        ("Left effusion. No right effusion.", "Right effusion. No left effusion."),
    ],
)
def test_swap_sides(text: str, other: str) -> None:
    assert swap_sides(text) == other
    assert swap_sides(other) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Cardiomegaly.",
        "Bilateral pleural effusions.",
        "No left pleural effusion.",
        "The right costophrenic angle is sharp.",
        "The left lung is fully expanded.",
        "Left and right pleural effusions.",
        "Effusions in the right and the left pleural space.",
        "Tip in the right atrium.",
        "L1 compression fracture.",
        "Small left pleural effusion. Small right pleural effusion.",
        "There is a left pleural effusion and a right pleural effusion.",
        "Atelectasis in the left lung base and the right lung base.",
        "Effusions on the left and on the right.",
        "Small effusion on the right as well as on the left.",
        "Right pleural effusion; left pleural effusion.",
        "Nodules in the right upper lobe, left upper lobe.",
        "Nodules in the right lower lobe, and in the left lower lobe.",
        "Nodules in the lower lobe of the right lung and in the lower lobe of the left lung.",
        "LLL and RLL nodules.",
        "Consolidation in the right middle lobe.",
        "Consolidation in the right lower and middle lobes.",
        "Atelectasis of the left lingula.",
        "The left pleural effusion has resolved.",
        "Interval removal of the left chest tube.",
    ],
)
def test_swap_sides__none_where_nothing_untrue_would_be_said(text: str) -> None:
    assert swap_sides(text) is None


def test_swap_sides__every_sided_phantom_report_and_no_other() -> None:
    for found, sentences in phantom_reports(150):
        assert (swap_sides(" ".join(sentences)) is not None) == any(f.side for f in found)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        # Stated findings are denied.
        ("There is a small left pleural effusion.", "There is no left pleural effusion."),
        ("Moderate left-sided pleural effusion with a meniscus.", "No left-sided pleural effusion."),
        ("Blunting of the left angle, in keeping with a small effusion on the left.", "No effusion on the left."),
        ("Dependent opacity at the base represents a small effusion.", "No effusion."),
        ("On the left, a small pneumothorax is seen.", "On the left, no pneumothorax is seen."),
        ("A pleural line is seen without markings beyond it: large left pneumothorax.", "No left pneumothorax."),
        (
            "The left lung shows moderate consolidation in its upper zone.",
            "The left lung shows no consolidation in its upper zone.",
        ),
        ("Left upper zone consolidation, which may represent pneumonia.", "No left upper zone consolidation."),
        ("A solitary pulmonary nodule in the left zone measures 12 mm.", "No pulmonary nodule in the left zone."),
        ("A nodule of 12 mm projects over the left zone.", "No nodule projects over the left zone."),
        ("The heart is markedly enlarged.", "The heart is not enlarged."),
        ("The heart size is mildly increased: cardiomegaly.", "No cardiomegaly."),
        ("The lung is partly collapsed by a pneumothorax.", "The lung is not collapsed."),
        ("Endotracheal tube with its tip above the carina.", "No endotracheal tube."),
        ("Decreased small left effusion.", "No left effusion."),
        ("5 mm nodule in the right upper lobe (series 4, image 120).", "No nodule in the right upper lobe."),
        ("Effusion was not detected.", "Effusion was detected."),
        ("Mild to moderate pulmonary edema.", "No pulmonary edema."),
        ("COPD.", "No COPD."),
        ("There is no nodule and there is a small effusion.", "There is no nodule and there is no effusion."),
        # Denied findings are asserted.
        ("No pleural effusion or pneumothorax.", "There is a pleural effusion and a pneumothorax."),
        ("There are no fractures.", "There are fractures."),
        ("No evidence of pulmonary edema.", "There is pulmonary edema."),
        ("Negative for nodule, consolidation, or effusion.", "There is a nodule, consolidation and an effusion."),
        ("No pneumothorax is identified.", "A pneumothorax is identified."),
        ("No effusion on the right.", "There is an effusion on the right."),
        ("On the left, no nodule.", "On the left, a nodule."),
        ("The heart is not enlarged.", "The heart is enlarged."),
        ("Pleural effusion is not seen.", "Pleural effusion is seen."),
        ("The lungs are clear.", "The lungs are not clear."),
        ("Heart size is normal.", "Heart size is abnormal."),
        ("Normal chest radiograph.", "Abnormal chest radiograph."),
        ("No acute cardiopulmonary disease.", "There is acute cardiopulmonary disease."),
    ],
)
def test_negate(text: str, other: str) -> None:
    assert negate(text) == other


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PA and lateral views.",
        "Intubated.",
        "No change in the left effusion.",
        "The effusion has resolved.",
        "The endotracheal tube has been removed.",
        "Interval decrease in the left effusion.",
        "A small apical pneumothorax cannot be excluded.",
        "Trace if any left effusion.",
        "Is there an effusion?",
        "No pneumothorax, but a small effusion persists.",
    ],
)
def test_negate__none_where_no_rule_fits(text: str) -> None:
    assert negate(text) is None


def test_negate__every_statement_of_that_finding_and_no_other() -> None:
    text = "Small left effusion. The heart is normal. No pneumothorax. Impression of a left pleural effusion. No nodule."
    assert (
        negate(text)
        == "No left effusion. The heart is normal. No pneumothorax. No impression of a left pleural effusion. No nodule."
    )
    # Those that deny what is stated elsewhere stay as they are.
    assert negate("Left effusion. No right effusion.") == "No left effusion. No right effusion."


def test_negate__a_finding_goes_before_the_normal_and_is_drawn() -> None:
    text = "The lungs are clear. No effusion. Cardiomegaly."
    assert negate(text) == "The lungs are clear. There is an effusion. Cardiomegaly."
    rng = np.random.default_rng(0)
    assert {negate(text, rng) for _ in range(20)} == {
        "The lungs are clear. There is an effusion. Cardiomegaly.",
        "The lungs are clear. No effusion. No cardiomegaly.",
    }


def test_negate__phantom_reports_come_out_changed_and_in_english() -> None:
    knowledge = load_knowledge("chest")
    stated = 0
    for _, sentences in phantom_reports(150):
        for before in sentences:
            after = negate(before)
            if after is None:
                continue
            assert after != before
            assert after[0].isupper()
            assert (
                re.search(
                    r"\b(?:no (?:an?|the|no|small|mild|severe) |not not|an? (?:edema|cardiomegaly|lines|congestion))",
                    after,
                    re.I,
                )
                is None
            )
            was, now = knowledge.stated([before]), knowledge.stated([after])
            assert not ((was == 1) & (now == 1))[list(knowledge.of_kind("pathology", "device"))].any(), (before, after)
            stated += bool((was == 1)[list(knowledge.of_kind("pathology", "device"))].any())
    assert stated > 100


def test_negate__most_of_what_prompt_sets_say_can_be_denied() -> None:
    phrases = [p for f in load_prompts("chexpert").findings if f.name != "No Finding" for p in f.positive]
    phrases += [p for f in load_prompts("phantom").findings if f.name != "No Finding" for p in f.positive]
    denied = [p for p in phrases if negate(p) is not None]
    assert len(denied) >= 0.9 * len(phrases), sorted(set(phrases) - set(denied))
    assert all((negate(p) or "").lower().startswith(("no ", "the heart is not")) for p in denied)


@pytest.mark.parametrize("name", ["cxr_ieee8023", "cxr_ieee8023_nc"])
def test_real_notes__what_was_stated_is_stated_no_more(data_dir: Path, name: str) -> None:
    """Of free text the rules reach a part; where they do, the finding is gone. Counts alone are said, no text."""
    import pandas as pd

    knowledge = load_knowledge("chest")
    columns = list(knowledge.of_kind("pathology", "device"))
    notes = pd.read_csv(data_dir / name / "manifest.csv", dtype=str)["text"].dropna().unique().tolist()
    changed = stating = gone = 0
    for note in notes:
        for sentence in split_sentences(note):
            other = negate(sentence)
            if other is None:
                continue
            changed += 1
            was, now = knowledge.stated([sentence])[columns] == 1, knowledge.stated([other])[columns] == 1
            stating += bool(was.any())
            gone += bool(was.any() and not (was & now).any())
        swapped = swap_sides(note)
        assert (swapped is None) or (swap_sides(swapped) == note)
    assert changed >= len(notes) * 0.5
    assert gone >= 0.8 * stating
