"""Zero-shot classification: images against prompts, on a few pictures in a notebook or on a manifest with intervals.

Sources: Radford et al. 2021 (CLIP) for prompt ensembles and multi-class softmax; Tiu et al. 2022 (CheXzero) for the softmax
over a positive and a negative prompt per finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medfm.encoders.patches import enlarge
from medfm.errors import ConfigError, DataError
from medfm.evaluation.config import SAME_SPLIT
from medfm.evaluation.encode import encode_all, pick_device, progress_bar
from medfm.evaluation.provenance import failure_facts
from medfm.evaluation.scoring import Scored, Settings, available, few_patients, labelled_rows, patient_codes, score
from medfm.evaluation.statistics import Floats
from medfm.text.prompts import PromptSet, load_prompts, parse_prompts
from medfm.weights.model import finite

if TYPE_CHECKING:
    import pandas as pd

    from medfm.data.manifest import Manifest
    from medfm.evaluation.config import ZeroShotConfig
    from medfm.types import Image
    from medfm.weights.model import Model

Images = str | Path | Sequence["str | Path | Image"] | Tensor
DEFAULTS = Settings()
Temperature = Literal["none", "model"]


class ZeroShotClassifier:
    """A model and a prompt set: probabilities of findings without any training on their labels.

        classifier = ZeroShotClassifier(load_model("runs/chest_xray"), "chexpert")
        classifier.predict(["a.dcm", "b.png"])      # DataFrame, a row an image, a column a finding
        classifier.score("manifest.parquet")        # DataFrame, a row a finding: AUROC with its interval, ...

    Args:
        model: from `load_model`.
        prompts: name of a shipped set, path of a YAML file, a mapping as such a file holds, or a PromptSet.
        method: "pair" or "multiclass"; default: what the set says.
        temperature: "none" takes the softmax over the cosines as they are, as CheXzero does: the order is right but
            probabilities stay near 1/2; "model" scales them by the learned logit scale.

    Raises:
        ConfigError: the prompt set is unknown, breaks the format, or cannot serve the method.
    """

    def __init__(
        self,
        model: Model,
        prompts: PromptSet | str | Path | Mapping[str, Any],
        method: Literal["pair", "multiclass"] | None = None,
        temperature: Temperature = "none",
    ) -> None:
        if isinstance(prompts, Mapping):
            prompts = parse_prompts(prompts)
        elif not isinstance(prompts, PromptSet):
            prompts = load_prompts(prompts)
        self.model = model
        self.prompts = prompts.using(method)
        self.temperature = temperature
        self.findings = [finding.name for finding in self.prompts.findings]
        self.positive = self._ensembles([finding.positive for finding in self.prompts.findings])
        pair = self.prompts.method == "pair"
        self.negative = self._ensembles([finding.negative for finding in self.prompts.findings]) if pair else None

    def _ensembles(self, texts: list[tuple[str, ...]]) -> Tensor:
        """(F, D) float64: of each finding the normalised mean of its texts' unit vectors."""
        flat = list(dict.fromkeys(text for group in texts for text in group))
        vectors = dict(zip(flat, self.model.encode_texts(flat).double().cpu(), strict=True))
        means = torch.stack([torch.stack([vectors[text] for text in group]).mean(dim=0) for group in texts])
        return F.normalize(means, dim=-1)

    def probabilities(self, embeddings: Tensor) -> Floats:
        """Image embeddings (N, D) -> probabilities (N, F).

        Pair: exp(s+) / (exp(s+) + exp(s-)) per finding. Multi-class: softmax over the findings, so that rows sum to 1.
        """
        images = embeddings.double().cpu()
        scale = float(self.model.dual.logit_scale.detach().exp()) if self.temperature == "model" else 1.0
        positive = scale * images @ self.positive.T
        if self.negative is None:
            return positive.softmax(dim=-1).numpy()
        return torch.sigmoid(positive - scale * images @ self.negative.T).numpy()

    def predict(self, images: Images, batch_size: int = 64) -> pd.DataFrame:
        """Probabilities, a row an image and a column a finding.

        Args:
            images: one or several of: a path (file, or folder of one series), an `Image`; or a tensor (N, C, *size) as the
                contract stores images.
            batch_size: images a step.
        """
        import pandas as pd

        from medfm.types import Image

        if isinstance(images, str | Path | Image):
            images = [images]
        names = [str(image) for image in images] if all(isinstance(image, str | Path) for image in images) else None
        values = self.probabilities(self.model.encode_images(images, batch_size))
        return pd.DataFrame(values, columns=self.findings, index=None if names is None else pd.Index(names, name="image"))

    def similarity_map(self, image: str | Path | Image, finding: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where an image looks like a finding's prompts, on the network's grid; `medfm.heat_map` gives it on the image's own.

        Returns:
            The preprocessed image in [0, 1] and the map, both (H, W), of a volume (D, H, W): every patch's cosine with the
            positive prompts, less that with the negative ones, interpolated to the image. It shows what drives the score; it is
            no segmentation.
        """
        from medfm.evaluation.montage import grey_volume
        from medfm.evaluation.plots import grey_picture

        # Asking by an unknown name gives the prompt set's own error.
        column = self.findings.index(self.prompts.select((finding,)).findings[0].name)
        direction = self.positive[column] - (self.negative[column] if self.negative is not None else self.positive.mean(dim=0))
        preprocess = self.model.preprocess
        stored = torch.from_numpy(preprocess(preprocess.load(image) if isinstance(image, str | Path) else image))[None]
        heat = patch_similarity(self.model, stored, direction)[0]
        shown = preprocess.to_unit(stored)[0].numpy()
        return (grey_volume if heat.ndim == 3 else grey_picture)(shown), heat.double().numpy()

    def score(
        self,
        manifest: Manifest | str | Path,
        split: str = "test",
        val_split: str = "val",
        uncertain: Literal["ignore", "negative", "positive"] = "ignore",
        bootstrap: int = 1000,
        confidence: float = 0.95,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Scores on a split of a manifest, a row a finding and the mean last: AUROC and AUPRC with their patient-clustered
        intervals, accuracy, sensitivity and specificity at the threshold chosen on `val_split`. `.attrs` holds what was left
        out and why."""
        import pandas as pd

        from medfm.data.manifest import read_manifest

        table = read_manifest(manifest) if isinstance(manifest, str | Path) else manifest
        settings = Settings(uncertain, bootstrap, confidence)
        done = evaluate(self, table, split, val_split, settings, batch_size=batch_size, workers=workers, progress=progress)
        rows = {entry["name"]: _flat(entry) for entry in done.result["findings"]}
        rows["mean"] = _flat(done.result["mean"])
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.attrs.update({key: done.result[key] for key in ("left_out",)}, not_in_mean=done.result["mean"]["not_in_mean"])
        return frame


def patch_similarity(model: Model, images: Tensor, direction: Tensor) -> Tensor:
    """Cosines of patches with a direction of the joint space: images (B, C, *size) in storage dtype -> maps (B, *size), on the
    CPU."""
    with torch.no_grad():
        tokens, grid = model.dual.image_tokens(model.preprocess.to_float(images.to(model.device)))
        cosines = finite(tokens.cpu(), model) @ direction.to(tokens.dtype)
        maps = cosines.reshape(len(images), 1, *grid)
        return enlarge(maps, images.shape[2:], model.dual.token_centre)[:, 0]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        result: findings, mean, left_out (classes), images, patients, val_images, unreadable: ready for JSON.
        scored: by finding, what was scored, for pictures; its rows are positions in `rows`.
        rows: row numbers of the scored split in the manifest, and `probabilities` (n, F) for them.
        val_rows, val_probabilities: the same of the split that thresholds come from.
    """

    result: dict[str, Any]
    scored: dict[str, Scored]
    prompts: PromptSet
    rows: NDArray[np.int64]
    probabilities: Floats
    val_rows: NDArray[np.int64]
    val_probabilities: Floats


def evaluate(
    classifier: ZeroShotClassifier,
    manifest: Manifest,
    split: str = "test",
    val_split: str = "val",
    settings: Settings = DEFAULTS,
    baseline: Model | None = None,
    batch_size: int = 64,
    workers: int = 0,
    on_error: str = "fail",
    explicit: bool = False,
    progress: bool = False,
    cache: Path | None = None,
) -> Evaluation:
    """Score a classifier on a split; see `run_zero_shot`. `baseline` is a model with random weights, scored on the same decoded
    images; `cache` is read in place of the files.

    Raises:
        DataError: the split is empty, no finding is labelled, or an image cannot be read (unless `on_error` is "skip").
        ConfigError: thresholds would be chosen on what is scored.
    """
    if split == val_split:
        raise ConfigError(f"split and val_split are both '{split}': {SAME_SPLIT}; set val_split to another, or to none")
    frame = manifest.frame
    prompts, left_out = available(frame, classifier.prompts, explicit)
    # A softmax over classes keeps the classes without a label column: they compete for the image all the same.
    columns = [classifier.findings.index(finding.name) for finding in prompts.findings]
    splits = frame["split"].astype(str).to_numpy()
    if not (splits == split).any():
        raise DataError(
            f"the manifest has no rows of split '{split}'; it has: {', '.join(sorted(set(splits) - {''})) or 'no split'}"
        )
    labelled = np.zeros(len(frame), dtype=bool)
    for finding in prompts.findings:
        labelled[labelled_rows(frame, finding, settings.uncertain)[0]] = True
    wanted = np.flatnonzero(labelled & ((splits == split) | (splits == val_split)))
    if not (splits[wanted] == split).any():
        raise DataError(f"no image of split '{split}' is labelled for any of: {', '.join(f.name for f in prompts.findings)}")
    names, modalities = (frame[column].to_numpy()[wanted].tolist() for column in ("image", "modality"))
    models = [classifier.model, *([baseline] if baseline is not None else [])]
    with progress_bar("zero-shot", len(names), progress) as advance:
        embeddings, kept, failures = encode_all(
            models, manifest.root, names, modalities, batch_size, workers, on_error, advance, cache
        )
    rows = wanted[kept]
    test, val = splits[rows] == split, splits[rows] == val_split
    if not test.any():
        raise DataError(f"none of the labelled images of split '{split}' can be read; the first: {failures[0].reason}")
    competing = classifier.probabilities(embeddings[0])
    probabilities, others = competing[:, columns], np.delete(competing, columns, axis=1)
    result, scored = score(
        frame.iloc[rows[test]],
        prompts,
        probabilities[test],
        settings,
        (frame.iloc[rows[val]], probabilities[val]),
        _random_probabilities(classifier, baseline, embeddings)[test][:, columns] if baseline is not None else None,
        others=others[test].max(axis=1) if others.shape[1] else None,
    )
    result["left_out"] = left_out + result["left_out"]
    result["images"] = int(test.sum())
    result["patients"] = len(np.unique(patient_codes(frame.iloc[rows[test]])))
    result["val_images"] = int(val.sum())
    result["unreadable"] = failure_facts(failures, frame.index.to_numpy()[wanted])
    return Evaluation(
        result,
        scored,
        prompts,
        frame.index.to_numpy()[rows[test]],
        probabilities[test],
        frame.index.to_numpy()[rows[val]],
        probabilities[val],
    )


def _random_probabilities(classifier: ZeroShotClassifier, baseline: Model, embeddings: list[Tensor]) -> Floats:
    twin = ZeroShotClassifier(baseline, classifier.prompts, temperature=classifier.temperature)
    return twin.probabilities(embeddings[1])


def _flat(entry: dict[str, Any]) -> dict[str, Any]:
    """A result entry as a table row."""
    row: dict[str, Any] = {key: entry[key] for key in ("positives", "images") if key in entry}
    for metric in ("auroc", "auprc", "accuracy", "sensitivity", "specificity"):
        estimate = entry.get(metric)
        row[metric] = np.nan if estimate is None else estimate["value"]
        if metric in ("auroc", "auprc") and estimate is not None:
            row |= {f"{metric}_low": estimate["low"], f"{metric}_high": estimate["high"]}
    return row


def run_zero_shot(config: ZeroShotConfig, progress: bool = True) -> dict[str, Any]:
    """`medfm evaluate zero_shot`: score a model on a manifest and write the evaluation card.

    Writes `result.json`, `card.html` and `predictions.parquet` into `config.out` (default: `zero_shot` beside the weights),
    each at once or not at all. Patient ids and reports are in none of them.

    Returns:
        What `result.json` holds.

    Raises:
        MedfmError: the prompts, the weights, the manifest or an image cannot be used; says which and what to do.
    """
    from medfm.data.check import checked
    from medfm.data.dataset import of_views
    from medfm.data.manifest import read_manifest
    from medfm.evaluation import provenance
    from medfm.evaluation.card import write_zero_shot
    from medfm.weights.load import load_model

    provenance.require_folder(config, "zero_shot")
    prompts = load_prompts(config.prompts).using(config.method).select(config.findings)
    manifest, report = checked(
        read_manifest(config.data.manifest, config.data.root),
        config.data,
        splits=(config.data.split, config.data.val_split),
        progress=progress,
    )
    manifest = of_views(manifest, config.data.views)
    device = pick_device(config.device)
    model = load_model(config.model, device)
    classifier = ZeroShotClassifier(model, prompts, temperature=config.temperature)
    done = evaluate(
        classifier,
        manifest,
        config.data.split,
        config.data.val_split,
        Settings(config.uncertain, config.bootstrap, config.confidence, config.seed),
        model.random_like(config.seed) if config.random_baseline else None,
        config.data.batch_size,
        config.data.workers,
        config.data.on_error,
        explicit=bool(config.findings),
        progress=progress,
        cache=config.data.cache,
    )
    result = provenance.envelope(
        "zero_shot",
        config,
        model,
        manifest,
        report,
        device,
        **done.result,
        prompts={"name": prompts.name, "hash": prompts.hash(), "method": prompts.method, "source": prompts.source},
    )
    result["caveats"] += few_patients(result["patients"], result["findings"])
    write_zero_shot(Path(result["folder"]), result, done, classifier, manifest, config.pictures)
    return result


def render(result: dict[str, Any]) -> Any:
    """The result as a table for the terminal."""
    from medfm.evaluation.terminal import zero_shot_table

    return zero_shot_table(result)
