"""What batches hold of reports beside the drawn text: sections, sentences, changed texts, and concepts that a report states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from medfm.data.packed import PackedNumbers, PackedTexts
from medfm.text.config import FurtherTexts, ReportConfig, TextKind
from medfm.text.counterfactual import negate, swap_sides, tells_otherwise
from medfm.text.knowledge import Knowledge, load_knowledge
from medfm.text.report import section_text, text_key
from medfm.types import Texts

SECTIONS: tuple[TextKind, ...] = ("findings", "impression")
_ROUND = 16  # columns of token ids: few different widths, since a compiled encoder is built anew for each


class FurtherReports:
    """Parsed once per distinct report, and kept in arrays that loader processes share.

    Args:
        reports: the distinct reports.
        sentences: of each, what `medfm.text.report.prepare` gives.
        further: what is asked for.
        config: its `min_words` is the least length of a sentence.

    Raises:
        ConfigError: no such knowledge file, or a broken one.
    """

    def __init__(
        self, reports: Iterable[str], sentences: Sequence[tuple[str, ...]], further: FurtherTexts, config: ReportConfig
    ) -> None:
        self.further = further
        reports = list(reports)
        self._sections = {
            kind: PackedTexts(section_text(report, kind) for report in reports) for kind in SECTIONS if kind in further.kinds
        }
        self._choices = PackedNumbers((_choices(kept, config) for kept in sentences) if "sentences" in further.kinds else ())
        self._stated: np.ndarray | None = None  # (reports, K) int8, -1 where nothing is said
        self._related = PackedNumbers(())
        if further.knowledge is not None:
            knowledge = load_knowledge(further.knowledge)
            values = [np.nan_to_num(knowledge.stated(kept), nan=-1) for kept in sentences]
            self._stated = np.asarray(values, np.int8).reshape(len(sentences), len(knowledge))
            if further.relations:
                self._related = PackedNumbers(_related(knowledge, kept) for kept in sentences)

    def texts(
        self, report: int, sentences: tuple[str, ...], drawn: str, rng: Callable[[int], np.random.Generator] | None
    ) -> dict[str, list[str]]:
        """The further texts of one row, for each kind that is asked for; none where the report allows none.

        Args:
            report: its number.
            sentences: of that report, as given to the constructor.
            drawn: the text that the row has in this epoch.
            rng: the number of a stream -> its generator, of the row and epoch; None takes the first sentences, as they come.
        """
        found: dict[str, list[str]] = {}
        for kind in self.further.kinds:
            if kind == "sentences":
                chosen = self._choices[report]
                if rng is not None and len(chosen) > self.further.max_sentences:
                    chosen = np.sort(rng(2).choice(chosen, self.further.max_sentences, replace=False))
                found[kind] = [sentences[i] for i in chosen[: self.further.max_sentences]]
                continue
            if kind in ("swapped", "negated"):
                text = swap_sides(drawn) if kind == "swapped" else negate(drawn, None if rng is None else rng(3))
                # Of a report that was drawn in part, another part may state what the changed text says.
                text = text if text is not None and tells_otherwise(text, sentences) else None
            else:
                text = self._sections[kind][report]
            found[kind] = [text] if text else []
        return found

    def concepts(self, reports: Sequence[int]) -> Tensor | None:
        """(B, K) float32: 1 present, 0 denied, NaN nothing; None without a knowledge file."""
        if self._stated is None:
            return None
        values = torch.from_numpy(self._stated[list(reports)]).float()
        return values.masked_fill(values < 0, float("nan"))

    def relations(self, reports: Sequence[int]) -> Tensor | None:
        """(B, K, K) bool: one sentence of the report states both; None where that is not asked for."""
        if self._stated is None or not self.further.relations:
            return None
        k = self._stated.shape[1]
        made = torch.zeros(len(reports), k, k, dtype=torch.bool)
        for row, report in enumerate(reports):
            i, j = np.divmod(self._related[report], k)
            made[row, i, j] = made[row, j, i] = True
        return made


def _choices(sentences: tuple[str, ...], config: ReportConfig) -> list[int]:
    """Which sentences may be drawn: long enough, where there are any, and each that says the same once."""
    enough = [i for i, s in enumerate(sentences) if len(s.split()) >= config.min_words] or range(len(sentences))
    return sorted({text_key(sentences[i]): i for i in reversed(enough)}.values())


def _related(knowledge: Knowledge, sentences: tuple[str, ...]) -> list[int]:
    """Pairs of concepts, i * K + j with i <= j, that one sentence states."""
    pairs: set[int] = set()
    for sentence in sentences:
        present = np.flatnonzero(knowledge.stated([sentence]) == 1).tolist()
        pairs.update(i * len(knowledge) + j for i, j in combinations_with_replacement(present, 2))
    return sorted(pairs)


def collate_texts(
    kinds: Iterable[str],
    rows: Sequence[dict[str, list[str]]],
    tokenizer: Callable[[list[str]], tuple[Tensor, Tensor]],
    code: Callable[[str], int],
) -> dict[str, Texts]:
    """The rows' further texts, tokenised; every kind is there, with M = 0 where no row has any. See `Texts`.

    Args:
        code: the number of a text, equal for texts that say the same.
    """
    made = {}
    for kind in kinds:
        texts = [text for row in rows for text in row[kind]]
        once = list(dict.fromkeys(texts))
        tokens, mask = tokenizer(once) if once else (torch.zeros(0, 1, dtype=torch.long),) * 2
        place = {text: i for i, text in enumerate(once)}
        index = torch.tensor([place[text] for text in texts], dtype=torch.long)
        # A tokenizer may pad to its context length, which sentences are far below.
        width = -(-int(mask.sum(1).max()) // _ROUND) * _ROUND if once else 1
        made[kind] = Texts(
            tokens=tokens[index, :width].contiguous(),
            attention_mask=mask[index, :width].contiguous(),
            row=torch.tensor([row for row, has in enumerate(rows) for _ in has[kind]], dtype=torch.long),
            code=torch.tensor([code(text) for text in once], dtype=torch.long)[index],
        )
    return made
