"""Knobs of the training loop, and the whole pre-training recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from medfm.data.config import DataConfig
from medfm.registry import ENCODERS, LAUNCHERS, OBJECTIVES, ComponentConfig, Config, InputPath, component
from medfm.transforms.config import AugmentConfig, PreprocessConfig


class OptimizerConfig(Config):
    """No weight decay on norms, biases, positions, tokens and the logit scale."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = Field(default=5e-4, gt=0, description="see lr_scale")
    lr_scale: Literal["none", "linear256", "sqrt1024"] = Field(
        default="none",
        description="what lr and text_lr are multiplied by: batch/256 (MAE, DINO), sqrt(batch/1024) (DINOv2); the batch of an "
        "optimiser step over all devices, data.batch_size x trainer.accumulate",
    )
    text_lr: float | None = Field(default=None, gt=0, description="learning rate of the text encoder; default: lr")
    weight_decay: float = Field(default=0.1, ge=0)
    weight_decay_end: float | None = Field(
        default=None, ge=0, description="half a cosine from weight_decay to this over the run (DINO: 0.04 to 0.4)"
    )
    decay_tokens: bool = Field(
        default=False,
        description="also decay positions, tokens and the gains of weight-normed layers, as MAE's and DINO's code",
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="learning rate of each encoder block over that of the one after it (DINOv2: 0.9); heads: 1",
    )
    patch_embed_lr: float = Field(default=1.0, gt=0, description="multiplier of lr for the patch embedding (DINOv2: 0.2)")
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="of adamw")
    eps: float = Field(default=1e-6, gt=0, description="of adamw")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd and lars")
    trust: float = Field(default=0.001, gt=0, description="trust coefficient of lars")

    @model_validator(mode="after")
    def _consistent(self) -> OptimizerConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie from 0 to below 1, got {list(self.betas)}")
        if self.weight_decay_end is not None and self.weight_decay == 0:
            raise ValueError("weight_decay_end needs a weight_decay above 0 to start from: groups without decay stay so")
        return self


class ScheduleConfig(Config):
    """Linear warm-up, then half a cosine from lr to min_lr, or lr to the end."""

    name: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of all steps")
    warmup_start: float | None = Field(
        default=None, ge=0, description="learning rate of step 0 (MAE, DINO: 0); default: lr / warm-up steps"
    )
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
    clip_grad_by: Literal["global", "parameter"] = Field(
        default="global", description="norm of all gradients together, or of each parameter's by itself (DINO)"
    )
    strategy: Literal["auto", "ddp", "fsdp2"] = Field(
        default="auto", description="auto: ddp on several devices; fsdp2 shares out weights, gradients and optimiser state"
    )
    channels_last: bool = Field(default=False, description="memory layout of images and encoder; faster for convolutions")
    compile: bool = Field(default=False, description="torch.compile the encoders")
    val_every: float = Field(default=1.0, gt=0, description="epochs between validations")
    checkpoint_every: float = Field(default=1.0, gt=0, description="epochs between resumable checkpoints")
    keep: int = Field(default=2, ge=2, description="resumable checkpoints kept")
    log_every: int = Field(default=10, ge=1, description="steps between logged numbers")
    select: Literal["last", "best"] = Field(
        default="last", description="weights kept as model.safetensors; best: lowest val/loss"
    )
    extra: dict[str, Any] = Field(default_factory=dict, description="passed to lightning.Trainer as they are")


