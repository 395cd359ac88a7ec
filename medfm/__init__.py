"""medfm: foundation models for medical imaging.

Importing this package imports no torch; the names below load what they need when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "load_image": "medfm.io.load",
    "load_mask": "medfm.io.masks",
    "save_image": "medfm.io.write",
    "save_mask": "medfm.io.write",
    "load_model": "medfm.weights.load",
    "read_manifest": "medfm.data.manifest",
    "ZeroShotClassifier": "medfm.evaluation.zero_shot",
    "heat_map": "medfm.evaluation.heatmap",
    "MedfmError": "medfm.errors",
    "Image": "medfm.types",
    "Mask": "medfm.types",
    "pretrain": "medfm.api",
    "index": "medfm.api",
    "phantom": "medfm.api",
    "evaluate": "medfm.api",
    "embed": "medfm.api",
    "doctor": "medfm.api",
    "deidentify": "medfm.api",
    "download": "medfm.api",
    "cache": "medfm.api",
    "merge": "medfm.api",
}

if TYPE_CHECKING:
    from medfm.api import cache, deidentify, doctor, download, embed, evaluate, index, merge, phantom, pretrain
    from medfm.data.manifest import read_manifest
    from medfm.errors import MedfmError
    from medfm.evaluation.heatmap import heat_map
    from medfm.evaluation.zero_shot import ZeroShotClassifier
    from medfm.io.load import load_image
    from medfm.io.masks import load_mask
    from medfm.io.write import save_image, save_mask
    from medfm.types import Image, Mask
    from medfm.weights.load import load_model

__all__ = [
    "Image",
    "Mask",
    "MedfmError",
    "ZeroShotClassifier",
    "__version__",
    "cache",
    "deidentify",
    "doctor",
    "download",
    "embed",
    "evaluate",
    "heat_map",
    "index",
    "load_image",
    "load_mask",
    "load_model",
    "merge",
    "phantom",
    "pretrain",
    "read_manifest",
    "save_image",
    "save_mask",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'medfm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
