"""The card of a segmentation probe: Dice, and slices with the true and the predicted mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from medfm.evaluation import plots
from medfm.evaluation.card import prediction_columns, write_html, write_json
from medfm.evaluation.montage import upright
from medfm.io.files import atomic_write

if TYPE_CHECKING:
    from medfm.evaluation.segmentation_probe import Segmented


def write_segmentation(folder: Path, result: dict[str, Any], done: Segmented) -> None:
    """Write `predictions.parquet` (a row an image: its manifest row and Dice), `card.html` and, last, `result.json`."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(done.dice, columns=prediction_columns(done.structures))
    frame.insert(0, "row", done.rows)
    frame.insert(1, "split", result["data"]["split"])
    with atomic_write(folder / "predictions.parquet") as temporary:
        frame.to_parquet(temporary, index=False)
    examples = [_example(done, place) for place in chosen_images(done.dice, result["settings"]["pictures"])]
    curves = [{"alt": "Dice of every image", "uri": plots.curve_uri(plots.dice_figure(done.dice, done.structures))}]
    colours = [{"name": name, "colour": plots.structure_colour(n)} for n, name in enumerate(done.structures)]
    write_html(folder / "card.html", "segmentation.html.j2", result=result, examples=examples, curves=curves, colours=colours)
    write_json(folder / "result.json", result)


def chosen_images(dice: NDArray, count: int) -> list[int]:
    """Places of `count` images from the worst to the best mean Dice, evenly by rank; the worst and the best among them."""
    held = ~np.isnan(dice).all(axis=1)
    places = np.flatnonzero(held)
    if not len(places) or not count:
        return []
    order = places[np.argsort(np.nanmean(dice[places], axis=1), kind="stable")]
    ranks = np.unique(np.rint(np.linspace(0, len(order) - 1, min(count, len(order)))).astype(int))
    return [int(order[rank]) for rank in ranks]


def _example(done: Segmented, place: int) -> dict[str, Any]:
    from medfm.evaluation.segmentation_probe import predicted_mask

    stored, _ = done.files(int(done.places[place]))
    truth = done.patches.masks([place])[0] >= 128
    called = predicted_mask(done, place)
    shown = done.model.preprocess.to_unit(stored[None].to(torch.device("cpu")))[0].numpy().mean(axis=0)
    if shown.ndim == 3:
        best = int(truth.any(axis=0).sum(axis=(1, 2)).argmax())
        shown, truth, called = shown[best], truth[:, best], called[:, best]
        turn = upright(done.model.preprocess.config.orientation)
        shown, truth, called = shown[turn], truth[:, *turn], called[:, *turn]
    shown = np.clip(shown, 0, 1)
    return {
        "row": int(done.rows[place]),
        "dice": [None if np.isnan(value) else float(value) for value in done.dice[place]],
        "truth": plots.jpeg_uri(plots.mask_overlay(shown, truth)),
        "called": plots.jpeg_uri(plots.mask_overlay(shown, called)),
    }
