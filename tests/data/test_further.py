"""Sections, sentences, changed texts and concepts in batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from medfm.data.batches import first_rows, tensors_of, to_device
from medfm.data.datamodule import build_loader
from medfm.data.dataset import StudyDataset
from medfm.data.manifest import Manifest
from medfm.data.sampler import StepBatchSampler
from medfm.errors import ConfigError
from medfm.text.config import FurtherTexts, ReportConfig
from medfm.text.knowledge import load_knowledge
from medfm.text.tokenizers import ClipTokenizer
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess
from medfm.types import Batch, Texts

ALL = FurtherTexts(
    ("findings", "impression", "sentences", "swapped", "negated"), max_sentences=3, knowledge="chest", relations=True
)
REPORTS = [
    "FINDINGS: Small left pleural effusion. The heart is enlarged. No pneumothorax. IMPRESSION: Left pleural effusion.",
    "IMPRESSION: No acute cardiopulmonary process.",
    "",
    "FINDINGS: Small left pleural effusion. The heart is enlarged. No pneumothorax. IMPRESSION: Left pleural effusion.",
    "Right lower lobe consolidation. Clear. Right lower lobe consolidation. No edema. The bones are intact. No nodule is seen.",
    "Endotracheal tube above the carina.",
]


EXTRA = ("No", "There", "is", "not", "a", "an", "Right", "right", "abnormal", "are")


class Words:
    """A tokenizer that can be read back: a number a word, 0-padded to eight columns more than the longest."""

    def __init__(self) -> None:
        words = sorted({w for r in REPORTS for w in r.split()} | set(EXTRA))
        self.ids = {w: i + 1 for i, w in enumerate(words)}

    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [[self.ids.setdefault(w, len(self.ids) + 1) for w in t.split()] for t in texts]
        tokens = torch.zeros(len(rows), max(map(len, rows)) + 40, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        return tokens, (tokens > 0).long()

    def read(self, texts: Texts) -> list[tuple[int, str]]:
        words = {i: w for w, i in self.ids.items()}
        return [(int(r), " ".join(words[int(t)] for t in row if t)) for r, row in zip(texts.row, texts.tokens, strict=True)]


@pytest.fixture
def manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest(6, REPORTS)


def dataset(manifest: Manifest, tokenizer: Any = None, further: FurtherTexts = ALL, **options: Any) -> StudyDataset:
    preprocess = Preprocess(PreprocessConfig(size=(8, 8), window="none"))
    return StudyDataset(manifest, preprocess, tokenizer or Words(), further=further, **options)


def whole(data: StudyDataset, epoch: int = 0) -> Batch:
    made = data.collate(data.__getitems__([(epoch, i) for i in range(len(data))]))
    assert isinstance(made, Batch)
    return made


def test_texts__sections_and_changed_texts_of_the_rows_that_have_them(manifest: Manifest) -> None:
    words = Words()
    texts = whole(dataset(manifest, words)).texts
    assert words.read(texts["findings"]) == [
        (r, "Small left pleural effusion. The heart is enlarged. No pneumothorax.") for r in (0, 3)
    ]
    assert words.read(texts["impression"]) == [
        (0, "Left pleural effusion."),
        (1, "No acute cardiopulmonary process."),
        (3, "Left pleural effusion."),
    ]
    assert words.read(texts["swapped"])[0] == (
        0,
        "Small right pleural effusion. The heart is enlarged. No pneumothorax. Right pleural effusion.",
    )
    assert texts["swapped"].row.tolist() == [0, 3, 4]
    assert dict(words.read(texts["negated"]))[1] == "There is an acute cardiopulmonary process."
    # Both sentences that state the effusion deny it, so that the text does not contradict itself.
    assert dict(words.read(texts["negated"]))[0] == (
        "No left pleural effusion. The heart is enlarged. No pneumothorax. No left pleural effusion."
    )


def test_texts__no_changed_text_that_another_part_of_the_report_states(make_manifest: Callable[..., Manifest]) -> None:
    """The sentence drawn of a report is changed; the report's others are as true of the image."""
    reports = ["Left effusion. Right effusion.", "Left effusion. Right nodule.", "No nodule. There is a nodule."]
    words = Words()
    data = dataset(make_manifest(3, reports), words, report=ReportConfig(sample="sentence"), train=True)
    swapped, negated = set[tuple[int, str]](), set[tuple[int, str]]()
    for epoch in range(12):
        batch = whole(data, epoch)
        swapped |= set(words.read(batch.texts["swapped"]))
        negated |= set(words.read(batch.texts["negated"]))
    assert swapped == {(1, "Right effusion."), (1, "Left nodule.")}
    assert {text for row, text in negated if row == 2} == {"There is no nodule."}


