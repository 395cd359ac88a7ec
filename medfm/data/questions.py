"""Questions and answers about a manifest's images, as a table beside it: what chat and visual question answering read.

`<manifest>.questions.parquet`, one row a question: image (as in the manifest), split, question, answer, question_id,
answer_type ("closed" or "open"), question_type, phrase_type, language, official_split. `split` is that of the image, so that no
image is in two splits; `official_split` is what the authors say, which for some sets shares images between train and test.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from medfm.data.layout import image_variables, read_source
from medfm.data.splits import split_name
from medfm.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from medfm.data.cards import DataCard
    from medfm.data.manifest import Manifest

COLUMNS = (
    "image",
    "split",
    "question",
    "answer",
    "question_id",
    "answer_type",
    "question_type",
    "phrase_type",
    "language",
    "official_split",
)
_TYPES = {"closed": "closed", "yes/no": "closed", "open": "open"}


def questions_path(manifest: Path) -> Path:
    """Where the questions of a manifest lie: m.parquet -> m.questions.parquet."""
    return manifest.with_name(f"{manifest.stem}.questions.parquet")


def read_questions(manifest: Path) -> pd.DataFrame:
    """The questions that `medfm index` wrote beside a manifest. Raises DataError where there are none."""
    import pandas as pd

    path = questions_path(manifest)
    if not path.is_file():
        raise DataError(
            f"manifest '{manifest}' has no questions: '{path}' does not exist. Index a card with questions, as vqa_rad"
        )
    return pd.read_parquet(path)


def card_questions(card: DataCard, manifest: Manifest) -> tuple[pd.DataFrame, list[str]]:
    """Questions about the manifest's images, in the order of the tables, and notes about what was left out.

    Raises:
        DataError: a table that is not optional is missing, or lacks a column.
    """
    import pandas as pd

    layout = card.layout
    pattern = re.compile(layout.path) if layout.path else None
    known = []
    for image, split in zip(manifest.frame["image"], manifest.frame["split"], strict=True):
        values = image_variables(image, layout, pattern)
        if values is not None:
            known.append((image, split, values))
    rows: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    for table in layout.questions:
        frames, _ = read_source(manifest.root, table, [*table.join, table.columns["question"], table.columns["answer"]])
        if not frames and not table.optional:
            raise DataError(f"the card's table {' or '.join(table.file)} is not in '{manifest.root}'")
        places = {tuple(v.get(name, "") for name in table.join.values()): (image, split) for image, split, v in known}
        for frame in frames:
            for cells in frame.to_dict("records"):
                texts = {str(k): str(v).strip() for k, v in cells.items()}
                of: dict[str, str] = {}
                for what, column in table.columns.items():
                    text = texts.get(column, "")
                    of[what] = table.values.get(what, {}).get(text, text)
                place = places.get(tuple(texts[c] for c in table.join))
                if place is None or not of["question"] or not of["answer"]:
                    counts["about no image here" if place is None else "without question or answer"] += 1
                    continue
                if "answer_type" in of:
                    of["answer_type"] = _TYPES.get(of["answer_type"].lower(), of["answer_type"].lower())
                if "official_split" in of:
                    of["official_split"] = split_name(of["official_split"]) or ""
                of["language"] = of.get("language") or card.language
                rows.append({"image": place[0], "split": place[1], **of})
    frame = pd.DataFrame([[row.get(c, "") for c in COLUMNS] for row in rows], columns=list(COLUMNS), dtype=object)
    return frame, [f"{n:,} questions are {what}: left out" for what, n in counts.items()]


def write_questions(card: DataCard, manifest: Manifest) -> list[str]:
    """Write `questions_path(manifest.path)`; notes for the report. Does nothing for a card without questions."""
    from medfm.io.files import atomic_write

    if not card.layout.questions or manifest.path is None:
        return []
    frame, notes = card_questions(card, manifest)
    path = questions_path(manifest.path)
    with atomic_write(path) as temporary:
        frame.to_parquet(temporary, index=False)
    images = frame["image"].nunique()
    shared = _shared(frame)
    if shared:
        notes.append(
            f"{shared:,} images have questions in two official splits: `split` keeps each in one, `official_split` tells"
        )
    return [f"{len(frame):,} questions about {images:,} images in {path.name}", *notes]


def _shared(frame: pd.DataFrame) -> int:
    """Images that are in more than one official split."""
    told = frame[frame["official_split"] != ""]
    return int((told.groupby("image")["official_split"].nunique() > 1).sum())
