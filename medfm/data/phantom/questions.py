"""Questions with known answers about a study; nothing is asked about what the report only calls possible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medfm.data.phantom.findings import FINDINGS, SIDED, Finding

_WORDS = {
    "Cardiomegaly": "cardiomegaly",
    "Edema": "pulmonary edema",
    "Pleural Effusion": "a pleural effusion",
    "Pneumothorax": "a pneumothorax",
    "Consolidation": "a consolidation",
    "Nodule": "a lung nodule",
    "Support Devices": "a support device",
}
_VIEWS = {"PA": "PA", "AP": "AP", "LATERAL": "lateral", "CT": "CT"}


@dataclass(frozen=True)
class Question:
    """`kind` is "closed" (yes or no) or "open"."""

    question: str
    answer: str
    kind: str


def questions(found: list[Finding], labels: dict[str, int], view: str, rng: np.random.Generator) -> list[Question]:
    """Closed questions, as many answered yes as no where the study allows, and open ones about each finding."""
    closed_yes, closed_no, opened = [], [], []
    for name in FINDINGS:
        ask = f"Is there {_WORDS[name]}?"
        if labels[name] == 1:
            closed_yes.append(Question(ask, "yes", "closed"))
        elif labels[name] == 0:
            closed_no.append(Question(ask, "no", "closed"))
        if name in SIDED and labels[name] == 1:
            for side in ("left", "right"):
                label = labels[f"{side.capitalize()} {name}"]
                if label >= 0:
                    ask = f"Is there {_WORDS[name]} on the {side}?"
                    (closed_yes if label else closed_no).append(Question(ask, "yes" if label else "no", "closed"))
    for finding in found:
        bare = _WORDS[finding.name].removeprefix("a ")
        once = sum(f.name == finding.name for f in found) == 1
        if finding.hedged or not once:
            continue
        if finding.name in SIDED:
            opened.append(Question(f"On which side is the {bare}?", finding.side, "open"))
        if finding.zone:
            opened.append(Question(f"In which lung zone is the {bare}?", finding.zone, "open"))
        if finding.name == "Nodule":
            opened.append(Question("What is the diameter of the nodule?", f"{finding.amount:.0f} mm", "open"))
        if finding.kind:
            opened.append(Question("Which support device is present?", finding.kind, "open"))
    opened.append(Question("Which view is this?" if view != "CT" else "Which modality is this?", _VIEWS[view], "open"))
    keep_no = max(len(closed_yes), 1)
    closed_no = [closed_no[i] for i in sorted(rng.permutation(len(closed_no))[:keep_no])]
    normal = (
        [Question("Is this study normal?", "yes" if labels["No Finding"] == 1 else "no", "closed")]
        if labels["No Finding"] >= 0
        else []
    )
    return [*normal, *closed_yes, *closed_no, *opened]
