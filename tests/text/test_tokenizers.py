"""Tokenizers against the reference implementations."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medfm.errors import WeightsError
from medfm.registry import TOKENIZERS
from medfm.text.config import ClipTokenizerConfig, HuggingFaceTokenizerConfig
from medfm.text.tokenizers import ClipTokenizer, HuggingFaceTokenizer

REPORTS = [
    "FINDINGS: The heart is normal in size. The lungs are clear.\nIMPRESSION: No acute disease.",
    "There's a 1.5 cm nodule in the R. upper lobe (see 3/12/2011), it's new; we'll follow-up: can't exclude malignancy.",
    "Compared to ___, XXXX shows [** Hospital **] no change.",
    "Röntgen-Thorax: keine Infiltrate, Herzgröße normal. µ-Kalk? 5°C; naïve café",
    "心影增大，双肺纹理增多。 Сердце не увеличено. القلب طبيعي",
    "&lt;b&gt;pneumothorax&lt;/b&gt; &amp;amp; effusion &nbsp; <i>left</i>",
    "â€œmojibakeâ€ ï¬\u0081brosis ﬁbrosis “quoted” ＦＵＬＬ width",
    "  tabs\tand\r\nlines\u2028and\u00a0spaces\x0band\x1cseparators  ",
    "emoji 🫁🩻 é (combining) \u200bzero width\ufeff",
    "it'ſ K İstanbul ẞ ǅ Ⅷ ½ ٣ 𝟜",
    "I'M YOU'RE THEY'VE 's'S 'll''d",
    "<start_of_text> in the text, !<end_of_text>x, <END_OF_TEXT>",
    "terminal \x1b[31mred\x1b[0m and bell\x07 and nul\x00",
    "a" * 300,
    "",
    "   ",
    "!!!???...---___===",
    "word " * 200,
]


@pytest.fixture(scope="module")
def clip() -> ClipTokenizer:
    return ClipTokenizer(ClipTokenizerConfig())


@pytest.fixture(scope="module")
def reference():  # type: ignore[no-untyped-def]
    from open_clip import SimpleTokenizer

    return SimpleTokenizer()


@pytest.mark.parametrize("text", REPORTS)
def test_clip__equals_open_clip(text: str, clip: ClipTokenizer, reference) -> None:  # type: ignore[no-untyped-def]
    ids, mask = clip([text])
    assert torch.equal(ids, reference([text]))
    assert clip.encode(text) == reference.encode(text)
    length = int(mask.sum())
    assert ids[0, length - 1] == clip.end_id
    assert (ids[0, length:] == 0).all()


@settings(max_examples=300, deadline=None)
@given(text=st.text())
@example(text="\u0345'ſ")
def test_clip__equals_open_clip_on_any_text(text: str) -> None:
    assert ANY_CLIP.encode(text) == any_reference().encode(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(max_codepoint=127)))
@example(text="a&ampb")
@example(text="a\x7fb\x0cc\x85d")
def test_clip__ascii_short_cut_changes_nothing(text: str) -> None:
    assert ANY_CLIP.encode(text) == any_reference().encode(text)


ANY_CLIP = ClipTokenizer()


def any_reference():  # type: ignore[no-untyped-def]
    from open_clip.tokenizer import _tokenizer

    return _tokenizer


@pytest.mark.parametrize("length", [4, 16, 77])
def test_clip__long_text_is_cut_and_keeps_the_end(length: int, reference) -> None:  # type: ignore[no-untyped-def]
    tokenizer = ClipTokenizer(ClipTokenizerConfig(context_length=length))
    ids, mask = tokenizer(["effusion " * 100, "clear"])
    assert ids.shape == mask.shape == (2, length)
    assert torch.equal(ids, reference(["effusion " * 100, "clear"], context_length=length))
    assert ids[0, -1] == tokenizer.end_id
    assert mask.sum(dim=1).tolist() == [length, 3]


def test_clip__vocabulary_and_registry(clip: ClipTokenizer) -> None:
    assert (clip.vocab_size, clip.start_id, clip.end_id, clip.pad_id, clip.context_length) == (49408, 49406, 49407, 0, 77)
    built = TOKENIZERS.build(TOKENIZERS.parse({"name": "clip", "context_length": 32}))
    assert built(["x"])[0].shape == (1, 32)
    again = ClipTokenizer.from_state(ClipTokenizerConfig(context_length=32), built.to_state())
    assert torch.equal(again(REPORTS)[0], built(REPORTS)[0])


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None)
@example("ÿ \xff 255")
def test_clip__mask_token_is_in_no_text(text: str) -> None:
    assert ANY_CLIP.mask_id == 187
    assert ANY_CLIP.mask_id not in ANY_CLIP.encode(text)


def test_clip__survives_the_way_to_a_loader_worker(clip: ClipTokenizer) -> None:
    again = pickle.loads(pickle.dumps(clip))
    assert torch.equal(again(REPORTS)[0], clip(REPORTS)[0])


def test_clip__cache_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ClipTokenizer()
    monkeypatch.setattr(ClipTokenizer, "CACHED_WORDS", 3)
    words = "one two three four five one"
    assert tokenizer.encode(words) == ANY_CLIP.encode(words)
    assert len(tokenizer._cache) <= 3


def test_clip__does_not_import_open_clip() -> None:
    code = "import sys, medfm.text.tokenizers as t; t.ClipTokenizer()(['x']); assert 'open_clip' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hf__equals_transformers(minilm: Path) -> None:
    from transformers import AutoTokenizer

    mine = HuggingFaceTokenizer(HuggingFaceTokenizerConfig(path=minilm, context_length=32))
    theirs = AutoTokenizer.from_pretrained(minilm)
    expected = theirs(REPORTS, padding=True, truncation=True, max_length=32, return_tensors="pt")
    ids, mask = mine(REPORTS)
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])
    assert mine.pad_id == theirs.pad_token_id
    assert mine.vocab_size == len(theirs)


def test_hf__knows_its_mask_token(minilm: Path) -> None:
    from transformers import AutoTokenizer

    ours = HuggingFaceTokenizer(HuggingFaceTokenizerConfig(path=minilm))
    assert ours.mask_id == AutoTokenizer.from_pretrained(minilm).mask_token_id


def test_hf__pads_to_the_longest_and_keeps_the_end(minilm: Path) -> None:
    tokenizer = HuggingFaceTokenizer(HuggingFaceTokenizerConfig(path=minilm, context_length=12))
    ids, mask = tokenizer(["clear lungs", "no pneumothorax seen"])
    assert ids.shape[1] == int(mask.sum(dim=1).max()) < 12
    ids, mask = tokenizer(["effusion " * 50])
    assert ids.shape == (1, 12)
    assert ids[0, -1] == tokenizer._fast.token_to_id("[SEP]")


def test_hf__state_needs_no_folder(minilm: Path) -> None:
    config = HuggingFaceTokenizerConfig(path=minilm, context_length=20)
    tokenizer = HuggingFaceTokenizer(config)
    elsewhere = HuggingFaceTokenizerConfig(path="/nowhere/at/all", context_length=20)
    again = HuggingFaceTokenizer.from_state(elsewhere, tokenizer.to_state())
    for mine, theirs in zip(again(REPORTS), tokenizer(REPORTS), strict=True):
        assert torch.equal(mine, theirs)
    assert (again.pad_id, again.vocab_size) == (tokenizer.pad_id, tokenizer.vocab_size)
    with pytest.raises(WeightsError, match=r"holds no tokenizer\.json"):
        HuggingFaceTokenizer.from_state(elsewhere, {})


def test_hf__pad_id_is_kept_where_it_is_not_zero(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    fast = Tokenizer(models.WordLevel({"lungs": 0, "clear": 1, "<pad>": 2, "<unk>": 3}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer(HuggingFaceTokenizerConfig(path=tmp_path))
    ids, mask = tokenizer(["lungs clear", "lungs"])
    assert ids.tolist() == [[0, 1], [0, 2]]
    assert mask.tolist() == [[1, 1], [1, 0]]


def test_hf__missing_or_broken_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no tokenizer at '.*nowhere'.*medfm does not download"):
        HuggingFaceTokenizer(HuggingFaceTokenizerConfig(path=tmp_path / "nowhere"))
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(WeightsError, match="whole"):
        HuggingFaceTokenizer(HuggingFaceTokenizerConfig(path=tmp_path))
