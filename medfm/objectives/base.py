"""What every objective is, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from medfm.encoders.build import build_tokenizer
from medfm.encoders.dual import DualEncoder
from medfm.encoders.image import ImageModel
from medfm.registry import ENCODERS, ComponentConfig
from medfm.transforms.config import AugmentConfig
from medfm.transforms.draws import Draws
from medfm.types import Batch, ObjectiveOutput

if TYPE_CHECKING:
    from medfm.text.tokenizers import Tokenizer
    from medfm.transforms.preprocess import Preprocess


@dataclass
class Parts:
    """What a recipe hands to its objective. Encoder and tokenizer are made when first asked for, and shared by a sum's terms.

    Attributes:
        encoder: the image encoder's configuration.
        preprocess: the contract.
        augment: the recipe's changes to training images.
        batch_size: images an optimiser step sees, over all devices and accumulated batches.
        train_images: images of the training split, 0 where not known.
        tokenizer_config: of the objective, None where it reads no text.
    """

    encoder: ComponentConfig
    preprocess: Preprocess
    augment: AugmentConfig
    batch_size: int
    tokenizer_config: ComponentConfig | None = None
    train_images: int = 0

    @cached_property
    def image_encoder(self) -> Any:
        return ENCODERS.build(self.encoder)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        return None if self.tokenizer_config is None else build_tokenizer(self.tokenizer_config)


class Objective(nn.Module):
    """What is learned: owns its heads, its masks and its teacher; knows no loop, no optimiser, no device.

    Attributes:
        takes_stored_pixels: False gets images as the network takes them, augmented in training; True gets them as the contract
            stores them, and makes, augments and normalises its own views.
    """

    takes_stored_pixels: ClassVar[bool] = False

    def forward(self, batch: Batch, draws: Draws | None = None) -> ObjectiveOutput:
        """One batch to a loss and numbers to log. `draws` gives random numbers on the batch's device; None: torch's own."""
        raise NotImplementedError

    def model(self) -> DualEncoder | ImageModel:
        """What a weight file keeps, and the online probes judge: shares its tensors with the objective."""
        raise NotImplementedError

    def learner(self) -> DualEncoder | ImageModel:
        """What `init` weights are loaded into: `model()`, unless that is a teacher."""
        return self.model()

    def weights_loaded(self) -> None:
        """`learner()` has been given weights to start from: teachers begin as copies of them."""

    def outside(self) -> list[nn.Module]:
        """Frozen modules that run beside the objective and are in no state dict: teachers that others have trained."""
        return []

    def compile_encoders(self) -> None:
        """torch.compile what takes the time."""
        for name in ("image_encoder", "text_encoder"):
            encoder = getattr(self.model(), name, None)
            if encoder is not None:
                encoder.compile()

    def before_step(self, step: int, total: int) -> None:
        """Set what follows a schedule. Called before each batch of optimiser step `step` of `total`; depends on nothing else,
        so that a resumed run needs no memory of it."""

    def after_backward(self, step: int, total: int) -> None:
        """Gradients are whole and clipped, the optimiser has not stepped."""

    def after_optimizer_step(self, step: int, total: int) -> None:
        """The weights have moved: time for teachers to follow."""
