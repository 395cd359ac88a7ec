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


def _text(value: Any) -> str:
    """A cell as text. A whole number that pandas made a float (its column has gaps) is written as the whole number."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def complete(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with every standard column, in standard order, then labels, then its own others; text without missing values."""
    import pandas as pd

    frame = frame.copy()
    for column in TEXT_COLUMNS:
        values = frame[column] if column in frame else [""] * len(frame)
        texts = [_text(v) for v in values]
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
        DataError: missing or unreadable file, no rows, or a required column is missing, there twice, or no text.
    """
    import pandas as pd

    path = Path(path)
    meta: dict[str, Any] = {}
    if path.is_dir():
        raise DataError(f"manifest '{path}' is a folder; name the file in it")
    if not path.is_file():
        raise DataError(f"manifest '{path}' does not exist; make it with `medfm index images=DIR reports=FILE.csv out={path}`")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(path)
            _check_columns(list(schema.names), path)
            _check_types(schema, path)
            table = pq.read_table(path)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"manifest '{path}' is no readable parquet file: {type(error).__name__}") from None
        meta = _read_meta((table.schema.metadata or {}).get(_META_KEY, b"{}"), path)
        try:
            frame = table.to_pandas(ignore_metadata=True)
        except Exception as error:
            raise DataError(f"manifest '{path}' holds values that are no table's: {type(error).__name__}") from None
    else:
        from medfm.data.table import read_table

        _check_kind(path)
        frame = read_table(path, lenient=True, hint="the manifest's encoding; save it as UTF-8: encoding", strict=True)
        # Rows are named by their number in the file, blank lines counted, whatever is left out.
        frame.index = pd.Index([number - 2 for number in frame.attrs.pop("rows")], dtype="int64")
        _check_columns([str(c) for c in frame.columns], path)
        if _side(path).is_file():
            meta = _read_meta(_side(path).read_bytes(), _side(path))
    missing = [c for c in _REQUIRED if c not in frame.columns]
    if missing:
        hint = suggest(missing[0], [str(c) for c in frame.columns])
        raise DataError(
            f"manifest '{path}' has no column {', '.join(repr(c) for c in missing)}{hint} "
            "A table that is no manifest becomes one with `medfm index images=DIR reports=TABLE`"
        )
    if frame.empty:
        raise DataError(f"manifest '{path}' has no rows")
    if frame.index.tolist() == list(range(len(frame))):
        frame = frame.reset_index(drop=True)
    frame = _to_labels(complete(frame))
    for column in ("patient_id", "study_id", "view", "modality", "split", "sex"):
        frame[column] = pd.Series([value.strip() for value in frame[column]], index=frame.index, dtype=object)
    where = Path(root) if root is not None else path.parent / meta.get("root", ".")
    return Manifest(frame, where, meta, path)


def _read_meta(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(raw)
    except ValueError:
        meta = None
    if not isinstance(meta, dict) or not isinstance(meta.get("root", "."), str):
        raise DataError(f"'{path}': what it says of the manifest (card, root, counts) is no readable JSON; index it again")
    return meta


def _check_kind(path: Path) -> None:
    """Refuse what is plainly no text, whatever its name says."""
    with open(path, "rb") as file:
        start = file.read(4096)
    kinds = {b"PAR1": "a parquet file; name it .parquet", b"PK\x03\x04": "an Excel or zip file; save the table as CSV"}
    kinds[b"\xd0\xcf\x11\xe0"] = "an old Excel file; save the table as CSV"
    for magic, what in kinds.items():
        if start.startswith(magic):
            raise DataError(f"manifest '{path}' is {what}")
    if start.startswith(b"\x1f\x8b") and path.suffix != ".gz":
        raise DataError(f"manifest '{path}' is packed by gzip; name it {path.name}.gz")


def _check_columns(columns: list[str], path: Path) -> None:
    """Refuse a standard or label column that is there twice, also where only the case differs: which one would count?"""
    lower = [c.strip().lower() for c in columns]
    for column in columns:
        word = column.strip().lower()
        if lower.count(word) > 1 and (word in COLUMNS or word.startswith(LABEL_PREFIX)):
            twins = [c for c in columns if c.strip().lower() == word]
            raise DataError(f"manifest '{path}' has two columns named {' and '.join(map(repr, twins))}; keep one")


def _check_types(schema: Any, path: Path) -> None:
    """Refuse lists, records and bytes where a cell should be one text or number."""
    import pyarrow as pa

    for item in schema:
        if item.name in COLUMNS or item.name.startswith(LABEL_PREFIX):
            kind = item.type.value_type if pa.types.is_dictionary(item.type) else item.type
            binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
            if pa.types.is_nested(kind) or binary:
                raise DataError(f"manifest '{path}': column '{item.name}' holds {kind}, not text or numbers")


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
