"""Manifests of several data sets as one: patients stay apart, splits stay as they are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.data.manifest import LABEL_PREFIX, SPLITS, Manifest, complete, counts, read_manifest, write_manifest
from medfm.data.merge_config import MergeConfig
from medfm.data.splits import leaks
from medfm.errors import DataError
from medfm.io.sequences import join_sequences, split_sequences

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass
class MergeReport:
    """`parts`: (name, rows by split) of each manifest."""

    path: Path
    manifest: Manifest
    parts: list[tuple[str, Counter[str]]]


def merge(manifests: Sequence[Manifest], names: Sequence[str], same_patients: bool = False) -> Manifest:
    """All rows, with image and mask paths from the folder that the roots share.

    Ids get their data set's name in front: `p000001` of two sets are two patients. With `same_patients` they stay as they are,
    and no patient may be in two splits. A label that a set does not have is not
    stated there. Facts that differ (card, licence, units, kind of text) are listed together. Masks whose numbers name different
    structures are left out, all of them: 1 would be a liver here and a tumour there.

    Raises:
        DataError: a table is there twice, the roots share no folder, a patient is in two splits, or HU are mixed with other
            units.
    """
    import pandas as pd

    homes = [manifest.root.resolve() for manifest in manifests]
    try:
        root = Path(os.path.commonpath(homes))
    except ValueError:
        raise DataError(f"'{homes[0]}' and '{homes[-1]}' share no folder; put the data below one") from None
    frames = []
    for manifest, home, name in zip(manifests, homes, names, strict=True):
        frame = complete(manifest.frame)
        place = home.relative_to(root)
        frame["image"] = [_moved(path, place) for path in frame["image"]]
        frame["mask"] = [(place / path).as_posix() if path else "" for path in frame["mask"]]
        for column in () if same_patients else ("patient_id", "study_id"):
            frame[column] = [f"{name}/{value}" if value else "" for value in frame[column]]
        frames.append(frame)
    frame = complete(pd.concat(frames, ignore_index=True))
    twice = frame.index[frame["image"].duplicated()]
    if len(twice):
        raise DataError(f"{len(twice):,} images are in two of the manifests, first: '{frame['image'][twice[0]]}'")
    leaking = leaks(frame["patient_id"], frame["split"])
    if leaking:
        raise DataError(
            f"{len(leaking):,} patients are in different splits of the manifests; index each with patient=COLUMN, the same "
            "seed and the same fractions, which puts a patient into one split everywhere"
        )
    meta = _meta([manifest.meta for manifest in manifests])
    labels = _mask_labels(
        [m.meta.get("mask_labels") or {} for m, part in zip(manifests, frames, strict=True) if any(part["mask"])]
    )
    if labels is None:
        frame["mask"] = ""
    meta |= {"mask_labels": labels} if labels else {"masks_left_out": True} if labels is None else {}
    return Manifest(frame, root, {**meta, "counts": counts(frame), "merged": list(names)})


def run_merge(config: MergeConfig, progress: bool = True) -> MergeReport:
    """Read, merge and write.

    Raises:
        DataError: see `merge`; or a table that is no manifest.
    """
    manifests = [read_manifest(path) for path in config.manifests]
    names = config.names or _names(manifests, config.manifests)
    merged = merge(manifests, names, config.same_patients)
    parts = [(name, Counter(manifest.frame["split"])) for name, manifest in zip(names, manifests, strict=True)]
    return MergeReport(write_manifest(merged, config.out), merged, parts)


def render(report: MergeReport) -> RenderableType:
    """Rows by data set and split."""
    from rich.table import Table

    findings = len([c for c in report.manifest.frame.columns if c.startswith(LABEL_PREFIX)])
    table = Table(box=None, title=f"{report.path}: {len(report.manifest):,} images, {findings} labels", title_justify="left")
    for head in ("", *SPLITS):
        table.add_column(head, justify="left" if not head else "right")
    for name, rows in report.parts:
        table.add_row(name, *(f"{rows[split]:,}" for split in SPLITS))
    if report.manifest.meta.get("masks_left_out"):
        table.caption = "masks are left out: their numbers name different structures in these data sets"
    return table


def _mask_labels(named: Sequence[dict[str, str]]) -> dict[str, str] | None:
    """Number -> structure of the sets that have masks, together; None where they contradict each other, or only some say it."""
    merged: dict[str, str] = {}
    for labels in named:
        if bool(labels) != bool(named[0]) or any(merged.get(number, name) != name for number, name in labels.items()):
            return None
        merged |= labels
    return merged


def _moved(image: str, place: Path) -> str:
    if not image:
        return ""
    return join_sequences([(place / part).as_posix() for part in split_sequences(image)])


def _names(manifests: Sequence[Manifest], paths: Sequence[Path]) -> list[str]:
    """The cards' names, the files' where they are not all there and different, else numbers."""
    for names in ([str(m.meta.get("card") or "") for m in manifests], [p.stem for p in paths]):
        if len(set(names)) == len(names) and all(names):
            return names
    return [f"set{number}" for number in range(1, len(paths) + 1)]


def _meta(metas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    units = sorted({str(meta["intensity_units"]) for meta in metas if meta.get("intensity_units")})
    if "HU" in units and len(units) > 1:
        raise DataError(f"the manifests hold {' and '.join(units)} values; CT in Hounsfield units is trained by itself")
    merged = {}
    for key in ("card", "text_kind", "intensity_units", "licence", "medfm_version"):
        values = list(dict.fromkeys(str(meta[key]) for meta in metas if meta.get(key)))
        merged[key] = " + ".join(values)
    # Scores say of label sentences that they are none of reports: one such set is enough.
    if "label sentences" in merged["text_kind"]:
        merged["text_kind"] = "label sentences"
    elif "report" in merged["text_kind"]:
        merged["text_kind"] = "report"
    return merged
