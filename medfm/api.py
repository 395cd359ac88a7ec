"""Python twins of the verbs: `medfm.pretrain("chest_xray", {"trainer.devices": 8})` is `medfm pretrain recipe=chest_xray ...`.

The same recipes, the same resolution, the same errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.errors import ConfigError
from medfm.registry import suggest

if TYPE_CHECKING:
    from medfm.config.resolve import Resolved


def resolve_verb(verb: str, recipe: str | None, overrides: Mapping[str, Any]) -> Resolved[Any]:
    """The validated configuration of a verb. Raises ConfigError with every problem at once."""
    from medfm.config.describe import schema_of
    from medfm.config.resolve import resolve
    from medfm.config.verbs import VERBS

    if verb not in VERBS:
        raise ConfigError(f"unknown verb '{verb}'{suggest(verb, VERBS) or '; known: ' + ', '.join(VERBS)}")
    schema, other = schema_of(VERBS[verb]), VERBS[verb].changes
    if other:
        overrides = _set_apart(overrides, set(schema.model_fields), set(schema_of(VERBS[other]).model_fields))
    return resolve(schema, verb, recipe, overrides)


def _set_apart(overrides: Mapping[str, Any], own: set[str], others: set[str]) -> dict[str, Any]:
    """Keys of another verb under `changes`, as they are: `{"gpu": "h100", "changes": {"encoder.depth": 24}}`."""
    theirs = {k: v for k, v in overrides.items() if k.partition(".")[0] in others - own}
    kept = {k: v for k, v in overrides.items() if k not in theirs}
    return {**kept, "changes": {**(kept.get("changes") or {}), **theirs}} if theirs else kept


def call(verb: str, recipe: str | None, overrides: Mapping[str, Any], quiet: bool = True) -> Any:
    """Resolve and run a verb. `quiet` suppresses tables and progress on the terminal."""
    from medfm.config.verbs import VERBS

    resolved = resolve_verb(verb, recipe, overrides)
    module, _, attribute = VERBS[verb].run.partition(":")
    return getattr(import_module(module), attribute)(resolved.config, quiet)


def pretrain(recipe: str, overrides: Mapping[str, Any] | None = None) -> Path:
    """Pre-train by a recipe. Returns the run folder, which holds `model.safetensors`."""
    return call("pretrain", recipe, overrides or {})


def index(overrides: Mapping[str, Any]) -> Any:
    """Build a manifest. Returns the report of what was accepted and rejected."""
    return call("index", None, overrides)


def phantom(overrides: Mapping[str, Any]) -> Path:
    """Generate a phantom data set. Returns its folder."""
    return call("phantom", None, overrides)


def evaluate(task: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Score a model on `task` ("zero_shot", "retrieval", "linear_probe", "knn", "segmentation_probe", "grounding",
    "compositional"). Returns the result that `result.json` holds."""
    return call(f"evaluate {task}", None, overrides)


def embed(overrides: Mapping[str, Any]) -> Path:
    """Write image features. Returns the file."""
    return call("embed", None, overrides)


