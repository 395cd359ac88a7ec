"""Compositional score: is an image nearer to what its report says than to the same with sides swapped or a finding denied?

Models that match bags of words fail here while their retrieval looks well: Thrush et al. 2022 (Winoground), Yuksekgonul et al.
2023 (ARO), Hsieh et al. 2023 (SugarCrepe). The last showed that a changed text may be told from a true one without any image,
so the accuracy of the texts alone (held against the mean image) stands beside each score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medfm.errors import DataError
from medfm.evaluation.beside import compared, put
from medfm.evaluation.encode import encode_all, pick_device, progress_bar
from medfm.evaluation.scoring import few_patients, patient_codes
from medfm.evaluation.statistics import Floats, PatientResamples, bootstrap, weighted_mean
from medfm.text.counterfactual import negate, swap_sides, tells_otherwise
from medfm.text.sentences import split_sentences

if TYPE_CHECKING:
    from medfm.evaluation.config import CompositionalConfig
    from medfm.text.tokenizers import Tokenizer
    from medfm.weights.model import Model

KINDS = {"side swapped": swap_sides, "negated": negate}


@dataclass(frozen=True)
class Pair:
    """A true text of an image and its counterfactual: `row` is the image's place, `level` "sentence" or "report"."""

    row: int
    kind: str
    level: str
    true: str
    false: str


def pairs_of(row: int, text: str, levels: Sequence[str]) -> list[Pair]:
    """The pairs of one report.

    A sentence is changed by itself; a report is changed as a whole: all its sides are swapped at once, one of its findings is
    denied or asserted. A changed sentence that the report also states ("left effusion" beside "right effusion") and a changed
    report of the same sentences are no counterfactuals and are left out.
    """
    sentences = split_sentences(text)
    found = []
    for kind, change in KINDS.items():
        if "sentence" in levels:
            for sentence in dict.fromkeys(sentences):
                false = change(sentence)
                if false is not None and tells_otherwise(false, sentences):
                    found.append(Pair(row, kind, "sentence", sentence, false))
        if "report" in levels:
            false = change(text)
            if false is not None and tells_otherwise(false, sentences):
                found.append(Pair(row, kind, "report", text, false))
    return found


