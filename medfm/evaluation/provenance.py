"""Where a result comes from: hashes, versions, and the command that makes it again."""

from __future__ import annotations

import hashlib
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from medfm.io.files import require_writable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medfm.data.check import CheckReport
    from medfm.data.manifest import Manifest
    from medfm.evaluation.encode import Failure
    from medfm.registry import Config
    from medfm.weights.model import Model

_PACKAGES = ("medfm", "torch", "numpy", "pandas", "timm", "transformers", "pydicom", "pillow")


def result_folder(source: Path, out: Path | None, task: str) -> Path:
    """Where results go: `out`, or a folder named after the task beside the weight file."""
    return out if out is not None else (source if source.is_dir() else source.parent) / task


def require_folder(config: Any, task: str) -> None:
    """Before any work: the folder of the result can be written. Raises ConfigError where it cannot."""
    require_writable(result_folder(config.model, config.out, task), "out")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # pragma: no cover - an uninstalled checkout
            continue
    return found


def command(verb: str, config: Config) -> str:
    """The command line of `config`: the keys that differ from their defaults, and those without one."""
    words = [f"{key}={_value(value)}" for key, value in _differing(config)]
    return " ".join(["medfm", verb, *(shlex.quote(word) for word in words)])


def _differing(config: BaseModel, prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            pairs += _differing(value, f"{prefix}{name}.")
        elif field.is_required() or value != field.get_default(call_default_factory=True):
            pairs.append((f"{prefix}{name}", value))
    return pairs


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(str, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def _architecture(encoder: dict[str, Any]) -> str:
    """For example 'vit, 224×224, patch 16×16, width 768, depth 12' or 'timm resnet50, 224×224'."""

    def size(key: str) -> str:
        return "×".join(map(str, encoder[key]))

    words = [" ".join(str(encoder[key]) for key in ("name", "model") if key in encoder)]
    words += [size("img_size")] if "img_size" in encoder else []
    words += [f"patch {size('patch_size')}"] if "patch_size" in encoder else []
    words += [f"slices by {_architecture(encoder['encoder'])}"] if isinstance(encoder.get("encoder"), dict) else []
    words += [f"{word} {encoder[key]}" for word, key in (("width", "embed_dim"), ("depth", "depth")) if key in encoder]
    return ", ".join(words)


def model_facts(source: Path, model: Model) -> dict[str, Any]:
    """What a reader must know of a model: file, hash, architecture, contract, what it was trained on."""
    from medfm.weights.load import find_file

    file = find_file(source)
    card = model.card
    return {
        "path": str(source),
        "name": file.resolve().parent.name if file.name == "model.safetensors" else file.stem,
        "sha256": file_hash(file),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "encoder": _architecture(card.get("encoder") or {}),
        "preprocess_hash": model.preprocess.hash(),
        "text_kind": card.get("text_kind") or "",
        "has_text": model.dual_config is not None,
        "data_cards": list(card.get("data_cards") or []),
        "licence": card.get("licence") or "",
        "medfm_version": card.get("medfm_version") or "",
    }


def data_facts(path: Path, manifest: Manifest) -> dict[str, Any]:
    """What a reader must know of the data: file, hash, card, licence, kind of text."""
    from medfm.data.manifest import manifest_hash

    meta = manifest.meta
    return {
        "manifest": path.name,
        "hash": manifest_hash(manifest),
        "card": str(meta.get("card") or ""),
        "licence": str(meta.get("licence") or ""),
        "text_kind": str(meta.get("text_kind") or ""),
    }


def failure_facts(failures: Sequence[Failure], rows: Sequence[int] | NDArray) -> dict[str, Any]:
    """How many images could not be read, and the first of them: row of the manifest and kind of error. No path: it may name a
    patient.

    Args:
        rows: of each of the asked images its row number of the manifest.
    """
    return {"count": len(failures), "first": [{"row": int(rows[f.position]), "kind": f.kind} for f in failures[:5]]}


def _public(config: Any) -> Any:
    """The configuration of an evaluation as a result may tell it: of the data the manifest's file name alone, since the folders
    above it may name a patient. What it was is told by its hash."""
    data = {"manifest": Path(config.data.manifest.name)}
    data |= {key: Path("...") for key in ("root", "cache") if getattr(config.data, key, None) is not None}
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def envelope(
    task: str,
    config: Any,
    model: Model,
    manifest: Manifest,
    report: CheckReport,
    device: str,
    **content: Any,
) -> dict[str, Any]:
    """What every result holds beside its scores (`content`): where it comes from and how to make it again.

    Args:
        task: the verb after `evaluate`, and the name of the result's folder beside the weights.
        config: of the verb; has `model`, `data` and `out`.
        report: of the manifest's check.
    """
    model_, data = model_facts(config.model, model), data_facts(config.data.manifest, manifest)
    told = _public(config)
    data["rows_removed"], data["problems"] = len(report.bad_rows), report.counts
    data |= {name: value for name, value in config.data.model_dump().items() if name.endswith("split")}
    return {
        "task": task,
        "created": now(),
        "command": command(f"evaluate {task}", told),
        "caveats": caveats(model_, data),
        **content,
        "model": model_,
        "data": data,
        "settings": told.model_dump(mode="json"),
        "device": device,
        "versions": versions(),
        "folder": str(result_folder(config.model, config.out, task)),
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


def caveats(model: dict[str, Any], data: dict[str, Any]) -> list[str]:
    """What must be said beside every number of this model on these data."""
    said = []
    kind = model["text_kind"] or data["text_kind"]
    if not model.get("has_text", True):
        pass  # no text had a part in it
    elif kind.startswith("label"):
        said.append(f"Trained on {kind}: images were aligned with label words, not with reports.")
    elif kind and kind not in ("report", "reports"):
        said.append(f"The text the model was trained on: {kind}.")
    elif not kind:
        said.append("Neither the weight file nor the manifest says what kind of text the model was trained on.")
    if "phantom" in data["card"].lower():
        said.append("The images are generated (phantom): these numbers say that the pipeline learns, nothing about patients.")
    if any("phantom" in str(card).lower() for card in model["data_cards"]):
        said.append("The model was trained on generated images (phantom).")
    return said
