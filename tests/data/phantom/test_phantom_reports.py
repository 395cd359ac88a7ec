"""Reports and labels say the same, both ways."""

from __future__ import annotations

import re

import numpy as np
import pytest

from medfm.data.phantom.findings import FINDINGS, SIDED, Finding, draw, labels, with_ratio
from medfm.data.phantom.questions import questions
from medfm.data.phantom.reports import report
from medfm.text.report import is_normal, parse_sections

MENTION = {
    "Pleural Effusion": r"effusion",
    "Pneumothorax": r"pneumothorax",
    "Consolidation": r"consolidation",
    "Nodule": r"nodule",
    "Edema": r"edema",
    "Cardiomegaly": r"cardiomegaly|enlarged|enlargement|size is (?:\w+ )?increased|borderline",
    "Support Devices": r"pacemaker|catheter|central line|central venous line|tube|intubated",
}
DENIAL = re.compile(
    r"^(no|there is no|negative for|normal|unremarkable|clear|the lungs are clear)\b|not enlarged", re.IGNORECASE
)
DOUBT = re.compile(r"possible|may |cannot be excluded|questionable|suspected|borderline", re.IGNORECASE)


def said(text: str) -> list[str]:
    """Sentences of FINDINGS and IMPRESSION; list numbers and decimal points are no ends."""
    body = text[text.index("FINDINGS:") :].replace("FINDINGS:", " ").replace("IMPRESSION:", " ")
    body = re.sub(r"(?:(?<=\s)|^)\d\. ", " ", body)
    return [s.strip() for s in re.split(r"(?<=[a-zA-Z])\.\s+|(?<=\d)\.\s+(?=[A-Z])", body + " ") if s.strip()]


def stated(text: str, name: str) -> list[str]:
    return [s for s in said(text) if re.search(MENTION[name], s, re.IGNORECASE) and not DENIAL.search(s)]


def case(k: int) -> tuple[list[Finding], str]:
    rng = np.random.default_rng([77, k])
    view = ("PA", "AP")[k % 2]
    found = with_ratio(draw(view, rng), float(rng.choice([0.43, 0.50, 0.53, 0.57, 0.64], p=[0.7, 0.05, 0.08, 0.1, 0.07])))
    return found, report(found, (view,), bool(k % 3), rng)


def test_report__states_every_finding_and_nothing_else() -> None:
    for k in range(1500):
        found, text = case(k)
        table = labels(found)
        for name in FINDINGS:
            sentences = stated(text, name)
            assert bool(sentences) == (table[name] != 0), f"{name}: {text}"
            if table[name] == -1:
                assert all(DOUBT.search(s) for s in sentences), text
            if table[name] == 1:
                assert any(not DOUBT.search(s) for s in sentences), text
            for side in ("left", "right") if name in SIDED else ():
                sided = [s for s in sentences if re.search(rf"\b{side}\b", s, re.IGNORECASE)]
                assert bool(sided) == (table[f"{side.capitalize()} {name}"] != 0), f"{side} {name}: {text}"


def test_report__zones_and_sizes_are_the_findings() -> None:
    zones = {"upper": "upper", "mid": r"mid ?lung|mid zone", "lower": "lower|base"}
    for k in range(600):
        found, text = case(k)
        for finding in found:
            if finding.zone:
                place = [s for s in stated(text, finding.name) if re.search(zones[finding.zone], s, re.IGNORECASE)]
                assert place, text
            if finding.name == "Nodule":
                assert f"{finding.amount:.0f} mm" in text or f"{finding.amount / 10:.1f} cm" in text


def test_report__language_varies_and_has_sections() -> None:
    texts = [case(k)[1] for k in range(800)]
    assert len(set(texts)) > 780
    normal = [case(k)[1] for k in range(800) if not case(k)[0]]
    assert len(set(normal)) > 0.95 * len(normal)
    headings = set()
    for text in texts:
        sections = parse_sections(text)
        assert {"findings", "impression"} <= set(sections)
        headings |= set(sections)
        assert not re.search(r"[{}\[\]|]|  | \.|\.\.", text), text
        assert all(line[:1].isupper() for line in said(text) if line[0].isalpha()), text
    assert {"indication", "technique", "comparison"} <= headings


def test_report__normal_ones_are_recognised() -> None:
    verdicts = [(not found, is_normal(text)) for found, text in map(case, range(400)) if not any(f.kind for f in found)]
    normal = [said for truth, said in verdicts if truth]
    assert np.mean(normal) > 0.8
    assert not any(said for truth, said in verdicts if not truth)


@pytest.mark.parametrize("k", range(0, 60, 7))
def test_questions__answers_follow_the_labels(k: int) -> None:
    found, _ = case(k)
    table = labels(found)
    asked = questions(found, table, "PA", np.random.default_rng(k))
    words = {
        "effusion": "Pleural Effusion",
        "pneumothorax": "Pneumothorax",
        "consolidation": "Consolidation",
        "nodule": "Nodule",
    }
    assert any(q.kind == "open" for q in asked)
    for q in asked:
        name = next((v for w, v in words.items() if w in q.question), None)
        if q.kind == "closed" and name:
            side = next((s.capitalize() + " " for s in ("left", "right") if q.question.endswith(f"on the {s}?")), "")
            assert table[side + name] == {"yes": 1, "no": 0}[q.answer]
        if q.question.startswith("On which side") and name:
            assert table[f"{q.answer.capitalize()} {name}"] == 1
