"""`medfm heatmap`: where an image or a volume resembles a text, on the image's own grid.

Every patch of the image is a vector of the joint space (see `DualEncoder.image_tokens`); the map is its product with the text's
unit vector, less that with the texts it is held against: a cosine, or a share of the image's cosine where the image's
vector is the mean or the maximum of the patches'. It shows what drives a score. It is no segmentation.

Source: Boecking et al. 2022 (BioViL) for the cosine of projected patches with a sentence; Zhou et al. 2016 (CAM) for shares;
Zhou et al. 2022 (MaskCLIP) for patches of encoders whose image vector is a class token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medfm.errors import ConfigError
from medfm.io.files import atomic_write, require_writable
from medfm.transforms.grid import kept_extent, on_source, patch_matrix, to_source
from medfm.transforms.preprocess import Preprocess
from medfm.weights.model import finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from medfm.evaluation.config import HeatmapConfig
    from medfm.types import Image
    from medfm.weights.model import Model


def text_direction(model: Model, text: str | Sequence[str], against: str | Sequence[str] = ()) -> Tensor:
    """(D,) float64: the unit mean of the texts' vectors, less that of `against`, where there are any."""

    def ensemble(texts: str | Sequence[str]) -> Tensor:
        listed = [texts] if isinstance(texts, str) else list(texts)
        return F.normalize(model.encode_texts(listed).double().cpu().mean(dim=0), dim=0)

    if not text or (not isinstance(text, str) and not any(text)):
        raise ConfigError("text: give the words that the image is compared with")
    direction = ensemble(text)
    return direction - ensemble(against) if against else direction


def located(preprocess: Preprocess, image: Image) -> tuple[NDArray, NDArray, NDArray]:
    """An image as the contract makes it, (C, *size), the (4, 4) way back from its grid to voxels, and what was kept of the
    image, see `kept_extent`.

    Raises:
        DataError: the image contradicts the contract.
    """
    whole, boxes = preprocess.whole_and_boxes(image)
    places = preprocess.config, image, boxes
    return np.ascontiguousarray(preprocess.fit(whole)), to_source(*places), kept_extent(*places)