def heatmap(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Write where an image or volume resembles a text. Returns the files and the peak; `medfm.heat_map` gives the map itself,
    for notebooks."""
    return call("heatmap", None, overrides)


def doctor(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Any:
    """Judge every series below a folder or in a manifest. Returns the report, which is also written as HTML and JSON."""
    return call("doctor", None, {"path": str(path), **(overrides or {})})


def deidentify(overrides: Mapping[str, Any]) -> Any:
    """Copy images without what identifies the patient. Returns the report of what was removed."""
    return call("deidentify", None, overrides)


def download(overrides: Mapping[str, Any]) -> Any:
    """Fetch a card's data set, or studies from DICOMweb. Returns the report of what was fetched."""
    return call("download", None, overrides)


def cache(overrides: Mapping[str, Any]) -> Any:
    """Decode and preprocess a manifest's images once. Returns the report; its folder is what `data.cache` takes."""
    return call("cache", None, overrides)


def merge(overrides: Mapping[str, Any]) -> Any:
    """Join the manifests of several data sets. Returns the report."""
    return call("merge", None, overrides)


def plan(recipe: str, gpu: str = "", overrides: Mapping[str, Any] | None = None) -> Any:
    """What a recipe needs of a GPU. `overrides` are keys of `plan` and of `pretrain`. Returns the plan."""
    return call("plan", None, {"recipe": recipe, "gpu": gpu, **(overrides or {})})


def _print(*renderables: Any) -> None:
    from rich.console import Console

    console = Console()
    for renderable in renderables:
        console.print(renderable)


def run_phantom(config: Any, quiet: bool) -> Path:
    from medfm.data.phantom.generate import generate

    folder = generate(**config.model_dump(), progress=not quiet)
    if not quiet:
        _print(f"{folder}: {config.n} {config.kind} studies; reports in {folder / 'reports.csv'}")
    return folder


def run_index(config: Any, quiet: bool) -> Any:
    return _run_and_show("medfm.data.index", "index", quiet, config)


def _run_and_show(module: str, name: str, quiet: bool, *arguments: Any) -> Any:
    """`module.name(*arguments, progress)`, its report shown by the module's `render`."""
    room = import_module(module)
    report = getattr(room, name)(*arguments, progress=not quiet)
    if not quiet:
        _print(room.render(report))
    return report


def run_doctor(config: Any, quiet: bool) -> Any:
    return _run_and_show("medfm.data.doctor.run", "run_doctor", quiet, config)


def run_deidentify(config: Any, quiet: bool) -> Any:
    return _run_and_show("medfm.data.deidentify.run", "run_deidentify", quiet, config)


def run_download(config: Any, quiet: bool) -> Any:
    return _run_and_show("medfm.data.download.run", "run_download", quiet, config)


def run_merge(config: Any, quiet: bool) -> Any:
    return _run_and_show("medfm.data.merge", "run_merge", quiet, config)


def run_cache(config: Any, quiet: bool) -> Any:
    # The contract comes from the recipe that will train on it, so that the two cannot differ.
    changes = {f"preprocess.{key}": value for key, value in config.preprocess.items()}
    recipe = resolve_verb("pretrain", config.recipe, {"data.manifest": str(config.manifest), **changes})
    return _run_and_show("medfm.data.store.run", "run_cache", quiet, config, recipe.config.preprocess)


def run_pretrain(config: Any, quiet: bool) -> Path:
    from medfm.training.pretrain import pretrain as train

    return train(config, progress=not quiet)


def run_plan(config: Any, quiet: bool) -> Any:
    from medfm.config.resolve import resolve
    from medfm.training.config import PretrainConfig

    # Nothing is read of manifest and weights: a plan is made before there is data.
    recipe = resolve(PretrainConfig, "pretrain", config.recipe, config.changes, files=False)
    return _run_and_show("medfm.training.plan.run", "run_plan", quiet, config, recipe.config)


# Configuration of an evaluation -> module and function that runs it; the module's `render` shows its result.
_EVALUATIONS = {
    "ZeroShotConfig": ("zero_shot", "run_zero_shot"),
    "RetrievalConfig": ("retrieval", "run_retrieval"),
    "LinearProbeConfig": ("probe", "run_linear_probe"),
    "KnnConfig": ("probe", "run_knn"),
    "SegmentationProbeConfig": ("segmentation_probe", "run_segmentation_probe"),
    "GroundingConfig": ("grounding", "run_grounding"),
    "CompositionalConfig": ("compositional", "run_compositional"),
}


def run_evaluate(config: Any, quiet: bool) -> dict[str, Any]:
    from medfm.evaluation.overview import write_overview

    module, function = _EVALUATIONS[type(config).__name__]
    result = _run_and_show(f"medfm.evaluation.{module}", function, quiet, config)
    page = write_overview(result)
    if page is not None and not quiet:
        _print(f"all scores of these weights: {page}")
    return result


def run_heatmap(config: Any, quiet: bool) -> dict[str, Any]:
    return _run_and_show("medfm.evaluation.heatmap", "run_heatmap", quiet, config)


def run_embed(config: Any, quiet: bool) -> Path:
    from medfm.evaluation.embed import run_embed as write

    path = write(config, progress=not quiet)
    if not quiet:
        _print(f"features in {path}")
    return path
