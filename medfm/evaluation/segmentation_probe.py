"""Segmentation probe: how well structures can be read off frozen patch tokens by one linear layer, in 2D and 3D."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from medfm.errors import DataError
from medfm.evaluation.encode import pick_device, progress_bar
from medfm.evaluation.masked_images import MaskedFiles, found_structures, full_resolution, mask_keys, masked_images, part
from medfm.evaluation.probe_table import features_folder, probe_manifest
from medfm.evaluation.scoring import few_patients, patient_codes
from medfm.evaluation.segmentation_fit import MaskFit, Patches, choose_probe, dice_scores, fit_masks, too_small
from medfm.evaluation.statistics import Floats, PatientResamples, interval, weighted_mean

if TYPE_CHECKING:
    from medfm.data.manifest import Manifest
    from medfm.evaluation.config import SegmentationProbeConfig
    from medfm.weights.model import Model


@dataclass(frozen=True, eq=False)
class Segmented:
    """Everything that a card needs beside the result.

    Attributes:
        structures: S names.
        rows: (n,) row numbers of the manifest; dice (n, S), NaN where the image does not hold the structure.
        model, files: to show images; `places` (n,) of the scored images among the files.
        patches: of the scored images; fit: the model's layer.
    """

    structures: tuple[str, ...]
    rows: NDArray[np.int64]
    dice: Floats
    model: Model
    files: MaskedFiles
    places: NDArray[np.int64]
    patches: Patches
    fit: MaskFit


def run_segmentation_probe(config: SegmentationProbeConfig, progress: bool = True) -> dict[str, Any]:
    """`medfm evaluate segmentation_probe`: fit one linear layer from frozen patch tokens to the masks of the training split,
    choose its penalty and thresholds on the validation split, score Dice on the test split, and write the evaluation card.

    Masks are those of the manifest's `mask` column, brought to the network's grid as the images are; Dice is taken there. Where
    the validation split has no masks, a fifth of the training patients stands in and is not fitted on.

    Writes `result.json`, `card.html` and `predictions.parquet` (Dice an image) into `config.out` (default: `segmentation_probe`
    beside the weights). Patient ids are in none of them.

    Returns:
        What `result.json` holds.

    Raises:
        MedfmError: the weights, the manifest, an image or a mask cannot be used; says which and what to do.
    """
    from medfm.evaluation import provenance
    from medfm.evaluation.segmentation_card import write_segmentation
    from medfm.weights.load import load_model

    provenance.require_folder(config, "segmentation_probe")
    device = pick_device(config.device)
    model = load_model(config.model, device)
    models = {"model": model} | ({"random": model.random_like(config.seed)} if config.random_baseline else {})
    manifest, report = probe_manifest(config, progress)
    asked, splits = _with_masks(manifest, config)
    folder = features_folder(config.model, config.features)
    files = _files(manifest, asked, splits, model, config, folder)
    data = config.data
    with progress_bar("patch features", len(asked), progress) as advance:
        made = masked_images(
            list(models.values()),
            manifest,
            asked,
            files,
            folder,
            data.batch_size,
            data.workers,
            data.on_error,
            advance,
            config.blocks,
        )
    rows, splits = asked[made.positions], splits[made.positions]
    patients = patient_codes(manifest.frame)[rows]
    at, chosen_on = _places(splits, patients, config)
    structures = files.structures
    fits: dict[str, MaskFit] = {}
    dice: dict[str, Floats] = {}
    marked: dict[str, NDArray[np.int64]] = {}
    few = min(16, data.batch_size)
    with progress_bar("linear layer", config.iterations * len(config.l2) * len(models), progress) as advance:
        for name, patches in zip(models, made.patches, strict=True):
            probes = fit_masks(part(patches, at["train"]), config.l2, config.iterations, few, device, advance)
            fits[name] = choose_probe(probes, part(patches, at["val"]), few)
            scores = dice_scores(fits[name].probe, part(patches, at["test"]), fits[name].thresholds[:, None], few)
            dice[name], marked[name] = scores[0][:, :, 0], scores[1][:, :, 0]
    lost = too_small(part(made.patches[0], at["test"]), few)
    entries, mean, left_out = _score(structures, dice, marked, lost, fits, patients[at["test"]], config)
    result = provenance.envelope(
        "segmentation_probe",
        config,
        model,
        manifest,
        report,
        device,
        structures=entries,
        mean=mean,
        left_out=left_out,
        chosen={name: {"l2": config.l2[done.number], "by": chosen_on} for name, done in fits.items()},
        images=len(at["test"]),
        patients=len(np.unique(patients[at["test"]])),
        train_images=len(at["train"]),
        train_patients=len(np.unique(patients[at["train"]])),
        val_images=len(at["val"]),
        unreadable=provenance.failure_facts(made.failures, manifest.frame.index.to_numpy()[asked]),
        grid={"patches": list(made.patches[0].grid), "image": list(made.patches[0].size)},
    )
    result["caveats"] += few_patients(result["patients"])
    write_segmentation(
        Path(result["folder"]),
        result,
        Segmented(
            structures,
            manifest.frame.index.to_numpy()[rows[at["test"]]],
            dice["model"],
            model,
            files,
            made.positions[at["test"]],
            part(made.patches[0], at["test"]),
            fits["model"],
        ),
    )
    return result


def _with_masks(manifest: Manifest, config: SegmentationProbeConfig) -> tuple[NDArray[np.int64], NDArray]:
    """Rows of the three splits that name a mask, and their splits."""
    data = config.data
    splits = manifest.frame["split"].astype(str).to_numpy()
    masks = manifest.frame["mask"].fillna("").astype(str).str.strip().to_numpy()
    used = np.isin(splits, [name for name in (data.train_split, data.val_split, data.split) if name])
    rows = np.flatnonzero(used & (masks != ""))
    for split in (data.train_split, data.split):
        if not (splits[rows] == split).any():
            raise DataError(
                f"no image of split '{split}' names a mask; index with mask=COLUMN, or a card that says where masks lie"
            )
    return rows, splits[rows]


def _files(
    manifest: Manifest,
    rows: NDArray[np.int64],
    splits: NDArray,
    model: Model,
    config: SegmentationProbeConfig,
    folder: Path,
) -> MaskedFiles:
    """How images and masks are read, with the structures that are scored."""
    labels = dict(config.mask_labels)
    if not labels:
        labels = {int(number): str(name) for number, name in (manifest.meta.get("mask_labels") or {}).items()}
    frame = manifest.frame.iloc[rows]
    files = MaskedFiles(
        [manifest.root / name for name in frame["image"]],
        [manifest.root / name for name in frame["mask"]],
        frame["modality"].tolist(),
        full_resolution(model.preprocess),
        tuple(dict.fromkeys(config.structures or (labels[number] for number in sorted(labels)))),
        labels,
    )
    if files.structures:
        return files
    first = np.flatnonzero(splits == config.data.train_split).tolist()
    train = MaskedFiles(
        [files.paths[n] for n in first],
        [files.masks[n] for n in first],
        [files.modalities[n] for n in first],
        files.preprocess,
        (),
        labels,
    )
    files.structures = found_structures(train, mask_keys(manifest, rows[first]), folder, config.data.on_error)
    return files


def _places(
    splits: NDArray, patients: NDArray[np.int64], config: SegmentationProbeConfig
) -> tuple[dict[str, NDArray[np.int64]], str]:
    """Places of the training, validation and test images, and on what the layer is chosen."""
    data = config.data
    at = {
        name: np.flatnonzero(splits == split)
        for name, split in (("train", data.train_split), ("val", data.val_split), ("test", data.split))
    }
    for name in ("train", "test"):
        if not len(at[name]):
            raise DataError(f"none of the images with masks to {'fit on' if name == 'train' else 'score'} can be read")
    if len(at["val"]):
        return at, "val"
    names = np.unique(patients[at["train"]])
    if len(names) < 2:
        raise DataError(f"split '{data.train_split}' has masks of one patient and split '{data.val_split}' none: too few")
    drawn = np.random.default_rng(config.seed).permutation(names)[: max(1, len(names) // 5)]
    held_out = np.isin(patients[at["train"]], drawn)
    at["val"], at["train"] = at["train"][held_out], at["train"][~held_out]
    return at, "a fifth of the training patients"


def _score(
    structures: tuple[str, ...],
    dice: dict[str, Floats],
    marked: dict[str, NDArray[np.int64]],
    lost: NDArray[np.bool_],
    fits: dict[str, MaskFit],
    patients: NDArray[np.int64],
    config: SegmentationProbeConfig,
) -> tuple[list[dict[str, Any]], dict[str, Any], list[dict[str, str]]]:
    """Of every structure its mean Dice with interval, random weights beside it and the difference; their mean; what was left
    out: structures, and images of others, too small for the grid (`lost`)."""
    resamples = PatientResamples(patients, config.bootstrap, config.seed)
    entries, left_out = [], []
    samples: dict[str, list[Floats]] = {"model": [], "random": [], "difference": []}

    def estimate(key: str, values: NDArray, rows: NDArray[np.int64]) -> dict[str, Any]:
        statistic = weighted_mean(values)
        samples[key].append(resamples.evaluate(statistic, rows))
        return interval(float(values.mean()), samples[key][-1], config.confidence).to_dict()

    for number, name in enumerate(structures):
        values = dice["model"][:, number]
        rows = np.flatnonzero(~np.isnan(values))
        if small := int(lost[:, number].sum()):
            images = f"{small} of its {small + len(rows)} images" if len(rows) else f"all of its {small} images"
            reason = f"{images}: too small, it covers half of no pixel of the network's grid"
            left_out.append({"name": name, "reason": reason})
        if not len(rows):
            if not small:
                left_out.append({"name": name, "reason": "no image of the scored split holds it"})
            continue
        absent = np.flatnonzero(np.isnan(values) & ~lost[:, number])
        entry: dict[str, Any] = {
            "name": name,
            "images": len(rows),
            "patients": len(np.unique(patients[rows])),
            "dice": estimate("model", values[rows], rows),
            "threshold": float(fits["model"].thresholds[number]),
            "without": {"images": len(absent), "marked": int((marked["model"][absent, number] > 0).sum())},
        }
        if "random" in dice:
            random = dice["random"][rows, number]
            entry["random"] = {
                "dice": estimate("random", random, rows),
                "difference": estimate("difference", values[rows] - random, rows),
                "threshold": float(fits["random"].thresholds[number]),
            }
        entries.append(entry)
    if not entries:
        reasons = "; ".join(f"{item['name']}: {item['reason']}" for item in left_out)
        raise DataError(f"no structure can be scored on split '{config.data.split}' ({reasons})")

    def average(key: str, values: list[float]) -> dict[str, Any]:
        return interval(float(np.mean(values)), np.mean(samples[key], axis=0), config.confidence).to_dict()

    mean: dict[str, Any] = {"dice": average("model", [entry["dice"]["value"] for entry in entries])}
    if "random" in dice:
        mean["random"] = {
            "dice": average("random", [entry["random"]["dice"]["value"] for entry in entries]),
            "difference": average("difference", [entry["random"]["difference"]["value"] for entry in entries]),
        }
    return entries, mean, left_out


@torch.no_grad()
def predicted_mask(done: Segmented, place: int) -> NDArray[np.bool_]:
    """(S, *size): what the probe marks in one of the scored images."""
    patches, probe = done.patches, done.fit.probe
    tokens = torch.from_numpy(patches.tokens([place])).to(probe.mean.device, torch.float32)
    probability = probe.logits(tokens, patches.grid, patches.size, patches.centre)[0].sigmoid().cpu().numpy()
    return np.asarray(probability >= done.fit.thresholds.reshape(-1, *[1] * len(patches.size)))


def render(result: dict[str, Any]) -> Any:
    """The result as a table for the terminal."""
    from medfm.evaluation.terminal import segmentation_table

    return segmentation_table(result)
