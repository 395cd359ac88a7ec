"""What is wrong with a made-up patient, and where it is: findings are drawn here and become matter in scene.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from medfm.data.phantom.anatomy import SIDES

Extent = Literal["", "small", "moderate", "large"]

FINDINGS = ("Cardiomegaly", "Edema", "Pleural Effusion", "Pneumothorax", "Consolidation", "Nodule", "Support Devices")
SIDED = ("Pleural Effusion", "Pneumothorax", "Consolidation", "Nodule")
LABELS = (
    "No Finding",
    *FINDINGS,
    *(f"{side.capitalize()} {name}" for name in SIDED for side in SIDES),
    "Bilateral Pleural Effusion",
)
ZONES = ("upper", "mid", "lower")
DEVICES = ("pacemaker", "central line", "endotracheal tube")

# A heart exactly half as wide as the chest is nobody's finding: within this margin the label is uncertain.
RATIO_LIMIT, RATIO_MARGIN = 0.50, 0.01
# One finding or several, besides the heart's size, which is the patient's.
_HOW_MANY = (0.46, 0.34, 0.16, 0.04)
_WEIGHTS = {"Pleural Effusion": 0.29, "Pneumothorax": 0.23, "Consolidation": 0.27, "Nodule": 0.24, "Edema": 0.13}


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        name: one of FINDINGS.
        side: "left", "right", or "" where it has none.
        zone: "upper", "mid", "lower", or "".
        extent: its size in words.
        amount: its size: share of the lung's height (effusion), mm from the chest wall (pneumothorax), mm across (nodule,
            consolidation), density between 0 and 1 (edema), cardiothoracic ratio (cardiomegaly).
        hedged: the report calls it possible, and the label is -1.
        kind: which device.
    """

    name: str
    side: str = ""
    zone: str = ""
    extent: Extent = ""
    amount: float = 0.0
    hedged: bool = False
    kind: str = ""


def draw(view: str, rng: np.random.Generator) -> list[Finding]:
    """The findings of one study, without cardiomegaly, which is measured on the film."""
    count = int(rng.choice(len(_HOW_MANY), p=_HOW_MANY))
    weights = np.array(list(_WEIGHTS.values()))
    names = [str(n) for n in rng.choice(list(_WEIGHTS), size=count, replace=False, p=weights / weights.sum())]
    if "Edema" in names:
        names = [n for n in names if n in ("Edema", "Pleural Effusion")]  # flooded lungs hide the others
    found: list[Finding] = []
    taken: dict[str, list[Finding]] = {side: [] for side in SIDES}
    for name in sorted(names, key=FINDINGS.index):
        if name == "Edema":
            found.append(
                Finding("Edema", extent=("moderate", "large")[int(rng.random() < 0.4)], amount=float(rng.uniform(0.55, 1.0)))
            )
            continue
        sides = [str(rng.choice(SIDES))]
        if name == "Pleural Effusion" and rng.random() < (0.5 if "Edema" in names else 0.08):
            sides = list(SIDES)
        for side in sides:
            side, zone = _room(name, side, taken, rng)
            if not side:
                continue
            finding = _sized(name, side, zone, rng)
            taken[side].append(finding)
            found.append(finding)
    found += _devices(view, rng)
    return found


def _room(name: str, side: str, taken: dict[str, list[Finding]], rng: np.random.Generator) -> tuple[str, str]:
    """A side and a zone where findings do not hide each other; ("", "") where there is none left."""
    other = SIDES[1 - SIDES.index(side)]
    for choice in (side, other):
        there = {f.name for f in taken[choice]}
        zones = [z for z in ZONES if z not in {f.zone for f in taken[choice]}]
        if name in there or "Pneumothorax" in there or (name == "Pneumothorax" and there):
            continue
        if name in ("Pleural Effusion", "Pneumothorax"):
            return choice, ""
        if "Pleural Effusion" in there:
            zones = [z for z in zones if z == "upper"]
        if zones:
            return choice, str(rng.choice(zones))
    return "", ""


def _sized(name: str, side: str, zone: str, rng: np.random.Generator) -> Finding:
    subtle = rng.random() < 0.09
    hedged = bool(subtle and rng.random() < 0.7)
    extent: Extent = ("small", "moderate", "large")[int(rng.choice(3, p=(0.18, 0.44, 0.38)))]
    if subtle:
        extent = "small"
    ranges: tuple[tuple[float, float], dict[str, tuple[float, float]]] = {
        "Pleural Effusion": ((0.09, 0.12), {"small": (0.19, 0.25), "moderate": (0.27, 0.40), "large": (0.42, 0.60)}),
        "Pneumothorax": ((8.0, 12.0), {"small": (17.0, 23.0), "moderate": (24.0, 38.0), "large": (40.0, 60.0)}),
        "Consolidation": ((30.0, 38.0), {"small": (48.0, 58.0), "moderate": (60.0, 78.0), "large": (80.0, 105.0)}),
        "Nodule": ((9.0, 12.0), {"small": (16.0, 19.0), "moderate": (20.0, 28.0), "large": (29.0, 36.0)}),
    }[name]
    low, high = ranges[0] if subtle else ranges[1][extent]
    amount = float(rng.uniform(low, high))
    if name == "Nodule":
        amount = float(round(amount))  # reports give whole mm
    return Finding(name, side, zone, extent, amount, hedged)


def _devices(view: str, rng: np.random.Generator) -> list[Finding]:
    if rng.random() >= (0.34 if view == "AP" else 0.09):
        return []
    kind = str(rng.choice(DEVICES, p=(0.3, 0.4, 0.3) if view == "AP" else (0.7, 0.3, 0.0)))
    side = "" if kind == "endotracheal tube" else str(rng.choice(SIDES, p=(0.25, 0.75) if kind == "pacemaker" else (0.8, 0.2)))
    return [Finding("Support Devices", side=side, kind=kind)]


def with_ratio(found: list[Finding], ratio: float) -> list[Finding]:
    """Adds cardiomegaly where the measured cardiothoracic ratio says so."""
    if ratio < RATIO_LIMIT - RATIO_MARGIN:
        return found
    hedged = bool(ratio <= RATIO_LIMIT + RATIO_MARGIN)
    extent: Extent = "small" if ratio < 0.54 else "moderate" if ratio < 0.60 else "large"
    return [Finding("Cardiomegaly", extent=extent, amount=ratio, hedged=hedged), *found]


def labels(found: list[Finding]) -> dict[str, int]:
    """Every label column: 1 present, 0 absent, -1 where the report only calls it possible.

    "No Finding" follows CheXpert: 1 where nothing but support devices is present; -1 where something is only possible.
    """
    table = dict.fromkeys(LABELS, 0)
    for finding in found:
        value = -1 if finding.hedged else 1
        columns = [finding.name, f"{finding.side.capitalize()} {finding.name}"] if finding.name in SIDED else [finding.name]
        for column in columns:
            table[column] = 1 if 1 in (table[column], value) else value
    left, right = table["Left Pleural Effusion"], table["Right Pleural Effusion"]
    if left and right:
        table["Bilateral Pleural Effusion"] = 1 if left == right == 1 else -1
    wrong = [table[name] for name in FINDINGS if name != "Support Devices"]
    table["No Finding"] = 0 if 1 in wrong else -1 if -1 in wrong else 1
    return table
