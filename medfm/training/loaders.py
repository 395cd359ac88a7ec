"""Training and validation batches for Lightning, resumable at any step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule

from medfm.data.datamodule import StudyLoader, build_loader
from medfm.data.dataset import StudyDataset
from medfm.data.manifest import Manifest
from medfm.data.sampler import StepBatchSampler
from medfm.errors import ConfigError
from medfm.text.tokenizers import Tokenizer
from medfm.training.config import PretrainConfig
from medfm.transforms.preprocess import Preprocess


class WholeRunSampler(StepBatchSampler):
    """Lightning counts the batches of a resumed run from the run's start, so the length is the whole run's."""

    def __len__(self) -> int:
        return self.total_steps


class Loaders(LightningDataModule):
    """One loader for the whole run: a "Lightning epoch" is the run, the sampler knows the real ones.

    Attributes:
        total_batches: batches of the whole run; set before fitting.
        done_batches: batches that a resumed run has behind it.
    """

    def __init__(self, manifest: Manifest, config: PretrainConfig, preprocess: Preprocess, tokenizer: Tokenizer | None) -> None:
        super().__init__()
        self.config = config.data
        self.seed = config.seed
        options: dict[str, Any] = {
            "preprocess": preprocess,
            "tokenizer": tokenizer,
            "report": config.data.report,
            "seed": config.seed,
            "views": config.data.views,
            "cache": config.data.cache,
            "cache_gb": config.data.cache_gb,
            "on_error": config.data.on_error,
            "check_files": config.data.check_files != "none",
        }
        self.train = StudyDataset(manifest, split="train", train=True, crop=config.augment.crop, **options)
        if config.data.shuffle == "shard" and self.train.shards is None:
            raise ConfigError("data.shuffle=shard is for a cache on disk: set data.cache=DIR, or data.shuffle=global")
        self.groups = self.train.shards if config.data.shuffle == "shard" else None
        has_val = bool((manifest.frame["split"] == "val").any())
        self.val = StudyDataset(manifest, split="val", **options) if has_val else None
        self.total_batches = 0
        self.done_batches = 0
        # Asked of a one-process sampler: the same on every number of devices.
        self.batches_per_epoch = StepBatchSampler(len(self.train), config.data.batch_size, 1, config.seed).steps_per_epoch

    def train_dataloader(self) -> StudyLoader:
        assert self.trainer is not None
        world = self.trainer.world_size
        if self.config.batch_size % world:
            raise ConfigError(f"data.batch_size {self.config.batch_size} cannot be shared by {world} devices")
        sampler = WholeRunSampler(
            len(self.train),
            self.config.batch_size,
            self.total_batches,
            self.seed,
            start_step=self.done_batches,
            rank=self.trainer.global_rank,
            world=world,
            groups=self.groups,
        )
        return build_loader(self.train, sampler, workers=self.config.workers, pin=self._on_gpu())

    def val_dataloader(self) -> StudyLoader | list[Any]:
        """Every device sees the whole validation split: no padding, and no rank left waiting."""
        if self.val is None:
            return []
        # Loader processes for a small split cost more than they save.
        workers = self.config.workers if len(self.val) > 4 * self.config.eval_batch_size else 0
        return build_loader(self.val, None, batch_size=self.config.eval_batch_size, workers=workers, pin=self._on_gpu())

    def _on_gpu(self) -> bool:
        assert self.trainer is not None
        return self.trainer.strategy.root_device.type == "cuda"
