"""Words to token ids: CLIP's byte-pair encoding, and the tokenizer of any Hugging Face model."""

from __future__ import annotations

import gzip
import html
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import LongTensor, Tensor

from medfm.errors import ConfigError, WeightsError
from medfm.text.config import ClipTokenizerConfig, HuggingFaceTokenizerConfig


class Tokenizer(Protocol):
    """What every tokenizer offers. Called with texts it gives ids and a mask of real tokens, both (B, T) int64.

    Attributes:
        special_ids: tokens that it puts around every text, such as start and end.
        mask_id: the token that stands for a hidden one, None where there is none.
    """

    vocab_size: int
    context_length: int
    pad_id: int
    mask_id: int | None
    special_ids: tuple[int, ...]

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]: ...

    def to_state(self) -> dict[str, str]: ...


def _pad(rows: Sequence[Sequence[int]], length: int, pad_id: int) -> tuple[LongTensor, LongTensor]:
    # On the host whatever the default device: a plan builds objectives on the meta device, and terms read what they tokenise.
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long, device="cpu")
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long, device="cpu")
        mask[i, : len(row)] = 1
    return ids, mask  # type: ignore[return-value]


def clip_vocabulary() -> Path:
    """The byte-pair file inside the installed open_clip, found without importing it (that costs seconds).

    Raises:
        ConfigError: open_clip is not installed.
    """
    spec = find_spec("open_clip")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "bpe_simple_vocab_16e6.txt.gz"
        if path.is_file():
            return path
    raise ConfigError("the CLIP vocabulary comes with open_clip, which is not installed: pip install open_clip_torch")


def _byte_characters() -> list[str]:
    """The printable stand-in of each byte, in the order of CLIP's vocabulary (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]


class ClipTokenizer:
    """CLIP's tokenizer: the ids of open_clip's `SimpleTokenizer`, for every text.

    A text is repaired (ftfy), HTML-unescaped, its white space collapsed, lower-cased, split into words, and each word split by
    byte-pair merges: `[start, ..., end]`, padded with 0 to `context_length`; a longer one is cut and still ends with the end.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", simple_tokenizer.py.
    """

    START, END = "<start_of_text>", "<end_of_text>"
    CACHED_WORDS = 1 << 16

    def __init__(self, config: ClipTokenizerConfig | None = None, state: Mapping[str, str] | None = None) -> None:
        """`state`, what `to_state` gave, is empty for this tokenizer."""
        import regex
        from tokenizers import Tokenizer as Fast
        from tokenizers import models, pre_tokenizers

        self.context_length = (config or ClipTokenizerConfig()).context_length
        lines = gzip.decompress(clip_vocabulary().read_bytes()).decode("utf-8").split("\n")
        merges = [(a, b) for a, b in (line.split() for line in lines[1 : 49152 - 256 - 2 + 1])]
        characters = _byte_characters()
        words = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges), self.START, self.END]
        self.vocab_size = len(words)
        self.start_id, self.end_id, self.pad_id = self.vocab_size - 2, self.vocab_size - 1, 0
        self.special_ids = (self.start_id, self.end_id)
        # CLIP has no mask token; no UTF-8 text holds the byte 255, so that its token never occurs otherwise.
        self.mask_id: int | None = characters.index("ÿ")
        self._merger = Fast(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges, end_of_word_suffix="</w>"))
        self._merger.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        # Words are found by the `regex` package, as in the original: another engine knows another Unicode version.
        self._words = regex.compile(
            rf"{self.START}|{self.END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
        )
        self._cache: dict[str, list[int]] = {}

    @staticmethod
    def clean(text: str) -> str:
        """Repaired, unescaped, white space collapsed, lower case."""
        # ftfy and unescaping change no printable ASCII without an ampersand: 30 times faster for most reports.
        if not (text.isascii() and "&" not in text and text.replace("\n", " ").isprintable()):
            import ftfy

            text = html.unescape(html.unescape(ftfy.fix_text(text)))
        return " ".join(text.split()).lower()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without start and end."""
        ids: list[int] = []
        for word in self._words.findall(self.clean(text)):
            known = self._cache.get(word)
            if known is None:
                known = self._encode_word(word)
                if len(self._cache) >= self.CACHED_WORDS:
                    self._cache.clear()
                self._cache[word] = known
            ids += known
        return ids

    def _encode_word(self, word: str) -> list[int]:
        if word == self.START:
            return [self.start_id]
        if word == self.END:
            return [self.end_id]
        return self._merger.encode(word).ids

    def __call__(self, texts: Sequence[str]) -> tuple[LongTensor, LongTensor]:
        """Ids and mask, (B, context_length)."""
        rows = [[self.start_id, *self.encode(text)[: self.context_length - 2], self.end_id] for text in texts]
        return _pad(rows, self.context_length, self.pad_id)

    def to_state(self) -> dict[str, str]:
        """Nothing: the vocabulary is fixed and comes with the installation."""
        return {}

    @classmethod
    def from_state(cls, config: ClipTokenizerConfig, state: Mapping[str, str]) -> Self:
        return cls(config, state)


