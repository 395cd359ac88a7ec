"""Low-rank adapters on a frozen transformer (LoRA), by peft."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from medfm.encoders.config import LoraConfig
from medfm.errors import ConfigError


def add_lora(model: nn.Module, layers: Iterable[nn.Module], config: LoraConfig) -> None:
    """Freezes `model` and puts an adapter beside linear modules of its `layers`, in place: `W x + alpha / rank * B A x`.

    `B` starts at zero, so that the model gives what it gave. The names of state dicts are peft's (`base_layer`,
    `lora_A.default`, `lora_B.default`): a model built and adapted alike takes them by `load_state_dict`.

    Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models".

    Raises:
        ConfigError: `config.target` names no linear module; says which there are.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    within = {id(module) for layer in layers for module in layer.modules()}
    linear = [name for name, module in model.named_modules() if id(module) in within and isinstance(module, nn.Linear)]
    chosen = [name for name in linear if config.target == "all" or name.rsplit(".", 1)[-1] in config.target]
    endings = sorted({name.rsplit(".", 1)[-1] for name in linear})
    unknown = [] if config.target == "all" else sorted(set(config.target) - set(endings))
    if unknown or not chosen:
        raise ConfigError(
            f"text_encoder.lora.target: a {type(model).__name__} has no linear module {', '.join(unknown) or 'at all'} in its "
            f"layers; it has: {', '.join(endings) or 'none'}"
        )
    model.requires_grad_(False)
    options: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    inject_adapter_in_model(PeftConfig(target_modules=chosen, bias="none", **options), model)
