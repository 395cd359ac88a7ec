"""Knowledge files: what findings and parts of the body are, in words, and which of them a report states.

The format (YAML), by example:

    name: my_knowledge              # optional; default: the file's name
    description: what it is for     # optional
    source: where it comes from     # optional
    concepts:
      Pleural Effusion:             # the name that is shown, and matched in reports
        kind: pathology             # anatomy, pathology (default), device, or normal (the study shows nothing)
        definition: fluid in the pleural space
        synonyms: [effusion, pleural fluid]    # optional; said by `describe`, matched in reports
        wordings: [blunting of * costophrenic] # optional; matched in reports only
        absent: [angles are sharp]             # optional; wordings that say it is not there, without a negation
        unless: [joint effusion]               # optional; wordings of something else that hold one of these
        parents: [Pleural Disease]             # optional; a finding is one of these, a part of the body lies in these

Words within a longer wording of another finding or device do not state this one: "pericardial effusion" is no pleural effusion.
In a name, synonym or wording `*` alone stands for up to three words of one clause, `word*` for any ending of a word; a plural s
needs no mention, nor does the case of letters.

The concepts, definitions and synonyms serve K-LITE's way of prompts (Shen et al. 2022, "K-LITE: Learning Transferable Visual
Models with External Knowledge"), KEEP's hierarchy (Zhou et al. 2024) and ConceptCLIP's vocabulary (Nie et al. 2025).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from medfm.errors import ConfigError
from medfm.registry import suggest
from medfm.text.data_file import find_file, phrases_of, read_yaml, report_problems, shipped_names, unknown_keys
from medfm.text.normal import classify, clauses, gone

if TYPE_CHECKING:
    import numpy as np

ConceptKind = Literal["anatomy", "pathology", "device", "normal"]

SHIPPED = Path(__file__).with_name("knowledge_sets")
_FILE_KEYS = ("name", "description", "source", "concepts")
_LISTS = ("synonyms", "wordings", "absent", "unless", "parents")
_CONCEPT_KEYS = ("kind", "definition", *_LISTS)


@dataclass(frozen=True)
class Concept:
    """One concept; see this module's head for what the fields mean."""

    name: str
    kind: ConceptKind = "pathology"
    definition: str = ""
    synonyms: tuple[str, ...] = ()
    wordings: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()

    @property
    def stating(self) -> tuple[str, ...]:
        """The wordings that state it."""
        return (self.name, *self.synonyms, *self.wordings)


