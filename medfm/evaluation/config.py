"""Knobs of evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from medfm.registry import Config, ImagePath, InputPath
from medfm.text.config import ReportConfig

SAME_SPLIT = "thresholds would be chosen on what is scored"


class EvaluateDataConfig(Config):
    """Which studies are scored. Pixel values are decided by the contract inside the weight file, not here."""

    manifest: InputPath = Field(description="parquet or CSV table made by `medfm index`")
    root: Path | None = None
    split: str = Field(default="test", description="scored split")
    val_split: str = Field(default="val", description="split that thresholds are chosen on; none: they are left out")
    views: tuple[str, ...] = Field(default=(), description="score these views only, e.g. [PA, AP]; empty scores all")
    batch_size: int = Field(default=64, ge=1)
    workers: int = Field(default=2, ge=0)
    on_error: Literal["fail", "skip"] = "fail"


def _check_apart(data: EvaluateDataConfig) -> None:
    if data.split == data.val_split:
        raise ValueError(
            f"data.split and data.val_split are both '{data.split}': {SAME_SPLIT}; set data.val_split to another, or to none"
        )


class CachedDataConfig(EvaluateDataConfig):
    """Which studies are scored, by tasks that need nothing of an image but what the network sees."""

    cache: InputPath | None = Field(
        default=None, description="images come from this folder, made by `medfm cache` under the model's contract"
    )


class ZeroShotConfig(Config):
    """`medfm evaluate zero_shot`."""

    model: InputPath = Field(description="run folder or model.safetensors")
    data: CachedDataConfig
    prompts: str = Field(default="chexpert", description="name of a shipped prompt set, or a YAML file")
    method: Literal["pair", "multiclass"] | None = Field(default=None, description="default: what the prompt set says")
    findings: tuple[str, ...] = Field(default=(), description="score these only; empty scores all that have labels")
    uncertain: Literal["ignore", "negative", "positive"] = Field(default="ignore", description="how label -1 counts")
    temperature: Literal["none", "model"] = Field(
        default="none",
        description="none: softmax over unscaled cosines, as CheXzero does; model: scaled by the learned logit scale",
    )
    bootstrap: int = Field(default=1000, ge=0, description="resamples, clustered by patient")
    confidence: float = Field(default=0.95, gt=0, lt=1)
    random_baseline: bool = Field(default=True, description="score the same architecture with random weights beside it")
    pictures: bool = Field(
        default=True, description="embed example images in the card; false where the card leaves the hospital"
    )
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path | None = Field(default=None, description="folder of the evaluation card; default: <run>/zero_shot")

    @model_validator(mode="after")
    def _apart(self) -> ZeroShotConfig:
        _check_apart(self.data)
        return self


class RetrievalConfig(Config):
    """`medfm evaluate retrieval`: image to report and back, R@1/5/10."""

    model: InputPath
    data: CachedDataConfig
    report: ReportConfig = Field(default=ReportConfig(), description="which part of a report is matched")
    ks: tuple[int, ...] = (1, 5, 10)
    bootstrap: int = Field(default=1000, ge=0)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    random_baseline: bool = True
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path | None = Field(default=None, description="folder of the result; default: <run>/retrieval")


def _listed(value: Any) -> Any:
    """One text is a list of one."""
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class HeatmapConfig(Config):
    """`medfm heatmap`: where one image or volume resembles a text."""

    model: InputPath = Field(description="run folder or model.safetensors")
    image: InputPath = Field(description="a file, or the folder of one series")
    text: Texts = Field(description="a phrase, or several as a list, whose mean vector is taken")
    against: Texts = Field(default=(), description="phrases whose similarity is taken off, e.g. those that deny the finding")
    out: Path = Field(
        default=Path("heatmap"),
        description="folder: heatmap.nii.gz (NaN where the network sees nothing) and montage.png, or overlay.png",
    )
    modality: str = Field(default="", description="what a NIfTI file cannot say itself, e.g. CT")
    slices: int = Field(default=12, ge=1, le=64, description="in the montage of a volume")
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("text")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(text.strip() for text in value):
            raise ValueError("give a text")
        return value


class GroundingConfig(Config):
    """`medfm evaluate grounding`: heat maps of findings against masks."""

    model: InputPath = Field(description="run folder or model.safetensors")
    data: EvaluateDataConfig
    prompts: str = Field(default="phantom", description="name of a shipped prompt set, or a YAML file")
    findings: tuple[str, ...] = Field(default=(), description="score these only; empty scores all that have masks")
    structures: dict[str, Texts] = Field(
        default_factory=dict,
        description="finding -> names in the masks, e.g. {Lung: [lung_upper_lobe_left, ...]}; default: the mask named as the "
        "finding's label, and those of its two sides",
    )
    mask_labels: dict[int, str] = Field(
        default_factory=dict, description="value in the masks -> name, where neither masks nor manifest say it"
    )
    contrast: bool = Field(default=True, description="take the similarity with the negative prompts off; false: positive alone")
    tolerance: float = Field(
        default=0.0, ge=0, description="mm: a peak so near to the mask hits, too; the literature's game allows 15 pixels"
    )
    bootstrap: int = Field(default=1000, ge=0, description="resamples, clustered by patient")
    confidence: float = Field(default=0.95, gt=0, lt=1)
    random_baseline: bool = Field(default=True, description="score the same architecture with random weights beside it")
    pictures: int = Field(default=2, ge=0, description="examples a finding in the card; 0 where the card leaves the hospital")
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path | None = Field(default=None, description="folder of the evaluation card; default: <run>/grounding")

    @model_validator(mode="after")
    def _apart(self) -> GroundingConfig:
        _check_apart(self.data)
        return self


Level = Literal["sentence", "report"]


class CompositionalConfig(Config):
    """`medfm evaluate compositional`: is an image nearer to its report than to the report with sides swapped or a finding
    denied?"""

    model: InputPath = Field(description="run folder or model.safetensors")
    data: CachedDataConfig
    report: ReportConfig = Field(default=ReportConfig(), description="which part of a report is compared")
    levels: tuple[Level, ...] = Field(
        default=("sentence", "report"), description="each sentence by itself; the whole text; the first is the headline"
    )
    bootstrap: int = Field(default=1000, ge=0, description="resamples, clustered by patient")
    confidence: float = Field(default=0.95, gt=0, lt=1)
    random_baseline: bool = Field(default=True, description="score the same architecture with random weights beside it")
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path | None = Field(default=None, description="folder of the evaluation card; default: <run>/compositional")

    @field_validator("levels")
    @classmethod
    def _some(cls, value: tuple[Level, ...]) -> tuple[Level, ...]:
        if not value:
            raise ValueError("give at least one of sentence, report")
        return tuple(dict.fromkeys(value))


class ProbeDataConfig(EvaluateDataConfig):
    """Which studies a probe is fitted on, chosen on and scored on."""

    train_split: str = Field(default="train", description="split that the probe is fitted on")
    val_split: str = Field(
        default="val",
        description="split that the probe's strength and thresholds are chosen on; where it has no labelled image, strength is "
        "chosen by cross-validation over patients of the training split",
    )

    @model_validator(mode="after")
    def _apart(self) -> ProbeDataConfig:
        names = (self.train_split, self.val_split, self.split)
        if len(set(names)) < 3:
            raise ValueError(f"train_split, val_split and split must differ, got {', '.join(map(repr, names))}")
        return self


class FrozenFeatures(Config):
    """What every probe of frozen features has: the model, the data, the features."""

    model: InputPath = Field(description="run folder or model.safetensors")
    data: ProbeDataConfig
    features: Path | None = Field(
        default=None, description="folder where features are kept for a second run; default: features beside the weights"
    )
    bootstrap: int = Field(default=1000, ge=0, description="resamples, clustered by patient")
    confidence: float = Field(default=0.95, gt=0, lt=1)
    random_baseline: bool = Field(default=True, description="probe the same architecture with random weights beside it")
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path | None = Field(default=None, description="folder of the evaluation card; default: one beside the weights")


class ClassificationProbeConfig(FrozenFeatures):
    """What the linear probe and nearest neighbours share."""

    against: InputPath | None = Field(
        default=None, description="run folder or weight file of another model, probed in the same way; the difference is given"
    )
    findings: tuple[str, ...] = Field(default=(), description="score these only; empty scores all that have labels")
    uncertain: Literal["ignore", "negative", "positive"] = Field(default="ignore", description="how label -1 counts")
    pool: Literal["cls", "mean", "cls+mean"] | None = Field(default=None, description="default: the encoder's")
    blocks: int = Field(default=1, ge=1, description="features of the last n blocks side by side (DINO: 4 with ViT-S)")
    train_share: tuple[float, ...] = Field(
        default=(), description="label efficiency: fit on these shares of the training patients too, e.g. [0.01, 0.1]"
    )
    draws: int = Field(default=5, ge=1, description="draws of patients for each of train_share below 1")

    @field_validator("train_share")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < share <= 1 for share in value):
            raise ValueError(f"{list(value)} are no shares: each must be above 0 and at most 1")
        return tuple(sorted(set(value)))


class LinearProbeConfig(ClassificationProbeConfig):
    """`medfm evaluate linear_probe`: one logistic regression a finding on frozen features."""

    l2: tuple[float, ...] = Field(
        default=(0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5),
        description="penalties to choose from: log loss summed over images + l2 / 2 * |w|^2, features standardised",
    )

    @field_validator("l2")
    @classmethod
    def _above_zero(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or min(value) <= 0:
            raise ValueError("give at least one penalty, each above 0")
        return tuple(sorted(set(value)))


class KnnConfig(ClassificationProbeConfig):
    """`medfm evaluate knn`: the weighted vote of the nearest training images."""

    k: tuple[int, ...] = Field(default=(5, 10, 20, 100, 200), description="numbers of neighbours to choose from")
    temperature: float = Field(default=0.07, gt=0, description="of the votes, exp(cosine / temperature)")

    @field_validator("k")
    @classmethod
    def _above_zero(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("give at least one number of neighbours, each at least 1")
        return tuple(sorted(set(value)))


class SegmentationProbeConfig(FrozenFeatures):
    """`medfm evaluate segmentation_probe`: one linear layer from frozen patch tokens to masks."""

    structures: tuple[str, ...] = Field(
        default=(), description="names in the masks to score; empty: those of mask_labels, else those of the first masks"
    )
    mask_labels: dict[int, str] = Field(
        default_factory=dict, description="value in the masks -> name, where neither masks nor manifest say it"
    )
    l2: tuple[float, ...] = Field(
        default=(1e-6, 1e-4), description="penalties to choose from: mean cross-entropy + l2 / 2 * |w|^2, tokens standardised"
    )
    blocks: int = Field(default=1, ge=1, description="patch tokens of the last n blocks side by side (DINOv2's +ms: 4)")
    iterations: int = Field(default=60, ge=1, description="of L-BFGS for each penalty, at most")
    pictures: int = Field(default=4, ge=0, description="example images in the card; 0 where the card leaves the hospital")

    @field_validator("l2")
    @classmethod
    def _not_negative(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or min(value) < 0:
            raise ValueError("give at least one penalty, none below 0")
        return tuple(sorted(set(value), reverse=True))


class EmbedConfig(Config):
    """`medfm embed`: image features of a file, a folder or a manifest."""

    model: InputPath = Field(description="run folder or model.safetensors")
    input: ImagePath = Field(
        description="an image, several sequences of one examination ('T1.nii.gz|T2.nii.gz', quoted), a folder of images, or a "
        "manifest (.parquet or .csv)"
    )
    out: Path = Field(description="file to write: .parquet, .npz or .csv")
    split: str = Field(default="", description="of a manifest: this split only; empty takes all rows")
    root: Path | None = Field(default=None, description="of a manifest: folder that its image paths start from")
    modality: str = Field(default="", description="of files that cannot say it themselves and have no manifest: CT for a NIfTI")
    batch_size: int = Field(default=64, ge=1)
    workers: int = Field(default=2, ge=0)
    on_error: Literal["fail", "skip"] = Field(
        default="fail", description="an unreadable image: stop, or leave it out and say so"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("out")
    @classmethod
    def _known_format(cls, value: Path) -> Path:
        if value.suffix not in (".parquet", ".npz", ".csv"):
            raise ValueError(f"'{value.name}' does not end in .parquet, .npz or .csv")
        return value
