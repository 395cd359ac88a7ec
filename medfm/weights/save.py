"""Writing one self-contained weight file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from medfm.encoders.config import DualConfig
from medfm.encoders.dual import DualEncoder
from medfm.encoders.image import ImageModel
from medfm.io.files import atomic_write
from medfm.text.tokenizers import Tokenizer

# Raised when a reader of the former version could not read the file any more. 2: files without a text side.
FORMAT = 2
FILE_NAME = "model.safetensors"
METADATA_KEY = "medfm"


def plain_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict on the CPU, contiguous, without the `_orig_mod.` that torch.compile puts into names."""
    return {k.replace("_orig_mod.", ""): v.detach().cpu().contiguous() for k, v in state.items()}


def _without_folders(value: Any) -> Any:
    """`value` with absolute paths, and those that lead upwards or home, cut to their last part: a file that is passed on tells
    nothing of a hospital's folders."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    if isinstance(value, str | Path) and (Path(value).is_absolute() or str(value).startswith(("../", "~/"))):
        return Path(value).name
    return value


def _dual_part(objective: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a DualEncoder, of an objective or of that term of a sum which aligns images with text."""
    for term in objective.get("terms", ()):
        if term["name"] == "contrastive":
            objective = term
    return {key: objective[key] for key in DualConfig.model_fields if key in objective}


def save_model(
    path: str | Path,
    network: DualEncoder | ImageModel,
    recipe: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    extra: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes `network` with all that is needed to use it as one safetensors file, atomically; returns the file's path.

    The file's metadata holds under "medfm" one JSON object: format, medfm_version, encoder, dual, preprocess, recipe (the
    configurations), tokenizer (its state), hf_config (of a Hugging Face text encoder), and what `extra` adds (text_kind,
    data_cards, licence, step, ...). Of an ImageModel `dual`, `tokenizer` and `hf_config` are null. No pickle, no patient data,
    no absolute paths.

    Args:
        path: the file, or a folder, which then gets model.safetensors.
        recipe: the resolved pre-training recipe, of which `encoder`, `objective` and `preprocess` are used.
        tensors: the network's state dict, where the network itself holds shards of it.
    """
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        path = path / FILE_NAME
    has_text = isinstance(network, DualEncoder)
    assert not has_text or tokenizer is not None
    card = _without_folders(
        {
            **(extra or {}),
            "format": 1 if has_text else 2,
            "medfm_version": version("medfm"),
            "encoder": recipe["encoder"],
            "dual": {**_dual_part(recipe["objective"]), "dense": network.dense} if isinstance(network, DualEncoder) else None,
            "preprocess": recipe["preprocess"],
            "recipe": dict(recipe),
            "hf_config": getattr(getattr(network, "text_encoder", None), "hf_config", None),
        }
    )
    card["tokenizer"] = tokenizer.to_state() if has_text and tokenizer is not None else None
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        values = plain_tensors(network.state_dict() if tensors is None else tensors)
        save_file(values, temporary, metadata={"format": "pt", METADATA_KEY: json.dumps(card, default=str)})
    return path
