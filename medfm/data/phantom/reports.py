"""The radiologist of the phantom: what is in the scene, in words. Every finding is stated with its side and zone."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from medfm.data.phantom import phrases as p
from medfm.data.phantom.findings import SIDED, Finding

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def report(found: list[Finding], views: tuple[str, ...], prior: bool, rng: np.random.Generator) -> str:
    """A report with FINDINGS and IMPRESSION, and at times INDICATION, TECHNIQUE and COMPARISON.

    Args:
        found: the findings, cardiomegaly included.
        views: ("PA",), ("AP", "LATERAL"), ("CT",), ...
        prior: the patient has an earlier study.
    """
    study = "chest CT" if views == ("CT",) else _pick(("chest radiograph", "chest x-ray", "chest film"), rng)
    parts = []
    if rng.random() < 0.35:
        parts.append(("INDICATION", _pick(p.INDICATION, rng)))
    if rng.random() < 0.4:
        parts.append(("TECHNIQUE", _pick(p.TECHNIQUE["+".join(views)], rng)))
    if rng.random() < (0.7 if prior else 0.3):
        parts.append(("COMPARISON", _say(_pick(p.PRIOR if prior else p.NO_PRIOR, rng), rng, study=study)))
    parts.append(("FINDINGS", " ".join(_findings(found, rng))))
    parts.append(("IMPRESSION", _impression(found, study, rng)))
    gap = "\n\n" if rng.random() < 0.3 else "\n"
    return gap.join(f"{name}: {text}" for name, text in parts)


def _findings(found: list[Finding], rng: np.random.Generator) -> list[str]:
    there = {f.name for f in found}
    lungs: list[str] = []
    heart: list[str] = []
    devices: list[str] = []
    for finding in found:
        into = heart if finding.name == "Cardiomegaly" else devices if finding.kind else lungs
        into.append(_sentence(finding, rng))
        other = {"left": "right", "right": "left"}.get(finding.side, "")
        alone = sum(f.name == finding.name for f in found) == 1
        if finding.name in SIDED and alone and rng.random() < 0.3:
            into.append(_say(_pick(p.OTHER_SIDE[finding.name], rng), rng, other=other))
    opaque = there & {"Pleural Effusion", "Consolidation", "Nodule", "Edema", "Pneumothorax"}
    if not opaque and rng.random() < 0.7:
        lungs.append(_say(_pick(p.CLEAR, rng), rng))
    absent = [name for name in p.ABSENT_WORDS if name not in there]
    absent = [name for name in absent if rng.random() < 0.75]
    absent = [absent[i] for i in rng.permutation(len(absent))]
    while absent:
        count = int(rng.integers(1, 4))
        lungs.append(_negation(absent[:count], rng))
        absent = absent[count:]
    if not heart and rng.random() < 0.85:
        heart.append(_say(_pick(p.HEART_NORMAL, rng), rng))
    if not devices and rng.random() < 0.25:
        devices.append(_say(_pick(p.NO_DEVICE, rng), rng))
    bones = [_say(_pick(p.BONES, rng), rng)] if rng.random() < 0.4 else []
    blocks = [lungs, heart, devices, bones]
    return [sentence for i in rng.permutation(len(blocks)) for sentence in blocks[i]]


def _impression(found: list[Finding], study: str, rng: np.random.Generator) -> str:
    lines = [_sentence(f, rng, brief=True) for f in found if f.name != "Support Devices"]
    if not lines:
        lines = [_say(_pick(p.NORMAL, rng), rng, study=study)]
    lines += [_sentence(f, rng, brief=True) for f in found if f.name == "Support Devices" and rng.random() < 0.6]
    if len(lines) > 1 and rng.random() < 0.5:
        return " ".join(f"{i}. {line}" for i, line in enumerate(lines, start=1))
    return " ".join(lines)


def _sentence(f: Finding, rng: np.random.Generator, brief: bool = False) -> str:
    if f.kind:
        templates: Sequence[str] = (p.SUMMARY_DEVICE if brief else p.DEVICE)[f.kind]
    elif f.hedged:
        templates = p.POSSIBLE[f.name]
    else:
        templates = (p.SUMMARY if brief else p.PRESENT)[f.name]
    mm = f"{f.amount:.0f} mm" if rng.random() < 0.75 else f"{f.amount / 10:.1f} cm"
    return _say(
        _pick(templates, rng),
        rng,
        side=f.side,
        zone=p.ZONE.get(f.zone, ""),
        mm=mm,
        ratio=f"{f.amount:.2f}",
        size=p.SIZE.get(f.extent, ""),
        severity=p.SEVERITY.get(f.extent, ""),
        adverb=p.ADVERB.get(f.extent, ""),
    )


def _negation(names: list[str], rng: np.random.Generator) -> str:
    words = [_say(p.ABSENT_WORDS[name], rng, sentence=False) for name in names]
    listed = words[0] if len(words) == 1 else ", ".join(words[:-1]) + (", or " if len(words) > 2 else " or ") + words[-1]
    return _say(_pick(p.ABSENT, rng), rng, what=listed)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _say(template: str, rng: np.random.Generator, sentence: bool = True, **values: str) -> str:
    """Fills braces, then takes one alternative of every bracket, tidies spaces and articles, and begins with a capital."""
    text = template.format_map(values)
    while match := _CHOICE.search(text):
        text = text[: match.start()] + _pick(match[1].split("|"), rng) + text[match.end() :]
    text = re.sub(r"\s+", " ", text).replace(" .", ".").replace(" ,", ",").strip()
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    # 8, 11 and 18 are spoken with a vowel.
    text = re.sub(r"\b([Aa]) (?=(?:8|11|18)(?:\.\d)? )", r"\1n ", text)
    return text[:1].upper() + text[1:] if sentence else text
