"""Grounding: do the heat maps of findings fall into their masks? Pointing game and Dice, beside random weights.

Sources: Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop", for the pointing game: a hit where the map's
maximum lies on the object, with a tolerance (15 pixels there; `tolerance`, 0 mm by default, here). Dice is that of the map cut
at the threshold which gives the best mean Dice of that finding on the validation split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfm.encoders.patches import enlarge
from medfm.errors import ConfigError, DataError
from medfm.evaluation.beside import Draws, averaged, compared, put
from medfm.evaluation.encode import Failure, pick_device, progress_bar, read_batches, unreadable
from medfm.evaluation.grounded_images import GroundedFiles, Packed
from medfm.evaluation.masked_images import LOOK, MaskedFiles, found_structures, full_resolution, mask_keys
from medfm.evaluation.scoring import LABEL, MIN_FOR_MEAN, LabelledFinding, few_patients, labelled_rows, patient_codes
from medfm.evaluation.statistics import PatientResamples
from medfm.text.prompts import FindingPrompts, PromptSet, load_prompts
from medfm.weights.model import finite

if TYPE_CHECKING:
    from medfm.data.manifest import Manifest
    from medfm.evaluation.config import GroundingConfig
    from medfm.weights.model import Model

_THRESHOLDS = 200


@dataclass(eq=False)
class Grounded:
    """One finding in one image.

    Attributes:
        row: of the manifest's table. place: among the files.
        mask: on the network's grid; lost: pixels of it that the network does not see; box: what of the grid is image.
        maps: (P,) likeness of each model's patches; hit: whether its highest patch lies in the mask; peak: that patch.
        chance: share of the image's patches whose centre lies in the mask (within the tolerance); 0: no map can hit.
    """

    row: int
    place: int
    mask: Packed
    lost: float
    box: tuple[slice, ...]
    chance: float
    maps: list[NDArray[np.float32]] = field(default_factory=list)
    hit: list[bool] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)


def directions(model: Model, findings: Sequence[FindingPrompts], contrast: bool) -> Tensor:
    """(F, D) float64: of each finding the unit mean of its positive prompts, less that of its negative ones."""
    from medfm.evaluation.heatmap import text_direction

    return torch.stack([text_direction(model, f.positive, f.negative if contrast else ()) for f in findings])


def structures_of(finding: FindingPrompts, names: Sequence[str], given: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Names in the masks where a finding lies: as given, or those called as its label, alone or with "left" or "right" before.

    Raises:
        ConfigError: a given name is not among `names`.
    """
    from medfm.registry import suggest

    if finding.name in given:
        for name in given[finding.name]:
            if name not in names:
                known = ", ".join(names[:20])
                raise ConfigError(f"structures: no mask is called '{name}'{suggest(name, names)}; known: {known}")
        return given[finding.name]
    wanted = {f"{side}{finding.label}".casefold() for side in ("", "left ", "right ")}
    return tuple(name for name in names if name.replace("_", " ").casefold() in wanted)


@torch.no_grad()
def patch_maps(model: Model, images: Tensor, direction: Tensor) -> NDArray[np.float32]:
    """images (B, C, *size) in storage dtype, directions (F, D) -> products (B, F, P), see `DualEncoder.image_tokens`."""
    tokens, _ = model.dual.image_tokens(model.preprocess.to_float(images.to(model.device)))
    return (finite(tokens.double().cpu(), model) @ direction.T).transpose(1, 2).float().numpy()


def overlaps(
    case: Grounded,
    number: int,
    grid: Sequence[int],
    size: Sequence[int],
    thresholds: NDArray,
    centre: Sequence[float] | None = None,
) -> NDArray[np.float64]:
    """(T,) Dice of a map, enlarged linearly to the network's grid, at every threshold (ascending)."""
    heat = enlarged(case.maps[number], grid, size, centre)[case.box]
    mask = case.mask.full(size)[case.box]

    def above(values: NDArray) -> NDArray[np.int64]:
        """How many values reach each threshold."""
        counts = np.bincount(np.searchsorted(thresholds, values, side="right"), minlength=len(thresholds) + 1)
        return counts[::-1].cumsum()[::-1][1:]

    called, both = above(heat.reshape(-1)), above(heat[mask])
    true = int(mask.sum()) + case.lost
    return np.asarray(2 * both / np.maximum(called + true, 1e-9), np.float64)


