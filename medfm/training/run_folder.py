"""What a run folder says of itself: the resolved recipe, the machine, the data."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medfm.errors import ConfigError
from medfm.io.files import atomic_write
from medfm.training.config import PretrainConfig

# A resumed run may differ in these without becoming another run.
_FREE = ("resume", "out", "data.workers", "data.cache", "data.cache_gb", "data.check_files", "data.root", "trainer.accelerator",
         "trainer.devices", "trainer.num_nodes", "trainer.keep", "trainer.checkpoint_every", "trainer.log_every",
         "trainer.strategy", "trainer.compile", "encoder.gradient_checkpointing", "launcher", "guard")  # fmt: skip
_PACKAGES = ("medfm", "torch", "torchvision", "lightning", "timm", "transformers", "numpy", "pydicom", "nibabel")


def environment(manifest_hash: str, card: str) -> dict[str, Any]:
    """Versions, git revision, machine and data of a run. Holds no paths of images and no patient data."""
    import torch

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git_revision": _git_revision(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "manifest_hash": manifest_hash,
        "data_card": card,
    }


def _git_revision() -> str:
    """The revision of medfm's own source where it is a checkout; '' for an installed wheel."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return ""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=source, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()


def as_recipe(config: PretrainConfig) -> dict[str, Any]:
    """The whole configuration as plain data; the manifest by its absolute path, so that the recipe works from any folder."""
    tree = config.model_dump(mode="json")
    tree["data"]["manifest"] = str(config.data.manifest.resolve())
    return tree


def write_run_files(run: Path, config: PretrainConfig, facts: dict[str, Any]) -> None:
    """`resolved.yaml`, itself a recipe, and `environment.json`."""
    from omegaconf import OmegaConf

    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    data = f"manifest {facts['manifest_hash']}, data card {facts['data_card'] or '-'}"
    header = f"# {versions}\n# git {facts['git_revision'] or '-'}, {data}\n"
    with atomic_write(run / "resolved.yaml") as temporary:
        temporary.write_text(header + OmegaConf.to_yaml(OmegaConf.create(as_recipe(config))), encoding="utf-8")
    with atomic_write(run / "environment.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def check_same_run(run: Path, config: PretrainConfig, manifest_hash: str) -> None:
    """Raises ConfigError where the run folder was made by another recipe or from another manifest."""
    from omegaconf import OmegaConf

    if not (run / "resolved.yaml").is_file():
        return
    old, new = _flat(_with_defaults(OmegaConf.to_container(OmegaConf.load(run / "resolved.yaml")))), _flat(as_recipe(config))
    changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k) and not k.startswith(_FREE)]
    facts = json.loads((run / "environment.json").read_text(encoding="utf-8")) if (run / "environment.json").is_file() else {}
    lines = [f"  {key}: {old.get(key)} then, {new.get(key)} now" for key in changed]
    if facts.get("manifest_hash", manifest_hash) != manifest_hash:
        lines.append("  the manifest's rows have changed")
    if lines:
        raise ConfigError(
            "\n".join([f"'{run}' holds a run of another recipe; choose another out=, or undo these changes:", *lines])
        )


def _with_defaults(tree: Any) -> Any:
    """A recipe written by an older medfm, with the defaults of the keys that it did not have yet."""
    from pydantic import ValidationError

    from medfm.training.config import PretrainConfig

    try:
        return as_recipe(PretrainConfig.model_validate(tree))
    except ValidationError:  # a file that is gone, a key that no longer exists: shown as a difference
        return tree


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}."))
    return flat
