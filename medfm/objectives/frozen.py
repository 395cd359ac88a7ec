"""A frozen teacher: any encoder, from a medfm weight file or with public weights, that sees what the student sees."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.dual import DualEncoder
from medfm.encoders.image import ImageModel
from medfm.encoders.pooling import image_features
from medfm.errors import ConfigError
from medfm.registry import ENCODERS, ComponentConfig
from medfm.transforms.config import PreprocessConfig
from medfm.types import EncoderOutput

log = logging.getLogger(__name__)

# Which keys decide what an intensity in [0, 1] means, by `window`.
_INTENSITY = {
    "hu": ("hu_windows",),
    "auto": ("hu_windows", "value_range", "percentiles"),
    "percentile": ("percentiles",),
    "fixed": ("value_range",),
    "zscore": ("zscore_range",),
}
_GEOMETRY = ("spacing", "orientation", "resize", "crop_foreground", "foreground_threshold")


class FrozenTeacher(nn.Module):
    """Takes the student's normalised images to its own channels, size and normalisation, and gives features without gradients.

    Args:
        network: the teacher's encoder or encoders.
        student: the student's contract, whose mean and std its images come with.
        mean, std: the teacher's.
        channels, img_size: what the teacher takes.

    Raises:
        ConfigError: dimensions or channels cannot be brought together.
    """

    def __init__(
        self,
        network: ImageModel | DualEncoder,
        student: PreprocessConfig,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int,
        img_size: Sequence[int],
    ) -> None:
        super().__init__()
        if len(img_size) != len(student.size):
            raise ConfigError(
                f"objective.teacher takes images of {len(img_size)} axes, preprocess.size has {len(student.size)}"
            )
        if channels != student.channels and not {channels, student.channels} <= {1, 3}:
            raise ConfigError(f"objective.teacher takes {channels} channels, preprocess.channels are {student.channels}")
        if any(len(numbers) not in (1, channels) for numbers in (mean, std)):
            raise ConfigError(
                f"objective.teacher_mean and teacher_std must have 1 or {channels} numbers, as the teacher channels"
            )
        self.network = network.requires_grad_(False)
        self.channels = channels
        self.img_size = tuple(img_size)
        self.embed_dim = int(network.image_encoder.embed_dim)  # type: ignore[arg-type]
        self.embedding_dim = network.embed_dim
        ones = [1] * len(img_size)
        for name, numbers in (
            ("student_mean", student.mean),
            ("student_std", student.std),
            ("mean", mean),
            ("std", std),
        ):
            self.register_buffer(name, torch.tensor(tuple(numbers)).view(1, -1, *ones))
        self.eval()

    def _prepare(self, images: Tensor) -> Tensor:
        unit = images * self.student_std + self.student_mean  # type: ignore[operator]
        if self.channels == 3 and unit.shape[1] == 1:
            unit = unit.expand(-1, 3, *[-1] * len(self.img_size))
        elif self.channels == 1 and unit.shape[1] == 3:
            unit = unit.mean(dim=1, keepdim=True)
        if tuple(unit.shape[2:]) != self.img_size:
            flat = len(self.img_size) == 2
            unit = F.interpolate(unit, self.img_size, mode="bilinear" if flat else "trilinear", antialias=flat)
        return (unit - self.mean) / self.std  # type: ignore[operator]

    @torch.no_grad()
    def forward(self, images: Tensor) -> EncoderOutput:
        """images (B, C, *spatial) normalised by the student's contract -> the encoder's features."""
        return self.network.image_encoder(self._prepare(images))

    @torch.no_grad()
    def pooled(self, images: Tensor) -> Tensor:
        """(B, E): the feature that stands for the image."""
        return image_features(self.network.image_encoder, self._prepare(images))

    @torch.no_grad()
    def embeddings(self, images: Tensor) -> Tensor:
        """(B, D) of unit norm: in the space that the teacher compares images (and texts) in."""
        return self.network.encode_image(self._prepare(images))


def teacher_from_file(source: str | Path, student: PreprocessConfig) -> FrozenTeacher:
    """The model in a medfm weight file or run folder; every tensor must fit, and no network is touched.

    Raises:
        WeightsError: the file is missing, damaged or does not fit this medfm.
        ConfigError: its contract gives intensities another meaning than the student's.
    """
    from medfm.weights.load import load_model

    # Where modules are made now: `medfm plan` makes them without memory.
    model = load_model(source, torch.empty(0).device)
    contract, encoder = model.preprocess.config, model.encoder_config
    _check_contract(contract, student, source)
    return FrozenTeacher(
        model.network,
        student,
        contract.mean,
        contract.std,
        contract.channels,
        getattr(encoder, "img_size", contract.size),
    )


def teacher_from_encoder(
    config: ComponentConfig, student: PreprocessConfig, mean: Sequence[float] | None, std: Sequence[float] | None
) -> FrozenTeacher:
    """A registry encoder with its own weights; `mean` and `std` None are the student's."""
    img_size, channels = getattr(config, "img_size", student.size), getattr(config, "in_channels", student.channels)
    network = ImageModel(ENCODERS.build(config))
    return FrozenTeacher(network, student, mean or student.mean, std or student.std, channels, img_size)


def _check_contract(teacher: PreprocessConfig, student: PreprocessConfig, source: str | Path) -> None:
    def differing(keys: Sequence[str]) -> list[str]:
        return [
            f"{key} {getattr(teacher, key)} and {getattr(student, key)}"
            for key in keys
            if getattr(teacher, key) != getattr(student, key)
        ]

    wrong = differing(("window", "units", "sequences")) or differing(_INTENSITY.get(student.window, ()))
    if wrong:
        raise ConfigError(
            f"objective.teacher '{source}' was trained on other intensities than preprocess gives (teacher and student): "
            f"{'; '.join(wrong)}. Give preprocess the teacher's keys, or take another teacher"
        )
    if other := differing(_GEOMETRY):
        log.warning(
            "the teacher was trained on images cut otherwise than preprocess says (teacher and student): %s", "; ".join(other)
        )
