"""Pictures of the evaluation card as data URIs: curves on a transparent ground, example images with similarity maps.

Curves are drawn dark on transparent; the card inverts their lightness on a dark screen, so that one picture serves both.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, MODEL, POSITIVE, NEGATIVE = "#1f2430", "#8b93a1", "#1d62b7", "#b8452f", "#4b7f95"


def _figure() -> tuple[Figure, Axes]:
    """A small square plot without pyplot, which would keep global state and choose a window backend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.3, 3.0), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=8, color=MUTED)
    axes.patch.set_alpha(0.0)
    return figure, axes


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, transparent=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9.5, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=8.5, color=INK)
    axes.set_ylabel(y, fontsize=8.5, color=INK)


def roc_points(target: NDArray, score: NDArray) -> tuple[NDArray, NDArray]:
    """False and true positive rate at every distinct score, from (0, 0) to (1, 1)."""
    order = np.argsort(-np.asarray(score, dtype=np.float64), kind="stable")
    ranked, hits = np.asarray(score)[order], np.asarray(target)[order] == 1
    last = np.r_[ranked[1:] != ranked[:-1], True]
    true, false = np.cumsum(hits)[last], np.cumsum(~hits)[last]
    return np.r_[0.0, false / false[-1]], np.r_[0.0, true / true[-1]]


def roc_figure(
    target: NDArray,
    score: NDArray,
    baseline: NDArray | None = None,
    operating_point: tuple[float, float] | None = None,
) -> Figure:
    """ROC curve, random weights dashed; `operating_point` (sensitivity, specificity) at the chosen threshold as a dot."""
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.7)
    if baseline is not None:
        axes.plot(*roc_points(target, baseline), color=MUTED, lw=1.3, ls=(0, (3, 2)), label="random weights")
    axes.plot(*roc_points(target, score), color=MODEL, lw=1.8, label="model")
    if operating_point is not None:
        sensitivity, specificity = operating_point
        axes.plot(1 - specificity, sensitivity, "o", color=MODEL, ms=6, mec="white", mew=1.2, label="threshold from val")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.legend(fontsize=7.5, frameon=False, loc="lower right", labelcolor=INK)
    _label(axes, "ROC", "1 − specificity", "sensitivity")
    return figure


def histogram_figure(target: NDArray, score: NDArray, threshold: float) -> Figure:
    """Share of positive and of negative images by probability; the threshold as a line."""
    figure, axes = _figure()
    low, high = float(np.min(score)), float(np.max(score))
    bins = np.linspace(low, high if high > low else low + 1e-6, 31)
    for value, colour, name in ((0, NEGATIVE, "negative"), (1, POSITIVE, "positive")):
        part = np.asarray(score)[np.asarray(target) == value]
        weights = np.full(len(part), 1 / max(len(part), 1))
        axes.hist(part, bins=list(bins), weights=weights, color=colour, alpha=0.3)
        axes.hist(part, bins=list(bins), weights=weights, histtype="step", color=colour, lw=1.4, label=f"{name} ({len(part)})")
    if np.isfinite(threshold):
        axes.axvline(threshold, ymax=0.77, color=INK, lw=1, ls=(0, (2, 2)), label="threshold")
    # Room above the bars for the legend.
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.legend(fontsize=7.5, frameon=False, loc="upper center", ncols=2, labelcolor=INK, columnspacing=1, handlelength=1.4)
    axes.locator_params(axis="x", nbins=5)
    _label(axes, "Probability", "probability of the finding", "share of its class")
    return figure


