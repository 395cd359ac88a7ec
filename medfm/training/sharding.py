"""FSDP2: weights, gradients and optimiser state shared out over devices, with the checkpoints that one device writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from medfm.errors import ConfigError
from medfm.objectives.base import Objective


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy over all devices as one data-parallel group.

    A checkpoint is the file that one device or DDP would write, whole tensors under the same names and numbers, through the
    trainer's CheckpointIO: a run may go on with another strategy and on another number of devices.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return whole_state(self.lightning_module)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: _like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = getattr(optimizer, "optimizer", optimizer).state_dict()
        moments = {number: {name: _whole(value) for name, value in values.items()} for number, values in state["state"].items()}
        return {**state, "state": moments}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                number: {name: v if name == "step" else _like(v, params[number]) for name, v in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": moments})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, map_location="cpu")


def _whole(value: Any) -> Any:
    """A tensor put together from all devices' parts, on the first device's CPU; the others, which write nothing, keep none."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    full = value.full_tensor() if isinstance(value, DTensor) else value
    return full.cpu() if dist.get_rank() == 0 else full.new_empty(0, device="cpu")


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of whole tensors on the CPU. All devices must ask; only the first gets the values."""
    return {name: _whole(value) for name, value in module.state_dict().items()}


def _like(value: Any, own: Any) -> Any:
    """`value`, the same on every device, shared out as `own` is."""
    if not isinstance(own, DTensor) or not isinstance(value, Tensor):
        return value
    local = value.to(own.device)
    return distribute_tensor(local, own.device_mesh, own.placements, src_data_rank=None)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """What is gathered, used and let go as one: the members of module lists that have parts of their own (transformer blocks
    of encoders, decoders and teachers, residual blocks), the innermost first."""
    found = [
        child
        for module in model.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for child in module
        if not isinstance(child, Objective | nn.ModuleList | nn.ModuleDict | nn.Sequential)  # ModuleDicts are never called
        and any(True for _ in child.children())
        and any(True for _ in child.parameters())
    ]
    return list(dict.fromkeys(reversed(found)))


class Sharded:
    """An objective whose parameters are shared out over the devices of a mesh.

    Each transformer block is a unit of its own and what is left is one more, gathered as long as the objective runs. Gradients
    are summed in float32. Numbers without an axis (a logit scale) cannot be shared out: every device keeps them, and a twin
    that shares their memory stands for them in the optimiser, whose fused update takes no mixed lists.

    Args:
        objective: sharded in place.
        mesh: the devices, one axis.
        precision: of the trainer.
    """

    def __init__(self, objective: nn.Module, mesh: DeviceMesh, precision: str) -> None:
        self.objective = objective
        self._scalars = [p for p in objective.parameters() if p.ndim == 0]
        for scalar in self._scalars:
            scalar.data = scalar.data.to(mesh.device_type)
        self._twins = {id(p): _twin(p, mesh) for p in self._scalars if p.requires_grad}
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        ignored = set(self._scalars)
        for block in _blocks(objective):
            fully_shard(block, mesh=mesh, mp_policy=_block_policy(precision) or policy, ignored_params=ignored)
        # What the objective itself holds is small and needed from its first line to its last.
        fully_shard(objective, mesh=mesh, mp_policy=policy, ignored_params=ignored, reshard_after_forward=False)

    def optimised(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups with twins in the place of numbers without an axis."""
        return [{**group, "params": [self._twins.get(id(p), p) for p in group["params"]]} for group in groups]

    def gather_scalars(self) -> None:
        """Hand the gradients of numbers without an axis to their twins, averaged over devices as all others are."""
        for scalar in self._scalars:
            twin = self._twins.get(id(scalar))
            if twin is None or scalar.grad is None:
                continue
            dist.all_reduce(scalar.grad)
            scalar.grad /= dist.get_world_size()
            twin.grad = DTensor.from_local(scalar.grad, twin.device_mesh, [Replicate()])
            scalar.grad = None

    def tensors(self, part: nn.Module) -> dict[str, Tensor]:
        """The whole tensors of a part of the objective on the CPU; see `whole_state`."""
        return whole_state(part)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """The objective's own parameters whole, so that parts of it can run outside its forward. All devices must come here."""
        root = cast(FSDPModule, self.objective)
        root.unshard()
        try:
            yield
        finally:
            root.reshard()


def _block_policy(precision: str) -> MixedPrecisionPolicy | None:
    """With bf16-mixed the matrices of a block are sent in bfloat16, which autocast would make of them on arrival; norms and
    biases stay float32. Before torch had a choice by parameter all is sent as it is kept."""
    if precision != "bf16-mixed" or "param_dtype_override_fn" not in MixedPrecisionPolicy.__dataclass_fields__:
        return None
    return MixedPrecisionPolicy(
        torch.bfloat16,
        torch.float32,
        cast_forward_inputs=False,
        param_dtype_override_fn=lambda p: p.dtype if p.ndim <= 1 else None,
    )


def _twin(p: nn.Parameter, mesh: DeviceMesh) -> Any:
    return nn.Parameter(DTensor.from_local(p.data, mesh, [Replicate()], run_check=False))


def check_precision(precision: str) -> None:
    """Raises ConfigError for a precision that FSDP2 does not have."""
    if precision == "16-mixed":
        raise ConfigError("trainer.strategy=fsdp2 does not scale float16 gradients; use trainer.precision=bf16-mixed")
