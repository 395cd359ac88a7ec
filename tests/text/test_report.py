from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medfm.text.config import ReportConfig
from medfm.text.report import (
    is_empty,
    is_normal,
    parse_sections,
    report_statistics,
    section_text,
    select_text,
    split_sentences,
    text_key,
)

# Written for these tests in the shape of MIMIC-CXR's files; about nobody.
FINAL_REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // eval for pneumonia

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  ___

 FINDINGS:

 The cardiac silhouette is normal. The lungs
 are clear.  A 2.5 cm hiatal hernia is seen.

 IMPRESSION:

 1. No acute cardiopulmonary process.
 2. Hiatal hernia, discussed with Dr. ___ at 3:45 p.m. on ___.

 RECOMMENDATION(S):  None by Dr. ___.
"""
HEADERLESS = """ FINAL REPORT
 CLINICAL HISTORY:  ___-year-old man with cough.

 PA and lateral views of the chest were provided. There is a small left effusion.
"""
WET_READ = """WET READ: ___ ___ ___ 10:36 PM
  No acute process.
 ______________________________________________________________________________
                                 FINAL REPORT
 HISTORY:  Fall.

 FINDINGS:  Left rib fracture.
"""


def test_parse_sections__mimic_final_report() -> None:
    sections = parse_sections(FINAL_REPORT)
    assert list(sections) == [
        "examination",
        "indication",
        "technique",
        "comparison",
        "findings",
        "impression",
        "recommendation",
    ]
    assert sections["findings"] == "The cardiac silhouette is normal. The lungs\nare clear. A 2.5 cm hiatal hernia is seen."
    assert sections["impression"].endswith("at 3:45 p.m. on ___.")
    assert sections["recommendation"] == "None by Dr. ___."


def test_parse_sections__headerless_paragraph_after_history_is_body() -> None:
    sections = parse_sections(HEADERLESS)
    assert sections["history"] == "___-year-old man with cough."
    assert sections["body"] == "PA and lateral views of the chest were provided. There is a small left effusion."
    assert "left effusion" in select_text(HEADERLESS, ReportConfig(), None)
    assert "cough" not in select_text(HEADERLESS, ReportConfig(), None)


def test_parse_sections__wet_read_is_apart_and_dropped_when_there_is_a_final_one() -> None:
    assert parse_sections(WET_READ)["wet read"].splitlines()[1] == "No acute process."
    assert select_text(WET_READ, ReportConfig(), None) == "Left rib fracture."
    assert "No acute process." in select_text(WET_READ.split(" ____")[0], ReportConfig(), None)


def test_parse_sections__findings_and_impression_in_one_fill_both_but_are_kept_once() -> None:
    report = "FINDINGS AND IMPRESSION: No effusion."
    assert parse_sections(report) == {"findings": "No effusion.", "impression": "No effusion."}
    assert select_text(report, ReportConfig(), None) == "No effusion."


@pytest.mark.parametrize(
    ("report", "sections"),
    [
        ("Findings: The lungs are clear. Impression: Normal.", {"findings": "The lungs are clear.", "impression": "Normal."}),
        ("IMPRESSION\nNormal.", {"impression": "Normal."}),
        ("**IMPRESSION:** Normal.", {"impression": "Normal."}),
        ("FINDINGS: LUNGS: clear. HEART: large.", {"findings": "LUNGS: clear. HEART: large."}),
        ("FINDINGS:\nLUNGS: clear.\nHEART: large.", {"findings": "LUNGS: clear.\nHEART: large."}),
        ("PA AND LATERAL VIEWS OF THE CHEST: Clear.", {"findings": "Clear."}),
        ("CHEST RADIOGRAPH: two views\nFINDINGS: Clear.", {"examination": "two views", "findings": "Clear."}),
        ("IMPRESSION: a\nADDENDUM: b\nIMPRESSION: c", {"impression": "a\n\nc", "addendum": "b"}),
        ("No header at all.", {"preamble": "No header at all."}),
        ("FINDINGS:\n\nIMPRESSION: Clear.", {"impression": "Clear."}),
        ("", {}),
    ],
)
def test_parse_sections__styles(report: str, sections: dict[str, str]) -> None:
    assert parse_sections(report) == sections


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Seen by Dr. ___. Stable.", ["Seen by Dr. ___.", "Stable."]),
        ("Nodule of 2.5 cm. No change.", ["Nodule of 2.5 cm.", "No change."]),
        ("1. No effusion. 2. Normal heart", ["No effusion.", "Normal heart"]),
        ("1. No effusion\n2. Normal\nheart", ["No effusion", "Normal heart"]),
        ("- Tube in place\n- No effusion", ["Tube in place", "No effusion"]),
        ("Read at 3:45 p.m. on ___. Clear.", ["Read at 3:45 p.m. on ___.", "Clear."]),
        ("Compared with No. 3 of ___. XXXX. Clear", ["Compared with No. 3 of ___.", "___.", "Clear"]),
        ("Is it clear? Yes!", ["Is it clear?", "Yes!"]),
        ("clear lungs. heart normal.", ["clear lungs.", "heart normal."]),
        ("Read by J. Smith vs. earlier, e.g. ___.", ["Read by J. Smith vs. earlier, e.g. ___."]),
        ("Clear\n\nNormal heart", ["Clear", "Normal heart"]),
        (". . Clear. .", ["Clear."]),
        ("", []),
    ],
)
def test_split_sentences__boundaries(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_split_sentences__never_splits_a_placeholder() -> None:
    assert split_sentences("Told [**First Name 3. Foo\nBar**] today.") == ["Told ___ today."]


def test_select_text__sections_in_the_order_of_the_config() -> None:
    config = ReportConfig(sections=("impression", "findings"))
    assert select_text("FINDINGS: A b.\nIMPRESSION: C d.", config, None) == "C d. A b."
    assert select_text("TECHNIQUE: CT.\nFINDINGS: A b.", ReportConfig(sections=("impression",)), None) == "A b."


def test_select_text__sentence_is_uniform_over_sentences_with_enough_words() -> None:
    config = ReportConfig(sample="sentence", min_words=2)
    report = "FINDINGS: Clear. No effusion. Large heart.\nIMPRESSION: Old fracture."
    rng = np.random.default_rng(0)
    drawn = Counter(select_text(report, config, rng) for _ in range(3000))
    assert set(drawn) == {"No effusion.", "Large heart.", "Old fracture."}
    assert max(drawn.values()) < 1150  # 1000 expected, standard deviation 26
    assert min(drawn.values()) > 850


def test_select_text__sentences_is_a_contiguous_run_of_every_length() -> None:
    config = ReportConfig(sample="sentences")
    report = "One a. Two b. Three c."
    rng = np.random.default_rng(0)
    drawn = {select_text(report, config, rng) for _ in range(300)}
    assert drawn == {"One a.", "Two b.", "Three c.", "One a. Two b.", "Two b. Three c.", report}


def test_select_text__evaluation_takes_all_and_short_sentences_serve_where_there_are_no_others() -> None:
    config = ReportConfig(sample="sentence", min_words=5)
    assert select_text("A b. C d.", config, None) == "A b. C d."
    assert select_text("A b.", config, np.random.default_rng(0)) == "A b."
    assert select_text("  ", config, np.random.default_rng(0)) == ""


@pytest.mark.parametrize(
    "report",
    [
        "IMPRESSION: No acute cardiopulmonary process.",
        "FINDINGS: The lungs are clear. No pleural effusion or pneumothorax is seen.\nIMPRESSION: Normal chest radiograph.",
        "Normal chest x-ray.",
        "Examination within the limits of the norm.",
        "No evidence of acute cardiac or pulmonary disease. Heart size is normal. Lungs clear.",
        "IMPRESSION: No acute intrathoracic abnormality. No pneumothorax.",
        "AP chest radiograph of a child. Normal chest radiograph, no pneumonia.",
        "FINDINGS: PA and lateral views of the chest were obtained. No acute cardiopulmonary abnormality.",
    ],
)
def test_is_normal__whole_examination_normal(report: str) -> None:
    assert is_normal(report)


@pytest.mark.parametrize(
    "report",
    [
        "",
        "No pneumonia.",
        "Lungs are clear.",
        "IMPRESSION: No acute cardiopulmonary process. Stable cardiomegaly.",
        "FINDINGS: Moderate cardiomegaly.\nIMPRESSION: No acute cardiopulmonary process.",
        "FINDINGS: Right picc line ends in the superior vena cava.\nIMPRESSION: No acute cardiopulmonary process.",
        "No acute process, mild cardiomegaly.",
        "Not a normal chest radiograph.",
        "Abnormal chest radiograph.",
        "No change in the right effusion. Otherwise normal chest.",
        "No acute cardiopulmonary process. Recommend follow-up CT.",
        "No acute cardiopulmonary process with small effusion.",
        "Normal heart size with large effusion.",
        "AP chest radiograph of a child with viral pneumonia.",
        "Fever and cough. Normal appearances.",
    ],
)
def test_is_normal__doubt_means_no(report: str) -> None:
    assert not is_normal(report)


def test_text_key__ignores_case_space_and_punctuation_but_not_numbers() -> None:
    assert text_key("No  Effusion;\nheart normal.") == text_key("no effusion heart normal")
    assert text_key("2.5 cm nodule") != text_key("25 cm nodule")
    assert text_key("Seen by XXXX.") == text_key("seen by [**Name**]")
    assert text_key("No effusion") != text_key("Effusion")


def test_is_empty__placeholders_and_punctuation_are_no_report() -> None:
    assert is_empty(" ___ . XXXX --")
    assert not is_empty("___ clear")


def test_report_statistics__counts() -> None:
    counts = report_statistics(["", "  ", "Normal chest.", "normal CHEST", "FINDINGS: Effusion seen by ___.", "A b c d"])
    assert counts["total"] == 6
    assert counts["empty"] == 2
    assert counts["distinct"] == 3
    assert counts["duplicates"] == 1
    assert counts["normal"] == 2
    assert counts["placeholders"] == 1
    assert counts["words"]["longest"] == 5
    assert counts["sections"] == {"preamble": 3, "findings": 1}


@pytest.mark.parametrize("name", ["cxr_ieee8023", "cxr_ieee8023_nc"])
def test_select_text__real_notes_lose_no_word(data_dir: Path, name: str) -> None:
    import pandas as pd

    notes = pd.read_csv(data_dir / name / "manifest.csv", dtype=str)["text"].dropna().tolist()
    assert len(notes) >= 9
    for note in notes:
        if set(parse_sections(note)) <= {"preamble"}:
            kept = select_text(note, ReportConfig(), None)
            # Only white space, list markers and lone full stops may differ.
            assert [w for w in kept.split() if w != "."] == [w for w in note.split() if w != "."]
        assert all(len(s.split()) < 80 for s in split_sentences(note))
    counts = report_statistics(notes)
    assert counts["empty"] == 0
    assert counts["distinct"] + counts["duplicates"] == len(notes)


def test_report_statistics__real_notes(data_dir: Path) -> None:
    import pandas as pd

    notes = pd.read_csv(data_dir / "cxr_ieee8023_nc" / "manifest.csv", dtype=str)["text"].tolist()
    counts = report_statistics(notes)
    assert (counts["total"], counts["distinct"], counts["duplicates"]) == (160, 129, 31)
    # Read by hand: "Examination within the limits of the norm.", twice; other normal ones come with a history and stay out.
    assert counts["normal"] == 2


def test_section_text__placeholders_alone_are_none() -> None:
    report = "FINDINGS: ___.\nIMPRESSION: Small left effusion.\nNo ___ nodule."
    assert section_text(report, "findings") == ""
    assert section_text(report, "impression") == "Small left effusion. No ___ nodule."
