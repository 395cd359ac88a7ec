"""Image features of a file, a folder or a manifest, written in the order of the input."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medfm.errors import ConfigError, DataError
from medfm.evaluation.encode import Failure, ImageFiles, encode_files, pick_device, progress_bar, unreadable
from medfm.io.files import atomic_write, require_writable
from medfm.io.sequences import split_sequences

if TYPE_CHECKING:
    from medfm.evaluation.config import EmbedConfig
    from medfm.weights.model import Model

_LOG = logging.getLogger(__name__)
MANIFESTS = (".parquet", ".csv")


def embed(
    model: Model,
    input: str | Path,
    out: str | Path,
    *,
    split: str = "",
    root: str | Path | None = None,
    modality: str = "",
    batch_size: int = 64,
    workers: int = 0,
    on_error: str = "fail",
    progress: bool = False,
) -> Path:
    """Write one unit vector per image, in the model's joint space.

    Batches are written as they come; the file appears when all is done, or not at all. Rows follow the manifest, or the sorted
    paths of a folder. Beside the vectors stands the image's path relative to the input (and the manifest's row number), nothing
    else.

    - `.parquet`: columns image, (row,) embedding: a fixed-size list of float32; model and contract hashes in the schema's
      metadata.
    - `.csv`: columns image, (row,) f0, f1, ...
    - `.npz`: arrays image (N,), (row (N,),) embedding (N, D) float32; it alone is held in memory until written.

    Args:
        input: an image file, several as channels of one image (see `medfm.io.sequences`), a folder searched for images, or a
            manifest (.parquet, .csv). A model of volumes takes a folder's DICOM files together as one series per folder.
        split: of a manifest, this split only.
        root: of a manifest, where its image paths start.
        modality: without a manifest, what files are that cannot say it themselves: "CT" for CTs as NIfTI.
        on_error: "fail" stops at an unreadable image; "skip" leaves it out and lists it in `<out>.unreadable.csv`.

    Returns:
        `out`.

    Raises:
        DataError: nothing to embed, or an unreadable image. ConfigError: `out` has another ending, or `split` without a
            manifest.
    """
    out, source = Path(out), Path(input)
    _require_out(out)
    names, paths, modalities, rows = _inputs(source, model, split, root)
    if rows is not None and modality:
        raise ConfigError(f"'{source}' is a manifest and says the modality of each image: modality has no meaning for it")
    modalities = modalities or [modality] * len(paths)
    read = ImageFiles(paths, modalities, model.preprocess)
    failures: list[Failure] = []
    with progress_bar("embed", len(paths), progress) as advance, _writer(out, model, rows is not None) as writer:
        for batch in encode_files([model], read, len(paths), batch_size, workers):
            if batch.failures and on_error == "fail":
                raise unreadable(batch.failures[0], names, "on_error")
            failures += batch.failures
            if batch.positions:
                chosen = None if rows is None else rows[batch.positions]
                writer.write([names[position] for position in batch.positions], chosen, batch.embeddings[0].numpy())
            advance(len(batch.positions) + len(batch.failures))
        if len(failures) == len(paths):
            raise DataError(f"none of the {len(paths)} images can be read; the first: {failures[0].reason}")
    _list_unreadable(out, failures, names)
    return out


def run_embed(config: EmbedConfig, progress: bool = True) -> Path:
    """`medfm embed`. Returns the file written; see `embed`."""
    from medfm.weights.load import load_model

    _require_out(config.out)
    model = load_model(config.model, pick_device(config.device))
    return embed(
        model,
        config.input,
        config.out,
        split=config.split,
        root=config.root,
        modality=config.modality,
        batch_size=config.batch_size,
        workers=config.workers,
        on_error=config.on_error,
        progress=progress,
    )


def _require_out(out: Path) -> None:
    if out.suffix not in _WRITERS:
        raise ConfigError(f"'{out.name}' does not end in .parquet, .npz or .csv")
    if out.is_dir():
        raise ConfigError(f"out '{out}' is a folder; name a file: .parquet, .npz or .csv")
    require_writable(out.parent, "out")


def _inputs(
    source: Path, model: Model, split: str, root: str | Path | None
) -> tuple[list[str], list[Path], list[str], NDArray[np.int64] | None]:
    """Names to write, paths to read, their modalities, and manifest rows (None without a manifest)."""
    if source.suffix in MANIFESTS:
        from medfm.data.manifest import read_manifest

        manifest = read_manifest(source, None if root is None else Path(root))
        keep = np.ones(len(manifest.frame), dtype=bool)
        if split:
            splits = manifest.frame["split"].astype(str).to_numpy()
            keep = splits == split
            if not keep.any():
                raise DataError(f"'{source}' has no rows of split '{split}'; it has: {', '.join(sorted(set(splits)))}")
        frame = manifest.frame[keep]
        names = frame["image"].tolist()
        return names, [manifest.root / name for name in names], frame["modality"].tolist(), frame.index.to_numpy()
    if split or root is not None:
        raise ConfigError(f"'{source}' is not a manifest (.parquet or .csv): split and root have no meaning for it")
    paths = _find(source, volumes=len(model.preprocess.config.size) == 3)
    if not paths:
        raise DataError(f"no image found in '{source}'")
    if paths == [source]:
        # The last "/" of several sequences may be in any of them.
        folder = Path(split_sequences(source)[0]).parent
        return [source.relative_to(folder).as_posix()], paths, [], None
    return [path.relative_to(source).as_posix() for path in paths], paths, [], None


def _find(source: Path, volumes: bool) -> list[Path]:
    from medfm.io.load import find_images

    if not source.is_dir():
        return [source]
    found = list(find_images(source))
    if not volumes:
        return found
    # A slice is no volume: DICOM files of one folder are one series.
    flat = (".nii", ".gz", ".png", ".jpg", ".jpeg")
    return sorted({path if path.suffix.lower() in flat else path.parent for path in found})


class _Writer(Protocol):
    def write(self, names: list[str], rows: NDArray[np.int64] | None, vectors: NDArray[np.float32]) -> None: ...


@contextmanager
def _writer(out: Path, model: Model, with_rows: bool) -> Iterator[_Writer]:
    with atomic_write(out) as temporary:
        writer = _WRITERS[out.suffix](Path(temporary), model, with_rows)
        try:
            yield writer
        finally:
            writer.close()


class _Parquet:
    def __init__(self, path: Path, model: Model, with_rows: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from medfm.encoders.image import ImageModel

        fields = [("image", pa.string()), *([("row", pa.int64())] if with_rows else [])]
        vector = pa.list_(pa.float32(), model.network.embed_dim)
        space = "image" if isinstance(model.network, ImageModel) else "joint"
        metadata = {"medfm.preprocess": model.preprocess.hash(), "medfm.space": f"{space}, unit norm"}
        self.schema = pa.schema([*fields, ("embedding", vector)], metadata=metadata)
        self.file = pq.ParquetWriter(path, self.schema)

    def write(self, names: list[str], rows: NDArray[np.int64] | None, vectors: NDArray[np.float32]) -> None:
        import pyarrow as pa

        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        columns = [pa.array(names), *([] if rows is None else [pa.array(rows)])]
        self.file.write_table(
            pa.table([*columns, pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])], schema=self.schema)
        )

    def close(self) -> None:
        self.file.close()


class _Csv:
    def __init__(self, path: Path, model: Model, with_rows: bool) -> None:
        self.file = path.open("w", newline="", encoding="utf-8")
        self.table = csv.writer(self.file)
        self.table.writerow(["image", *(["row"] if with_rows else []), *(f"f{i}" for i in range(model.network.embed_dim))])

    def write(self, names: list[str], rows: NDArray[np.int64] | None, vectors: NDArray[np.float32]) -> None:
        for position, (name, vector) in enumerate(zip(names, vectors, strict=True)):
            # Nine significant digits give a float32 back exactly.
            numbers = (f"{value:.9g}" for value in vector)
            self.table.writerow([name, *([] if rows is None else [int(rows[position])]), *numbers])

    def close(self) -> None:
        self.file.close()


class _Npz:
    def __init__(self, path: Path, model: Model, with_rows: bool) -> None:
        self.path = path
        self.parts: list[tuple[list[str], NDArray[np.int64] | None, NDArray[np.float32]]] = []

    def write(self, names: list[str], rows: NDArray[np.int64] | None, vectors: NDArray[np.float32]) -> None:
        self.parts.append((names, rows, vectors))

    def close(self) -> None:
        if not self.parts:
            return
        arrays: dict[str, NDArray] = {"image": np.array([name for names, _, _ in self.parts for name in names])}
        rows = [part for _, part, _ in self.parts if part is not None]
        if rows:
            arrays["row"] = np.concatenate(rows)
        arrays["embedding"] = np.concatenate([vectors for _, _, vectors in self.parts]).astype(np.float32)
        with self.path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


_WRITERS: dict[str, Any] = {".parquet": _Parquet, ".csv": _Csv, ".npz": _Npz}


def _list_unreadable(out: Path, failures: list[Failure], names: list[str]) -> None:
    if not failures:
        return
    side = out.with_name(out.name + ".unreadable.csv")
    with atomic_write(side) as temporary, Path(temporary).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "reason"])
        table.writerows([names[failure.position], failure.reason] for failure in failures)
    _LOG.warning("%d of %d images could not be read and were left out; they are listed in %s", len(failures), len(names), side)
