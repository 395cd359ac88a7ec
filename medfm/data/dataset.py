"""Rows of a manifest as samples: a preprocessed image, a text, and the codes that mark false negatives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from medfm.data.cache import MemoryCache
from medfm.data.manifest import LABEL_PREFIX, Manifest
from medfm.data.sampler import Key
from medfm.data.scan import relative_message
from medfm.data.values import parse_label
from medfm.errors import DataError, MedfmError
from medfm.text.config import ReportConfig
from medfm.text.report import choose, is_empty, is_normal, prepare, text_key
from medfm.types import Batch

if TYPE_CHECKING:
    import pandas as pd

    from medfm.types import Image


class Preprocessor(Protocol):
    """What of `medfm.transforms.preprocess.Preprocess` is used: the contract, and the call that carries it out."""

    config: Any

    def __call__(self, image: Image) -> np.ndarray:
        """(C, *size) in the contract's storage dtype."""


Tokenizer = Callable[[list[str]], tuple[torch.Tensor, torch.Tensor]]
"""texts -> (B, T) token ids and (B, T) mask."""


@dataclass
class Sample:
    """One image with its text. `image` is (C, *size) in storage dtype; maybe a view of the cache: never change it in place."""

    image: torch.Tensor
    text: str
    patient: int
    text_group: int
    labels: torch.Tensor
    index: int


@dataclass
class Failure:
    """An error of a loader process, raised again in the main one without the process's traceback."""

    kind: type[MedfmError]
    message: str


class StudyDataset(Dataset):
    """The rows of one split (and of some views) of a manifest.

    A sample is asked for by its position, or by (epoch, position) as `StepBatchSampler` gives: the text drawn depends on the
    seed, the epoch and the manifest's row alone, never on the order of asking or the number of processes.

    Args:
        manifest: checked rows; its index numbers the rows.
        preprocess: the contract; its `config` gives size, channels and storage dtype.
        tokenizer: None gives batches without text.
        report: which part of a report is learned from; None for the default.
        split: "train", "val", "test", or None for all rows.
        train: draw texts as `report.sample` says; False always takes all the kept text.
        seed: of the drawing.
        views: keep these only; empty keeps all.
        cache: "memory" keeps preprocessed images in shared memory, up to `cache_gb` * 10^9 bytes.

    Attributes:
        rows: (N,) int64, the manifest row of each position.
        patients: (N,) int64 codes; equal numbers are the same patient.
        text_groups: (N,) int64 codes; equal numbers say the same (`text_key` of the kept text), all normal reports are one
            group; -1 for an empty report.
        labels: (N, L) float32, 1, 0, -1 (uncertain), NaN (not stated), in the order of `findings`.
        empty_reports: how many rows have no text.

    Raises:
        DataError: no row is left; says which splits and views there are.
        ConfigError: the cache does not fit.
    """

    def __init__(
        self,
        manifest: Manifest,
        preprocess: Preprocessor,
        tokenizer: Tokenizer | None = None,
        report: ReportConfig | None = None,
        split: str | None = "train",
        train: bool = False,
        seed: int = 0,
        views: Iterable[str] = (),
        cache: str = "none",
        cache_gb: float = 4.0,
    ) -> None:
        frame = select(manifest, split, tuple(views))
        self.root = manifest.root
        self.row_name = manifest.row_name
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.report = report or ReportConfig()
        self.train = train
        self.seed = seed
        self.findings = manifest.findings
        self.rows = torch.tensor(frame.index.to_numpy(np.int64))
        self._images = frame["image"].tolist()
        self._modalities = frame["modality"].tolist()
        self._reports = frame["report"].tolist()
        self._sentences: dict[str, tuple[str, ...]] = {}
        self.patients = _codes(frame["patient_id"].tolist())
        self.text_groups = self._group_texts()
        self.empty_reports = int((self.text_groups == -1).sum())
        columns = [[parse_label(v) for v in frame[LABEL_PREFIX + f]] for f in self.findings]
        values = np.array([[np.nan if v is None else v for v in c] for c in columns], dtype=np.float32)
        self.labels = torch.from_numpy(values.T.copy() if self.findings else np.empty((len(frame), 0), dtype=np.float32))
        contract = preprocess.config
        self._shape = (int(contract.channels), *(int(s) for s in contract.size))
        self._dtype: torch.dtype = getattr(torch, contract.dtype)
        self._cache = MemoryCache(len(frame), self._shape, contract.dtype, cache_gb) if cache == "memory" else None

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        return (
            f"StudyDataset({len(self):,} images, {len(self.patients.unique()):,} patients, {self.empty_reports:,} without text)"
        )

    def _prepared(self, report: str) -> tuple[str, ...]:
        sentences = self._sentences.get(report)
        if sentences is None:
            # Equal reports (label sentences, normals) are parsed once a process.
            sentences = self._sentences[report] = () if is_empty(report) else prepare(report, self.report)
        return sentences

    def _group_texts(self) -> torch.Tensor:
        if self.tokenizer is None:
            return torch.full((len(self._reports),), -1, dtype=torch.int64)
        keys: dict[str, str] = {}
        for report in set(self._reports):
            kept = " ".join(self._prepared(report))
            keys[report] = "" if not kept else "normal" if is_normal(report) else "text " + text_key(kept)
        return _codes([keys[r] for r in self._reports])

    def image(self, position: int) -> torch.Tensor:
        """(C, *size) in storage dtype, from the cache where it is filled.

        Raises:
            DataError: the image cannot be read or contradicts the contract; names its row and relative path.
        """
        if self._cache is not None:
            kept = self._cache.get(position)
            if kept is not None:
                return kept
        from medfm.io.load import load_image

        relative = self._images[position]
        try:
            array = self.preprocess(load_image(self.root / relative, self._modalities[position]))
        except (MedfmError, OSError) as error:
            raise DataError(
                f"{self.row_name(int(self.rows[position]))}: image '{relative}' cannot be used: "
                f"{relative_message(error, self.root)}. Set data.check_files=decode data.on_error=skip "
                "to leave out every such image before training"
            ) from None
        image = torch.from_numpy(np.ascontiguousarray(array))
        if tuple(image.shape) != self._shape or image.dtype != self._dtype:
            raise DataError(
                f"preprocessing of '{relative}' gave {tuple(image.shape)} {image.dtype}, not {self._shape} {self._dtype}"
            )
        return image if self._cache is None else self._cache.put(position, image)

    def text(self, position: int, epoch: int = 0) -> str:
        """The text of a row in an epoch; "" for an empty report. In evaluation all the kept text, whatever the epoch."""
        rng = None
        if self.train and self.report.sample != "all":
            rng = np.random.Generator(np.random.PCG64([self.seed, epoch, int(self.rows[position])]))
        return choose(self._prepared(self._reports[position]), self.report, rng)

    def __getitem__(self, key: int | Key) -> Sample:
        epoch, position = key if isinstance(key, tuple) else (0, key)
        return Sample(
            image=self.image(position),
            text=self.text(position, epoch) if self.tokenizer is not None else "",
            patient=int(self.patients[position]),
            text_group=int(self.text_groups[position]),
            labels=self.labels[position],
            index=int(self.rows[position]),
        )

    def __getitems__(self, keys: list[int] | list[Key]) -> list[Sample] | Failure:
        try:
            return [self[key] for key in keys]
        except MedfmError as error:
            return Failure(type(error), str(error))

    def collate(self, samples: list[Sample] | Failure) -> Batch | Failure:
        """Samples -> Batch, tokenised in the loader process."""
        if isinstance(samples, Failure):
            return samples
        tokens, mask = self.tokenizer([s.text for s in samples]) if self.tokenizer is not None else (None, None)
        return Batch(
            images=torch.stack([s.image for s in samples]),
            tokens=tokens,
            attention_mask=mask,
            patient=torch.tensor([s.patient for s in samples]),
            text_group=torch.tensor([s.text_group for s in samples]),
            labels=torch.stack([s.labels for s in samples]),
            index=torch.tensor([s.index for s in samples]),
            drawn=torch.tensor([_text_code(s.text) for s in samples]),
        )