class HuggingFaceTokenizer:
    """The fast tokenizer of a Hugging Face model, read from its folder (`tokenizer.json`) or the local hub cache.

    Texts are padded to the longest of the batch, truncated to `context_length` with the end token kept. No network is touched.

    Raises:
        WeightsError: the folder or the cached model is not there, or its tokenizer (or `state`) cannot be read.
    """

    def __init__(self, config: HuggingFaceTokenizerConfig, state: Mapping[str, str] | None = None) -> None:
        """`state` is what `to_state` gave; without it the tokenizer is read from `config.path`."""
        from tokenizers import Tokenizer as Fast

        self.context_length = config.context_length
        if state is not None and "tokenizer.json" not in state:
            raise WeightsError("the weight file holds no tokenizer.json for its Hugging Face tokenizer; save the model again")
        text = _read_tokenizer(config.path) if state is None else state["tokenizer.json"]
        try:
            self._fast = Fast.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise WeightsError(f"tokenizer of {config.path}: cannot be read ({error}); is tokenizer.json whole?") from error
        self.pad_id = _pad_id(self._fast)
        self._fast.enable_truncation(config.context_length)
        self._fast.no_padding()
        self.vocab_size = self._fast.get_vocab_size(with_added_tokens=True)
        self.special_ids = tuple(self._fast.encode("").ids)
        self.mask_id = _first_id(self._fast, ("[MASK]", "<mask>", "<|mask|>"))

    def __call__(self, texts: Sequence[str]) -> tuple[LongTensor, LongTensor]:
        """Ids and mask, (B, T), T the longest of the batch."""
        # One by one: a batch call starts a thread pool, which does not survive the loader's fork.
        rows = [self._fast.encode(text).ids for text in texts]
        return _pad(rows, max(map(len, rows), default=0), self.pad_id)

    def to_state(self) -> dict[str, str]:
        """The whole tokenizer as JSON text, so that a weight file needs no other file."""
        return {"tokenizer.json": self._fast.to_str()}

    @classmethod
    def from_state(cls, config: HuggingFaceTokenizerConfig, state: Mapping[str, str]) -> Self:
        return cls(config, state)


def _read_tokenizer(path: str | Path) -> str:
    file = Path(path) / "tokenizer.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:  # a cached hub name, or a folder with an older vocabulary file
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path, local_files_only=True).backend_tokenizer.to_str()
    except Exception as error:  # transformers raises OSError, ValueError, ImportError, ... by the way it failed
        raise WeightsError(
            f"objective.tokenizer.path: no tokenizer at '{path}': no tokenizer.json in a folder of that name, and no hub model "
            "of that name in the local cache. medfm does not download; copy the model's folder here and give its path"
        ) from error


def _pad_id(fast: object) -> int:
    """The padding id: what the file's padding section says, else the usual names, else 0."""
    padding = fast.padding  # type: ignore[attr-defined]
    if padding:
        return int(padding["pad_id"])
    return _first_id(fast, ("[PAD]", "<pad>", "<|padding|>", "<|pad|>")) or 0


def _first_id(fast: object, names: Sequence[str]) -> int | None:
    """The id of the first of these tokens that the vocabulary has."""
    ids = (fast.token_to_id(name) for name in names)  # type: ignore[attr-defined]
    return next((i for i in ids if i is not None), None)
