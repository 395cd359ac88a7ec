"""Probes of frozen features: how well findings can be read off them by a line, or by the nearest training images.

Sources: Alain and Bengio 2016 (linear probes); Wu et al. 2018 and Caron et al. 2021 (DINO) for the weighted nearest-neighbour
vote; Radford et al. 2021 (CLIP) for choosing the strength on a validation split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfm.evaluation.encode import pick_device, progress_bar
from medfm.evaluation.probe_fit import Fit, Linear, Method, Neighbours, draw_patients, fit, mean_auroc
from medfm.evaluation.probe_table import ProbeTable, probe_manifest
from medfm.evaluation.scoring import Scored, Settings, few_patients, score
from medfm.evaluation.statistics import Floats

if TYPE_CHECKING:
    from medfm.evaluation.config import ClassificationProbeConfig, KnnConfig, LinearProbeConfig

# A finding with fewer training images of a class is probed, with a warning: its probe is mostly noise.
FEW = 10


@dataclass(frozen=True, eq=False)
class Probed:
    """Everything that a card needs beside the result.

    Attributes:
        scored: by finding.
        findings: in the order of the columns of the probabilities.
        rows, probabilities: of the scored split, (n,) row numbers of the manifest and (n, F).
        val_rows, val_probabilities: of the split that strength and thresholds come from.
    """

    scored: dict[str, Scored]
    findings: list[str]
    rows: NDArray[np.int64]
    probabilities: Floats
    val_rows: NDArray[np.int64]
    val_probabilities: Floats


def run_linear_probe(config: LinearProbeConfig, progress: bool = True) -> dict[str, Any]:
    """`medfm evaluate linear_probe`: fit one logistic regression a finding on frozen features of the training split, choose its
    penalty on the validation split, score the test split, and write the evaluation card.

    Writes `result.json`, `card.html` and `predictions.parquet` into `config.out` (default: `linear_probe` beside the weights).
    Patient ids are in none of them.

    Returns:
        What `result.json` holds.

    Raises:
        MedfmError: the weights, the manifest or an image cannot be used; says which and what to do.
    """
    return _run("linear_probe", config, Linear(config.l2, pick_device(config.device)), progress)


def run_knn(config: KnnConfig, progress: bool = True) -> dict[str, Any]:
    """`medfm evaluate knn`: as `run_linear_probe`, by the weighted vote of the nearest training images."""
    return _run("knn", config, Neighbours(config.k, config.temperature, pick_device(config.device)), progress)


def _run(task: str, config: ClassificationProbeConfig, method: Method, progress: bool) -> dict[str, Any]:
    from medfm.evaluation import provenance
    from medfm.evaluation.card import write_probe
    from medfm.weights.load import load_model

    provenance.require_folder(config, task)
    device = pick_device(config.device)
    model = load_model(config.model, device)
    others = {"random": model.random_like(config.seed)} if config.random_baseline else {}
    if config.against is not None:
        others["against"] = load_model(config.against, device)
    manifest, report = probe_manifest(config, progress)
    table = ProbeTable.of(manifest, config)
    features, failures = table.features({"model": model, **others}, config, progress)
    table = table.only(features.pop("rows"))
    fits = {name: fit(method, *table.parts(features[name]), seed=config.seed) for name in features}
    result, scored = score(
        table.frame("test"),
        table.findings,
        fits["model"].test,
        Settings("ignore", config.bootstrap, config.confidence, config.seed),
        (table.frame("val"), fits["model"].val) if len(table.at["val"]) else None,
        fits["random"].test if "random" in fits else None,
        fits["against"].test if "against" in fits else None,
    )
    for entry in result["findings"]:
        column = table.names.index(entry["name"])
        entry["train"] = table.counts(column)
        entry["chosen"] = fits["model"].chosen[column]
        for name in others:
            entry[name]["chosen"] = fits[name].chosen[column]
    result["left_out"] = table.left_out + result["left_out"]
    content = {
        **result,
        "method": {"strength": method.strength, "candidates": list(method.candidates)},
        "images": len(table.at["test"]),
        "patients": len(np.unique(table.patients[table.at["test"]])),
        "train_images": len(table.at["train"]),
        "train_patients": len(np.unique(table.patients[table.at["train"]])),
        "val_images": len(table.at["val"]),
        "unreadable": provenance.failure_facts(failures, manifest.frame.index.to_numpy()[table.asked]),
        "features": {
            "size": int(features["model"].shape[1]),
            "pool": config.pool or str(model.network.image_encoder.pool),
            "blocks": config.blocks,
        },
        "label_efficiency": _label_efficiency(config, method, table, features, fits, result["mean"]["findings"], progress),
    }
    result = provenance.envelope(task, config, model, manifest, report, device, **content)
    result["caveats"] += _few(result["findings"]) + few_patients(result["patients"], result["findings"])
    if config.against is not None:
        result["against"] = provenance.model_facts(config.against, others["against"])
    numbers = manifest.frame.index.to_numpy()
    done = Probed(
        scored,
        table.names,
        numbers[table.rows[table.at["test"]]],
        fits["model"].test,
        numbers[table.rows[table.at["val"]]],
        fits["model"].val,
    )
    write_probe(Path(result["folder"]), result, done)
    return result


def _few(findings: list[dict[str, Any]]) -> list[str]:
    few = [entry["name"] for entry in findings if min(entry["train"]["positives"], entry["train"]["negatives"]) < FEW]
    return [f"Fitted on fewer than {FEW} images of a class: {', '.join(few)}."] if few else []


def _label_efficiency(
    config: ClassificationProbeConfig,
    method: Method,
    table: ProbeTable,
    features: dict[str, NDArray[np.float32]],
    fits: dict[str, Fit],
    averaged: list[str],
    progress: bool,
) -> list[dict[str, Any]]:
    """Mean AUROC by share of the training patients; [] where no shares are asked for, or no finding enters the mean."""
    columns = [table.names.index(name) for name in averaged]
    if not config.train_share or not columns:
        return []
    rows = []
    steps = sum(config.draws if share < 1 else 1 for share in config.train_share) * len(features)
    with progress_bar("label efficiency", steps, progress) as advance:
        for share in config.train_share:
            entry: dict[str, Any] = {"share": share, "draws": config.draws if share < 1 else 1}
            for name, values in features.items():
                train, val, test = table.parts(values)
                areas, images, patients = [], [], []
                for draw in range(entry["draws"]):
                    kept = draw_patients(train.patients, share, config.seed, draw) if share < 1 else np.arange(len(train))
                    part = train.where(kept)
                    done = fit(method, part, val, test, config.seed) if share < 1 else fits[name]
                    areas.append(mean_auroc(test, done.test, columns))
                    images.append(len(part))
                    patients.append(len(np.unique(part.patients)))
                    advance(1)
                entry["patients"], entry["images"] = int(np.median(patients)), int(np.median(images))
                entry[name] = {"mean": float(np.mean(areas)), "low": float(np.min(areas)), "high": float(np.max(areas))}
            rows.append(entry)
    return rows


def render(result: dict[str, Any]) -> Any:
    """The result as a table for the terminal."""
    from medfm.evaluation.terminal import probe_table

    return probe_table(result)