def test_texts__equal_texts_have_equal_codes_and_one_kind_fits_the_others(manifest: Manifest) -> None:
    batch = whole(dataset(manifest))
    codes = batch.texts["findings"].code
    assert codes[0] == codes[1] != batch.texts["impression"].code[0]
    drawn = batch.drawn
    assert drawn is not None
    assert batch.texts["sentences"].code[-1] == drawn[5]  # a report of one sentence
    for texts in batch.texts.values():
        assert texts.row.tolist() == sorted(texts.row.tolist())
        assert len(texts.row) == len(texts.code) == len(texts.tokens)
        assert texts.tokens.shape == texts.attention_mask.shape
        assert texts.tokens.shape[1] % 16 == 0
    assert batch.texts["sentences"].tokens.shape[1] == 16  # cut of the tokenizer's padding


def test_texts__sentences_are_distinct_long_enough_and_in_order(manifest: Manifest) -> None:
    words = Words()
    judged = [t for r, t in words.read(whole(dataset(manifest, words)).texts["sentences"]) if r == 4]
    assert judged == ["Right lower lobe consolidation.", "No edema.", "The bones are intact."]
    data = dataset(manifest, words, train=True)
    drawn = {tuple(t for r, t in words.read(whole(data, epoch).texts["sentences"]) if r == 4) for epoch in range(20)}
    order = [*judged, "No nodule is seen."]
    assert len(drawn) == 4  # every choice of three of four
    assert all(list(d) == [s for s in order if s in d] for d in drawn)


def test_texts__a_kind_that_no_row_has_is_there_and_empty(make_manifest: Callable[..., Manifest]) -> None:
    texts = whole(dataset(make_manifest(2, ["Clear lungs.", ""]), further=FurtherTexts(("swapped", "findings")))).texts
    assert set(texts) == {"swapped", "findings"}
    assert all(len(t.row) == 0 and t.tokens.shape == (0, 1) for t in texts.values())


def test_texts__drawing_leaves_the_main_text_as_it_is(manifest: Manifest) -> None:
    plain = dataset(manifest, further=FurtherTexts(), train=True, report=ReportConfig(sample="sentence"))
    asked = dataset(manifest, train=True, report=ReportConfig(sample="sentence"))
    for epoch in range(3):
        assert torch.equal(whole(plain, epoch).drawn, whole(asked, epoch).drawn)  # type: ignore[arg-type]


def test_concepts__what_the_report_states(manifest: Manifest) -> None:
    batch = whole(dataset(manifest))
    knowledge = load_knowledge("chest")
    assert batch.concepts is not None
    assert batch.concepts.shape == (6, len(knowledge))
    assert batch.concepts.dtype == torch.float32

    def said(name: str) -> list[float]:
        return torch.nan_to_num(batch.concepts[:, knowledge.index(name)], nan=-1).tolist()  # type: ignore[index]

    assert said("Pleural Effusion") == [1, -1, -1, 1, -1, -1]
    assert said("Pneumothorax") == [0, -1, -1, 0, -1, -1]
    assert said("No Finding") == [0, 1, -1, 0, 0, 0]
    assert said("Nodule") == [-1, -1, -1, -1, 0, -1]
    assert said("Support Devices") == [-1, -1, -1, -1, -1, 1]


