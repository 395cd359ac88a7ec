"""Prompt sets: the phrases that zero-shot classification compares an image with, kept as data files.

The format (YAML), by example:

    name: my_set                    # optional; default: the file's name
    description: what it is for     # optional
    source: where the phrases come from   # optional
    method: pair                    # pair: positive against negative, per finding (CheXzero); multiclass: softmax over findings
    templates: ["{}", "there is {}"]      # optional, default ["{}"]; every phrase is put into every template
    negate: ["no {}"]               # optional; makes the negatives of findings that list none from their positive phrases
    findings:
      Cardiomegaly:                 # the name that is shown
        label: Cardiomegaly         # optional, default: the name; the manifest's column is `label:Cardiomegaly`
        positive: [cardiomegaly, enlarged heart]   # at least one; a single phrase needs no list
        negative: [normal heart size]              # optional where the set has `negate`, and for multiclass
      Left effusion:
        label: left effusion
        positive: left pleural effusion
        negative: right pleural effusion
        templates: ["{}"]           # optional, replaces the set's
        negate: ["without {}"]      # optional, replaces the set's
        where: {effusion: 1}        # optional: score only rows with these labels; a value or a list of values

The phrases of one side form an ensemble: their embeddings are averaged and normalised again (Radford et al. 2021, CLIP, section
3.1.4).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

from medfm.errors import ConfigError
from medfm.registry import suggest
from medfm.text.data_file import find_file, phrases_of, read_yaml, report_problems, shipped_names, unknown_keys

Method = Literal["pair", "multiclass"]

SHIPPED = Path(__file__).with_name("prompt_sets")
LABEL_VALUES = (0.0, 1.0, -1.0)
_SET_KEYS = ("name", "description", "source", "method", "templates", "negate", "findings")
_FINDING_KEYS = ("label", "positive", "negative", "templates", "negate", "where")


@dataclass(frozen=True)
class FindingPrompts:
    """The prompts of one finding, templates applied.

    Attributes:
        name: what is shown.
        label: the manifest's column is `label:<label>`.
        positive: texts that say the finding is present; at least one.
        negative: texts that say it is absent, or that name the alternative; empty only where the method is multiclass.
        where: (label, allowed values): rows must satisfy all of these to be scored for this finding.
    """

    name: str
    label: str
    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()
    where: tuple[tuple[str, tuple[float, ...]], ...] = ()


@dataclass(frozen=True)
class PromptSet:
    """A named set of findings with their prompts, and how they become probabilities."""

    name: str
    method: Method
    findings: tuple[FindingPrompts, ...]
    description: str = ""
    source: str = ""

    def hash(self) -> str:
        """12 hexadecimal digits over everything that decides scores: method, texts, labels, restrictions."""
        content = {"method": self.method, "findings": [asdict(finding) for finding in self.findings]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def using(self, method: Method | None) -> PromptSet:
        """The same prompts under another method. Raises ConfigError where the prompts cannot serve it."""
        if method is None or method == self.method:
            return self
        changed = PromptSet(self.name, method, self.findings, self.description, self.source)
        problems = _consistency(changed)
        if problems:
            raise ConfigError(report_problems(f"prompt set '{self.name}' with method={method}", problems))
        return changed

    def select(self, names: tuple[str, ...]) -> PromptSet:
        """Only the findings named, in the set's order; all of them where `names` is empty. Raises ConfigError for an unknown
        one."""
        if not names:
            return self
        known = [finding.name for finding in self.findings]
        for name in names:
            if name not in known:
                hint = suggest(name, known) or f"; it has: {', '.join(known)}"
                raise ConfigError(f"prompt set '{self.name}' has no finding '{name}'{hint}")
        chosen = tuple(finding for finding in self.findings if finding.name in names)
        return PromptSet(self.name, self.method, chosen, self.description, self.source)


def prompt_set_names() -> list[str]:
    """Names of the prompt sets that medfm ships."""
    return shipped_names(SHIPPED)


def load_prompts(name_or_path: str | Path) -> PromptSet:
    """A shipped prompt set by name, or any YAML file by path (a value with `/` or `.yaml`).

    Raises:
        ConfigError: unknown name (with the nearest one), missing file, or a file that breaks the format; all problems at once.
    """
    path, where = find_file(name_or_path, SHIPPED, "prompt set")
    return parse_prompts(read_yaml(path), where=where, name=path.stem)


def parse_prompts(content: object, where: str = "prompts", name: str = "custom") -> PromptSet:
    """A PromptSet from the mapping that a prompt file holds. `where` names the source in errors.

    Raises:
        ConfigError: the mapping breaks the format; all problems at once.
    """
    problems: list[str] = []
    if not isinstance(content, Mapping):
        raise ConfigError(report_problems(where, ["the file must hold a mapping with the key 'findings'"]))
    unknown_keys(content, _SET_KEYS, "", problems)
    method = content.get("method", "pair")
    if method not in ("pair", "multiclass"):
        problems.append(f"method: '{method}' is not 'pair' or 'multiclass'")
    templates = _templates(content.get("templates", ["{}"]), "templates", problems)
    negate = _templates(content.get("negate", []), "negate", problems)
    findings: list[FindingPrompts] = []
    table = content.get("findings")
    if not isinstance(table, Mapping) or not table:
        problems.append("findings: must be a mapping of at least one finding to its prompts")
    else:
        for key, entry in table.items():
            finding = _finding(str(key), entry, templates, negate, problems)
            if finding is not None:
                findings.append(finding)
    prompts = PromptSet(
        name=str(content.get("name", name)),
        method=cast(Method, method),
        findings=tuple(findings),
        description=str(content.get("description", "")).strip(),
        source=str(content.get("source", "")).strip(),
    )
    if not problems:
        problems = _consistency(prompts)
    if problems:
        raise ConfigError(report_problems(where, problems))
    return prompts


def _finding(
    name: str, entry: object, templates: tuple[str, ...], negate: tuple[str, ...], problems: list[str]
) -> FindingPrompts | None:
    place = f"findings.{name}"
    if not isinstance(entry, Mapping):
        problems.append(f"{place}: must be a mapping with the key 'positive'")
        return None
    before = len(problems)
    unknown_keys(entry, _FINDING_KEYS, f"{place}.", problems)
    if "templates" in entry:
        templates = _templates(entry["templates"], f"{place}.templates", problems)
    if "negate" in entry:
        negate = _templates(entry["negate"], f"{place}.negate", problems)
    positive = phrases_of(entry.get("positive", []), f"{place}.positive", problems)
    negative = phrases_of(entry.get("negative", []), f"{place}.negative", problems)
    where = _where(entry.get("where", {}), f"{place}.where", problems)
    if len(problems) > before:
        return None
    if not positive:
        problems.append(f"{place}: has no positive phrase")
        return None
    # Explicit negatives are whole phrases; `negate` speaks for findings without them.
    absent = _fill(templates, negative) if negative else _fill(negate, positive)
    return FindingPrompts(name, str(entry.get("label", name)), _fill(templates, positive), absent, where)


def _fill(templates: tuple[str, ...], phrases: tuple[str, ...]) -> tuple[str, ...]:
    """Every phrase in every template, without repetitions, in order."""
    return tuple(dict.fromkeys(template.replace("{}", phrase) for template in templates for phrase in phrases))


def _templates(value: object, place: str, problems: list[str]) -> tuple[str, ...]:
    items = phrases_of(value, place, problems)
    problems.extend(f"{place}: '{item}' has no '{{}}' for the phrase" for item in items if "{}" not in item)
    if place.endswith("templates") and not items:
        problems.append(f"{place}: is empty; leave it out for the phrases as they are")
    return items


def _where(value: object, place: str, problems: list[str]) -> tuple[tuple[str, tuple[float, ...]], ...]:
    if not isinstance(value, Mapping):
        problems.append(f"{place}: must be a mapping of label to value, for example {{pneumonia: 1}}")
        return ()
    rules = []
    for label, wanted in value.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        bad = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float) or float(v) not in LABEL_VALUES]
        if bad or not values:
            problems.append(f"{place}.{label}: {wanted!r} is not 1, 0, -1 or a list of them")
            continue
        rules.append((str(label), tuple(float(v) for v in values)))
    return tuple(rules)


def _consistency(prompts: PromptSet) -> list[str]:
    """What is wrong between findings and method."""
    if prompts.method == "multiclass":
        return ["findings: multiclass needs at least two"] if len(prompts.findings) < 2 else []
    problems = []
    for finding in prompts.findings:
        if not finding.negative:
            problems.append(f"findings.{finding.name}: has no negative phrase, and the set has no 'negate' to make one")
        elif set(finding.positive) & set(finding.negative):
            problems.append(f"findings.{finding.name}: the same text is positive and negative")
    return problems
