"""Results as tables for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.evaluation.card import estimate, number

if TYPE_CHECKING:
    from rich.console import RenderableType


def zero_shot_table(result: dict[str, Any]) -> RenderableType:
    """Finding, counts, AUROC with its interval, average precision, accuracy, and random weights beside them."""
    from rich.table import Table

    random = "random" in result["mean"]
    table = _table(f"zero-shot {result['prompts']['name']}", result, Table)
    for column in ("positive", "AUROC", "AUPRC (prev.)", "accuracy", *(["random"] if random else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in result["findings"]:
        cells = [
            entry["name"] + ("" if entry["in_mean"] else " *"),
            f"{entry['positives']:,}/{entry['images']:,}",
            estimate(entry["auroc"]),
            f"{_value(entry['auprc'])} ({number(entry['prevalence'], 2)})",
            _value(entry["accuracy"]),
        ]
        table.add_row(*cells, *([_value(entry["random"]["auroc"])] if random else []))
    mean = result["mean"]
    if mean["findings"]:
        table.add_section()
        cells = [
            f"mean of {len(mean['findings'])}",
            "",
            estimate(mean["auroc"]),
            _value(mean["auprc"]),
            _value(mean["accuracy"]),
        ]
        table.add_row(*cells, *([_value(mean["random"]["auroc"])] if random else []), style="bold")
    notes = [f"* not in the mean: {item['name']} ({item['reason']})" for item in mean["not_in_mean"]]
    if result["left_out"]:
        notes.append("not scored: " + "; ".join(f"{item['name']} ({item['reason']})" for item in result["left_out"]))
    return _group(table, notes, result)


def retrieval_table(result: dict[str, Any]) -> RenderableType:
    """Recall at k in both directions, with chance and random weights beside."""
    from rich.table import Table

    table = _table("retrieval", result, Table)
    has_random = all("random" in direction for direction in result["directions"])
    for column in ("recall", "chance", *(["random weights"] if has_random else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for direction in result["directions"]:
        for k in result["settings"]["ks"]:
            row = [f"{direction['name']}  R@{k}", estimate(direction["recall"][str(k)]), number(direction["chance"][str(k)])]
            table.add_row(*row, *([estimate(direction["random"]["recall"][str(k)])] if has_random else []))
        row = [
            f"{direction['name']}  median rank",
            estimate(direction["median_rank"], 1),
            number(direction["chance"]["median_rank"], 1),
        ]
        table.add_row(*row, *([estimate(direction["random"]["median_rank"], 1)] if has_random else []), end_section=True)
    return _group(table, [], result)


def _table(title: str, result: dict[str, Any], kind: Any) -> Any:
    about = f"split {result['data']['split']}, {result['images']:,} images of {result['patients']:,} patients"
    heading = f"{title}: {result['model']['name']}, {about}"
    table = kind(
        title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1), header_style="dim"
    )
    table.add_column("", min_width=14)
    return table


def _value(value: dict[str, Any] | None) -> str:
    return number(None if value is None else value["value"])


def _group(table: Any, notes: list[str], result: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    if result["unreadable"]["count"]:
        notes.append(f"{result['unreadable']['count']:,} images could not be read and were left out")
    lines = [Text(note, style="dim") for note in notes]
    lines += [Text(said, style="yellow") for said in result["caveats"]]
    lines.append(Text(f"evaluation card: {Path(result['folder']) / 'card.html'}"))
    return Group(table, *lines)
