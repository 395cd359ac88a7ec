"""Ways of running one recipe, and the keys that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from medfm.training.config import PretrainConfig

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"]


@dataclass(frozen=True)
class Setting:
    """One way of running a recipe.

    Attributes:
        precision: `trainer.precision`.
        checkpointing: activations of the encoders' blocks are computed again in the backward pass.
        micro: images of one forward and backward pass on one device.
        accumulate: passes an optimiser step.
        chunk: `objective.cache_chunk`, 0 for none; `micro` are then all pairs of the device.
        sharded: weights, gradients and states are shared out over the devices (FSDP2).
    """

    precision: Precision
    checkpointing: bool
    micro: int
    accumulate: int = 1
    chunk: int = 0
    sharded: bool = False


def with_setting(recipe: PretrainConfig, setting: Setting, devices: int) -> PretrainConfig:
    """The recipe as it runs under `setting`."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in overrides(recipe, setting, devices).items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    changed: dict[str, Any] = {}
    for section, values in sections.items():
        part: Any = getattr(recipe, section)
        text = values.pop("text_encoder.gradient_checkpointing", None)
        if text is not None:
            values["text_encoder"] = part.text_encoder.model_copy(update={"gradient_checkpointing": text})
        changed[section] = part.model_copy(update=values)
    return recipe.model_copy(update=changed)


def overrides(recipe: PretrainConfig, setting: Setting, devices: int) -> dict[str, Any]:
    """What differs between `setting` and the recipe, as keys of the command line."""
    objective: Any = recipe.objective
    wanted: dict[str, tuple[Any, Any]] = {
        "data.batch_size": (recipe.data.batch_size, setting.micro * devices),
        "trainer.accumulate": (recipe.trainer.accumulate, setting.accumulate),
        "trainer.precision": (recipe.trainer.precision, setting.precision),
    }
    if hasattr(objective, "cache_chunk"):
        wanted["objective.cache_chunk"] = (objective.cache_chunk, setting.chunk)
    if setting.sharded:
        wanted["trainer.strategy"] = (recipe.trainer.strategy, "fsdp2")
    image: Any = recipe.encoder
    if hasattr(image, "gradient_checkpointing"):
        wanted["encoder.gradient_checkpointing"] = (image.gradient_checkpointing, setting.checkpointing)
    text: Any = getattr(objective, "text_encoder", None)
    # It changes along with the images'; where theirs stays, the recipe's own stays.
    if hasattr(text, "gradient_checkpointing") and getattr(image, "gradient_checkpointing", None) != setting.checkpointing:
        wanted["objective.text_encoder.gradient_checkpointing"] = (text.gradient_checkpointing, setting.checkpointing)
    return {key: new for key, (old, new) in wanted.items() if new != old}


def compares_batch(objective: Any) -> bool:
    """Whether a loss sets images of a batch against each other, so that accumulation is not a larger batch."""
    terms = getattr(objective, "terms", None) or (objective,)
    return any(getattr(term, "compares_batch", False) for term in terms)
