"""`medfm pretrain`: from a validated recipe to a run folder with weights."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medfm.errors import ConfigError
from medfm.training.config import PretrainConfig

log = logging.getLogger(__name__)


def pretrain(config: PretrainConfig, progress: bool = True) -> Path:
    """Train by a recipe, or go on with a run that stopped.

    The run folder holds `model.safetensors` (weights with contract and tokenizer), `checkpoints/`, `resolved.yaml` (itself a
    recipe), `environment.json`, `metrics.csv`, `tensorboard/` and `curves.png`.

    Returns:
        The run folder.

    Raises:
        ConfigError: the run folder belongs to another recipe, or resuming is refused.
        DataError: the manifest has bad rows (all are counted) or too few training rows.
        TrainingError: a number is not finite.
    """
    # Data first: a bad manifest is reported before torch spends time on a model.
    from medfm.data.check import prepare
    from medfm.data.manifest import manifest_hash, read_manifest

    progress = progress and _first_process()
    run = config.out or Path("runs") / config.name
    # A store compares each file's size and time with what it was made from; the files need not be read again.
    level = config.data.check_files if config.data.cache in ("none", "memory") else "none"
    manifest = prepare(read_manifest(config.data.manifest, config.data.root), config.data, progress=progress, level=level)
    digest = manifest_hash(manifest)
    checkpoint = _checkpoint(run, config, digest)

    with _quiet_lightning():
        return _fit(run, config, manifest, digest, checkpoint, progress)


def _first_process() -> bool:
    """Whether this is the process that writes. Lightning starts one process a device, each of which comes through here."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def _checkpoint(run: Path, config: PretrainConfig, digest: str) -> Path | None:
    from medfm.training.checkpoint import latest_checkpoint
    from medfm.training.run_folder import check_same_run

    if isinstance(config.resume, Path):
        return config.resume
    # The first process has checked, and has begun to fill the folder.
    used = _first_process() and (run / "resolved.yaml").is_file()
    if config.resume == "never":
        if used:
            raise ConfigError(f"'{run}' holds a run already; choose another out=, or resume=auto to go on with it")
        return None
    if used:
        check_same_run(run, config, digest)
    return latest_checkpoint(run / "checkpoints")


def _fit(run: Path, config: PretrainConfig, manifest: Any, digest: str, checkpoint: Path | None, progress: bool) -> Path:
    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import TensorBoardLogger

    from medfm.objectives.base import Objective, Parts
    from medfm.registry import OBJECTIVES
    from medfm.training.callbacks import Checkpoints, Weights
    from medfm.training.checkpoint import AtomicCheckpointIO, read_checkpoint
    from medfm.training.loaders import Loaders
    from medfm.training.logs import CsvLogger
    from medfm.training.module import PretrainModule
    from medfm.training.progress import RunProgress
    from medfm.training.run_folder import environment, write_run_files
    from medfm.transforms.preprocess import Preprocess
    from medfm.weights.save import save_model

    torch.manual_seed(config.seed)
    preprocess = Preprocess(config.preprocess)
    objective_config: Any = config.objective
    parts = Parts(
        config.encoder,
        preprocess,
        config.augment,
        config.data.batch_size * config.trainer.accumulate,
        objective_config.tokenizer_config,
    )
    objective: Objective = OBJECTIVES.build(config.objective, parts=parts)
    if config.init is not None and checkpoint is None:
        from medfm.weights.load import load_tensors_into

        started = load_tensors_into(objective.learner(), config.init, allow=config.init_allow)
        objective.weights_loaded()
        if started.missing or started.unused:
            log.warning("init: %d tensors start at random, %d are unused", len(started.missing), len(started.unused))
    if config.trainer.channels_last:
        parts.image_encoder.to(memory_format=torch.channels_last)

    loaders = Loaders(manifest, config, preprocess, parts.tokenizer)
    per_epoch = loaders.batches_per_epoch
    batches = math.ceil(config.trainer.max_epochs * per_epoch)
    total = config.trainer.max_steps or max(1, batches // config.trainer.accumulate)
    loaders.total_batches = total * config.trainer.accumulate

    done = int(read_checkpoint(checkpoint)["global_step"]) if checkpoint else 0
    if done >= total:
        log.warning("'%s' has run its %d steps already", run, total)
        return run
    loaders.done_batches = done * config.trainer.accumulate

    facts = environment(digest, str(manifest.meta.get("card") or ""))
    loggers: list[Any] = []
    if _first_process():
        run.mkdir(parents=True, exist_ok=True)
        write_run_files(run, config, facts)
        loggers = [
            CsvLogger(run / "metrics.csv", done),
            TensorBoardLogger(str(run), name="", version="tensorboard", purge_step=done or None),
        ]

    def save() -> None:
        extra = {"manifest_hash": digest, "versions": facts["versions"], "git_revision": facts["git_revision"]}
        extra |= {key: manifest.meta.get(key) for key in ("card", "text_kind", "licence", "intensity_units")}
        save_model(run / "model.safetensors", objective.model(), config.model_dump(mode="json"), parts.tokenizer, extra)

    every = max(1, round(config.trainer.checkpoint_every * per_epoch / config.trainer.accumulate))
    keeper = Checkpoints(run / "checkpoints", every, config.trainer.keep)
    bars = [RunProgress(config.name, per_epoch / config.trainer.accumulate)] if progress else []
    if config.trainer.compile:
        objective.compile_encoders()
    trainer = Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        precision=config.trainer.precision,
        accumulate_grad_batches=config.trainer.accumulate,
        max_steps=total,
        max_epochs=1,  # one pass of a sampler that knows the epochs: no worker restarts, and an exact place to resume at
        val_check_interval=min(max(1, round(config.trainer.val_every * per_epoch)), loaders.total_batches),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        plugins=[AtomicCheckpointIO()],
        logger=loggers,
        callbacks=[Weights(run, save, config.trainer.select), keeper, *bars],
        **config.trainer.extra,
    )
    module = PretrainModule(objective, preprocess, config, total, per_epoch)
    trainer.fit(module, datamodule=loaders, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    if keeper.stopped_by is not None:
        raise KeyboardInterrupt
    return run


# True of medfm by design: a whole-run loader, in-process loading, batches moved by the module.
_KNOWN = (
    "LeafSpec",
    "does not have many workers",
    "lr_scheduler.step",
    "dataloader is not resumable",
    "logging interval",
    "transfer_batch_to_device",
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
