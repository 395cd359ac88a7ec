"""What a worker does for a scan: headers of a batch of files, a trial of images or files, identifiers. Results are JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from medfm.data.survey import NOT_IMAGES, Entry, header_as_json, name_parts, relative_message, relative_path, survey
from medfm.data.walk import Batch, Chunk
from medfm.errors import MedfmError

Tilt = Literal["refuse", "resample"]


def read_batch(batch: Batch, root: str, tilt: Tilt = "refuse") -> list[dict[str, Any]]:
    """Rows and rejections of each chunk. Every dict has "rows", "rejected" ([path, reason, part]), "files", "names" (part ->
    places in the chunk's names, where the chunk is not whole).
    """
    return [_read_chunk(chunk, Path(root), tilt) for chunk in batch]


def _read_chunk(chunk: Chunk, root: Path, tilt: Tilt) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    rejected: list[list[str]] = []
    entries = survey(chunk)
    for entry in entries:
        path, part = relative_path(entry.path, root), "" if chunk.whole else entry.part
        reason = _refusal(entry, tilt)
        if reason or entry.header is None:
            rejected.append([path, relative_message(reason, root), part])
            continue
        rows.append(
            {
                "path": path,
                "header": header_as_json(entry.header),
                "files": len(entry.files),
                "first": relative_path(entry.files[0], root),
                "uids": "".join(entry.uids) if all(entry.uids) else "",
                "part": part,
            }
        )
    files = len({path for entry in entries for path in entry.files})
    names = {} if chunk.whole else name_parts(chunk, entries)
    return {"rows": rows, "rejected": rejected, "files": files, "names": names}


def _refusal(entry: Entry, tilt: Tilt) -> str:
    """Why an entry is no usable image, or ''."""
    # A fault beside the tilt ends in "; gantry tilt as well": only the tilt alone can be mended.
    if entry.problem and not (tilt == "resample" and entry.problem.startswith("gantry tilt:")):
        return entry.problem
    nothing = entry.kind in NOT_IMAGES or entry.header is None or entry.header.shape is None
    return "holds no image" if nothing else ""


def without_ids(result: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of `read_batch` the journal keeps: nothing that names a patient, a study or an instance."""
    from medfm.data.survey import ID_FIELDS

    def clean(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "header": {k: v for k, v in row["header"].items() if k not in ID_FIELDS}}

    return [{**one, "rows": [clean(row) for row in one["rows"]]} for one in result]


def try_file(path: str) -> str:
    """ "" or why a file's header cannot be read. For finding the one that kills its reader."""
    try:
        survey(Chunk(str(Path(path).parent), (Path(path).name,), "", whole=False))
    except MedfmError as error:
        return str(error)
    return ""


def decode_images(paths: Sequence[str], root: str, tilt: Tilt = "refuse") -> dict[str, str]:
    """Relative reference -> '' or why it cannot be decoded."""
    return {path: _decode(Path(root), path, tilt) for path in paths}


def _decode(root: Path, path: str, tilt: Tilt) -> str:
    from medfm.io.load import load_image

    try:
        load_image(root / path, tilt=tilt)
    except MedfmError as error:
        return relative_message(error, root)
    except OSError as error:
        return f"cannot be read: {error.strerror or type(error).__name__}"
    return ""


def read_ids(names: Sequence[str], root: str) -> dict[str, list[str]]:
    """File -> its patient, study, series and instance. Files that cannot be read are left out."""
    from medfm.io.load import peek

    found = {}
    for name in names:
        try:
            header = peek(Path(root, name))
        except (MedfmError, OSError):
            continue
        found[name] = [header.patient_id, header.study_id, header.series_id, header.image_id]
    return found