def _text_code(text: str) -> int:
    """The same number for the same text in every process; -1 for none."""
    key = text_key(text)
    return int.from_bytes(hashlib.blake2s(key.encode(), digest_size=8).digest(), "little") >> 1 if key else -1


def select(manifest: Manifest, split: str | None, views: tuple[str, ...] = ()) -> pd.DataFrame:
    """Rows of a split and of some views. Raises DataError where there are none."""
    frame = manifest.frame
    name = manifest.path.name if manifest.path is not None else "the manifest"
    if split is not None:
        frame = frame[frame["split"] == split]
        if frame.empty:
            here = ", ".join(sorted({s for s in manifest.frame["split"] if s})) or "none"
            raise DataError(f"{name} has no row of split '{split}'; its splits: {here}")
    if views:
        wanted = {v.upper() for v in views}
        kept = frame[frame["view"].str.upper().isin(wanted)]
        if kept.empty:
            here = ", ".join(sorted({v for v in frame["view"] if v})) or "none is stated"
            raise DataError(
                f"{name} has no {'/'.join(views)} view" + (f" in split '{split}'" if split else "") + f"; its views: {here}"
            )
        frame = kept
    return frame


def of_views(manifest: Manifest, views: tuple[str, ...]) -> Manifest:
    """The manifest with some views only; all of it where none are named."""
    return replace(manifest, frame=select(manifest, None, views)) if views else manifest


def _codes(values: list[str]) -> torch.Tensor:
    """(N,) int64: equal values, equal codes; -1 for the empty one. Independent of the order of rows."""
    number = {v: i for i, v in enumerate(sorted(set(values) - {""}))}
    return torch.tensor([number.get(v, -1) for v in values], dtype=torch.int64)