def enlarged(
    values: NDArray[np.float32], grid: Sequence[int], size: Sequence[int], centre: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """A map of patches (P,) on the network's grid, linear between what they are centred on."""
    return enlarge(torch.from_numpy(values).reshape(1, 1, *grid), size, centre)[0, 0].numpy()


def best_threshold(
    cases: Sequence[Grounded], number: int, grid: Sequence[int], size: Sequence[int], centre: Sequence[float] | None = None
) -> float | None:
    """The threshold of the best mean Dice over `cases`; None without any."""
    if not cases:
        return None
    low, high = min(c.maps[number].min() for c in cases), max(c.maps[number].max() for c in cases)
    thresholds = np.linspace(low, high, _THRESHOLDS)
    return float(thresholds[np.mean([overlaps(c, number, grid, size, thresholds, centre) for c in cases], axis=0).argmax()])


@dataclass(eq=False)
class Done:
    """Everything that a card needs beside the result: the cases of the scored split by finding, and how images are read."""

    cases: dict[str, list[Grounded]]
    model: Model
    files: GroundedFiles
    manifest: Manifest


def run_grounding(config: GroundingConfig, progress: bool = True) -> dict[str, Any]:
    """`medfm evaluate grounding`: heat maps of the findings of a prompt set against the manifest's masks.

    Scored are images whose mask holds the finding's structures (and, where the manifest has the finding's label, says that it
    is present). Writes `result.json` and `card.html` into `config.out` (default: `grounding` beside the weights).

    Returns:
        What `result.json` holds.

    Raises:
        MedfmError: the prompts, the weights, the manifest, an image or a mask cannot be used, or no finding has masks.
    """
    from medfm.data.check import checked
    from medfm.data.dataset import of_views
    from medfm.data.manifest import read_manifest
    from medfm.evaluation import provenance
    from medfm.evaluation.grounding_card import write_grounding
    from medfm.weights.load import load_model

    provenance.require_folder(config, "grounding")
    prompts = load_prompts(config.prompts).using("pair" if config.contrast else None).select(config.findings)
    unknown = sorted(set(config.structures) - {f.name for f in prompts.findings})
    if unknown:
        raise ConfigError(f"structures: prompt set '{prompts.name}' has no finding {', '.join(map(repr, unknown))}")
    data = config.data
    wanted = (data.split, data.val_split)
    manifest, report = checked(read_manifest(data.manifest, data.root), data, splits=wanted, progress=progress)
    manifest = of_views(manifest, data.views)
    device = pick_device(config.device)
    model = load_model(config.model, device)
    models = [model, *([model.random_like(config.seed)] if config.random_baseline else [])]
    rows = _rows_with_masks(manifest, data.split, data.val_split)
    findings, groups, left_out, files = _files(config, manifest, rows, prompts, model)
    cases, failures = _cases(models, manifest, rows, findings, files, config, progress)
    splits = manifest.frame["split"].astype(str).to_numpy()
    size, grid, centre = model.preprocess.config.size, files.grid, files.centre
    patients = patient_codes(manifest.frame)
    scored = np.unique([c.row for several in cases.values() for c in several if splits[c.row] == data.split]).astype(np.int64)
    resamples = PatientResamples(patients[scored], config.bootstrap, config.seed)
    entries: list[dict[str, Any]] = []
    draws: dict[str, dict[str, Draws]] = {}
    shown: dict[str, list[Grounded]] = {}
    for finding, group in zip(findings, groups, strict=True):
        test = [c for c in cases[finding.name] if splits[c.row] == data.split]
        val = [c for c in cases[finding.name] if splits[c.row] == data.val_split]
        if not test:
            left_out.append({"name": finding.name, "reason": f"no image of split '{data.split}' holds it"})
            continue
        at = np.searchsorted(scored, [c.row for c in test])
        hits = np.array([c.hit for c in test], np.float64)
        cuts = [best_threshold(val, number, grid, size, centre) for number in range(len(models))]
        mine = {"pointing": compared(hits[:, 0], hits[:, 1] if len(models) > 1 else None, at, resamples)}
        if cuts[0] is not None:
            dice = np.array(
                [[overlaps(c, n, grid, size, np.array([cut]), centre)[0] for n, cut in enumerate(cuts)] for c in test],
                np.float64,
            )
            mine["dice"] = compared(dice[:, 0], dice[:, 1] if len(models) > 1 else None, at, resamples)
        entry: dict[str, Any] = {
            "name": finding.name,
            "label": finding.label,
            "structures": list(group),
            "images": len(test),
            "patients": len(np.unique(patients[scored[at]])),
            "val_images": len(val),
            "in_mean": len(test) >= MIN_FOR_MEAN,
            "chance": float(np.mean([c.chance for c in test])),
            "ceiling": float(np.mean([c.chance > 0 for c in test])),
            "threshold": cuts[0],
            "lost": int(sum(c.lost > 0 for c in test)),
        }
        for metric in ("pointing", "dice"):
            put(entry, metric, mine.get(metric), config.confidence)
        entries.append(entry)
        draws[finding.name], shown[finding.name] = mine, test
    if not entries:
        raise DataError(f"no mask of split '{data.split}' holds any of: {', '.join(f.name for f in findings)}")
    result = provenance.envelope(
        "grounding",
        config,
        model,
        manifest,
        report,
        device,
        findings=entries,
        mean=_mean(entries, draws, config.confidence),
        left_out=left_out,
        images=len(scored),
        patients=len(np.unique(patients[scored])),
        unreadable=provenance.failure_facts(failures, manifest.frame.index.to_numpy()[rows]),
        prompts={"name": prompts.name, "hash": prompts.hash(), "method": prompts.method, "source": prompts.source},
        grid={"patches": list(grid), "image": list(size)},
    )
    result["caveats"] += few_patients(result["patients"], [])
    write_grounding(Path(result["folder"]), result, Done(shown, model, files, manifest))
    return result


def _rows_with_masks(manifest: Manifest, split: str, val_split: str) -> NDArray[np.int64]:
    splits = manifest.frame["split"].astype(str).to_numpy()
    masks = manifest.frame["mask"].fillna("").astype(str).str.strip().to_numpy() if "mask" in manifest.frame else None
    rows = np.flatnonzero(np.isin(splits, (split, val_split)) & (masks != "")) if masks is not None else np.empty(0, np.int64)
    if not (splits[rows] == split).any():
        raise DataError(
            f"no image of split '{split}' names a mask; index with mask=COLUMN, or a card that says where masks lie"
        )
    return rows


def _files(
    config: GroundingConfig, manifest: Manifest, rows: NDArray[np.int64], prompts: PromptSet, model: Model
) -> tuple[list[FindingPrompts], list[tuple[str, ...]], list[dict[str, str]], GroundedFiles]:
    """Findings with masks, their structures, the findings left out, and how images are read."""
    from medfm.evaluation.probe_table import features_folder

    labels = dict(config.mask_labels) or {int(n): str(v) for n, v in (manifest.meta.get("mask_labels") or {}).items()}
    frame, preprocess = manifest.frame.iloc[rows], full_resolution(model.preprocess)
    places = [manifest.root / name for name in frame["image"]], [manifest.root / name for name in frame["mask"]]
    modalities = frame["modality"].tolist()
    names = tuple(labels.values())
    where = ""
    if not names:
        looked = MaskedFiles(*places, modalities, preprocess, (), labels)
        names = found_structures(looked, mask_keys(manifest, rows), features_folder(config.model, None), config.data.on_error)
        where = f" among the first {LOOK} masks" if len(rows) > LOOK else ""
        # Others may hold what these do not: a given name is taken at its word.
        names = tuple(dict.fromkeys([*names, *(name for group in config.structures.values() for name in group)]))
    findings, groups, left_out = [], [], []
    for finding in prompts.findings:
        group = structures_of(finding, names, config.structures)
        if group:
            findings.append(finding)
            groups.append(group)
        elif config.findings:
            raise DataError(
                f"finding '{finding.name}' has no mask of its name{where}; masks are called: {', '.join(names[:30])}; set "
                f"structures={{{finding.name}: [names]}}"
            )
        else:
            left_out.append({"name": finding.name, "reason": f"no mask of its name{where}"})
    if not findings:
        raise DataError(
            f"no finding of prompt set '{prompts.name}' has a mask of its name{where}; masks are called: "
            f"{', '.join(names[:30])}; set structures={{Finding: [names]}}"
        )
    blank = torch.zeros(1, *preprocess.stored_shape, dtype=getattr(torch, preprocess.config.dtype))
    with torch.no_grad():
        _, grid = model.dual.image_tokens(model.preprocess.to_float(blank.to(model.device)))
    files = GroundedFiles(*places, modalities, preprocess, groups, labels, grid, config.tolerance, model.dual.token_centre)
    return findings, groups, left_out, files


def _cases(
    models: Sequence[Model],
    manifest: Manifest,
    rows: NDArray[np.int64],
    findings: Sequence[FindingPrompts],
    files: GroundedFiles,
    config: GroundingConfig,
    progress: bool,
) -> tuple[dict[str, list[Grounded]], list[Failure]]:
    """Every finding in every image that holds it, by finding; and what could not be read."""
    frame = manifest.frame.iloc[rows]
    says = np.ones((len(rows), len(findings)), bool)
    for column, finding in enumerate(findings):
        if f"{LABEL}{finding.label}" in frame:
            labelled, target = labelled_rows(frame, LabelledFinding(finding.name, finding.label), "ignore")
            says[:, column] = False
            says[labelled[target == 1], column] = True
    wanted = np.flatnonzero(says.any(axis=1)).tolist()
    names = frame["image"].tolist()
    aims = [directions(model, findings, config.contrast) for model in models]
    cases: dict[str, list[Grounded]] = {finding.name: [] for finding in findings}
    failures: list[Failure] = []
    few = min(config.data.batch_size, 8)  # volumes with a mask a finding
    with progress_bar("grounding", len(wanted), progress) as advance:
        for batch in read_batches(files, wanted, few, config.data.workers):
            if batch.failures and config.data.on_error == "fail":
                raise unreadable(batch.failures[0], names, "data.on_error")
            failures += batch.failures
            advance(len(batch.positions) + len(batch.failures))
            if not batch.positions:
                continue
            images, masks, distances, inside, voxels, boxes = batch.tensors
            maps = [patch_maps(model, images, aim) for model, aim in zip(models, aims, strict=True)]
            for b, place in enumerate(batch.positions):
                seen = inside[b].numpy()
                box = tuple(slice(int(first), int(last)) for first, last in boxes[b].tolist())
                for column, finding in enumerate(findings):
                    if not says[place, column] or voxels[b, column, 0] == 0:
                        continue
                    near = distances[b, column].numpy() <= config.tolerance
                    packed = Packed.of(masks[b, column].numpy())
                    case = Grounded(int(rows[place]), place, packed, float(voxels[b, column, 1]), box, float(near[seen].mean()))
                    for made in maps:
                        peak = int(np.where(seen, made[b, column], -np.inf).argmax())
                        case.maps.append(made[b, column].copy())
                        case.hit.append(bool(near[peak]))
                        case.peak.append(peak)
                    cases[finding.name].append(case)
    return cases, failures


def _mean(entries: list[dict[str, Any]], draws: dict[str, dict[str, Draws]], confidence: float) -> dict[str, Any]:
    """Over the findings with enough images; of all where none has."""
    chosen = [entry for entry in entries if entry["in_mean"]]
    outside = [
        {"name": e["name"], "reason": f"{e['images']} images, below {MIN_FOR_MEAN}"} for e in entries if not e["in_mean"]
    ]
    mean: dict[str, Any] = {"findings": [entry["name"] for entry in chosen], "not_in_mean": outside}
    for metric in ("pointing", "dice"):
        several = [draws[entry["name"]][metric] for entry in chosen if metric in draws[entry["name"]]]
        put(mean, metric, averaged(several) if several and len(several) == len(chosen) else None, confidence)
    for key in ("chance", "ceiling"):
        mean[key] = float(np.mean([entry[key] for entry in chosen])) if chosen else None
    return mean


def render(result: dict[str, Any]) -> Any:
    """The result as a table for the terminal."""
    from medfm.evaluation.terminal import grounding_table

    return grounding_table(result)
