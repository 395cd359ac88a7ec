"""Reading weight files: strictly, offline, without executing anything."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from medfm.encoders.build import build_tokenizer
from medfm.encoders.config import DualConfig
from medfm.encoders.dual import DualEncoder
from medfm.encoders.image import ImageModel
from medfm.encoders.positions import resample_positions, stretch_positions
from medfm.encoders.pretrained import load_strict, shown
from medfm.errors import ConfigError, WeightsError
from medfm.registry import ENCODERS, ComponentConfig
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess
from medfm.weights.model import Model, build_network
from medfm.weights.save import FILE_NAME, FORMAT, METADATA_KEY


def find_file(source: str | Path) -> Path:
    """The weight file that `source`, a file or a run folder, stands for.

    Raises:
        WeightsError: there is none, or it is a pickle.
    """
    path = Path(source)
    if path.is_dir():
        path = path / FILE_NAME
        if not path.is_file():
            raise WeightsError(
                f"{source}: the folder holds no {FILE_NAME}; give a run folder whose training has saved a model, or a file"
            )
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give a run folder or a model.safetensors")
    if path.suffix in {".pt", ".pth", ".ckpt", ".bin", ".pkl"}:
        raise WeightsError(
            f"{path}: a pickle can run code when it is opened; medfm loads {FILE_NAME} from the same run instead"
        )
    return path


def read_card(source: str | Path) -> dict[str, Any]:
    """The metadata of a weight file without its tensors.

    Raises:
        WeightsError: missing, damaged, not written by medfm, or written by a newer medfm.
    """
    from safetensors import safe_open

    path = find_file(source)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # SafetensorError and OSError, whose texts name no remedy
        raise WeightsError(
            f"{path}: not a whole safetensors file ({path.stat().st_size:,} bytes; {error}); copy it again or take an earlier "
            "checkpoint"
        ) from error
    if METADATA_KEY not in metadata:
        raise WeightsError(
            f"{path}: safetensors, but not written by medfm: it says neither architecture nor preprocessing. "
            "Public weights of an image encoder are loaded through the recipe key encoder.weights"
        )
    try:
        card = json.loads(metadata[METADATA_KEY])
        newer = int(card["format"]) > FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path}: its metadata cannot be read ({error}); copy it again or take an earlier checkpoint"
        ) from error
    if newer:
        raise WeightsError(f"{path}: written by medfm {card.get('medfm_version')}, newer than this one; upgrade medfm")
    return card


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@dataclass(frozen=True)
class Configs:
    """The configurations inside a weight file."""

    encoder: ComponentConfig
    dual: DualConfig | None
    preprocess: PreprocessConfig


def without_weights(encoder: dict[str, Any]) -> dict[str, Any]:
    """An encoder's configuration, and that of the 2D encoder inside it, without the files that they started from."""
    kept = {k: v for k, v in encoder.items() if k != "weights"}
    if isinstance(kept.get("encoder"), dict):
        kept["encoder"] = without_weights(kept["encoder"])
    return kept


def configs_of(card: dict[str, Any], path: str | Path) -> Configs:
    """Raises WeightsError where this medfm does not know what the file says."""
    # The files that training started from are no longer needed, and may be gone.
    try:
        dual = card["dual"]
        return Configs(
            encoder=ENCODERS.parse(without_weights(card["encoder"])),
            dual=None
            if dual is None
            else DualConfig.model_validate({**dual, "text_encoder": without_weights(dual["text_encoder"])}),
            preprocess=PreprocessConfig.model_validate(card["preprocess"]),
        )
    except (ValidationError, ValueError, KeyError, ConfigError) as error:
        plugins = card.get("recipe", {}).get("plugins") or []
        hint = (
            f"import the plugins that it was trained with first: {', '.join(plugins)}"
            if plugins
            else "use the medfm it was written by"
        )
        raise WeightsError(
            f"{path}: written by medfm {card.get('medfm_version')}, does not fit this one: {error}; {hint}"
        ) from error