@dataclass(frozen=True)
class Knowledge:
    """Concepts in a fixed order: the K columns of `Batch.concepts`."""

    name: str
    concepts: tuple[Concept, ...]
    description: str = ""
    source: str = ""

    def __len__(self) -> int:
        return len(self.concepts)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.concepts)

    def of_kind(self, *kinds: ConceptKind) -> tuple[int, ...]:
        """Columns of the concepts of these kinds."""
        return tuple(i for i, c in enumerate(self.concepts) if c.kind in kinds)

    def index(self, name: str) -> int:
        """Column of a concept. Raises ConfigError for an unknown one, with the nearest."""
        if name not in self._columns:
            raise ConfigError(f"knowledge '{self.name}' has no concept '{name}'{suggest(name, self.names)}")
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {c.name: i for i, c in enumerate(self.concepts)}

    @cached_property
    def ancestors(self) -> tuple[tuple[int, ...], ...]:
        """For each concept the columns of its parents, their parents and so on, nearest first."""
        found = []
        for concept in self.concepts:
            line: list[int] = []
            ahead = [self._columns[p] for p in concept.parents]
            while ahead:
                at = ahead.pop(0)
                if at not in line:
                    line.append(at)
                    ahead += [self._columns[p] for p in self.concepts[at].parents]
            found.append(tuple(line))
        return tuple(found)

    def describe(self, name: str) -> str:
        """The concept in words: "Pleural Effusion: fluid in the pleural space. Also called effusion, pleural fluid."."""
        concept = self.concepts[self.index(name)]
        text = concept.name + (f": {concept.definition.rstrip('.')}" if concept.definition else "") + "."
        return text + (f" Also called {', '.join(concept.synonyms)}." if concept.synonyms else "")

    def hash(self) -> str:
        """12 hexadecimal digits over everything that decides columns, values and descriptions."""
        content = [asdict(c) for c in self.concepts]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def stated(self, sentences: Sequence[str]) -> np.ndarray:
        """(K,) float32: what a report, given by its sentences, says of each concept: 1 present, 0 denied, NaN nothing or doubt.

        Present: named outside the reach of a negation or of doubt ("possible", "cannot be excluded"). Denied: named only within
        the reach of negations, or by one of its `absent` wordings; not for one side alone ("no left effusion"), nor for what is
        "new", "other" or "larger than 6 mm"; nothing is said by what was there before ("The tube has been removed."). One
        sentence that states it outweighs others that deny it, as one in doubt does. What is present makes its parents present;
        where a finding is denied, so are the kinds of it of which nothing else is said. Parts of the body are present where
        they are named at all, never denied. Concepts of kind normal: present where the report calls the study normal and names
        nothing abnormal, denied where a finding or device is present.
        """
        import numpy as np

        said: list[set[str]] = [set() for _ in self.concepts]
        for sentence in dict.fromkeys(sentences):
            for column, what in _mentions(self._matcher, sentence):
                said[column].add(what)
        values = np.full(len(self), np.nan, np.float32)
        for i, (concept, found) in enumerate(zip(self.concepts, said, strict=True)):
            if "present" in found or (concept.kind == "anatomy" and found):
                values[i] = 1
            elif (
                "doubt" not in found
                and concept.kind != "anatomy"
                and ("denied" in found or {"denied left", "denied right"} <= found)
            ):
                values[i] = 0
        direct = values.copy()
        for i, line in enumerate(self.ancestors):
            same = [a for a in line if self.concepts[a].kind == self.concepts[i].kind]
            if direct[i] == 1:
                values[same] = 1
            elif not said[i] and any(direct[a] == 0 for a in same):
                values[i] = 0
        self._normal(sentences, values)
        return values

    def _normal(self, sentences: Sequence[str], values: np.ndarray) -> None:
        columns = list(self.of_kind("normal"))
        if not columns:
            return
        if (values[list(self.of_kind("pathology", "device"))] == 1).any():
            values[columns] = 0
        else:
            kinds = {classify(s) for s in sentences}
            values[columns] = 1 if "global" in kinds and kinds <= {"global", "normal", "neutral"} else float("nan")

    @cached_property
    def _matcher(self) -> Matcher:
        return Matcher(self.concepts)


_STOPS, _SIDES = "and|or|nor|no|without", re.compile(r"\b(?:left|right)\b", re.IGNORECASE)


def _pattern(wording: str) -> str:
    """The regular expression of one wording."""
    *ahead, last = wording.split()
    # "left * lobe" does not reach over "left effusion, right lower lobe".
    stops = f"{_STOPS}|left|right" if _SIDES.search(wording) else _STOPS
    wild = rf"(?:(?!(?:{stops})\b)[\w'’-]+\s+){{0,3}}"
    parts = [wild if word == "*" else _word(word) + r"[\s-]+" for word in ahead]
    return "".join(parts) + _word(last) + ("" if last.endswith("*") else "(?:e?s)?")


def _word(word: str) -> str:
    return re.escape(word[:-1]) + r"\w*" if word.endswith("*") else re.escape(word)


