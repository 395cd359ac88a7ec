"""`medfm pretrain`: from a validated recipe to a run folder with weights."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.errors import ConfigError
from medfm.training.config import PretrainConfig

if TYPE_CHECKING:
    from medfm.training.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def pretrain(config: PretrainConfig, progress: bool = True) -> Path:
    """Train by a recipe, where its `launcher` says: here, or in a job, for which this only submits. See `train`."""
    from medfm.registry import LAUNCHERS

    folder: Path = LAUNCHERS.build(config.launcher).launch(config, progress)
    return folder


def train(config: PretrainConfig, progress: bool = True) -> Path:
    """Train by a recipe here, or go on with a run that stopped.

    The run folder holds `model.safetensors` (weights with contract and tokenizer), `checkpoints/`, `resolved.yaml` (itself a
    recipe), `environment.json`, `metrics.csv`, `tensorboard/` and `curves.png`.

    Returns:
        The run folder.

    Raises:
        ConfigError: the run folder belongs to another recipe, or resuming is refused.
        WeightsError: the checkpoint to go on from is damaged or of another model.
        DataError: the manifest has bad rows (all are counted) or too few training rows.
        TrainingError: a number is not finite.
    """
    # Data first: a bad manifest is reported before torch spends time on a model.
    from medfm.data.check import prepare
    from medfm.data.manifest import manifest_hash, read_manifest
    from medfm.transforms.preprocess import Preprocess

    progress = progress and _first_process()
    objective_config: Any = config.objective
    run = config.out or Path("runs") / config.name
    # A store compares each file's size and time with what it was made from; the files need not be read again.
    level = config.data.check_files if config.data.cache in ("none", "memory") else "none"
    manifest = prepare(
        read_manifest(config.data.manifest, config.data.root),
        config.data,
        need_text=objective_config.tokenizer_config is not None,
        progress=progress,
        level=level,
        preprocess=Preprocess(config.preprocess),
    )
    digest = manifest_hash(manifest)
    with _quiet_lightning():
        return _fit(run, config, manifest, digest, _checkpoint(run, config, digest), progress)


def _first_process() -> bool:
    """Whether this is the process that writes. Lightning and torchrun start one process a device, and Slurm one a task, each of
    which comes through here. (In a shell that Slurm gave out, SLURM_PROCID is that of the shell.)"""
    for names in (("RANK",), ("LOCAL_RANK", "NODE_RANK"), ("SLURM_PROCID",)):
        if names[0] in os.environ:
            return all(os.environ.get(name, "0") == "0" for name in names)
    return True


def _checkpoint(run: Path, config: PretrainConfig, digest: str) -> Checkpoint | None:
    from medfm.training.checkpoint import Checkpoint, checkpoints, latest_checkpoint
    from medfm.training.run_folder import check_same_run

    # Slurm starts a job that was put into the queue again with the same words; they are about its first start.
    again = os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    if again and config.resume != "auto" and (newest := latest_checkpoint(run / "checkpoints")) is not None:
        return newest
    if isinstance(config.resume, Path):
        return Checkpoint.read(config.resume)
    # The first process has checked, and has begun to fill the folder.
    # A start that failed before anything was learned left no run behind that could be mixed up.
    learned = (run / "model.safetensors").is_file() or bool(checkpoints(run / "checkpoints"))
    used = _first_process() and not again and (run / "resolved.yaml").is_file() and learned
    if config.resume == "never":
        if used:
            raise ConfigError(f"'{run}' holds a run already; choose another out=, or resume=auto to go on with it")
        return None
    if used:
        check_same_run(run, config, digest)
    return latest_checkpoint(run / "checkpoints")


def _fit(run: Path, config: PretrainConfig, manifest: Any, digest: str, checkpoint: Checkpoint | None, progress: bool) -> Path:
    import torch
    from lightning.pytorch.loggers import TensorBoardLogger

    from medfm.objectives.base import Objective, Parts
    from medfm.registry import OBJECTIVES
    from medfm.training.build import build_trainer
    from medfm.training.callbacks import Checkpoints, Weights
    from medfm.training.guard import build_guard
    from medfm.training.loaders import Loaders
    from medfm.training.logs import CsvLogger, draw_curves
    from medfm.training.module import PretrainModule, kernels_channels_last
    from medfm.training.panels import build_panels
    from medfm.training.progress import RunProgress
    from medfm.training.run_folder import environment, write_run_files
    from medfm.training.views_picture import build_views_picture
    from medfm.transforms.preprocess import Preprocess

    preprocess = Preprocess(config.preprocess)
    objective_config: Any = config.objective
    parts = Parts(config.encoder, preprocess, config.augment, config.step_batch, objective_config.tokenizer_config)
    loaders = Loaders(manifest, config, preprocess, parts.tokenizer)
    parts.train_images, parts.batch_size = len(loaders.train), loaders.step_batch
    if loaders.batch_size < config.data.batch_size and _first_process():
        log.warning(
            "a batch holds %d of the %d training images, not data.batch_size=%d; what follows from the batch (lr_scale, "
            "momentum and out_dim at auto) follows from that",
            loaders.batch_size,
            len(loaders.train),
            config.data.batch_size,
        )
    torch.manual_seed(config.seed)
    objective: Objective = OBJECTIVES.build(config.objective, parts=parts)
    _check_whole(parts.image_encoder, config)
    if config.init is not None and checkpoint is None:
        _start_from(objective, config)
    if config.trainer.channels_last:
        kernels_channels_last(parts.image_encoder)

    per_epoch = loaders.batches_per_epoch
    batches = math.ceil(config.trainer.max_epochs * per_epoch)
    total = config.trainer.max_steps or max(1, batches // config.trainer.accumulate)
    loaders.total_batches = total * config.trainer.accumulate
    done = checkpoint.step if checkpoint else 0
    loaders.done_batches = done * config.trainer.accumulate

    module = PretrainModule(objective, preprocess, config, total, per_epoch, loaders.step_batch)
    if checkpoint is not None:
        checkpoint.check_fits(module.state_dict(), module.parameter_groups())
    facts = environment(digest, str(manifest.meta.get("card") or ""))
    extra = {"manifest_hash": digest, "versions": facts["versions"], "git_revision": facts["git_revision"]}
    extra |= {key: manifest.meta.get(key) for key in ("card", "text_kind", "licence", "intensity_units")}

    def save(step: int, val_loss: float | None = None) -> None:
        _save(run, module, config, parts.tokenizer, {**extra, "step": step, "val_loss": val_loss})

    if checkpoint is not None and done >= total:
        log.warning("'%s' has run its %d steps already", run, total)
        if _first_process() and not _has_weights(run, done, config.trainer.select):
            log.warning("its end was not written: writing the weights of its last checkpoint")
            module.load_state_dict(checkpoint.state["state_dict"])
            save(done)
            draw_curves(run / "metrics.csv", run / "curves.png")
        return run
    every = max(1, round(config.trainer.checkpoint_every * per_epoch / config.trainer.accumulate))
    keeper = Checkpoints(run / "checkpoints", every, config.trainer.keep, config.trainer.accumulate)
    callbacks = [
        build_guard(config, objective, loaders, run, preprocess),  # before the learning curves are drawn
        Weights(run, save, config.trainer.select),
        keeper,
        build_panels(config, objective, loaders, run, preprocess),
        build_views_picture(objective, run, config.seed),
        RunProgress(config.name, per_epoch / config.trainer.accumulate) if progress else None,
    ]
    loggers: list[Any] = []
    if _first_process():
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out: '{run}' cannot be made: {error.strerror}") from None
        write_run_files(run, config, facts)
        loggers = [
            CsvLogger(run / "metrics.csv", done),
            TensorBoardLogger(str(run), name="", version="tensorboard", purge_step=done or None),
        ]
    if config.trainer.compile:
        objective.compile_encoders()
    trainer = build_trainer(
        config.trainer,
        steps=total,
        batches=loaders.total_batches,
        per_epoch=per_epoch,
        loggers=loggers,
        callbacks=[callback for callback in callbacks if callback is not None],
        progress=progress,
        checkpoint=checkpoint,
    )
    resumed = str(checkpoint.path) if checkpoint is not None else None
    del checkpoint  # the trainer lets go of its tensors when it has loaded them
    trainer.fit(module, datamodule=loaders, ckpt_path=resumed, weights_only=True)
    if keeper.stopped_by is not None:
        raise KeyboardInterrupt
    return run


def _check_whole(encoder: Any, config: PretrainConfig) -> None:
    """Views are cut to the encoder's size; evaluation would be the first to hand it an image of another, the contract's.

    Raises:
        ConfigError: the encoder does not take it.
    """
    from medfm.encoders.build import refused_size

    size = tuple(config.preprocess.size)
    plain = getattr(config.encoder, "name", "") == "vit" and getattr(config.encoder, "window", None) is None
    if plain or tuple(getattr(config.encoder, "img_size", size)) == size:
        return
    if why := refused_size(encoder, size, config.preprocess.channels):
        raise ConfigError(
            f"preprocess.size: evaluation gives the encoder whole images of {list(size)}, which it does not take ({why}); "
            "set it to encoder.img_size, or to what the encoder takes"
        )


def _start_from(objective: Any, config: PretrainConfig) -> None:
    """Load the weights that `init` names into what learns."""
    from medfm.weights.load import load_tensors_into

    assert config.init is not None
    started = load_tensors_into(objective.learner(), config.init, allow=config.init_allow)
    objective.weights_loaded()
    if started.missing or started.unused:
        log.warning("init: %d tensors start at random, %d are unused", len(started.missing), len(started.unused))


def _save(run: Path, module: Any, config: PretrainConfig, tokenizer: Any, extra: dict[str, Any]) -> None:
    """Write the weights; on every device, since each may hold a part of them."""
    from medfm.weights.save import save_model

    model = module.objective.model()
    tensors = module.sharded.tensors(model) if module.sharded is not None else None
    if _first_process():
        # How and where a run was started is nobody's business who is given its weights.
        recipe = config.model_dump(mode="json", exclude={"launcher"})
        save_model(run / "model.safetensors", model, recipe, tokenizer, extra, tensors=tensors)


def _has_weights(run: Path, step: int, select: str) -> bool:
    """Whether the run folder holds the weights of a run that ended at `step`; of the best validation, those of any step."""
    from medfm.errors import WeightsError
    from medfm.weights.load import read_card

    try:
        written = read_card(run).get("step")
    except WeightsError:
        return False
    return select == "best" or written is None or written >= step  # None: written by an older medfm


# True of medfm by design: a whole-run loader, in-process loading, batches moved by the module.
_KNOWN = (
    "LeafSpec",
    "does not have many workers",
    "lr_scheduler.step",
    "dataloader is not resumable",
    "logging interval",
    "transfer_batch_to_device",
    "in eval mode at the start of training",  # teachers
    "all_gather is deprecated",  # by Lightning itself
)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's banner and advertisements say nothing about the run."""
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".*({'|'.join(_KNOWN)})")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
