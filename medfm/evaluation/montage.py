"""Slices of a volume side by side, as a radiologist sees them, with a map over them: figures, and strips for cards."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfm.io.geometry import reorient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from medfm.types import Image

# Orientations whose slices (k) are shown with columns i from left to right and rows j from top to bottom: the front up in
# axial slices, the head up in others, the patient's right on the left, the front on the left of sagittal ones.
_PLANES = {2: ("axial", "LPS"), 1: ("coronal", "LIP"), 0: ("sagittal", "PIL")}
# Slices are shown along the axis of the thickest voxels where these are so much thicker than those from feet to head.
_THICKER = 1.5


@dataclass(frozen=True, eq=False)
class Slices:
    """Attributes:
    plane: "axial", "coronal", "sagittal", or "" of a single image.
    arrays: each (slices, rows, columns) and colours last, in the order they were given.
    aspect: height of a pixel over its width.
    place: (slices,) position in words, e.g. "S 12 mm".
    """

    plane: str
    arrays: tuple[NDArray, ...]
    aspect: float
    place: tuple[str, ...]


def slices_of(image: Image, arrays: Sequence[NDArray]) -> Slices:
    """Arrays (i, j, k) on the grid of an image as slices to be looked at.

    Axial, unless the voxels are much thicker along another axis. A single image is one slice, as stored.
    """
    if image.shape[2] == 1:
        stored = tuple(np.swapaxes(array, 0, 2) for array in arrays)
        return Slices("", stored, image.spacing[1] / image.spacing[0] if image.spaced else 1.0, ("",))
    spacing = np.array(_ras_spacing(image))
    axis = int(spacing.argmax()) if spacing.max() > _THICKER * spacing[2] else 2
    plane, orientation = _PLANES[axis]
    made, affine = [], image.affine
    for array in arrays:
        turned, affine = reorient(array, image.affine, orientation)
        made.append(np.swapaxes(turned, 0, 2))
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    places = tuple(_place(axis, affine, k) for k in range(made[0].shape[0]))
    return Slices(plane, tuple(made), float(edges[1] / edges[0]), places)


def _ras_spacing(image: Image) -> list[float]:
    _, affine = reorient(np.broadcast_to(np.False_, image.shape[:3]), image.affine, "RAS")
    return [float(n) for n in np.linalg.norm(affine[:3, :3], axis=0)]


def _place(axis: int, affine: NDArray, k: int) -> str:
    """The slice's position as viewers write it: a letter of the half of the body, and mm."""
    mm = float(affine[axis, 2] * k + affine[axis, 3])
    letter = (("R", "L"), ("A", "P"), ("S", "I"))[axis][0 if mm >= 0 else 1]
    return f"{letter} {abs(mm):.0f} mm"


def chosen_slices(count: int, wanted: int, always: int, within: NDArray[np.bool_] | None = None) -> list[int]:
    """`wanted` of `count` slices, evenly, of those `within`; `always` takes the place of the nearest one."""
    places = np.flatnonzero(within) if within is not None and within.any() else np.arange(count)
    # The middles of as many equal parts: as far from each other as from the ends, and no slice twice.
    wanted = min(wanted, len(places))
    picks = places[((np.arange(wanted) + 0.5) * len(places) / wanted).astype(int)]
    if always not in picks:
        picks[int(np.abs(picks - always).argmin())] = always
    return sorted({int(n) for n in picks})


