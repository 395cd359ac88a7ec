"""Running a step without data: fake tensors have shapes and no values, except for the few whose values decide shapes.

Masks, kept patches, rows with text and crops are drawn numbers and small integer tensors. Their values are carried along
beside the fake tensors, so that `nonzero`, `.item()` and boolean indexing give what they would give in a real step. Pixels,
features and weights have no values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from medfm.transforms.draws import Draws

# Tensors with more elements than this carry no values.
_LARGEST = 2**20
_ITEM = torch.ops.aten._local_scalar_dense.default
_INDEX = torch.ops.aten.index.Tensor
_NONZERO = torch.ops.aten.nonzero.default


class ShadowMode(TorchDispatchMode):
    """Laid over a FakeTensorMode. Tells `watch` of every operation, and carries known values along.

    Args:
        fake: the mode below.
        watch: called with (func, args, kwargs, out, inputs, outputs) after each operation; the last two are the tensors in it.

    Attributes:
        guesses: how often a value was asked for that is not known: a scalar was taken as 1, a mask as true everywhere.
    """

    def __init__(self, fake: FakeTensorMode, watch: Callable[..., None]) -> None:
        super().__init__()
        self.fake = fake
        self.watch = watch
        self.guesses = 0
        self._values: Any = WeakIdKeyDictionary()

    def lift(self, real: Tensor) -> Tensor:
        """A fake tensor that knows its values."""
        # Below this mode: the values are a copy that nobody counts twice.
        fake = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype)
        self._values[fake] = real
        return fake

    def _value(self, x: Any) -> Tensor | None:
        if not isinstance(x, FakeTensor):
            return x
        if x in self._values:
            return self._values[x]
        return x.constant

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _ITEM:
            return self._item(args[0])
        if torch.Tag.dynamic_output_shape in func.tags:
            return self._dynamic(func, args, kwargs)
        return self._run(func, args, kwargs)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        inputs, outputs = _tensors((args, *kwargs.values())), _tensors(out)
        self.watch(func, args, kwargs, out, inputs, outputs)
        self._follow(func, args, kwargs, inputs, outputs)
        return out

    def _item(self, x: Tensor) -> Any:
        value = self._value(x)
        if value is None:
            self.guesses += 1
            return {torch.bool: True}.get(x.dtype, 1.0 if x.is_floating_point() else 1)
        with _disable_current_modes():
            return value.item()

    def _dynamic(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is _INDEX:
            # Masks become row numbers, which give a shape.
            indices: list[Tensor | None] = []
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    indices += self._where(index).unbind(1)
                else:
                    indices.append(index)
            return self._run(func, (args[0], indices), kwargs)
        if all(self._value(x) is not None for x in _tensors((args, *kwargs.values()))):
            with _disable_current_modes():
                real = func(*tree_map_only(Tensor, self._value, args), **tree_map_only(Tensor, self._value, kwargs))
            with self:
                return tree_map_only(Tensor, self.lift, real)
        if func is _NONZERO:
            return self._where(args[0])
        return func(*args, **kwargs)

    def _where(self, mask: Tensor) -> Tensor:
        """`mask.nonzero()`; of a mask without values all is true: the most that it can be."""
        value = self._value(mask)
        with _disable_current_modes():
            if value is None:
                self.guesses += 1
                value = torch.ones(mask.shape, dtype=torch.bool)
            real = value.nonzero()
        with self:
            return self.lift(real)

    def _follow(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor], outputs: list[Tensor]
    ) -> None:
        """Run the operation on values too, where all that goes in has some."""
        if all(x.numel() <= _LARGEST for x in outputs) and all(self._value(x) is not None for x in inputs):
            with _disable_current_modes(), torch.no_grad():
                real = func(*tree_map_only(Tensor, self._value, args), **tree_map_only(Tensor, self._value, kwargs))
            for x, value in zip(outputs, _tensors(real), strict=True):
                if isinstance(x, FakeTensor):
                    self._values[x] = value
        elif func._schema.is_mutable:
            for x in outputs:  # overwritten by what is not known
                self._values.pop(x, None)


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in arguments or results: a tenth of the time of torch's general walk."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, list | tuple):
        return [x for part in tree for x in _tensors(part)]
    return []


class ShadowDraws(Draws):
    """Draws whose numbers are known, for a step without data. Noise images have no values."""

    def __init__(self, mode: ShadowMode, seed: int = 0) -> None:
        super().__init__(seed)
        self.mode = mode

    def _lifted(self, make: Callable[[], Tensor]) -> Tensor:
        with _disable_current_modes():
            real = make()
        return self.mode.lift(real)

    def rand(self, rows: int, *shape: int) -> Tensor:
        return self._lifted(lambda: torch.rand(rows, *shape, generator=self.generator))

    def randint(self, high: int, rows: int, *shape: int) -> Tensor:
        return self._lifted(lambda: torch.randint(high, (rows, *shape), generator=self.generator))

    def noise(self, rows: int, *shape: int) -> Tensor:
        return torch.empty(rows, *shape)

    def shared(self) -> float:
        with _disable_current_modes():
            return float(torch.rand((), generator=self.generator))
