"""How deep in its encoder a parameter lies: what layer-wise learning rates and sharding ask."""

from __future__ import annotations

import re

from torch import nn

from medfm.encoders.slices import SlicesEncoder
from medfm.encoders.text import ClipTextEncoder, HuggingFaceTextEncoder
from medfm.encoders.timm2d import TimmEncoder
from medfm.encoders.vit import VisionTransformer
from medfm.encoders.volume import VolumeEncoder

# A SlicesEncoder is left out: the 2D encoder in it is found, and its slice pooling counts as a head.
ENCODER_TYPES = (VisionTransformer, TimmEncoder, VolumeEncoder, ClipTextEncoder, HuggingFaceTextEncoder)


def encoders(model: nn.Module) -> dict[str, nn.Module]:
    """medfm's encoders inside `model` by their names there ("dual.image_encoder", "teacher.image_encoder", ...)."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, ENCODER_TYPES)}
    return {name: module for name, module in found.items() if not isinstance(module, SlicesEncoder)}


def block_names(encoder: nn.Module) -> tuple[str, ...]:
    """Names of an encoder's blocks, from input to output. Of timm's models and of volumes: see `layer_ids`."""
    stacks = {
        VisionTransformer: lambda: encoder.blocks,
        ClipTextEncoder: lambda: encoder.transformer.resblocks,  # type: ignore[union-attr]
        HuggingFaceTextEncoder: lambda: encoder.layers,
    }
    stack = next(find() for kind, find in stacks.items() if isinstance(encoder, kind))
    within = {id(block): number for number, block in enumerate(stack)}  # type: ignore[arg-type]
    named = [(within[id(module)], name) for name, module in encoder.named_modules() if id(module) in within]
    return tuple(name for _, name in sorted(named))


def layer_ids(encoder: nn.Module) -> tuple[dict[str, int], int]:
    """The layer of each parameter of an encoder, and how many layers there are.

    What embeds the input is layer 0, block i is layer i + 1, what follows the blocks (the last norm) counts as heads do: its
    number is the count of layers. The same numbers as in MAE's util/lr_decay.py and DINOv2's utils/param_groups.py. A timm
    model's layers are those of timm's own `group_matcher`, in which the last norm belongs to the last block.

    Returns:
        (name -> 0..layers, layers): a parameter's depth below the heads is `layers - id`.
    """
    names = [name for name, _ in encoder.named_parameters()]
    if isinstance(encoder, TimmEncoder):
        from timm.models import group_parameters

        found = group_parameters(encoder.model, encoder.model.group_matcher(coarse=False), reverse=True)
        return {f"model.{name}": number for name, number in found.items()}, max(found.values()) + 1
    if isinstance(encoder, VolumeEncoder):
        groups = encoder.layer_groups()
    else:
        groups = [(f"{block}.",) for block in block_names(encoder)]
    layers = len(groups) + 1
    prefixes = {prefix: number for number, group in enumerate(groups, start=1) for prefix in group}

    def layer(name: str) -> int:
        inside = next((number for prefix, number in prefixes.items() if name.startswith(prefix)), None)
        if inside is not None:
            return inside
        first = name.removeprefix("model.").split(".")[0]
        return layers if re.search(r"norm|^ln_|^pooler$", first) else 0

    return {name: layer(name) for name in names}, layers