def test_relations__two_concepts_of_one_sentence(manifest: Manifest) -> None:
    relations = whole(dataset(manifest)).relations
    assert relations is not None
    at = load_knowledge("chest").index
    assert relations[4, at("Consolidation"), at("Right Lung")]
    assert relations[4, at("Consolidation"), at("Consolidation")]
    assert not relations[4, at("Consolidation"), at("Bones")]  # in one report, not in one sentence
    assert not relations[0, at("Pneumothorax")].any()  # denied
    assert torch.equal(relations, relations.transpose(1, 2))
    assert whole(dataset(manifest, further=replace(ALL, relations=False))).relations is None


def test_further__nothing_without_a_tokenizer_or_when_not_asked(manifest: Manifest) -> None:
    preprocess = Preprocess(PreprocessConfig(size=(8, 8), window="none"))
    for data in (StudyDataset(manifest, preprocess, None, further=ALL), dataset(manifest, further=FurtherTexts())):
        batch = whole(data)
        assert (batch.texts, batch.concepts, batch.relations) == ({}, None, None)


def test_further__an_unknown_knowledge_file_is_named(manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match="unknown knowledge 'chst'; did you mean 'chest'"):
        dataset(manifest, further=FurtherTexts(knowledge="chst"))


@pytest.mark.parametrize("workers", [0, 2])
def test_further__same_on_any_number_of_devices_and_processes_and_after_a_resume(manifest: Manifest, workers: int) -> None:
    """Step, rank and row decide; what one device draws for a row, two draw too."""

    def run(world: int, start: int) -> dict[tuple[int, int], list[list[Any]]]:
        seen: dict[tuple[int, int], list[list[Any]]] = {}
        for rank in range(world):
            data = dataset(manifest, ClipTokenizer(), train=True)
            sampler = StepBatchSampler(len(data), 4, 6, seed=0, start_step=start, rank=rank, world=world)
            for step, batch in enumerate(build_loader(data, sampler, workers=workers if world == 1 else 0), start=start):
                for place, row in enumerate(batch.index.tolist()):
                    texts = [batch.texts[k].code[batch.texts[k].row == place].tolist() for k in ALL.kinds]
                    seen[step, row] = [*texts, torch.nan_to_num(batch.concepts[place], nan=-1).tolist()]
        return seen

    one = run(1, 0)
    assert len({str(v) for v in one.values()}) > 6  # something is drawn
    assert run(2, 0) == one
    assert run(1, 3) == {k: v for k, v in one.items() if k[0] >= 3}


def test_first_rows__keeps_the_texts_of_the_rows(manifest: Manifest) -> None:
    batch = whole(dataset(manifest))
    few = first_rows(batch, 2)
    assert few.images.shape[0] == 2
    assert few.texts["impression"].row.tolist() == [0, 1]
    assert few.texts["findings"].tokens.shape[0] == 1
    assert few.relations is not None
    assert len(few.relations) == 2


def test_to_device__takes_every_tensor_along(manifest: Manifest) -> None:
    batch = whole(dataset(manifest))
    moved = to_device(batch, "meta")
    assert len(tensors_of(moved)) == len(tensors_of(batch)) == 10 + 4 * len(ALL.kinds)
    assert all(t.device.type == "meta" for t in tensors_of(moved))
    assert moved.texts["sentences"].tokens.shape == batch.texts["sentences"].tokens.shape


def test_pin_memory__asks_it_of_every_tensor(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's loader does for a batch that has the method; page-locking itself needs a GPU."""
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t, *_: pinned.append(t) or t)  # type: ignore[func-returns-value]
    batch = pin_memory(whole(dataset(manifest)))
    assert isinstance(batch, Batch)
    assert len(pinned) == len(tensors_of(batch))
