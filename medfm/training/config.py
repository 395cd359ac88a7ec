"""Knobs of the training loop, and the whole pre-training recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from medfm.data.config import DataConfig
from medfm.registry import ENCODERS, OBJECTIVES, Config, InputPath, component
from medfm.transforms.config import AugmentConfig, PreprocessConfig


class OptimizerConfig(Config):
    """AdamW; no weight decay on norms, biases, positions, tokens and the logit scale."""

    lr: float = Field(default=5e-4, gt=0)
    text_lr: float | None = Field(default=None, gt=0, description="learning rate of the text encoder; default: lr")
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)


class ScheduleConfig(Config):
    """Linear warm-up, then half a cosine from lr to min_lr."""

    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of all steps")
    min_lr: float = Field(default=0.0, ge=0)


class TrainerConfig(Config):
    """How long and on what. Lightning options without a key here pass through `extra`."""

    max_epochs: float = Field(default=10, gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="instead of max_epochs")
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | list[int] | Literal["auto"] = "auto"
    num_nodes: int = Field(default=1, ge=1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "32-true"
    accumulate: int = Field(
        default=1, ge=1, description="batches an optimiser step; for contrastive prefer objective.cache_chunk"
    )
    clip_grad: float = Field(default=1.0, ge=0, description="largest gradient norm; 0: off")
    channels_last: bool = Field(default=False, description="memory layout of 2D images and encoder; faster for convolutions")
    compile: bool = Field(default=False, description="torch.compile the encoders")
    val_every: float = Field(default=1.0, gt=0, description="epochs between validations")
    checkpoint_every: float = Field(default=1.0, gt=0, description="epochs between resumable checkpoints")
    keep: int = Field(default=2, ge=2, description="resumable checkpoints kept")
    log_every: int = Field(default=10, ge=1, description="steps between logged numbers")
    select: Literal["last", "best"] = Field(
        default="last", description="weights kept as model.safetensors; best: lowest val/loss"
    )
    extra: dict[str, Any] = Field(default_factory=dict, description="passed to lightning.Trainer as they are")


class PretrainConfig(Config):
    """A pre-training recipe."""

    name: str = "pretrain"
    source: str = Field(default="", description="paper or code whose values the recipe copies")
    seed: int = Field(default=0, ge=0)
    out: Path | None = Field(default=None, description="run folder; default: runs/<name>")
    resume: Literal["auto", "never"] | InputPath = Field(
        default="auto",
        description="auto: go on where the run folder stopped; never: refuse a used folder; or a checkpoint file",
    )
    init: InputPath | None = Field(default=None, description="medfm weights to start from (a run folder or model.safetensors)")
    init_allow: tuple[str, ...] = Field(
        default=(), description="name patterns of tensors that `init` may leave out, e.g. [text_encoder.*, text_projection.*]"
    )
    plugins: tuple[str, ...] = Field(default=(), description="modules imported first, which register components")
    data: DataConfig
    preprocess: PreprocessConfig = PreprocessConfig()
    augment: AugmentConfig = AugmentConfig()
    encoder: component(ENCODERS) = Field(default="vit")  # type: ignore[valid-type]
    objective: component(OBJECTIVES) = Field(default="contrastive")  # type: ignore[valid-type]
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    trainer: TrainerConfig = TrainerConfig()

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        size = getattr(self.encoder, "img_size", self.preprocess.size)
        if tuple(size) != tuple(self.preprocess.size) and not self.objective.makes_views:
            raise ValueError(f"encoder.img_size {list(size)} differs from preprocess.size {list(self.preprocess.size)}")
        channels = getattr(self.encoder, "in_channels", self.preprocess.channels)
        if channels != self.preprocess.channels:
            raise ValueError(f"encoder.in_channels {channels} differs from preprocess.channels {self.preprocess.channels}")
        return self