def reliability_figure(calibration: dict[str, Any]) -> Figure:
    """Share of positives against the mean probability of each bin; the diagonal is perfect calibration."""
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.7)
    bins = calibration["bins"]
    x, y = [b["probability"] for b in bins], [b["positives"] for b in bins]
    total = sum(b["images"] for b in bins)
    axes.plot(x, y, color=MODEL, lw=1.2)
    axes.scatter(x, y, s=[20 + 120 * b["images"] / total for b in bins], color=MODEL, alpha=0.75, linewidths=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    _label(axes, f"Reliability (ECE {calibration['ece']:.2f})", "mean probability", "share of positives")
    return figure


def recall_figure(title: str, curves: dict[str, NDArray], chance: NDArray) -> Figure:
    """Recall at k = 1, 2, ... of the model and of random weights, with the chance level."""
    figure, axes = _figure()
    styles: dict[str, dict[str, Any]] = {"model": {"color": MODEL, "lw": 1.8}}
    for name, recall in curves.items():
        style = styles.get(name, {"color": MUTED, "lw": 1.3, "ls": (0, (3, 2))})
        axes.plot(np.arange(1, len(recall) + 1), recall, label=name, **style)
    axes.plot(np.arange(1, len(chance) + 1), chance, color=MUTED, lw=0.9, label="chance")
    axes.set(xscale="log", ylim=(-0.02, 1.02))
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100, 1_000, 10_000, 100_000) if k <= len(chance)]
    axes.set_xticks(ticks, [f"{k:,}" for k in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=7.5, frameon=False, loc="lower right", labelcolor=INK)
    _label(axes, title.capitalize(), "k (log scale)", "recall at k")
    return figure


def efficiency_figure(rows: Sequence[dict[str, Any]], against: str = "") -> Figure:
    """Mean AUROC by the number of training patients; bars from lowest to highest draw. `against` names another model."""
    figure, axes = _figure()
    styles: dict[str, tuple[str, dict[str, Any]]] = {
        "random": ("random weights", {"color": MUTED, "lw": 1.3, "ls": (0, (3, 2))}),
        "against": (against, {"color": NEGATIVE, "lw": 1.5}),
        "model": ("model", {"color": MODEL, "lw": 1.8}),
    }
    x = [row["patients"] for row in rows]
    for key, (name, style) in styles.items():
        if key not in rows[0]:
            continue
        mean, low, high = (np.array([row[key][part] for row in rows]) for part in ("mean", "low", "high"))
        axes.errorbar(x, mean, yerr=[mean - low, high - mean], capsize=2.5, marker="o", ms=4, label=name, **style)
    axes.axhline(0.5, color=MUTED, lw=0.7)
    axes.set(xscale="log", ylim=(min(0.45, *axes.get_ylim()), 1.02))
    axes.set_xticks(x, [f"{n:,}" for n in x])
    axes.minorticks_off()
    axes.legend(fontsize=7.5, frameon=False, loc="best", labelcolor=INK)
    _label(axes, "With fewer labels", "training patients (log scale)", "mean AUROC")
    return figure


def curve_uri(figure: Figure) -> str:
    """A figure as a PNG data URI on a transparent ground."""
    return _png(figure)


def grey_picture(array: NDArray) -> NDArray[np.float64]:
    """A preprocessed image (C, *size), uint8 or float in [0, 1], as (H, W) in [0, 1]; of a volume its middle slice."""
    values = np.asarray(array, dtype=np.float64)
    values = values / 255.0 if np.asarray(array).dtype == np.uint8 else values
    values = values.mean(axis=0)
    if values.ndim == 3:
        values = values[values.shape[0] // 2]
    return np.clip(values, 0.0, 1.0)


def overlay(picture: NDArray, heat: NDArray, low: float | None = None, high: float | None = None) -> NDArray[np.float64]:
    """A similarity map over its image, (H, W, 3) in [0, 1].

    Args:
        picture: (H, W), or (H, W, 3) in colour. heat: (H, W); nothing is laid where it is NaN.
        low, high: what is darkest and brightest; default: the map's own range.
    """
    import matplotlib as mpl

    seen = np.isfinite(heat)
    if low is None or high is None:
        low, high = (float(heat[seen].min()), float(heat[seen].max())) if seen.any() else (0.0, 0.0)
    scaled = np.clip((np.where(seen, heat, low) - low) / (high - low), 0, 1) if high > low else np.zeros(heat.shape)
    colour = np.asarray(mpl.colormaps["inferno"](scaled))[..., :3]
    # The weakest half stays almost clear, so that the anatomy is seen.
    alpha = (0.65 * scaled**1.5)[..., None]
    ground = picture if picture.ndim == 3 else picture[..., None]
    return np.asarray((1 - alpha) * ground + alpha * colour, dtype=np.float64)


def structure_colour(number: int) -> str:
    """Colours that are told apart on a grey picture, as #rrggbb; they repeat after eight."""
    palette = ("#ffb000", "#38b6ff", "#ff5d8f", "#6ee26e", "#c78bff", "#ff7f3f", "#40e0d0", "#f4f06a")
    return palette[number % len(palette)]


def mask_overlay(picture: NDArray, masks: NDArray, side: int = 256) -> NDArray[np.float64]:
    """Structures over their image, each in its colour, outlined: (h, w, 3) in [0, 1], enlarged to about `side` pixels.

    Args:
        picture: (H, W) in [0, 1].
        masks: (S, H, W) bool.
    """
    from matplotlib.colors import to_rgb

    times = max(1, side // max(picture.shape))
    big = np.kron(picture, np.ones((times, times)))
    out = np.repeat(big[..., None], 3, axis=2)
    for number, mask in enumerate(masks):
        area, inner = _enlarged(mask, times)
        colour = np.array(to_rgb(structure_colour(number)))
        out[area] = 0.7 * out[area] + 0.3 * colour
        out[area & ~inner] = colour
    return out


def _enlarged(mask: NDArray, times: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A mask (H, W) `times` as large, and its inside without the outermost pixels."""
    area = np.kron(mask, np.ones((times, times), bool)).astype(bool)
    inner = area.copy()
    for axis in (0, 1):
        for step in (1, -1):
            inner &= np.roll(area, step, axis)
    return area, inner


def mask_outline(picture: NDArray, mask: NDArray, times: int, colour: str = "#4de3ff") -> NDArray[np.float64]:
    """A picture (H * times, W * times, 3) with the outline of a mask (H, W)."""
    from matplotlib.colors import to_rgb

    area, inner = _enlarged(mask, times)
    out = picture.copy()
    out[area & ~inner] = to_rgb(colour)
    return out


def dice_figure(dice: NDArray, names: Sequence[str]) -> Figure:
    """Dice of every image, (N, S), sorted, a line a structure: the share of images that get at most so much."""
    figure, axes = _figure()
    for number, name in enumerate(names[:8]):
        values = np.sort(dice[:, number][~np.isnan(dice[:, number])])
        if len(values):
            axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post", lw=1.6, label=name)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", labelcolor=INK)
    _label(axes, "Dice of every image", "Dice", "share of images up to it")
    return figure


def jpeg_uri(picture: NDArray, side: int = 256) -> str:
    """An (H, W) or (H, W, 3) picture in [0, 1] as a JPEG data URI, at most `side` pixels long."""
    from PIL import Image as Pillow

    image = Pillow.fromarray(np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8))
    image.thumbnail((side, side), Pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=84, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
