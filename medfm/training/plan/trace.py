"""One training step of a recipe, followed without computing it: memory, operations and bytes moved.

The objective is built on torch's meta device and run on fake tensors, so that a model of any size is planned on any machine.
The step is the one that `PretrainModule` takes: contract and augmentation on the device, forward under the trainer's
precision, backward.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from medfm.data.batches import change_tensors, tensors_of
from medfm.errors import MedfmError
from medfm.objectives.base import Objective, Parts
from medfm.registry import OBJECTIVES
from medfm.text.knowledge import load_knowledge
from medfm.training.config import PretrainConfig
from medfm.training.plan.flops import op_flops
from medfm.training.plan.kernels import Kernels, cuda_attention
from medfm.training.plan.memory import Ledger, Weights, weigh
from medfm.training.plan.shadow import ShadowDraws, ShadowMode
from medfm.transforms.augment import Augment
from medfm.transforms.preprocess import Preprocess
from medfm.types import Batch, Texts

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "bf16-true": torch.bfloat16}
# Training images where nobody says; sizes that are `auto` may depend on them.
IMAGES = 100_000


@dataclass(frozen=True)
class Footprint:
    """What one micro-batch takes on one device.

    Attributes:
        batch: images.
        inputs: bytes of the batch as it arrives.
        kept: bytes that the forward pass leaves for the backward pass.
        forward_peak: the most bytes alive at once in the forward pass, beside inputs, weights, gradients, optimiser states.
        peak: the same in forward and backward pass.
        peak_with_gradients: the same with the gradients alive at that time.
        forward_flops, flops: operations of the forward pass, and of forward and backward (recomputation included).
        full_flops: those of `flops` that run in float32.
        traffic: bytes that operations read and write.
        kernels: operations that compute.
        guesses: values that the trace had to guess, see `ShadowMode`.
    """

    batch: int
    inputs: int
    kept: int
    forward_peak: int
    peak: int
    peak_with_gradients: int
    forward_flops: int
    flops: int
    full_flops: int
    traffic: int
    kernels: int
    guesses: int


class Untraceable(MedfmError):
    """The step cannot be followed without data."""


class _OnMeta(TorchFunctionMode):
    """Tensors that hold weights are made without memory; tables (linspace, arange) keep their values, which builders read."""

    _FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand, torch.full})

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def without_files(config: PretrainConfig) -> PretrainConfig:
    """The recipe with random weights: their values do not matter to a plan, and the files need not be here."""
    encoder, objective = _without_weights(config.encoder), config.objective
    text: Any = getattr(objective, "text_encoder", None)
    absent = {"pretrained": False, "weights": None}
    if changes := {key: value for key, value in absent.items() if getattr(text, key, None) not in (None, False)}:
        objective = objective.model_copy(update={"text_encoder": text.model_copy(update=changes)})
    return config.model_copy(update={"encoder": encoder, "objective": objective, "init": None})


def _without_weights(encoder: Any) -> Any:
    """An image encoder's configuration, and that of the 2D encoder inside it, without files."""
    changes: dict[str, Any] = {"weights": None} if getattr(encoder, "weights", None) is not None else {}
    if getattr(encoder, "encoder", None) is not None:
        changes["encoder"] = _without_weights(encoder.encoder)
    return encoder.model_copy(update=changes) if changes else encoder


def parts_of(config: PretrainConfig, batch: int | None = None, images: int = 0) -> Parts:
    """What the recipe hands to its objective, as `pretrain` does.

    Args:
        batch: images of an optimiser step, where the recipe's is split.
        images: of the training split, 0 for IMAGES.
    """
    config = without_files(config)
    tokenizer = getattr(config.objective, "tokenizer_config", None)
    contract = Preprocess(config.preprocess)
    return Parts(config.encoder, contract, config.augment, batch or config.step_batch, tokenizer, images or IMAGES)