def load_model(source: str | Path, device: str | torch.device = "cpu") -> Model:
    """The model in a file or a run folder, in eval mode, ready to encode images and texts. Never touches the network.

    Raises:
        WeightsError: missing, damaged, a pickle, not medfm's, or any tensor without its partner.
    """
    path = find_file(source)
    card = read_card(path)
    configs = configs_of(card, path)
    tokenizer = None if configs.dual is None else build_tokenizer(configs.dual.tokenizer, card.get("tokenizer") or {})
    network = build_network(configs.encoder, configs.dual, tokenizer, card.get("hf_config"))
    load_strict(network, _read_tensors(path), path)
    return Model(
        network, Preprocess(configs.preprocess), tokenizer, {**card, "file": str(path)}, configs.encoder, configs.dual, device
    )


@dataclass(frozen=True)
class LoadReport:
    """What `load_tensors_into` did, by tensor name."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    resampled: tuple[str, ...]


def load_tensors_into(network: DualEncoder | ImageModel, source: str | Path, allow: Sequence[str] = ()) -> LoadReport:
    """Starts `network` from a medfm weight file; positions are resampled to another size of images or length of texts.

    Where only one of the two has a text side (a masked autoencoder's weights for alignment, or the way back), that side and the
    projections start at random or stay unused.

    Args:
        allow: name patterns ("text_encoder.*") of tensors that may stay as they are or find no place.

    Raises:
        WeightsError: any other tensor without a partner, or of another shape, each by name.
    """
    path = find_file(source)
    card = read_card(path)
    theirs, own = _read_tensors(path), network.state_dict()
    resampled = _fit_positions(theirs, network, card)
    one_sided = (card["dual"] is None) != isinstance(network, ImageModel)

    def allowed(name: str) -> bool:
        return (one_sided and not name.startswith("image_encoder.")) or any(fnmatch(name, pattern) for pattern in allow)

    missing = tuple(k for k in own if k not in theirs)
    unused = tuple(k for k in theirs if k not in own)
    differ = {k for k in own if k in theirs and own[k].shape != theirs[k].shape}
    problems = []
    if names := [k for k in missing if not allowed(k)]:
        problems.append(f"{len(names)} of the model's tensors are not in the file: {shown(names)}")
    if names := [k for k in unused if not allowed(k)]:
        problems.append(f"{len(names)} of the file's tensors have no place in the model: {shown(names)}")
    if names := [f"{k} {tuple(theirs[k].shape)} for {tuple(own[k].shape)}" for k in sorted(differ) if not allowed(k)]:
        problems.append(f"{len(names)} tensors have other shapes: {shown(names)}")
    if problems:
        raise WeightsError(
            f"{path} does not fit the recipe's model: "
            + "; ".join(problems)
            + ". Copy the encoder's sizes from its run's resolved.yaml"
        )
    loaded = {k: v for k, v in theirs.items() if k in own and k not in differ}
    network.load_state_dict(loaded, strict=False)
    return LoadReport(tuple(loaded), (*missing, *sorted(differ)), unused, resampled)


def _fit_positions(theirs: dict[str, Tensor], network: DualEncoder | ImageModel, card: dict[str, Any]) -> tuple[str, ...]:
    """Resamples position embeddings of another size in place; the names of those changed."""
    changed = []
    own = network.state_dict()
    key = "image_encoder.pos_embed"
    if key in own and key in theirs and card["encoder"].get("name") == "vit":
        size, patch = card["encoder"]["img_size"], card["encoder"]["patch_size"]
        old_grid = [n // p for n, p in zip(size, patch, strict=True)]
        encoder: Any = network.image_encoder
        grid = list(encoder.grid_size)
        # Another grid may have as many patches. Of other prefix tokens (registers, a class token) the positions differ in kind,
        # and are named with the other shapes.
        if len(old_grid) == len(grid) and old_grid != grid and theirs[key].shape[1] == math.prod(old_grid) + encoder.pos_prefix:
            theirs[key] = resample_positions(theirs[key], old_grid, grid, encoder.pos_prefix)
            changed.append(key)
    key = "text_encoder.positional_embedding"
    if key in own and key in theirs and len(own[key]) != len(theirs[key]) and own[key].shape[1:] == theirs[key].shape[1:]:
        theirs[key] = stretch_positions(theirs[key], len(own[key]))
        changed.append(key)
    return tuple(changed)
