"""Rows of a manifest as samples: a preprocessed image, a text, and the codes that mark false negatives."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from medfm.data.batches import LoadedBatch
from medfm.data.cache import MemoryCache
from medfm.data.further import FurtherReports, collate_texts
from medfm.data.manifest import LABEL_PREFIX, Manifest
from medfm.data.packed import CodedTexts, PackedTexts
from medfm.data.sampler import Key
from medfm.data.scan import relative_message
from medfm.data.store.reader import Found, StoredImages, open_rows
from medfm.data.values import parse_label
from medfm.errors import ConfigError, DataError, MedfmError
from medfm.text.config import FurtherTexts, ReportConfig
from medfm.text.report import choose, is_empty, is_normal, prepare, text_key
from medfm.transforms.crop import random_start
from medfm.transforms.preprocess import Preprocess
from medfm.types import Batch, Texts

if TYPE_CHECKING:
    import pandas as pd


_BREAK = "\x1f"  # between the sentences of a report; ASCII's unit separator

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
    report: int = -1  # number of the distinct report
    texts: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Failure:
    """An error of a loader process, raised again in the main one without the process's traceback."""

    kind: type[MedfmError]
    message: str


class StudyDataset(Dataset):
    """The rows of one split (and of some views) of a manifest.

    A sample is asked for by its position, or by (epoch, position) as `StepBatchSampler` gives: the text and the crop drawn
    depend on the seed, the epoch and the manifest's row alone, never on the order of asking or the number of processes. What is
    kept a row lies in arrays, so that loader processes share it.

    Args:
        manifest: checked rows; its index numbers the rows.
        preprocess: the contract.
        tokenizer: None gives batches without text.
        report: which part of a report is learned from; None for the default.
        further: what batches hold of a report beside the text drawn from it; nothing without a tokenizer.
        split: "train", "val", "test", or None for all rows.
        train: draw texts as `report.sample` says; False always takes all the kept text.
        seed: of the drawing.
        views: keep these only; empty keeps all.
        cache: "none" decodes every time; "memory" keeps preprocessed images in shared memory, up to `cache_gb` * 10^9 bytes;
            else the folder of a store made by `medfm cache`, from which crops are read and which must hold every image.
        crop: "random" cuts a box of the contract's size at a place drawn anew each epoch, while `train`; else the middle.
        on_error: "skip" leaves out images that the store does not hold, with a warning, in place of an error.
        check_files: compare the size and time of each file with what was stored; False trusts the store by names alone, and
            the files need not be there.

    Attributes:
        rows: (N,) int64, the manifest row of each position.
        patients: (N,) int64 codes; equal numbers are the same patient.
        text_groups: (N,) int64 codes; equal numbers say the same (`text_key` of the kept text), all normal reports are one
            group; -1 for an empty report.
        labels: (N, L) float32, 1, 0, -1 (uncertain), NaN (not stated), in the order of `findings`.
        empty_reports: how many rows have no text.

    Raises:
        DataError: no row is left; says which splits and views there are. Images are missing from the store.
        ConfigError: the cache does not fit, is no store, or was made under another contract.
    """

    def __init__(
        self,
        manifest: Manifest,
        preprocess: Preprocess,
        tokenizer: Tokenizer | None = None,
        report: ReportConfig | None = None,
        split: str | None = "train",
        train: bool = False,
        seed: int = 0,
        views: Iterable[str] = (),
        cache: str = "none",
        cache_gb: float = 4.0,
        crop: Literal["center", "random"] = "center",
        on_error: Literal["fail", "skip"] = "fail",
        check_files: bool = True,
        further: FurtherTexts = FurtherTexts(),  # noqa: B008, frozen
    ) -> None:
        frame = select(manifest, split, tuple(views))
        self._stored: StoredImages | None = None
        if cache not in ("none", "memory"):
            self._stored, frame = _open_store(manifest, frame, preprocess, Path(cache), on_error, check_files)
        self.root = manifest.root
        self.row_name = replace(manifest, frame=manifest.frame.iloc[:0]).row_name  # without the table
        self.preprocess = preprocess
        self.crop = crop if train else "center"
        self.tokenizer = tokenizer
        self.report = report or ReportConfig()
        self.train = train
        self.seed = seed
        self.findings = manifest.findings
        self.rows = torch.tensor(frame.index.to_numpy(np.int64))
        self._images = PackedTexts(frame["image"])
        self._modalities = CodedTexts(frame["modality"].tolist())
        self.patients = _codes(frame["patient_id"].tolist())
        self._reports: CodedTexts | None = None
        self._kept = PackedTexts(())
        self._further: FurtherReports | None = None
        self.further = further
        self.text_groups = self._take_reports(frame["report"].tolist())
        self.empty_reports = int((self.text_groups == -1).sum())
        columns = [[parse_label(v) for v in frame[LABEL_PREFIX + f]] for f in self.findings]
        values = np.array([[np.nan if v is None else v for v in c] for c in columns], dtype=np.float32)
        self.labels = torch.from_numpy(values.T.copy() if self.findings else np.empty((len(frame), 0), dtype=np.float32))
        self._cache: MemoryCache | None = None
        if cache == "memory":
            if self.crop == "random":
                raise ConfigError(
                    "data.cache=memory keeps finished crops, so augment.crop=random would repeat them: cache to disk with "
                    "`medfm cache` and data.cache=DIR, or set data.cache=none"
                )
            self._cache = MemoryCache(len(frame), preprocess.stored_shape, preprocess.config.dtype, cache_gb)

    @property
    def shards(self) -> np.ndarray | None:
        """(N,) int32, in which file of the store each image lies; None without a store."""
        return None if self._stored is None else self._stored.shards

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        return (
            f"StudyDataset({len(self):,} images, {len(self.patients.unique()):,} patients, {self.empty_reports:,} without text)"
        )

    def _take_reports(self, reports: list[str]) -> torch.Tensor:
        """Keep the sentences that are learned from; the rows' text groups."""
        if self.tokenizer is None:
            return torch.full((len(reports),), -1, dtype=torch.int64)
        # Equal reports (label sentences, normals) are parsed once.
        self._reports = CodedTexts(reports)
        sentences = [() if is_empty(report) else prepare(report, self.report) for report in self._reports.unique]
        self._kept = PackedTexts(_BREAK.join(s.replace(_BREAK, " ") for s in kept) for kept in sentences)
        if self.further != FurtherTexts():
            self._further = FurtherReports(self._reports.unique, sentences, self.further, self.report)
        keys = [
            "" if not kept else "normal" if is_normal(report) else "text " + text_key(" ".join(kept))
            for report, kept in zip(self._reports.unique, sentences, strict=True)
        ]
        return _codes(keys)[torch.from_numpy(self._reports.codes).long()]

    def image(self, position: int, epoch: int = 0) -> torch.Tensor:
        """(C, *size) in storage dtype: a crop of the store, from the memory cache where it is filled, or decoded now.

        Raises:
            DataError: the image cannot be read or contradicts the contract; names its row and relative path.
        """
        if self._stored is not None:
            return torch.from_numpy(self._cut(self._stored[position], position, epoch))
        if self._cache is not None:
            kept = self._cache.get(position)
            if kept is not None:
                return kept
        relative = self._images[position]
        try:
            image = self.preprocess.load(os.path.join(self.root, relative), self._modalities[position])
            whole = self.preprocess.whole(image)
        except (MedfmError, OSError) as error:
            raise DataError(
                f"{self.row_name(int(self.rows[position]))}: image '{relative}' cannot be used: "
                f"{relative_message(error, self.root)}. Set data.check_files=decode data.on_error=skip "
                "to leave out every such image before training"
            ) from None
        made = torch.from_numpy(self._cut(whole, position, epoch))
        return made if self._cache is None else self._cache.put(position, made)

    def _cut(self, whole: np.ndarray, position: int, epoch: int) -> np.ndarray:
        if self.crop == "center":
            return self.preprocess.fit(whole)
        start = random_start(whole.shape[1:], self.preprocess.config.size, self._rng(position, epoch, 1))
        return self.preprocess.fit(whole, start)

    def _rng(self, position: int, epoch: int, *stream: int) -> np.random.Generator:
        """Draws for a row in an epoch. No stream: its text; 1: its crop; 2, 3: its sentences and its negated text."""
        return np.random.Generator(np.random.PCG64([self.seed, epoch, int(self.rows[position]), *stream]))

    def text(self, position: int, epoch: int = 0) -> str:
        """The text of a row in an epoch; "" for an empty report. In evaluation all the kept text, whatever the epoch."""
        if self._reports is None:
            return ""
        return self._choose(self._sentences(int(self._reports.codes[position])), position, epoch)

    def _sentences(self, report: int) -> tuple[str, ...]:
        kept = self._kept[report]
        return tuple(kept.split(_BREAK)) if kept else ()

    def _choose(self, sentences: tuple[str, ...], position: int, epoch: int) -> str:
        drawn = self.train and self.report.sample != "all"
        return choose(sentences, self.report, self._rng(position, epoch) if drawn else None)

    def _texts(self, position: int, epoch: int) -> tuple[str, int, dict[str, list[str]]]:
        """The text of a row, the number of its report, and its further texts."""
        if self._reports is None:
            return "", -1, {}
        report = int(self._reports.codes[position])
        sentences = self._sentences(report)
        text = self._choose(sentences, position, epoch)
        if self._further is None:
            return text, report, {}
        rng = partial(self._rng, position, epoch) if self.train else None
        return text, report, self._further.texts(report, sentences, text, rng)

    def __getitem__(self, key: int | Key) -> Sample:
        epoch, position = key if isinstance(key, tuple) else (0, key)
        text, report, texts = self._texts(position, epoch)
        return Sample(
            image=self.image(position, epoch),
            text=text,
            patient=int(self.patients[position]),
            text_group=int(self.text_groups[position]),
            labels=self.labels[position],
            index=int(self.rows[position]),
            report=report,
            texts=texts,
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
        tokens = mask = concepts = relations = None
        texts: dict[str, Texts] = {}
        if self.tokenizer is not None:
            tokens, mask = self.tokenizer([s.text for s in samples])
        if self.tokenizer is not None and self._further is not None:
            texts = collate_texts(self.further.kinds, [s.texts for s in samples], self.tokenizer, _text_code)
            reports = [s.report for s in samples]
            concepts, relations = self._further.concepts(reports), self._further.relations(reports)
        return LoadedBatch(
            images=torch.stack([s.image for s in samples]),
            tokens=tokens,
            attention_mask=mask,
            patient=torch.tensor([s.patient for s in samples]),
            text_group=torch.tensor([s.text_group for s in samples]),
            labels=torch.stack([s.labels for s in samples]),
            index=torch.tensor([s.index for s in samples]),
            drawn=torch.tensor([_text_code(s.text) for s in samples]),
            texts=texts,
            concepts=concepts,
            relations=relations,
        )


def _text_code(text: str) -> int:
    """The same number for the same text in every process; -1 for none."""
    key = text_key(text)
    return int.from_bytes(hashlib.blake2s(key.encode(), digest_size=8).digest(), "little") >> 1 if key else -1


def _open_store(
    manifest: Manifest, frame: pd.DataFrame, preprocess: Preprocess, store: Path, on_error: str, check_files: bool
) -> tuple[StoredImages, pd.DataFrame]:
    """The store's images of the rows, and the rows that are there: all of them, or with on_error "skip" those that can be."""
    root = manifest.root.resolve() if check_files else None
    stored, found = open_rows(store, preprocess, frame["image"].tolist(), frame["modality"].tolist(), root)
    if found.usable.all():
        return stored, frame
    problem = _lacking(manifest, frame, found, store)
    if on_error == "fail" or not found.usable.any():
        raise DataError(
            f"{problem}. Run `medfm cache manifest={manifest.path or '...'} recipe=... out={store}` to add them"
            + (", or set data.on_error=skip to leave them out" if found.usable.any() else "")
        )
    logging.getLogger("medfm").warning("%s. Left out, as data.on_error=skip says", problem)
    return stored, frame[found.usable]


def _lacking(manifest: Manifest, frame: pd.DataFrame, found: Found, store: Path) -> str:
    lacking = np.flatnonzero(~found.usable)
    first = frame.iloc[int(lacking[0])]
    details = [
        f"{int(rows.sum()):,} {what}"
        for rows, what in (
            (found.missing, "not stored"),
            (found.changed, "stored from files that have changed or are gone since"),
            (found.foreign, "stored from files of the same names, sizes and times in another folder, but of other content"),
            (found.unclear, "stored in several versions, of which only the files could tell which is meant (data.check_files)"),
        )
        if rows.any()
    ]
    return (
        f"data.cache '{store}' lacks {len(lacking):,} of {len(frame):,} images ({', '.join(details)}), first: "
        f"{manifest.row_name(int(frame.index[lacking[0]]))}, '{first['image']}'"
    )


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
