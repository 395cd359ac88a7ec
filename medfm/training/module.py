"""The Lightning module of every pre-training objective."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from medfm.data.batches import to_device
from medfm.errors import TrainingError
from medfm.objectives.base import Objective
from medfm.training.config import PretrainConfig
from medfm.training.gradients import all_finite, clip_gradients
from medfm.training.optim import build_schedule, optimizer_of, parameter_groups, set_weight_decay
from medfm.transforms.augment import Augment
from medfm.transforms.draws import Draws
from medfm.transforms.preprocess import Preprocess
from medfm.types import Batch, ObjectiveOutput

if TYPE_CHECKING:
    from medfm.training.sharding import Sharded


def step_seed(seed: int, step: int, what: int | str) -> int:
    """The random seed of one batch for `what`, so that a resumed run draws what an uninterrupted one draws."""
    digest = hashlib.blake2s(f"{seed}/{step}/{what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def channels_last(axes: int) -> torch.memory_format:
    """The memory format of images or kernels of 2 or 3 axes in which a place's channels lie together."""
    return torch.channels_last_3d if axes == 3 else torch.channels_last


def kernels_channels_last(module: torch.nn.Module) -> None:
    """Lays out convolutions' kernels so, each by its own number of axes: an encoder of slices has 2D ones."""
    for parameter in module.parameters():
        if parameter.ndim in (4, 5):
            parameter.data = parameter.data.contiguous(memory_format=channels_last(parameter.ndim - 2))