def map_figure(image: Image, shown: NDArray, heat: NDArray, peak: tuple[int, int, int], title: str, slices: int = 12) -> Figure:
    """An image with a map over it: one panel, or slices of a volume, with a colour bar; the highest place is marked.

    Args:
        image: the grid. shown: (i, j, k) and colours last, in [0, 1]. heat: (i, j, k), NaN outside of the field of view.
        peak: voxel of the highest value.
        title: the text, in words.
    """
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    from medfm.evaluation.plots import overlay

    mark = np.zeros(heat.shape, bool)
    mark[peak] = True
    cut = slices_of(image, [shown, heat, mark])
    pictures, heats, marks = cut.arrays
    at = int(marks.any(axis=(1, 2)).argmax())
    row, column = (int(n) for n in np.argwhere(marks[at])[0])
    picks = chosen_slices(len(pictures), slices, at, np.isfinite(heats).any(axis=(1, 2)))
    low, high = float(np.nanmin(heat)), float(np.nanmax(heat))
    columns = min(4, len(picks)) if len(picks) > 1 else 1
    rows = -(-len(picks) // columns)
    tall = pictures.shape[1] * cut.aspect / pictures.shape[2]
    width = 2.6 * columns if columns > 1 else 5.6
    lines = textwrap.wrap(title, max(30, int(11 * width)))[:4]
    above = 0.3 + 0.19 * len(lines) + (0.24 if len(picks) > 1 else 0.06)
    height = rows * (width / columns * tall + (0.22 if len(picks) > 1 else 0)) + above
    figure = Figure(figsize=(width + 0.9, height), facecolor="black")
    grid = figure.add_gridspec(
        rows, columns, left=0.01, right=width / (width + 0.9), top=1 - above / height, bottom=0.01, wspace=0.03, hspace=0.08
    )
    for number, pick in enumerate(picks):
        axes = figure.add_subplot(grid[number // columns, number % columns])
        axes.imshow(overlay(pictures[pick], heats[pick], low, high), aspect=cut.aspect, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#ffd23f" if pick == at and len(picks) > 1 else "black")
        if len(picks) > 1:
            axes.set_title(cut.place[pick], color="#b9c0ca", fontsize=7.5, pad=2, loc="left")
        if pick == at:
            axes.plot(column, row, "o", ms=11, mfc="none", mec="white", mew=1.0)
    bar = figure.add_axes((width / (width + 0.9) + 0.012, 0.06, 0.016, 0.7 * (1 - above / height)))
    norm = mpl.colors.Normalize(low, high)
    scale = figure.colorbar(ScalarMappable(norm, mpl.colormaps["inferno"]), cax=bar)
    scale.ax.tick_params(colors="#d8dde4", labelsize=7)
    scale.set_label("likeness", color="#d8dde4", fontsize=8)
    scale.outline.set_visible(False)
    said = f"highest at the ring{', ' + cut.plane + ' slices' if cut.plane else ''}; not a segmentation, not for diagnosis"
    figure.text(0.012, 1 - 0.1 / height, "\n".join(lines), color="white", fontsize=10, va="top")
    figure.text(0.012, 1 - (0.2 + 0.19 * len(lines)) / height, said, color="#b9c0ca", fontsize=7.5, va="center")
    return figure


def upright(orientation: str) -> tuple[slice, slice]:
    """Rows and columns of a slice (H, W) of the contract so that it looks as a radiologist sees it: front up, the patient's
    right on the left; of a volume in another order of axes, head up."""
    flips = [slice(None, None, -1) if letter in "RAS" else slice(None) for letter in orientation]
    return flips[1], flips[0]


def strip(
    shown: NDArray,
    heat: NDArray,
    orientation: str,
    slices: int = 5,
    at: int | None = None,
    truth: NDArray | None = None,
    height: int = 150,
) -> NDArray[np.float64]:
    """Slices of a preprocessed volume in two rows, the image and the map over it: (rows, columns, 3) in [0, 1].

    Args:
        shown: (D, H, W) in [0, 1]. heat: (D, H, W). orientation: of the contract.
        at: the slice that must be among them; default: where the map is highest. truth: (D, H, W) bool, outlined in both rows.
        height: of one slice, pixels, at least.
    """
    from medfm.evaluation.plots import mask_outline, overlay

    turn = upright(orientation)
    best = int(heat.max(axis=(1, 2)).argmax()) if at is None else at
    low, high = float(heat.min()), float(heat.max())
    rows: tuple[list[NDArray], list[NDArray]] = ([], [])
    for pick in chosen_slices(len(shown), slices, best):
        picture, warm = shown[pick][turn], heat[pick][turn]
        times = max(1, -(-height // picture.shape[0]))
        plain = np.repeat(picture[..., None], 3, axis=2)
        for row, made in zip(rows, (plain, overlay(picture, warm, low, high)), strict=True):
            big = np.repeat(np.repeat(made, times, axis=0), times, axis=1)
            if truth is not None:
                big = mask_outline(big, truth[pick][turn], times)
            row += [big, np.zeros((big.shape[0], 3, 3))]
    return np.concatenate([np.concatenate(row[:-1], axis=1) for row in rows])


def figure_png(figure: Figure, dpi: int = 150) -> bytes:
    """A figure as the bytes of a PNG file, on its own ground."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def grey_volume(unit: NDArray[Any]) -> NDArray[np.float64]:
    """A preprocessed volume (C, D, H, W) in [0, 1] as (D, H, W): the first channel, which of several windows is the first."""
    return np.clip(np.asarray(unit[0], np.float64), 0.0, 1.0)
