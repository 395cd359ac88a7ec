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
from medfm.training.build import device_count
from medfm.training.config import PretrainConfig
from medfm.training.fixed_images import as_judged, chosen
from medfm.transforms.preprocess import Preprocess

_PICTURED = 4  # training images that are shown where there is no validation split


class WholeRunSampler(StepBatchSampler):
    """Lightning counts the batches of a resumed run from the run's start, so the length is the whole run's."""

    def __len__(self) -> int:
        return self.total_steps


class Loaders(LightningDataModule):
    """One loader for the whole run: a "Lightning epoch" is the run, the sampler knows the real ones.

    Attributes:
        total_batches: batches of the whole run; set before fitting.
        done_batches: batches that a resumed run has behind it.
        batches_per_epoch: batches that make one pass over the training split.
        batch_size: images of a batch over all devices: fewer than the recipe's where the training split has fewer.
        step_batch: images that an optimiser step sees, over all devices and accumulated batches.
    """

    def __init__(self, manifest: Manifest, config: PretrainConfig, preprocess: Preprocess, tokenizer: Tokenizer | None) -> None:
        super().__init__()
        self.config = config.data
        self.seed = config.seed
        options: dict[str, Any] = {
            "preprocess": preprocess,
            "tokenizer": tokenizer,
            "report": config.data.report,
            "further": config.objective.further_texts,
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
        world = device_count(config.trainer)
        sampler = StepBatchSampler(len(self.train), config.data.batch_size, 1, config.seed, world=world)
        self.batches_per_epoch = sampler.steps_per_epoch  # the same on every number of devices
        self.batch_size = sampler.global_batch
        self.step_batch = sampler.global_batch * config.trainer.accumulate

    def train_dataloader(self) -> StudyLoader:
        assert self.trainer is not None
        sampler = WholeRunSampler(
            len(self.train),
            self.config.batch_size,
            self.total_batches,
            self.seed,
            start_step=self.done_batches,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            groups=self.groups,
        )
        return build_loader(self.train, sampler, workers=self.config.workers, pin=self._on_gpu())

    def val_dataloader(self) -> StudyLoader:
        """Every device sees the whole validation split: no padding, and no rank left waiting. Without one, a few training
        images, the same every time: pictures are made and weights are written at the same moments."""
        if self.val is None:
            positions = chosen(self.train, _PICTURED, self.seed)
            return build_loader(as_judged(self.train), [[(0, position) for position in positions]], pin=self._on_gpu())
        # Loader processes for a small split cost more than they save.
        workers = self.config.workers if len(self.val) > 4 * self.config.eval_batch_size else 0
        return build_loader(self.val, None, batch_size=self.config.eval_batch_size, workers=workers, pin=self._on_gpu())

    def _on_gpu(self) -> bool:
        assert self.trainer is not None
        return self.trainer.strategy.root_device.type == "cuda"