class Matcher:
    """Finds concepts in clauses. Compared by identity, so that what it found is kept."""

    def __init__(self, concepts: Iterable[Concept]) -> None:
        self._stating: list[re.Pattern[str]] = []
        self._absent: list[re.Pattern[str]] = []
        self._unless: list[re.Pattern[str]] = []
        self._found: list[bool] = []  # findings and devices, which may hide one another; parts of the body do not
        self._clues: dict[str, set[int]] = {}
        for column, concept in enumerate(concepts):
            stating = () if concept.kind == "normal" else concept.stating
            self._stating.append(_either(stating))
            self._absent.append(_either(concept.absent))
            self._unless.append(_either(concept.unless))
            self._found.append(concept.kind in ("pathology", "device"))
            for wording in (*stating, *concept.absent):
                # The longest word of a wording stands in every sentence that the wording is in.
                clue = max(wording.replace("-", " ").split(), key=len).rstrip("*").lower()
                self._clues.setdefault(clue, set()).add(column)

    def find(self, clause: str) -> Iterator[tuple[int, list[int], list[int]]]:
        """(column, where wordings that state it end, where wordings that exclude it end) of every concept in a clause."""
        small = clause.lower()
        columns = sorted(set().union(*(columns for clue, columns in self._clues.items() if clue in small)))
        spans = {column: [m.span() for m in self._stating[column].finditer(clause)] for column in columns}
        longer = [span for column in columns if self._found[column] for span in spans[column]]
        for column in columns:
            hidden = [m.span() for m in self._unless[column].finditer(clause)] if spans[column] else []
            shown = [(a, b) for a, b in spans[column] if not any(c <= a and b <= d for c, d in hidden)]
            within = longer if self._found[column] else []
            stating = [b for a, b in shown if not any(c <= a and b <= d and b - a < d - c for c, d in within)]
            absent = [m.end() for m in self._absent[column].finditer(clause)]
            if stating or absent:
                yield column, stating, absent


def _either(wordings: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(wordings, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(_pattern, longest_first))})\b" if wordings else r"(?!)", re.IGNORECASE)


# Within a negated clause these carry on: "no opacity suggesting pneumonia".
_CARRIES_ON = re.compile(
    r"\b(?:consistent with|compatible with|in keeping with|concerning for|suspicious for|associated with)\b", re.IGNORECASE
)
_NOT_EXCLUDED = re.compile(
    r"\b(?:is |are |has |have )?(?:not|cannot) (?:be |been )?(?:\w+ly )?(?:excluded|ruled out)\b", re.IGNORECASE
)
_DOUBT_AHEAD = re.compile(
    r"\b(?:possibl[ey]|questionabl[ey]|suspected|suspicion|suspicious for|may|might|could|perhaps|likely|probabl[ey]|presumed"
    r"|equivocal|concern(?:ing)? for|worrisome for|suggest\w*|rule out|r/o|evaluate for|assess for|history of|borderline|versus"
    r"|vs|differential|favou?red|questioned|correlate)\b|\?",
    re.IGNORECASE,
)
_DOUBT_BEHIND = re.compile(
    r"\bcannot be excluded\b|\bversus\b|\bvs\b"
    r"|\b(?:is|are) (?:possible|suspected|questioned|questionable|equivocal|likely|considered)\b",
    re.IGNORECASE,
)
_NONE_AFTER = re.compile(r":\s*(?:none|nil|absent)\b", re.IGNORECASE)
_NOT_ALL = re.compile(
    r"\b(?:new|newly|additional|other|further|second|residual|increas\w+|worsening|interval|large|tension|displaced|larger|greater"
    r"|over \d|above \d)\b|> ?\d",
    re.IGNORECASE,
)


