from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfm.encoders.config import VitConfig
from medfm.encoders.patches import patchify
from medfm.encoders.vit import VisionTransformer
from medfm.objectives.config import MaeConfig
from medfm.objectives.mae import MaeObjective
from medfm.objectives.panels import ROWS, Panels, Reconstruction, draw, find, reconstruct
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.draws import Draws
from medfm.types import Batch


def batch_of(images: Tensor) -> Batch:
    rows = torch.arange(len(images))
    return Batch(images, None, None, rows, rows, torch.zeros(len(images), 0), rows)


@dataclass
class Oracle:
    """Knows the truth of some patches, masks others."""

    patch_size: tuple[int, ...]
    predicted: Tensor
    masked: Tensor

    def reconstruct(self, batch: Batch, draws: Draws | None = None) -> Reconstruction:
        return Reconstruction(patchify(batch.images, self.patch_size), self.predicted, self.masked)


@pytest.mark.parametrize("axes", [2, 3])
def test_reconstruct__gives_grey_values_of_the_contract(axes: int) -> None:
    """A perfect answer gives the input back, wherever mean and deviation of the contract lie."""
    size = (8, 4) if axes == 2 else (4, 8, 4)
    contract = PreprocessConfig(size=size, channels=3, mean=(0.3, 0.5, 0.4), std=(0.2, 0.1, 0.3))
    unit = torch.rand(2, 3, *size)
    shape = (1, 3, *[1] * axes)
    images = (unit - torch.tensor(contract.mean).view(shape)) / torch.tensor(contract.std).view(shape)
    count = unit[0, 0].numel() // (8 if axes == 2 else 16)
    masked = torch.arange(count).expand(2, -1) % 2 == 0
    predicted = torch.arange(count).expand(2, -1) > 0
    oracle = Oracle((4, 2) if axes == 2 else (2, 4, 2), predicted, masked)
    panels = reconstruct(oracle, batch_of(images), contract)
    torch.testing.assert_close(panels.input, unit)
    torch.testing.assert_close(panels.reconstruction, unit)
    patches = patchify(panels.masked, oracle.patch_size)
    torch.testing.assert_close(patches[masked], torch.full_like(patches[masked], 0.5))
    torch.testing.assert_close(patches[~masked], patchify(unit, oracle.patch_size)[~masked])
    patches = patchify(panels.prediction, oracle.patch_size)
    torch.testing.assert_close(patches[:, 0], torch.full_like(patches[:, 0], 0.5))
    torch.testing.assert_close(patches[:, 1:], patchify(unit, oracle.patch_size)[:, 1:])


def test_reconstruct__undoes_norm_pix() -> None:
    """A network that answers 0 says each patch's mean."""
    torch.manual_seed(0)
    encoder = VisionTransformer(VitConfig(img_size=(16, 16), patch_size=(4, 4), embed_dim=16, depth=1, num_heads=2))
    objective = MaeObjective(MaeConfig(decoder_dim=16, decoder_depth=1, decoder_heads=2), encoder)
    for parameter in objective.decoder.get_submodule("pred").parameters():  # type: ignore[union-attr]
        nn.init.zeros_(parameter)
    contract = PreprocessConfig(size=(16, 16), mean=(0.5,), std=(0.25,))
    unit = torch.rand(3, 1, 16, 16)
    panels = reconstruct(objective, batch_of((unit - 0.5) / 0.25), contract, Draws(0))
    means = patchify(unit, (4, 4)).mean(-1, keepdim=True)
    torch.testing.assert_close(patchify(panels.prediction, (4, 4)), means.expand(-1, -1, 16), atol=1e-5, rtol=0)
    changed = (panels.reconstruction != panels.input).flatten(1).float().mean(1)
    assert bool(((changed > 0.7) & (changed <= 0.75)).all())  # masked patches alone


def test_draw__rows_and_columns_of_pictures() -> None:
    contract = PreprocessConfig(size=(8, 4), spacing=(1.0, 2.0))
    panels = Panels(*(torch.full((3, 1, 8, 4), value) for value in (0.0, 0.25, 0.5, 1.0)))
    picture = draw(panels, contract)
    assert picture.dtype == np.uint8
    assert picture.shape == (len(ROWS) * (224 + 4), 116 + 3 * (224 + 4), 3)  # 8 x 1 mm by 4 x 2 mm is square
    assert [int(picture[228 * row + 100, 116 + 228 + 100, 0]) for row in range(4)] == [0, 64, 128, 255]


def test_draw__colours_and_channels() -> None:
    colour = torch.zeros(1, 3, 8, 8)
    colour[:, 0] = 1.0
    picture = draw(Panels(colour, colour, colour, colour), PreprocessConfig(size=(8, 8)))
    assert picture[100, 116 + 100].tolist() == [255, 0, 0]
    two = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)], dim=1)
    picture = draw(Panels(two, two, two, two), PreprocessConfig(size=(8, 8)))
    assert picture.shape[1] == 116 + 2 * 228
    assert (int(picture[100, 216, 0]), int(picture[100, 444, 0])) == (0, 255)


@pytest.mark.parametrize("orientation", ["RAS", "LPS"])
def test_draw__volumes_stand_upright(orientation: str) -> None:
    """Bright where it is front, head, and the patient's right."""
    size, spacing = (8, 12, 12), (3.0, 2.0, 2.0)
    d, h, w = torch.meshgrid(*(torch.linspace(0, 1, n) for n in size), indexing="ij")
    right, front = (w, h) if orientation == "RAS" else (1 - w, 1 - h)
    contract = PreprocessConfig(size=size, spacing=spacing, orientation=orientation)

    def corners(volume: Tensor) -> list[np.ndarray]:
        panels = draw(Panels(*[volume[None, None]] * 4), contract)[: 224 + 4, 116:, 0]
        return [panels[:224, 228 * n : 228 * n + 224] for n in range(3)]

    axial, coronal, _ = corners(right)
    assert axial[112, 10] > 200 > 60 > axial[112, -10]  # the patient's right is at the left
    assert coronal[112, 10] > 200 > 60 > coronal[112, -10]
    axial, _, sagittal = corners(front)
    assert axial[10, 112] > 200 > 60 > axial[-10, 112]
    assert sagittal[112, 10] > 200 > 60 > sagittal[112, -10]
    _, coronal, sagittal = corners(d)
    assert coronal[10, 112] > 200 > 60 > coronal[-10, 112]
    assert sagittal[10, 112] > 200 > 60 > sagittal[-10, 112]


def test_find__looks_into_sums() -> None:
    oracle = Oracle((2, 2), torch.zeros(0), torch.zeros(0))
    total = nn.Module()
    total.terms = [nn.Identity(), oracle]  # type: ignore[assignment]
    assert find(oracle) is oracle
    assert find(total) is oracle
    assert find(nn.Identity()) is None