class GuardConfig(Config):
    """Watches a run for collapse: answers or features that are the same for every image."""

    on_collapse: Literal["stop", "warn", "off"] = Field(
        default="stop", description="stop: with a checkpoint and the evidence; warn: say so and go on; off: look at nothing"
    )
    steps: int = Field(default=10, ge=1, description="steps between looks at a teacher's entropies, which cost nothing")
    feature_steps: int = Field(default=50, ge=1, description="steps between looks at the features of some training images")
    every: float = Field(
        default=1.0, gt=0, description="epochs between online kNN and linear probes, where the manifest has labels; see share"
    )
    images: int = Field(default=512, ge=16, description="most images looked at, and most that probes are fitted and scored on")
    share: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="most images that looks at features, and probes, pass through the encoder, as a share of those trained "
        "on: fewer images, and rarer probes, where `every` and `feature_steps` ask for more",
    )
    patience: int = Field(default=3, ge=1, description="looks in a row that must be bad")
    min_information: float = Field(
        default=0.03,
        ge=0,
        description="nats that a teacher's answer tells about which image it saw; bad if below, and below a fifth of its best",
    )
    min_spread: float = Field(
        default=0.01, ge=0, lt=1, description="1 - mean cosine of two images' features, as a share of its best; bad if below"
    )
    grace: float = Field(
        default=0.1, ge=0, le=1, description="share of all steps after which a run must have begun to tell images apart"
    )
    probes: bool = True
    neighbours: int = Field(default=20, ge=1, description="k of the online kNN")

    @field_validator("on_collapse", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        """YAML reads `off` as false."""
        return "off" if value is False else value


@LAUNCHERS.register("local", "medfm.training.launch:Local")
class LocalConfig(ComponentConfig):
    """Train here, in this process and those that it starts on this machine."""

    name: str = "local"


@LAUNCHERS.register("slurm", "medfm.training.launch:Slurm")
class SlurmConfig(ComponentConfig):
    """Submit to Slurm through submitit: one task a GPU, a checkpoint and a new turn when the time is up."""

    name: str = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str = Field(
        default="24:00:00",
        pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$",
        description="[DAYS-]HH:MM:SS; a run that needs longer is requeued",
    )
    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=1, ge=0, description="0: one CPU task a node")
    cpus_per_task: int = Field(default=8, ge=1, description="cores of a task: data.workers and one")
    mem: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$", description="memory of a node, e.g. 256G")
    signal_before: int = Field(
        default=180, ge=10, description="seconds before the end of `time` at which the run saves and stops"
    )
    setup: tuple[str, ...] = Field(default=(), description="shell lines before the run, e.g. [module load cuda]")
    python: str | None = Field(default=None, description="interpreter on the cluster's nodes; default: this one")
    extra: dict[str, str | int | bool] = Field(
        default_factory=dict, description="further sbatch options, e.g. {mail-type: END, exclude: node7}"
    )

    @field_validator("time", mode="before")
    @classmethod
    def _quoted(cls, value: object) -> object:
        """YAML reads 24:00:00 as 86400."""
        if isinstance(value, int):
            raise ValueError("a time is a text in quotes, '24:00:00': YAML reads it as a number without them")
        return value


class PretrainConfig(Config):
    """A pre-training recipe."""

    name: str = "pretrain"
    source: str = Field(default="", description="paper or code whose values the recipe copies")
    seed: int = Field(default=0, ge=0, lt=2**63)
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
    guard: GuardConfig = GuardConfig()
    launcher: component(LAUNCHERS) = Field(default="local")  # type: ignore[valid-type]

    @property
    def step_batch(self) -> int:
        """Images that an optimiser step sees, over all devices and accumulated batches."""
        return self.data.batch_size * self.trainer.accumulate

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        size = getattr(self.encoder, "img_size", self.preprocess.size)
        if tuple(size) != tuple(self.preprocess.size) and not self.objective.makes_views:
            raise ValueError(f"encoder.img_size {list(size)} differs from preprocess.size {list(self.preprocess.size)}")
        if len(size) != len(self.preprocess.size):
            raise ValueError(
                f"encoder.img_size {list(size)} has {len(size)} axes, preprocess.size {list(self.preprocess.size)} has "
                f"{len(self.preprocess.size)}"
            )
        if getattr(self.encoder, "window", None) and any(getattr(part, "patch_dropout", 0) for part in _parts(self.objective)):
            raise ValueError(
                "objective.patch_dropout leaves patches out, attention within windows needs them all: set encoder.window=null "
                "or objective.patch_dropout=0"
            )
        patch = getattr(self.encoder, "patch_size", ())
        if any(n % p for n, p in zip(self.preprocess.size, patch, strict=False)):
            raise ValueError(  # views are cut from it in training, evaluation takes it whole
                f"preprocess.size {list(self.preprocess.size)} is not a multiple of encoder.patch_size {list(patch)}"
            )
        channels = getattr(self.encoder, "in_channels", self.preprocess.channels)
        if channels != self.preprocess.channels:
            raise ValueError(f"encoder.in_channels {channels} differs from preprocess.channels {self.preprocess.channels}")
        return self

    @model_validator(mode="after")
    def _teacher_moves(self) -> PretrainConfig:
        if self.trainer.precision == "bf16-true" and any(
            "momentum" in type(part).model_fields for part in _parts(self.objective)
        ):
            raise ValueError(
                "trainer.precision=bf16-true keeps 8 bits of a weight: the teacher's small steps after its student are rounded "
                "away, and it stays near its start; use bf16-mixed"
            )
        return self

    @model_validator(mode="after")
    def _augments(self) -> PretrainConfig:
        augment, preprocess = self.augment, self.preprocess
        if augment.flip and self.objective.tokenizer_config is not None and not augment.flip_with_text:
            raise ValueError(
                f"augment.flip={augment.flip:g} mirrors images, but not the left and right of the reports that the objective "
                "reads: set augment.flip=0, or augment.flip_with_text=true if no report names a side"
            )
        if augment.flip and len(preprocess.size) == 2 and "D" in augment.flip_axes:
            raise ValueError("augment.flip_axes: single images have H and W, and no D")
        if augment.colours and (preprocess.channels != 3 or preprocess.windows):
            raise ValueError(
                "augment.saturation, hue and greyscale_p change colours: they need preprocess.channels=3, and no "
                "preprocess.windows"
            )
        return self


def _parts(objective: Any) -> list[Any]:
    """An objective, its terms, and theirs."""
    return [objective, *(part for term in getattr(objective, "terms", ()) for part in _parts(term))]