class PretrainModule(LightningModule):
    """Moves batches through contract, augmentation and objective; logs; stops at the first number that is not finite.

    Args:
        objective: takes a Batch, gives an ObjectiveOutput.
        preprocess: the contract that makes stored pixels float.
        config: the recipe.
        total_steps: optimiser steps of the whole run.
        batches_per_epoch: batches that make one pass over the training split.
        step_batch: images that an optimiser step sees, over all devices and accumulated batches.
    """

    def __init__(
        self,
        objective: Objective,
        preprocess: Preprocess,
        config: PretrainConfig,
        total_steps: int,
        batches_per_epoch: int,
        step_batch: int,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.preprocess = preprocess
        self.augment = Augment(config.augment)
        self.config = config
        self.sharded: Sharded | None = None
        self.total_steps = total_steps
        self.batches_per_epoch = batches_per_epoch
        self.step_batch = step_batch
        self._draws: Draws | None = None
        self._last: ObjectiveOutput | None = None
        self._validation: list[tuple[int, dict[str, float]]] = []

    def configure_model(self) -> None:
        if self.config.trainer.strategy == "fsdp2" and self.sharded is None:
            from medfm.training.sharding import Sharded

            assert self.device_mesh is not None
            self.trainer.precision_plugin.convert_module(self)
            self.sharded = Sharded(self.objective, self.device_mesh["data_parallel"], self.config.trainer.precision)

    def gathered(self) -> AbstractContextManager[None]:
        """Inside, parts of the objective can run by themselves whatever the strategy, for probes and pictures. With fsdp2 all
        devices must come here, and run the same."""
        return nullcontext() if self.sharded is None else self.sharded.gathered()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser is made of, before parameters are shared out over devices."""
        return parameter_groups(self.objective, self.config.optimizer, self.step_batch)

    def configure_optimizers(self) -> Any:
        groups = self.parameter_groups()
        if self.sharded is not None:
            groups = self.sharded.optimised(groups)
        optimizer = optimizer_of(groups, self.config.optimizer)
        schedule = build_schedule(optimizer, self.total_steps, self.config.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Layers with dropout draw from the global generators, each device for itself; all else is drawn for the whole batch.
        torch.manual_seed(step_seed(self.config.seed, batch_idx, self.global_rank))
        self._draws = Draws(
            step_seed(self.config.seed, batch_idx, "draws"), self.device, self.global_rank, self.trainer.world_size
        )
        self.objective.before_step(self.global_step, self.total_steps)
        set_weight_decay(self._optimizer, self.config.optimizer, self.global_step, self.total_steps)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self.trainer.optimizers[0]

    def _forward(self, batch: Batch, draws: Draws) -> ObjectiveOutput:
        if not self.objective.takes_stored_pixels:
            images = self.augment.prepare(self.preprocess, batch.images, draws if self.training else None)
            if self.config.trainer.channels_last:
                images = images.contiguous(memory_format=channels_last(images.ndim - 2))
            batch.images = images
        output: ObjectiveOutput = self.objective(batch, draws)
        return output

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self._draws is not None
        output = self._forward(batch, self._draws)
        self._last = output
        return output.loss

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip by norm, and refuse to step on a loss or gradient that is not finite."""
        if self.sharded is not None:
            self.sharded.gather_scalars()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # Lightning leaves it to the step of a fused optimiser, which comes after clipping
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = clip_gradients(parameters, self.config.trainer.clip_grad, self.config.trainer.clip_grad_by)
        assert self._last is not None
        scaled = self.trainer.precision == "16-mixed"  # its scaler meets infinite gradients by design and skips the step
        finite = torch.isfinite(self._last.loss)
        if not (finite if scaled else finite & torch.isfinite(norm).to(finite.device)):  # the device is asked once a step
            raise TrainingError(self._not_finite(self._last))
        self._last.logs["grad_norm"] = norm.detach()
        self.objective.after_backward(self.global_step, self.total_steps)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Not in on_train_batch_end, which comes after the callbacks' own: their checkpoints and weights would hold a teacher
        # that has not followed yet. The step's number is counted up behind this hook.
        self.objective.after_optimizer_step(self.global_step + 1, self.total_steps)

    def _not_finite(self, output: ObjectiveOutput) -> str:
        terms = [name for name, value in {**output.logs, "loss": output.loss}.items() if not torch.isfinite(value).all()]
        grads = [n for n, p in self.objective.named_parameters() if p.grad is not None and not all_finite(p.grad)]
        what = f"loss term{'s' if len(terms) > 1 else ''} {', '.join(terms)}" if terms else "a gradient"
        what = f"the gradient of '{grads[0]}'" if grads and not terms else what
        return (
            f"step {self.global_step}: {what} not finite; the weights are unchanged. Lower optimizer.lr, raise "
            "schedule.warmup, set trainer.clip_grad, or use trainer.precision=bf16-mixed or 32-true; resume=auto goes on "
            "from the last checkpoint"
        )

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if (batch_idx + 1) % self.config.trainer.accumulate:
            return
        if self.global_step % self.config.trainer.log_every == 0 and self._last is not None:
            logs = {
                f"train/{name}": float(value.detach()) for name, value in {**self._last.logs, "loss": self._last.loss}.items()
            }
            first = self._optimizer.param_groups[0]
            logs["lr"] = first["lr"] / first.get("lr_multiplier", 1.0)
            logs["epoch"] = (batch_idx + 1) / self.batches_per_epoch
            self._write(logs)
            self.log("loss", logs["train/loss"], prog_bar=True, logger=False)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # The same masks and views at every validation, and every device sees the whole split.
        output = self._forward(batch, Draws(step_seed(self.config.seed, batch_idx, "validation"), self.device))
        if self.trainer.datamodule.val is None:  # type: ignore[attr-defined]
            return  # training images, which are there to be pictured and judge nothing
        logs = {name: float(value) for name, value in {**output.logs, "loss": output.loss}.items()}
        self._validation.append((len(batch.index), logs))

    def on_validation_epoch_end(self) -> None:
        total = sum(n for n, _ in self._validation)
        if total:
            names = self._validation[0][1]
            means = {f"val/{name}": sum(n * logs[name] for n, logs in self._validation) / total for name in names}
            self.trainer.callback_metrics.update({k: torch.tensor(v) for k, v in means.items()})
            if not self.trainer.sanity_checking:
                self._write(means)
        self._validation.clear()

    def _write(self, metrics: dict[str, float]) -> None:
        if self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, self.global_step)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return to_device(batch, device)
