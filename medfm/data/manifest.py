"""The manifest: one row an image or volume, the one thing that training and evaluation read about a data set."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.errors import DataError
from medfm.registry import suggest

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "val", "test")
LABEL_PREFIX = "label:"
TEXT_COLUMNS = ("image", "patient_id", "study_id", "view", "modality", "split", "report", "sex", "mask")
COLUMNS = (*TEXT_COLUMNS, "age")
_REQUIRED = ("image", "patient_id", "split")
_META_KEY = b"medfm"


@dataclass
class Manifest:
    """A data set as a table.

    Attributes:
        frame: one row an image. Text columns, "" where unknown: image (relative to `root`, posix), patient_id, study_id, view
            (PA, AP, LATERAL ...), modality, split (train, val, test), report, sex (M, F), mask; age in years (float, NaN
            unknown, 90 for 90 and over); labels as float columns `label:<Finding>`: 1, 0, -1 (uncertain), NaN (not stated). The
            index numbers the rows of the file from 0; rows left out later leave gaps: a number names the same row for good.
        root: folder that image paths start from.
        meta: card, text_kind ("report", "label sentences", "none"), intensity_units, licence, medfm_version, counts.
        path: the file it came from.
    """

    frame: pd.DataFrame
    root: Path
    meta: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def findings(self) -> list[str]:
        """Names of the labels, in column order."""
        return [c[len(LABEL_PREFIX) :] for c in self.frame.columns if c.startswith(LABEL_PREFIX)]

    def row_name(self, index: int) -> str:
        """How messages name a row: as a spreadsheet shows it for CSV (the header is row 1), as pandas shows it for parquet."""
        is_csv = self.path is not None and self.path.suffix != ".parquet"
        return f"row {index + 2:,}" if is_csv else f"row {index:,}"

    def image_path(self, index: int) -> Path:
        return self.root / str(self.frame.at[index, "image"])

    def __repr__(self) -> str:
        splits = ", ".join(f"{n:,} {s}" for s, n in self.frame["split"].value_counts(sort=False).items())
        return f"Manifest({len(self):,} rows: {splits}; {len(self.findings)} labels; root {self.root})"


def complete(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with every standard column, in standard order, then labels, then its own others; text without missing values."""
    import pandas as pd

    frame = frame.copy()
    for column in TEXT_COLUMNS:
        values = frame[column] if column in frame else [""] * len(frame)
        texts = [v if isinstance(v, str) else "" if v is None or v != v else str(v) for v in values]
        # object, not Arrow strings: those cannot hold bytes that are not UTF-8, which the check reports.
        frame[column] = pd.Series(texts, index=frame.index, dtype=object)
    frame["age"] = pd.to_numeric(frame["age"], errors="coerce").astype("float64") if "age" in frame else float("nan")
    labels = [c for c in frame.columns if str(c).startswith(LABEL_PREFIX)]
    others = [c for c in frame.columns if c not in COLUMNS and c not in labels]
    frame = frame[[*COLUMNS, *labels, *others]]
    frame.columns = pd.Index(list(map(str, frame.columns)))
    return frame


def _to_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """Label columns as float; what is no number stays text for `check_manifest` to report."""
    import pandas as pd

    for column in frame.columns:
        if column.startswith(LABEL_PREFIX):
            values = frame[column].replace("", float("nan"))
            numbers = pd.to_numeric(values, errors="coerce")
            if not (numbers.isna() & values.notna()).any():
                frame[column] = numbers.astype("float64")
    return frame


def _side(path: Path) -> Path:
    return path.with_name(path.name + ".meta.json")