@lru_cache(maxsize=65536)
def _mentions(matcher: Matcher, sentence: str) -> tuple[tuple[int, str], ...]:
    """(column, "present" | "doubt" | "denied" | "denied left" | "denied right") of every concept that a sentence names."""
    sentence = _CARRIES_ON.sub("being", sentence) if "with" in sentence or " for" in sentence else sentence
    sentence = _NOT_EXCLUDED.sub("cannot be excluded", sentence)
    sentence = _NONE_AFTER.sub(" absent", sentence)
    no_longer = "no longer" in sentence.lower()
    found: dict[tuple[int, str], None] = {}
    for clause, denied in clauses(sentence):
        ahead = _DOUBT_AHEAD.search(clause)
        doubt = 0 if _DOUBT_BEHIND.search(clause) else ahead.start() if ahead is not None else len(clause)
        doubt = 0 if no_longer or gone(clause) else doubt
        for column, stating, absent in matcher.find(clause):
            for end in stating:
                found[column, _denial(clause) if end > denied else "doubt" if end > doubt else "present"] = None
            if any(end <= denied for end in absent):
                found[column, "denied"] = None
    return tuple(found)


def _denial(clause: str) -> str:
    if _NOT_ALL.search(clause):
        return "not all denied"
    sides = {m.group().lower() for m in _SIDES.finditer(clause)}
    return f"denied {sides.pop()}" if len(sides) == 1 else "denied"


def knowledge_names() -> list[str]:
    """Names of the knowledge files that medfm ships."""
    return shipped_names(SHIPPED)


def load_knowledge(name_or_path: str | Path) -> Knowledge:
    """A shipped knowledge file by name, or any YAML file by path (a value with `/` or `.yaml`).

    Raises:
        ConfigError: unknown name (with the nearest one), missing file, or a file that breaks the format; all problems at once.
    """
    path, where = find_file(name_or_path, SHIPPED, "knowledge")
    return parse_knowledge(read_yaml(path), where=where, name=path.stem)


def parse_knowledge(content: object, where: str = "knowledge", name: str = "custom") -> Knowledge:
    """Knowledge from the mapping that a file holds. `where` names the source in errors.

    Raises:
        ConfigError: the mapping breaks the format; all problems at once.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(report_problems(where, ["the file must hold a mapping with the key 'concepts'"]))
    problems: list[str] = []
    unknown_keys(content, _FILE_KEYS, "", problems)
    table = content.get("concepts")
    concepts: list[Concept] = []
    if not isinstance(table, Mapping) or not table:
        problems.append("concepts: must be a mapping of at least one concept to what is known of it")
        table = {}
    for key, entry in table.items():
        concepts.append(_concept(str(key), entry, problems))
    known = [c.name for c in concepts]
    for concept in concepts:
        for parent in concept.parents:
            if parent not in known:
                problems.append(f"concepts.{concept.name}.parents: unknown concept '{parent}'{suggest(parent, known)}")
    found = Knowledge(
        str(content.get("name", name)),
        tuple(concepts),
        str(content.get("description", "")).strip(),
        str(content.get("source", "")).strip(),
    )
    if not problems:
        problems += [f"concepts.{c.name}: is its own ancestor" for i, c in enumerate(concepts) if i in found.ancestors[i]]
    if problems:
        raise ConfigError(report_problems(where, problems))
    return found


def _concept(name: str, entry: object, problems: list[str]) -> Concept:
    place = f"concepts.{name}"
    if not isinstance(entry, Mapping):
        problems.append(f"{place}: must be a mapping, for example {{definition: ..., synonyms: [...]}}")
        return Concept(name)
    unknown_keys(entry, _CONCEPT_KEYS, f"{place}.", problems)
    kind = entry.get("kind", "pathology")
    if kind not in get_args(ConceptKind):
        problems.append(f"{place}.kind: '{kind}' is none of {', '.join(get_args(ConceptKind))}")
    lists = {k: phrases_of(entry.get(k, []), f"{place}.{k}", problems) for k in _LISTS}
    for key in ("synonyms", "wordings", "absent", "unless"):
        for wording in lists[key]:
            if not wording.strip("* "):
                problems.append(f"{place}.{key}: '{wording}' would match every sentence")
    definition = entry.get("definition", "")
    if not isinstance(definition, str):
        problems.append(f"{place}.definition: {definition!r} is not text; put it in quotes")
    return Concept(name, cast(ConceptKind, kind), str(definition).strip(), **lists)