def patch_places(
    matrix: NDArray, size: Sequence[int], grid: Sequence[int], centre: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """(P, 3): the voxel coordinates that all patches are centred on, in the order of tokens; `matrix` as `to_source` gives it,
    `centre` as an encoder's `token_centre`."""
    index = np.indices(tuple(grid)).reshape(len(grid), -1)[::-1]  # (x, y, z), the last axis of the grid running fastest
    points = np.zeros((4, index.shape[1]))
    points[: len(grid)], points[3] = index, 1.0
    return (matrix @ patch_matrix(size, grid, centre) @ points)[:3].T


def in_image(places: NDArray[np.float64], seen: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(P,): whether a place lies in what the network sees of the image, `kept_extent`, not in what was put around it; all where
    none does."""
    inside = np.asarray(((places >= seen[:, 0]) & (places <= seen[:, 1])).all(axis=1))
    return inside if inside.any() else np.ones(len(places), bool)


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A text's similarity map of an image.

    Attributes:
        image: what was read. preprocess: the contract it was brought to the network with.
        text, against: what it was compared with.
        cosine: of the whole image with the text (less that with `against`).
        patches: (D, H, W) or (H, W) float32, one value a patch.
        matrix: (4, 4) patch index (x, y, z) -> voxel index.
        seen: (3, 2) what the contract kept of the image, see `kept_extent`.
        centre: of a token in its patch, see `patch_matrix`.
    """

    image: Image
    preprocess: Preprocess
    text: tuple[str, ...]
    against: tuple[str, ...]
    cosine: float
    patches: NDArray[np.float32]
    matrix: NDArray[np.float64]
    seen: NDArray[np.float64]
    centre: tuple[float, ...] | None = None

    @cached_property
    def array(self) -> NDArray[np.float32]:
        """(i, j, k) on the image's grid: linear between what patches are centred on, NaN where the network saw nothing."""
        return on_source(self.patches, self.matrix, self.image.shape[:3], self.centre, self.seen)

    @cached_property
    def peak(self) -> tuple[int, int, int]:
        """The voxel that the patch which resembles the text most is centred on, of patches centred on the image."""
        grid = self.patches.shape
        # Of `patch_places`: the matrix is already that of patches, so that each is as large as 1.
        places = patch_places(self.matrix, grid, grid)
        values = np.where(in_image(places, self.seen), self.patches.reshape(-1), -np.inf)
        voxel = np.clip(np.rint(places[int(values.argmax())]), 0, np.array(self.image.shape[:3]) - 1)
        i, j, k = voxel.astype(int).tolist()
        return i, j, k

    @property
    def peak_mm(self) -> tuple[float, float, float]:
        """The peak in millimetres, RAS+."""
        x, y, z = (self.image.affine @ [*self.peak, 1.0])[:3].tolist()
        return x, y, z

    def figure(self, slices: int = 12) -> Figure:
        """The map over the image, a montage of slices for a volume: a matplotlib figure, which a notebook shows."""
        from medfm.evaluation.montage import map_figure

        shown = self.preprocess.display(self.image)
        if self.image.last_axis == "sequence":
            shown = shown[..., 0]  # of several sequences the first
        flat = self.image.shape[2] == 1
        shown = shown[None] if flat else shown
        shown = shown.transpose(2, 1, 0, *range(3, shown.ndim))
        title = " / ".join(self.text) + (f"   less   {' / '.join(self.against)}" if self.against else "")
        return map_figure(self.image, shown, self.array, self.peak, title, slices)

    def save(self, folder: str | Path, slices: int = 12) -> list[Path]:
        """Write `heatmap.nii.gz` (volumes; float32 on the image's grid with its affine) and `montage.png`, of a single image
        `overlay.png`. Returns the files."""
        from medfm.evaluation.montage import figure_png
        from medfm.io.write import save_image

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        flat = self.image.shape[2] == 1
        files = [folder / ("overlay.png" if flat else "montage.png")]
        with atomic_write(files[0]) as temporary:
            Path(temporary).write_bytes(figure_png(self.figure(slices)))
        if not flat:
            files.append(folder / "heatmap.nii.gz")
            save_image(self.array, files[1], like=self.image)
        return files


@torch.no_grad()
def heat_map(
    model: Model, image: str | Path | Image, text: str | Sequence[str], against: str | Sequence[str] = (), modality: str = ""
) -> HeatMap:
    """Where an image or a volume resembles a text.

        heat = heat_map(load_model("runs/chest_ct"), "series/", "left pleural effusion", against="no pleural effusion")
        heat.figure(); heat.array; heat.peak_mm; heat.save("out")

    Args:
        image: a path (file, or folder of one series), or an `Image`.
        text: a phrase, or several, whose mean vector is taken. against: likewise; their cosine is taken off.
        modality: what the file cannot say itself: "CT" for a CT as NIfTI.

    Raises:
        DataError: the image cannot be read or contradicts the contract. WeightsError: the model has no text
            encoder, or gives values that are not finite.
        ConfigError: there is no text.
    """
    from medfm.evaluation.masked_images import full_resolution
    from medfm.types import Image

    preprocess = full_resolution(model.preprocess)
    direction = text_direction(model, text, against)
    opened = image if isinstance(image, Image) else preprocess.load(image, modality)
    stored, matrix, seen = located(preprocess, opened)
    x = model.preprocess.to_float(torch.from_numpy(stored)[None].to(model.device))
    tokens, grid = model.dual.image_tokens(x)
    cosines = (finite(tokens[0].double().cpu(), model) @ direction).reshape(*grid).float().numpy()
    whole = model.dual.encode_image(x)[0].double().cpu()
    return HeatMap(
        opened,
        preprocess,
        (text,) if isinstance(text, str) else tuple(text),
        (against,) if isinstance(against, str) and against else tuple(against),
        float(whole @ direction),
        cosines,
        matrix @ patch_matrix(preprocess.config.size, grid, model.dual.token_centre),
        seen,
        model.dual.token_centre,
    )


def run_heatmap(config: HeatmapConfig, progress: bool = True) -> dict[str, Any]:
    """`medfm heatmap`: write the map of one image and one text into `config.out`; see `HeatMap.save`.

    Returns:
        The files, the cosine of the whole image, and the peak: voxel, mm (RAS+), value.
    """
    from medfm.evaluation.encode import pick_device
    from medfm.weights.load import load_model

    require_writable(config.out, "out")
    model = load_model(config.model, pick_device(config.device))
    heat = heat_map(model, config.image, config.text, config.against, config.modality)
    files = heat.save(config.out, config.slices)
    return {
        "files": [str(file) for file in files],
        "cosine": heat.cosine,
        "peak": {
            "voxel": list(heat.peak),
            "mm": list(heat.peak_mm),
            "value": float(heat.array[heat.peak]),
        },
    }


def render(result: dict[str, Any]) -> Any:
    """What was written, for the terminal."""
    from rich.console import Group
    from rich.text import Text

    peak = result["peak"]
    mm = ", ".join(f"{n:.1f}" for n in peak["mm"])
    at = f"highest {peak['value']:.3f} at voxel {peak['voxel']} ({mm} mm RAS+)"
    lines = [f"cosine of the whole image {result['cosine']:.3f}; {at}"]
    return Group(*(Text(line) for line in (*lines, *result["files"])))
