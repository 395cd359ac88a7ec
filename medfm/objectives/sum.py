"""Several objectives at once, on one image encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from medfm.encoders.dual import DualEncoder
from medfm.encoders.image import ImageModel
from medfm.objectives.base import Objective, Parts
from medfm.objectives.config import SumConfig
from medfm.registry import OBJECTIVES
from medfm.transforms.augment import Augment
from medfm.transforms.draws import Draws
from medfm.types import Batch, ObjectiveOutput


def build(config: SumConfig, parts: Parts) -> SumObjective:
    """The objective of a recipe. The terms share the encoder and the tokenizer of `parts`."""
    terms = [OBJECTIVES.build(term, parts=parts) for term in config.terms]
    return SumObjective(config, terms, Augment(parts.augment), parts)


class SumObjective(Objective):
    """The weighted sum of its terms' losses, for example alignment and masked autoencoding (SimCroP, VELVET-Med).

    Terms that take the network's images share one augmented batch; terms that make views get the stored pixels.
    """

    takes_stored_pixels = True

    def __init__(self, config: SumConfig, terms: list[Objective], augment: Augment, parts: Parts) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.weights = config.weights or (1.0,) * len(terms)
        self.names = distinct([term.name for term in config.terms])
        self.augment = augment
        self.preprocess = parts.preprocess

    def _all(self) -> list[Objective]:
        return [cast(Objective, term) for term in self.terms]

    def forward(self, batch: Batch, draws: Draws | None = None) -> ObjectiveOutput:
        """Losses and logs of the terms, each log under its term's name."""
        shared: Batch | None = None
        total: Tensor | None = None
        logs: dict[str, Tensor] = {}
        for name, weight, term in zip(self.names, self.weights, self._all(), strict=True):
            if not term.takes_stored_pixels and shared is None:
                images = self.augment.prepare(self.preprocess, batch.images, draws if self.training else None)
                shared = replace(batch, images=images)
            output = term(batch if term.takes_stored_pixels else shared, draws)
            total = weight * output.loss if total is None else total + weight * output.loss
            logs |= {f"{name}_{key}": value for key, value in output.logs.items() if key != "loss"}
            logs[f"{name}_loss"] = output.loss.detach()
        assert total is not None
        return ObjectiveOutput(total, logs)

    def model(self) -> DualEncoder | ImageModel:
        """That of the first term with a text side, else of the first."""
        return _with_text([term.model() for term in self._all()])

    def learner(self) -> DualEncoder | ImageModel:
        return _with_text([term.learner() for term in self._all()])

    def outside(self) -> list[nn.Module]:
        return [module for term in self._all() for module in term.outside()]

    def weights_loaded(self) -> None:
        for term in self._all():
            term.weights_loaded()

    def compile_encoders(self) -> None:
        for term in self._all():
            term.compile_encoders()

    def before_step(self, step: int, total: int) -> None:
        for term in self._all():
            term.before_step(step, total)

    def after_backward(self, step: int, total: int) -> None:
        for term in self._all():
            term.after_backward(step, total)

    def after_optimizer_step(self, step: int, total: int) -> None:
        for term in self._all():
            term.after_optimizer_step(step, total)


def _with_text(models: list[DualEncoder | ImageModel]) -> DualEncoder | ImageModel:
    return next((model for model in models if isinstance(model, DualEncoder)), models[0])


def distinct(names: list[str]) -> list[str]:
    """`mae`, `mae` -> `mae_1`, `mae_2`."""
    return [name if names.count(name) == 1 else f"{name}_{names[: place + 1].count(name)}" for place, name in enumerate(names)]