def told_apart(pairs: Sequence[Pair], tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """(n,): whether the text encoder can see the difference; a change behind the end of its context is cut off."""
    if not pairs:
        return np.zeros(0, bool)
    true, false = (tokenizer([getattr(pair, name) for pair in pairs])[0] for name in ("true", "false"))
    width = max(true.shape[1], false.shape[1])
    true, false = (F.pad(tokens, (0, width - tokens.shape[1])) for tokens in (true, false))
    return np.asarray((true != false).any(dim=1).numpy())


def won(images: Tensor, true: Tensor, false: Tensor) -> Floats:
    """(n,): 1 where an image (n, D) is nearer to its true text than to the false one, 0.5 where both are equally near."""
    gain = (images.double() * (true.double() - false.double())).sum(dim=1)
    return np.asarray((torch.sign(gain) + 1).numpy() / 2, np.float64)


def run_compositional(config: CompositionalConfig, progress: bool = True) -> dict[str, Any]:
    """`medfm evaluate compositional`: writes `result.json` and `card.html` into `config.out` (default: `compositional`
    beside the weights).

    Returns:
        What `result.json` holds. No report is in it, nor any patient id.

    Raises:
        MedfmError: the weights, the manifest or an image cannot be used, or no report allows a counterfactual.
    """
    from medfm.data.check import checked
    from medfm.data.dataset import of_views
    from medfm.data.manifest import read_manifest
    from medfm.evaluation import provenance
    from medfm.evaluation.card import write_html, write_json
    from medfm.text.report import select_text
    from medfm.weights.load import load_model

    provenance.require_folder(config, "compositional")
    data = config.data
    manifest, report = checked(read_manifest(data.manifest, data.root), data, splits=(data.split,), progress=progress)
    manifest = of_views(manifest, data.views)
    frame = manifest.frame[manifest.frame["split"].astype(str) == data.split]
    if frame.empty:
        raise DataError(f"the manifest has no rows of split '{data.split}'")
    texts = [select_text(str(report), config.report, None).strip() for report in frame["report"].fillna("")]
    device = pick_device(config.device)
    model = load_model(config.model, device)
    model.dual  # refuses a model without text  # noqa: B018
    assert model.tokenizer is not None
    made = [pair for row, text in enumerate(texts) if text for pair in pairs_of(row, text, config.levels)]
    seen = told_apart(made, model.tokenizer)
    pairs, unseen = [p for p, s in zip(made, seen, strict=True) if s], [p for p, s in zip(made, seen, strict=True) if not s]
    if not pairs:
        raise DataError(
            f"none of the {sum(map(bool, texts))} reports of split '{data.split}' names a side or states a finding that could "
            "be changed; is the report column the right one, and in English?"
        )
    asked = sorted({pair.row for pair in pairs})
    names, modalities = (frame[column].to_numpy()[asked].tolist() for column in ("image", "modality"))
    models = [model, *([model.random_like(config.seed)] if config.random_baseline else [])]
    with progress_bar("compositional", len(names), progress) as advance:
        images, kept, failures = encode_all(
            models,
            manifest.root,
            names,
            modalities,
            data.batch_size,
            data.workers,
            data.on_error,
            advance,
            data.cache,
        )
    place = {asked[position]: number for number, position in enumerate(kept)}
    pairs = [pair for pair in pairs if pair.row in place]
    at = np.array([place[pair.row] for pair in pairs])
    wins = [_wins(m, vectors, pairs, at) for m, vectors in zip(models, images, strict=True)]
    patients = patient_codes(frame)[np.array(asked)[kept]]
    resamples = PatientResamples(patients, config.bootstrap, config.seed)
    scores, left_out = [], []
    for level in config.levels:
        for kind in KINDS:
            chosen = np.array([pair.kind == kind and pair.level == level for pair in pairs])
            cut = sum(pair.kind == kind and pair.level == level for pair in unseen)
            if not chosen.any():
                beyond = f"; {cut} beyond the context" if cut else ""
                left_out.append({"name": f"{kind}, {level}", "reason": f"no pair{beyond}"})
                continue
            rows = at[chosen]
            entry: dict[str, Any] = {
                "kind": kind,
                "level": level,
                "pairs": int(chosen.sum()),
                "images": len(np.unique(rows)),
                "patients": len(np.unique(patients[rows])),
                "beyond_context": cut,
                "text_alone": bootstrap(weighted_mean(wins[0][1][chosen]), resamples, config.confidence, rows).to_dict(),
            }
            random = wins[1][0][chosen] if len(wins) > 1 else None
            put(entry, "accuracy", compared(wins[0][0][chosen], random, rows, resamples), config.confidence)
            scores.append(entry)
    result = provenance.envelope(
        "compositional",
        config,
        model,
        manifest,
        report,
        device,
        scores=scores,
        left_out=left_out,
        images=len(kept),
        patients=len(np.unique(patients)),
        reports_without_pairs=len(texts) - len(asked),
        unreadable=provenance.failure_facts(failures, frame.index.to_numpy()[asked]),
    )
    result["caveats"] += few_patients(result["patients"], [])
    folder = Path(result["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    write_html(folder / "card.html", "compositional.html.j2", result=result)
    write_json(folder / "result.json", result)
    return result


def _wins(model: Model, images: Tensor, pairs: Sequence[Pair], at: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """(accuracy of every pair, that of the mean image in place of its own)."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.true, pair.false)))
    number = {text: n for n, text in enumerate(texts)}
    vectors = model.encode_texts(texts)
    true, false = (vectors[[number[getattr(pair, name)] for pair in pairs]] for name in ("true", "false"))
    mean = F.normalize(images.double().mean(dim=0), dim=0).expand(len(pairs), -1)
    return won(images[torch.from_numpy(at)], true, false), won(mean, true, false)


def render(result: dict[str, Any]) -> Any:
    """The result as a table for the terminal."""
    from medfm.evaluation.terminal import compositional_table

    return compositional_table(result)
