"""What a probe is fitted on and scored on: labelled rows of a manifest's three splits, with their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfm.errors import DataError
from medfm.evaluation.encode import Failure, progress_bar
from medfm.evaluation.probe_fit import Part
from medfm.evaluation.scoring import LABEL, LabelledFinding, labelled_rows, patient_codes
from medfm.evaluation.statistics import Floats
from medfm.registry import suggest

if TYPE_CHECKING:
    import pandas as pd

    from medfm.data.check import CheckReport
    from medfm.data.manifest import Manifest
    from medfm.evaluation.config import ClassificationProbeConfig, FrozenFeatures
    from medfm.weights.model import Model


def probe_manifest(config: FrozenFeatures, progress: bool) -> tuple[Manifest, CheckReport]:
    """The checked manifest of a probe, of its views. Raises DataError where the training or the scored split is empty."""
    from medfm.data.check import checked
    from medfm.data.dataset import of_views
    from medfm.data.manifest import read_manifest

    data = config.data
    splits = tuple(dict.fromkeys(name for name in (data.train_split, data.val_split, data.split) if name))
    manifest, report = checked(read_manifest(data.manifest, data.root), data, splits=splits, progress=progress)
    manifest = of_views(manifest, data.views)
    have = set(manifest.frame["split"].astype(str))
    for split in (data.train_split, data.split):
        if split not in have:
            raise DataError(
                f"the manifest has no rows of split '{split}'; it has: {', '.join(sorted(have - {''})) or 'no split'}"
            )
    return manifest, report


def features_folder(source: Path, features: Path | None) -> Path:
    """Where features of a model are kept."""
    from medfm.evaluation.provenance import result_folder

    return result_folder(source, features, "features")


@dataclass(frozen=True, eq=False)
class ProbeTable:
    """The labelled rows of a manifest's three splits.

    Attributes:
        manifest: checked.
        findings: that can be probed; `left_out` the others, with the reason.
        asked: (A,) positions in the manifest of all labelled rows.
        rows: (N,) positions of those whose features are there.
        labels: (N, L) 1, 0 or NaN; patients (N,) codes.
        at: "train", "val", "test" -> places among `rows`.
    """

    manifest: Manifest
    findings: list[LabelledFinding]
    left_out: list[dict[str, str]]
    asked: NDArray[np.int64]
    rows: NDArray[np.int64]
    labels: Floats
    patients: NDArray[np.int64]
    at: dict[str, NDArray[np.int64]]

    @staticmethod
    def of(manifest: Manifest, config: ClassificationProbeConfig) -> ProbeTable:
        """Raises DataError where no finding has both classes among the training and the scored images, or one that was asked
        for has no labels."""
        frame, data = manifest.frame, config.data
        wanted = {"train": data.train_split, "val": data.val_split, "test": data.split}
        splits = frame["split"].astype(str).to_numpy()
        findings, left_out, columns = [], [], []
        for name in _wanted(manifest.findings, config.findings):
            finding = LabelledFinding(name, name)
            labels = np.full(len(frame), np.nan)
            rows, target = labelled_rows(frame, finding, config.uncertain)
            labels[rows] = target
            reason = _one_sided(labels, splits, wanted)
            if reason and config.findings:
                raise DataError(f"finding '{name}' cannot be probed: {reason}")
            if reason:
                left_out.append({"name": name, "reason": reason})
                continue
            findings.append(finding)
            columns.append(labels)
        if not findings:
            reasons = "; ".join(f"{item['name']}: {item['reason']}" for item in left_out[:3])
            raise DataError(
                f"none of the manifest's {len(left_out)} labels can be probed ({reasons or 'it has no label columns'})"
            )
        labels = np.stack(columns, axis=1)
        used = np.isin(splits, [name for name in wanted.values() if name])
        rows = np.flatnonzero(used & ~np.isnan(labels).all(axis=1))
        at = {part: np.flatnonzero(splits[rows] == name) for part, name in wanted.items()}
        return ProbeTable(manifest, findings, left_out, rows, rows, labels[rows], patient_codes(frame)[rows], at)

    @property
    def names(self) -> list[str]:
        return [finding.name for finding in self.findings]

    def only(self, places: NDArray[np.int64]) -> ProbeTable:
        """Some of the rows. A finding that has lost a class by it is left out. Raises DataError where nothing is left."""
        kept = np.zeros(len(self.rows), bool)
        kept[places] = True
        number = np.cumsum(kept) - 1
        at = {part: number[where[kept[where]]] for part, where in self.at.items()}
        for part in ("train", "test"):
            if not len(at[part]):
                raise DataError(f"none of the labelled images to {'fit on' if part == 'train' else 'score'} can be read")
        labels = self.labels[places]
        splits = self.manifest.frame["split"].astype(str).to_numpy()[self.rows[places]]
        wanted = {part: str(splits[at[part][0]]) for part in ("train", "test")}
        reasons = [_one_sided(labels[:, column], splits, wanted) for column in range(labels.shape[1])]
        left_out = [
            {"name": name, "reason": f"of the images that can be read, {reason}"}
            for name, reason in zip(self.names, reasons, strict=True)
            if reason
        ]
        if len(left_out) == len(reasons):
            raise DataError(f"finding '{left_out[0]['name']}' cannot be probed: {left_out[0]['reason']}")
        learned = [column for column, reason in enumerate(reasons) if not reason]
        return ProbeTable(
            self.manifest,
            [self.findings[column] for column in learned],
            self.left_out + left_out,
            self.asked,
            self.rows[places],
            labels[:, learned],
            self.patients[places],
            at,
        )

    def features(
        self, models: dict[str, Model], config: ClassificationProbeConfig, progress: bool
    ) -> tuple[dict[str, Any], list[Failure]]:
        """(name -> (n, E) and "rows" -> the places they are of; images that could not be read)."""
        from medfm.evaluation.features import manifest_features

        own = {name: model for name, model in models.items() if name != "against"}
        groups = [(own, config.model)]
        if "against" in models and config.against is not None:
            groups.append(({"against": models["against"]}, config.against))
        found: dict[str, tuple[NDArray, NDArray]] = {}
        failures: list[Failure] = []
        with progress_bar("features", len(groups) * len(self.rows), progress) as advance:
            for group, source in groups:
                made = manifest_features(
                    list(group.values()),
                    self.manifest,
                    self.rows,
                    features_folder(source, config.features),
                    config.pool,
                    config.blocks,
                    config.data.batch_size,
                    config.data.workers,
                    config.data.on_error,
                    advance,
                )
                found |= {name: (made.positions, values) for name, values in zip(group, made.values, strict=True)}
                known = {failure.position for failure in failures}
                failures += [failure for failure in made.failures if failure.position not in known]
        # Contracts differ in what they can read; all are judged on the same images.
        common = np.arange(len(self.rows))
        for positions, _ in found.values():
            common = np.intersect1d(common, positions)
        matched = {name: values[np.searchsorted(positions, common)] for name, (positions, values) in found.items()}
        return {**matched, "rows": common}, failures

    def parts(self, features: NDArray[np.float32]) -> tuple[Part, Part, Part]:
        """Training, validation and test rows of one model's features (N, E)."""
        train, val, test = (
            Part(features[where], self.labels[where], self.patients[where])
            for where in (self.at["train"], self.at["val"], self.at["test"])
        )
        return train, val, test

    def frame(self, part: str) -> pd.DataFrame:
        """Rows of the manifest as `score` takes them, uncertain labels resolved."""
        where = self.at[part]
        labels = {LABEL + name: self.labels[where, column] for column, name in enumerate(self.names)}
        return self.manifest.frame.iloc[self.rows[where]].assign(**labels)

    def counts(self, column: int) -> dict[str, int]:
        """Training images of a finding."""
        where = self.at["train"]
        labels = self.labels[where, column]
        stated = ~np.isnan(labels)
        return {
            "images": int(stated.sum()),
            "patients": len(np.unique(self.patients[where][stated])),
            "positives": int((labels == 1).sum()),
            "negatives": int((labels == 0).sum()),
        }


def _wanted(known: Sequence[str], asked: Sequence[str]) -> list[str]:
    for name in asked:
        if name not in known:
            hint = suggest(name, known) or f"; it has {', '.join(known) or 'none'}"
            raise DataError(f"finding '{name}' cannot be probed: the manifest has no column '{LABEL}{name}'{hint}")
    return list(dict.fromkeys(asked)) or list(known)


def _one_sided(labels: Floats, splits: NDArray, wanted: dict[str, str]) -> str:
    """Why a finding cannot be probed, "" where it can."""
    for part in ("train", "test"):
        here = labels[splits == wanted[part]]
        positives, negatives = int((here == 1).sum()), int((here == 0).sum())
        if not (positives and negatives):
            return f"{positives} positive and {negatives} negative images in split '{wanted[part]}'"
    return ""
