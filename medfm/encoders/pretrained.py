"""Public weight files as encoders take them: read without executing anything, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medfm.errors import WeightsError

# How training scripts wrap a state dict, and what data-parallel training and torch.compile put before its names.
WRAPPERS = ("model", "state_dict", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")


def shown(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .bin file, on the CPU; wrappers and common prefixes are removed.

    Raises:
        WeightsError: no such file, an unreadable one, or one that holds more than tensors (it is never unpickled).
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file; give the path of a local .safetensors or .pth file")
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; none of their texts says what to do
        raise WeightsError(
            f"{path}: cannot be read as tensors ({type(error).__name__}: {str(error).partition(chr(10))[0][:200]}). The file "
            "is damaged, or a pickle that holds code, which medfm never runs; convert it to safetensors where you trust it"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path}: holds no plain table of tensors; save the model's state_dict alone")
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def adapt_input_channels(state: dict[str, Tensor], name: str, target: Tensor) -> None:
    """Fits the first layer `state[name]` (O, 3, ...) to `target`'s channels, in place, as timm's `adapt_input_conv`.

    One channel: the RGB weights are summed, so that a grey image gives what its three equal channels gave. More: they are
    repeated and scaled by 3 / channels.
    """
    weight = state.get(name)
    if weight is None or weight.shape == target.shape or weight.ndim != target.ndim or weight.shape[1] != 3:
        return
    channels = target.shape[1]
    if channels == 1:
        state[name] = weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    else:
        repeats = [1, -(-channels // 3), *[1] * (weight.ndim - 2)]
        state[name] = (weight.float().repeat(repeats)[:, :channels] * (3 / channels)).to(weight.dtype)


def load_strict(module: nn.Module, state: dict[str, Tensor], path: str | Path, unused: Sequence[str] = ()) -> None:
    """Loads `state` into `module`; each tensor of both must find its partner.

    Args:
        unused: prefixes of names that the file may hold without a partner (a classifier).

    Raises:
        WeightsError: missing or unused names, or other shapes, each listed by name.
    """
    own = module.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.startswith(tuple(unused))}
    problems = []
    if missing := [k for k in own if k not in state]:
        problems.append(f"{len(missing)} of the model's tensors are not in the file: {shown(missing)}")
    if extra := [k for k in state if k not in own]:
        problems.append(f"{len(extra)} of the file's tensors have no place in the model: {shown(extra)}")
    shapes = [
        f"{k} {tuple(v.shape)} for {tuple(own[k].shape)}" for k, v in state.items() if k in own and v.shape != own[k].shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} tensors have other shapes: {shown(shapes)}")
    if problems:
        raise WeightsError(f"{path} does not fit the model: " + "; ".join(problems) + ". Check the model's name and its sizes")
    module.load_state_dict(state)
