"""Image-report retrieval: recall at k and median rank in both directions, beside chance and random weights.

Equal reports are one report: an image's hit is the report text it has, whoever else has it, and a report's hit is any image
with that text. Without this, "No acute findings." would be counted wrong on nearly every try.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfm.errors import DataError
from medfm.evaluation.encode import encode_all, pick_device, progress_bar
from medfm.evaluation.scoring import few_patients, patient_codes
from medfm.evaluation.statistics import Floats, PatientResamples, bootstrap, weighted_mean, weighted_median

if TYPE_CHECKING:
    from medfm.evaluation.config import RetrievalConfig

_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Queries:
    """One direction of retrieval.

    Attributes:
        name: "image to report" or "report to image".
        patients: (Q,) patient code of each query, for the bootstrap.
        relevant: (Q,) how many of the candidates are hits for each query.
        candidates: size of the pool.
    """

    name: str
    patients: NDArray[np.int64]
    relevant: NDArray[np.int64]
    candidates: int


def image_ranks(images: Tensor, texts: Tensor, text_of: NDArray[np.int64]) -> Floats:
    """Rank of each image's own text among the distinct texts, best 1; candidates that tie with it count half.

    Args:
        images: (N, D) unit vectors. texts: (U, D), the distinct texts. text_of: (N,) which text belongs to each image.
    """
    ranks = []
    for start in range(0, len(images), _CHUNK):
        own = torch.from_numpy(text_of[start : start + _CHUNK])
        similarity = images[start : start + _CHUNK].double() @ texts.double().T
        mine = similarity.gather(1, own[:, None])
        ranks.append(1 + (similarity > mine).sum(1) + 0.5 * ((similarity == mine).sum(1) - 1))
    return torch.cat(ranks).double().numpy()


def text_ranks(texts: Tensor, images: Tensor, text_of: NDArray[np.int64]) -> Floats:
    """Rank of the best image that has each distinct text, among all images; other images that tie with it count half. (U,),
    best 1."""
    own = torch.from_numpy(text_of)
    ranks = []
    for start in range(0, len(texts), _CHUNK):
        similarity = texts[start : start + _CHUNK].double() @ images.double().T
        hit = torch.arange(start, start + len(similarity))[:, None] == own
        best = similarity.masked_fill(~hit, -math.inf).amax(1, keepdim=True)
        others = similarity.masked_fill(hit, -math.inf)
        ranks.append(1 + (others > best).sum(1) + 0.5 * (others == best).sum(1))
    return torch.cat(ranks).double().numpy()


def chance_recall(candidates: int, relevant: NDArray[np.int64]) -> Floats:
    """Recall at k = 1 .. `candidates` of a random order, for queries with `relevant` (Q,) hits in the pool: the mean over the
    queries of 1 - C(candidates - m, k) / C(candidates, k)."""
    k = np.arange(candidates)
    recall = np.zeros(candidates)
    for m, count in zip(*np.unique(relevant, return_counts=True), strict=True):
        missed = np.cumprod(np.maximum(candidates - m - k, 0) / (candidates - k))
        recall += count * (1 - missed)
    return recall / len(relevant)


def recall_curve(ranks: Floats, candidates: int) -> Floats:
    """Recall at k = 1 .. `candidates`."""
    return np.searchsorted(np.sort(ranks), np.arange(1, candidates + 1), side="right") / len(ranks)


def summarise(ranks: Floats, resamples: PatientResamples, ks: Sequence[int], confidence: float) -> dict[str, Any]:
    """Recall at each k and median rank, with intervals over patients. Queries are resampled, the pool of candidates stays."""
    recall = {str(k): bootstrap(weighted_mean(ranks <= k), resamples, confidence).to_dict() for k in ks}
    return {"recall": recall, "median_rank": bootstrap(weighted_median(ranks), resamples, confidence).to_dict()}


def _chance(queries: Queries, ks: Sequence[int]) -> dict[str, float]:
    curve = chance_recall(queries.candidates, queries.relevant)
    at_k = {str(k): float(curve[min(k, queries.candidates) - 1]) for k in ks}
    return {**at_k, "median_rank": float(np.argmax(curve >= 0.5) + 1)}


def run_retrieval(config: RetrievalConfig, progress: bool = True) -> dict[str, Any]:
    """`medfm evaluate retrieval`: writes `result.json` and `card.html` into `config.out` (default: `retrieval` beside the
    weights).

    Returns:
        What `result.json` holds. No report is in it, nor any patient id.

    Raises:
        MedfmError: the weights, the manifest or an image cannot be used, or fewer than two distinct reports are in the split.
    """
    from medfm.data.check import checked
    from medfm.data.dataset import of_views
    from medfm.data.manifest import read_manifest
    from medfm.evaluation import provenance
    from medfm.text.report import select_text, text_key
    from medfm.weights.load import load_model

    provenance.require_folder(config, "retrieval")
    manifest, report = checked(
        read_manifest(config.data.manifest, config.data.root), config.data, splits=(config.data.split,), progress=progress
    )
    manifest = of_views(manifest, config.data.views)
    frame = manifest.frame[manifest.frame["split"].astype(str) == config.data.split]
    if frame.empty:
        raise DataError(f"the manifest has no rows of split '{config.data.split}'")
    texts = [select_text(str(report), config.report, None).strip() for report in frame["report"].fillna("")]
    filled = np.array([bool(text) for text in texts])
    frame, texts = frame[filled], [text for text in texts if text]
    names, numbers = frame["image"].astype(str).tolist(), frame.index.to_numpy()
    if len({text_key(text) for text in texts}) < 2:
        raise DataError(f"split '{config.data.split}' has {len(texts)} reports, fewer than two distinct: nothing to retrieve")
    device = pick_device(config.device)
    model = load_model(config.model, device)
    models = [model, *([model.random_like(config.seed)] if config.random_baseline else [])]
    with progress_bar("retrieval", len(names), progress) as advance:
        images, kept, failures = encode_all(
            models,
            manifest.root,
            names,
            frame["modality"].tolist(),
            config.data.batch_size,
            config.data.workers,
            config.data.on_error,
            advance,
            config.data.cache,
        )
    # The pool: distinct texts of readable images, in order of appearance.
    frame, texts = frame.iloc[kept], [texts[position] for position in kept]
    pool: dict[str, tuple[int, str]] = {}
    for text in texts:
        pool.setdefault(text_key(text), (len(pool), text))
    text_of = np.array([pool[text_key(text)][0] for text in texts])
    vectors = [each.encode_texts([text for _, text in pool.values()]) for each in models]
    patients = patient_codes(frame)
    # One query per patient and text: the two views of a study do not ask twice.
    asked = np.unique(np.stack([patients, text_of], axis=1), axis=0)
    share = np.bincount(text_of)
    directions = (
        Queries("image to report", patients, np.ones(len(text_of), dtype=np.int64), len(pool)),
        Queries("report to image", asked[:, 0], share[asked[:, 1]], len(text_of)),
    )
    ranks = [
        (image_ranks(image, text, text_of), text_ranks(text, image, text_of)[asked[:, 1]])
        for image, text in zip(images, vectors, strict=True)
    ]
    entries = []
    for which, queries in enumerate(directions):
        resamples = PatientResamples(queries.patients, config.bootstrap, config.seed)
        entry: dict[str, Any] = {"name": queries.name, "queries": len(queries.patients), "candidates": queries.candidates}
        entry |= summarise(ranks[0][which], resamples, config.ks, config.confidence)
        entry["chance"] = _chance(queries, config.ks)
        if config.random_baseline:
            entry["random"] = summarise(ranks[1][which], resamples, config.ks, config.confidence)
        entries.append(entry)
    result = provenance.envelope(
        "retrieval",
        config,
        model,
        manifest,
        report,
        device,
        directions=entries,
        images=len(text_of),
        patients=len(np.unique(patients)),
        texts=len(pool),
        images_without_text=int((~filled).sum()),
        unreadable=provenance.failure_facts(failures, numbers),
    )
    result["caveats"] += few_patients(result["patients"])
    _write(result, directions, ranks)
    return result


def _write(result: dict[str, Any], directions: tuple[Queries, ...], ranks: list[tuple[Floats, Floats]]) -> None:
    from pathlib import Path

    from medfm.evaluation import plots
    from medfm.evaluation.card import write_html, write_json

    folder = Path(result["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    curves = []
    for which, queries in enumerate(directions):
        lines = {"model": recall_curve(ranks[0][which], queries.candidates)}
        if len(ranks) > 1:
            lines["random weights"] = recall_curve(ranks[1][which], queries.candidates)
        figure = plots.recall_figure(queries.name, lines, chance_recall(queries.candidates, queries.relevant))
        curves.append({"alt": f"Recall at k, {queries.name}", "uri": plots.curve_uri(figure)})
    write_html(folder / "card.html", "retrieval.html.j2", result=result, curves=curves)
    write_json(folder / "result.json", result)


def render(result: dict[str, Any]) -> Any:
    """The result as a table for the terminal."""
    from medfm.evaluation.terminal import retrieval_table

    return retrieval_table(result)