def build_on_meta(config: PretrainConfig, batch: int | None = None, images: int = 0) -> tuple[Objective, Parts]:
    """The recipe's objective, its weights without memory."""
    parts = parts_of(config, batch, images)
    with _OnMeta(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a teacher's file is read into tensors that keep nothing
        objective: Objective = OBJECTIVES.build(without_files(config).objective, parts=parts)
    return objective.to("meta"), parts


def _to_fake(objective: nn.Module, dtype: torch.dtype) -> None:
    """Replace the meta tensors by fake ones; call under the fake mode. Tensors shared between modules stay shared."""
    made: dict[int, Tensor] = {}
    parts = (objective, *(objective.outside() if isinstance(objective, Objective) else ()))
    for module in (module for part in parts for module in part.modules()):
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    fake: Tensor = torch.empty_strided(tensor.shape, tensor.stride(), dtype=kind)
                    made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
                tensors[name] = made[id(tensor)]


_SENTENCE = 48  # tokens of the longest sentence of a batch


def example_batch(config: PretrainConfig, parts: Parts, rows: int) -> Batch:
    """A batch as the loader makes it, with zeros for pixels: every row has a full-length text of its own, and all the further
    texts that the objective reads."""
    contract = config.preprocess
    stored = {"uint8": torch.uint8, "int16": torch.int16, "float32": torch.float32}[contract.dtype]
    numbers = torch.arange(rows)
    tokens = mask = concepts = relations = None
    texts: dict[str, Texts] = {}
    further = config.objective.further_texts
    if parts.tokenizer is not None:
        length = parts.tokenizer.context_length
        tokens, mask = torch.ones(rows, length, dtype=torch.int64), torch.ones(rows, length, dtype=torch.int64)
        for kind in further.kinds:
            each, width = (further.max_sentences, min(length, _SENTENCE)) if kind == "sentences" else (1, length)
            words = torch.ones(rows * each, width, dtype=torch.int64)
            texts[kind] = Texts(words, words.clone(), numbers.repeat_interleave(each), torch.arange(rows * each))
        if further.knowledge is not None:
            count = len(load_knowledge(further.knowledge))
            concepts = torch.ones(rows, count)
            relations = torch.ones(rows, count, count, dtype=torch.bool) if further.relations else None
    shape = (rows, contract.stored_channels, *parts.preprocess.stored_shape[-len(contract.size) :])
    own = numbers if tokens is not None else torch.full((rows,), -1)
    return Batch(
        images=torch.empty(shape, dtype=stored, device="meta"),
        tokens=tokens,
        attention_mask=mask,
        patient=numbers,
        text_group=own,
        labels=torch.zeros(rows, 0),
        index=numbers,
        drawn=own,
        texts=texts,
        concepts=concepts,
        relations=relations,
    )


class _Watch:
    """Adds up what each operation costs."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.flops = self.full = self.traffic = self.kernels = 0

    def count(self, flops: int, operand: Tensor) -> None:
        self.flops += flops
        if operand.dtype == torch.float32:
            self.full += flops

    def __call__(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        inputs: list[Tensor],
        outputs: list[Tensor],
    ) -> None:
        for x in outputs:
            self.ledger.add(x)
        if not outputs or func.is_view:
            return
        self.kernels += 1
        self.traffic += sum(x.numel() * x.element_size() for x in (*inputs, *outputs))
        flops = op_flops(func, args, kwargs, out)
        if flops:
            self.count(flops, inputs[-1])


def trace_step(
    config: PretrainConfig, rows: int, *, cuda: bool = True, batch: int | None = None, images: int = 0
) -> tuple[Footprint, Weights]:
    """Follow one step of `rows` images on one device.

    Args:
        cuda: as on a CUDA device, else as on a CPU.
        batch: images of an optimiser step, which some objectives take their sizes from; default: the recipe's.
        images: of the training split, 0 where not known.

    Raises:
        Untraceable: the objective asks for values in a way that cannot be followed; names the operation.
        MedfmError: what `pretrain` would say of the recipe.
    """
    objective, parts = build_on_meta(config, batch, images)
    try:
        return _trace(objective, parts, config, rows, cuda)
    except MedfmError:
        raise
    except Exception as error:  # whatever an objective of anybody's does on tensors without values
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Untraceable(
            f"objective '{config.objective.name}' cannot be followed without data ({type(error).__name__}: {what})"
        ) from error


def _trace(objective: Objective, parts: Parts, config: PretrainConfig, rows: int, cuda: bool) -> tuple[Footprint, Weights]:
    precision = config.trainer.precision
    watch = _Watch()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    example = example_batch(config, parts, rows)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(cuda_attention(cuda))
        stack.enter_context(fake)
        _to_fake(objective, torch.bfloat16 if precision == "bf16-true" else torch.float32)
        objective.train()
        weights = weigh(objective, getattr(config.optimizer, "name", "adamw"))
        shadow = ShadowMode(fake, watch)
        lifted = change_tensors(example, partial(_lift, shadow))
        beside = [tensor for part in objective.outside() for tensor in (*part.parameters(), *part.buffers())]
        for tensor in (*objective.parameters(), *objective.buffers(), *beside, *tensors_of(lifted)):
            watch.ledger.exclude(tensor)
        stack.enter_context(shadow)
        stack.enter_context(Kernels(cuda, watch.count))
        for parameter in objective.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: watch.ledger.to_gradient(p.grad))
        watch.ledger.restart()
        objective.before_step(0, 1000)
        loss = _forward(objective, parts, config, lifted, ShadowDraws(shadow), precision)
        kept, forward = watch.ledger.live, watch.flops
        forward_peak = watch.ledger.peak
        # loss.backward() leaves function modes while it runs, and what is computed again would then use other kernels.
        engine: Any = torch.autograd.Variable._execution_engine
        engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)
    inputs = sum(v.numel() * v.element_size() for v in tensors_of(example))
    ledger = watch.ledger
    return Footprint(
        rows, inputs, kept, forward_peak, ledger.peak, ledger.peak_with_gradients, forward, watch.flops, watch.full,
        watch.traffic, watch.kernels, shadow.guesses,
    ), weights  # fmt: skip


def _lift(shadow: ShadowMode, tensor: Tensor) -> Tensor:
    if tensor.device.type == "meta":
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    return shadow.lift(tensor)


def _forward(
    objective: Objective, parts: Parts, config: PretrainConfig, batch: Batch, draws: ShadowDraws, precision: str
) -> Tensor:
    """As `PretrainModule._forward`, under the trainer's precision."""
    with precision_context(precision):
        images = batch.images
        if not objective.takes_stored_pixels:
            images = Augment(config.augment).prepare(parts.preprocess, images, draws)
        return objective(replace(batch, images=images), draws).loss


@contextmanager
def precision_context(precision: str, device: str = "cpu") -> Iterator[None]:
    """What Lightning's precision plugin puts around a forward pass."""
    if precision == "32-true":
        yield
        return
    with torch.autocast(device, DTYPES[precision]):  # also around bfloat16 weights, see `Bf16Weights`
        yield
