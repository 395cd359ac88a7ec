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
from typing import Any, Literal, cast

from medfm.errors import ConfigError
from medfm.registry import suggest

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
            raise ConfigError(_report(f"prompt set '{self.name}' with method={method}", problems))
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
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_prompts(name_or_path: str | Path) -> PromptSet:
    """A shipped prompt set by name, or any YAML file by path (a value with `/` or `.yaml`).

    Raises:
        ConfigError: unknown name (with the nearest one), missing file, or a file that breaks the format; all problems at once.
    """
    text = str(name_or_path)
    is_path = isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml"))
    path = Path(text) if is_path else SHIPPED / f"{text}.yaml"
    if not path.is_file():
        if is_path:
            raise ConfigError(f"prompt set file '{text}' does not exist")
        known = prompt_set_names()
        raise ConfigError(
            f"unknown prompt set '{text}'{suggest(text, known)}; shipped: {', '.join(known)}; or give a .yaml file"
        )
    return parse_prompts(_read_yaml(path), where=path.name if not is_path else text, name=path.stem)


def parse_prompts(content: object, where: str = "prompts", name: str = "custom") -> PromptSet:
    """A PromptSet from the mapping that a prompt file holds. `where` names the source in errors.

    Raises:
        ConfigError: the mapping breaks the format; all problems at once.
    """
    problems: list[str] = []
    if not isinstance(content, Mapping):
        raise ConfigError(_report(where, ["the file must hold a mapping with the key 'findings'"]))
    _unknown_keys(content, _SET_KEYS, "", problems)
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
        raise ConfigError(_report(where, problems))
    return prompts


def _finding(
    name: str, entry: object, templates: tuple[str, ...], negate: tuple[str, ...], problems: list[str]
) -> FindingPrompts | None:
    place = f"findings.{name}"
    if not isinstance(entry, Mapping):
        problems.append(f"{place}: must be a mapping with the key 'positive'")
        return None
    before = len(problems)
    _unknown_keys(entry, _FINDING_KEYS, f"{place}.", problems)
    if "templates" in entry:
        templates = _templates(entry["templates"], f"{place}.templates", problems)
    if "negate" in entry:
        negate = _templates(entry["negate"], f"{place}.negate", problems)
    positive = _phrases(entry.get("positive", []), f"{place}.positive", problems)
    negative = _phrases(entry.get("negative", []), f"{place}.negative", problems)
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


def _phrases(value: object, place: str, problems: list[str]) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    for item in items:
        if not isinstance(item, str):
            problems.append(f"{place}: {item!r} is not text; put it in quotes")
        elif not item.strip():
            problems.append(f"{place}: holds an empty phrase")
    return tuple(item.strip() for item in items if isinstance(item, str))


def _templates(value: object, place: str, problems: list[str]) -> tuple[str, ...]:
    items = _phrases(value, place, problems)
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


def _unknown_keys(mapping: Mapping[Any, Any], known: tuple[str, ...], prefix: str, problems: list[str]) -> None:
    for key in mapping:
        if key not in known:
            problems.append(f"{prefix}{key}: unknown key{suggest(str(key), known)}")


def _report(where: str, problems: list[str]) -> str:
    head = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {where}"
    return "\n".join([head, *(f"  {problem}" for problem in problems)])


def _read_yaml(path: Path) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader which refuses a key given twice; PyYAML would keep the last one silently."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = loader.construct_object(key_node)
            if key in seen:
                raise ConfigError(f"{path}, line {key_node.start_mark.line + 1}: the key '{key}' is given twice")
            seen.add(key)
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