def read_manifest(path: str | Path, root: str | Path | None = None) -> Manifest:
    """Read a manifest: parquet or CSV made by `medfm index`, or a CSV of one's own with at least image, patient_id and split.

    Bytes that are not UTF-8 and labels that are no numbers are kept for `medfm.data.check.check_manifest` to report.

    Args:
        root: folder that image paths start from; default: what the manifest says, else its own folder.

    Raises:
        DataError: missing or unreadable file, or a required column is missing.
    """
    path = Path(path)
    meta: dict[str, Any] = {}
    if not path.is_file():
        raise DataError(f"manifest '{path}' does not exist; make it with `medfm index images=DIR reports=FILE.csv out={path}`")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except Exception as error:
            raise DataError(f"manifest '{path}' is no readable parquet file: {type(error).__name__}") from None
        meta = json.loads((table.schema.metadata or {}).get(_META_KEY, b"{}"))
        frame = table.to_pandas(ignore_metadata=True)
    else:
        from medfm.data.table import read_table

        frame = read_table(path, lenient=True, hint="the manifest's encoding; save it as UTF-8: encoding")
        if _side(path).is_file():
            meta = json.loads(_side(path).read_text(encoding="utf-8"))
    missing = [c for c in _REQUIRED if c not in frame.columns]
    if missing:
        hint = suggest(missing[0], [str(c) for c in frame.columns])
        raise DataError(
            f"manifest '{path}' has no column {', '.join(repr(c) for c in missing)}{hint} "
            "A table that is no manifest becomes one with `medfm index images=DIR reports=TABLE`"
        )
    frame = _to_labels(complete(frame))
    where = Path(root) if root is not None else path.parent / meta.get("root", ".")
    return Manifest(frame.reset_index(drop=True), where, meta, path)


def write_manifest(manifest: Manifest, path: str | Path) -> Path:
    """Write parquet, or CSV with its meta in `<path>.meta.json`; atomically.

    `root` is kept relative where it lies below the file's folder.

    Raises:
        DataError: the path ends in neither .parquet nor .csv.
    """
    from medfm.io.files import atomic_write

    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise DataError(f"a manifest is .parquet or .csv, not '{path.name}'")
    path.parent.mkdir(parents=True, exist_ok=True)
    root, home = manifest.root.resolve(), path.parent.resolve()
    place = os.path.relpath(root, home) if root.is_relative_to(home) else str(root)
    meta = {**manifest.meta, "root": Path(place).as_posix()}
    frame = complete(manifest.frame)
    if path.suffix == ".csv":
        with atomic_write(path) as temporary:
            frame.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")
        with atomic_write(_side(path)) as temporary:
            Path(temporary).write_text(json.dumps(meta, indent=2, sort_keys=True), encoding="utf-8")
        return path
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({_META_KEY: json.dumps(meta, sort_keys=True).encode()})
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def manifest_hash(manifest: Manifest) -> str:
    """12 hex digits of SHA-256 over columns and values: the same for a parquet and a CSV copy, whatever the root."""
    frame = complete(manifest.frame)
    digest = hashlib.sha256("\x1f".join(map(str, frame.columns)).encode())
    for column in frame.columns:
        values = ("" if v is None or v != v else f"{v:g}" if isinstance(v, float) else str(v) for v in frame[column])
        digest.update("\x1f".join(values).encode("utf-8", errors="surrogateescape"))
        digest.update(b"\x1e")
    return digest.hexdigest()[:12]


def counts(frame: pd.DataFrame) -> dict[str, Any]:
    """What the meta and the evaluation card say about a manifest: rows, patients, studies, by split, view and modality."""
    by_split = {
        split: {
            "images": int((frame["split"] == split).sum()),
            "patients": int(frame.loc[frame["split"] == split, "patient_id"].nunique()),
        }
        for split in SPLITS
    }
    return {
        "images": len(frame),
        "patients": int(frame["patient_id"].nunique()),
        "studies": len({(p, s) for p, s in zip(frame["patient_id"], frame["study_id"], strict=True) if s}),
        "splits": by_split,
        "views": {str(k): int(v) for k, v in frame["view"].value_counts().items() if k},
        "modalities": {str(k): int(v) for k, v in frame["modality"].value_counts().items() if k},
    }
