"""The card of grounding: pointing game and Dice, and slices with the mask and the heat map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medfm.evaluation import plots
from medfm.evaluation.card import write_html, write_json
from medfm.evaluation.montage import grey_volume, strip

if TYPE_CHECKING:
    from medfm.evaluation.grounding import Done, Grounded


def write_grounding(folder: Path, result: dict[str, Any], done: Done) -> None:
    """Write `card.html` and, last, `result.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for entry in result["findings"]:
        cases = chosen_cases(done.cases[entry["name"]], result["settings"]["pictures"])
        sections.append({"entry": entry, "examples": [_example(done, case) for case in cases]})
    write_html(folder / "card.html", "grounding.html.j2", result=result, sections=sections)
    write_json(folder / "result.json", result)


def chosen_cases(cases: list[Grounded], count: int) -> list[Grounded]:
    """`count` cases: a hit and a miss in turn, the largest structures first, so that something is seen."""
    order = sorted(cases, key=lambda case: -case.chance)
    kinds = [[case for case in order if case.hit[0] is hit] for hit in (True, False)]
    mixed = [case for pair in zip(*(kind + [None] * len(cases) for kind in kinds), strict=False) for case in pair if case]
    return mixed[:count]


def _example(done: Done, case: Grounded) -> dict[str, Any]:
    from medfm.evaluation.grounding import enlarged

    preprocess, grid = done.model.preprocess, done.files.grid
    size = preprocess.config.size
    stored, *_ = done.files(case.place)
    unit = preprocess.to_unit(stored[None])[0].numpy()
    heat, mask = enlarged(case.maps[0], grid, size, done.files.centre), case.mask.full(size)
    if len(size) == 2:
        shown = plots.grey_picture(unit)
        times = max(1, -(-256 // max(shown.shape)))
        big = np.kron(plots.overlay(shown, heat), np.ones((times, times, 1)))
        picture = plots.mask_outline(big, mask, times)
    else:
        at = int(mask.any(axis=0).size and mask.sum(axis=(1, 2)).argmax())
        peak = np.unravel_index(case.peak[0], grid)
        share = 0.5 if done.files.centre is None else done.files.centre[0]
        at = int((peak[0] + share) * size[0] / grid[0]) if case.hit[0] else at
        picture = strip(grey_volume(unit), heat, preprocess.config.orientation, 5, at, mask)
    return {
        "row": int(done.manifest.frame.index[case.row]),
        "hit": case.hit[0],
        "picture": plots.jpeg_uri(picture, 1000),
        "volume": len(size) == 3,
    }
