"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.evaluation.card import estimate, number, unreadable_words

if TYPE_CHECKING:
    from rich.console import RenderableType

Columns = dict[str, Callable[[dict[str, Any]], str]]


def zero_shot_table(result: dict[str, Any]) -> RenderableType:
    """Finding, counts, AUROC with its interval, average precision, accuracy, and random weights beside them."""
    columns: Columns = {
        "AUROC": lambda entry: estimate(entry["auroc"]),
        "AUPRC (prev.)": lambda entry: (
            _value(entry["auprc"]) + (f" ({number(entry['prevalence'], 2)})" if "prevalence" in entry else "")
        ),
        "accuracy": lambda entry: _value(entry["accuracy"]),
    }
    if "random" in result["mean"]:
        columns["random"] = lambda entry: _value(entry["random"]["auroc"])
    return _findings_table(f"zero-shot {result['prompts']['name']}", result, columns)


def probe_table(result: dict[str, Any]) -> RenderableType:
    """AUROC with its interval, random weights and the difference from them; below it what another model gets, and label
    efficiency."""
    titles = {"linear_probe": "linear probe", "knn": "nearest neighbours"}
    columns: Columns = {"AUROC": lambda entry: estimate(entry["auroc"])}
    if "random" in result["mean"]:
        columns["random"] = lambda entry: _value(entry["random"]["auroc"])
        columns["difference"] = lambda entry: signed(entry["random"]["difference"]["auroc"])
    notes = []
    if "against" in result["mean"]:
        for entry in (*result["findings"], {"name": "mean", **result["mean"]}):
            other = entry["against"]
            notes.append(
                f"{entry['name']}: {result['against']['name']} gets {_value(other['auroc'])}, the model "
                f"{signed(other['difference']['auroc'])} to it"
            )
    for row in result["label_efficiency"]:
        said = " and ".join(
            f"{name} {row[key]['mean']:.3f} ({row[key]['low']:.3f} to {row[key]['high']:.3f})"
            for key, name in (("model", "model"), ("random", "random weights"))
            if key in row
        )
        notes.append(f"fitted on {row['share'] * 100:g} % of the patients ({row['patients']:,}): mean AUROC of the {said}")
    return _findings_table(titles[result["task"]], result, columns, notes)


def _findings_table(
    title: str, result: dict[str, Any], columns: Columns, notes: Sequence[str] = (), images: bool = False
) -> RenderableType:
    """A row a finding, their mean last; `columns`: heading -> cell of a finding's entry or of the mean. `images`: all images
    hold the finding."""
    from rich.table import Table

    mean = result["mean"]
    table = _table(title, result, Table)
    for column in ("images" if images else "positive", *columns):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in result["findings"]:
        name = entry["name"] + ("" if entry["in_mean"] else " *")
        count = f"{entry['images']:,}" if images else f"{entry['positives']:,}/{entry['images']:,}"
        cells = [name, count, *(cell(entry) for cell in columns.values())]
        table.add_row(*cells)
    if mean["findings"]:
        table.add_section()
        table.add_row(f"mean of {len(mean['findings'])}", "", *(cell(mean) for cell in columns.values()), style="bold")
    said = [f"* not in the mean: {item['name']} ({item['reason']})" for item in mean["not_in_mean"]]
    if result["left_out"]:
        said.append("not scored: " + "; ".join(f"{item['name']} ({item['reason']})" for item in result["left_out"]))
    return _group(table, [*notes, *said], result)


def segmentation_table(result: dict[str, Any]) -> RenderableType:
    """Dice of each structure with its interval, random weights and the difference from them."""
    from rich.table import Table

    table = _table("segmentation probe", result, Table)
    random = "random" in result["mean"]
    for column in ("images", "Dice", *(["random", "difference"] if random else [])):
        table.add_column(column, justify="right", no_wrap=True)

    def cells(entry: dict[str, Any]) -> list[str]:
        beside = [_value(entry["random"]["dice"]), signed(entry["random"]["difference"])] if random else []
        return [estimate(entry["dice"]), *beside]

    for entry in result["structures"]:
        table.add_row(entry["name"], f"{entry['images']:,}", *cells(entry))
    table.add_section()
    table.add_row(f"mean of {len(result['structures'])}", "", *cells(result["mean"]), style="bold")
    notes = [f"left out: {item['name']} ({item['reason']})" for item in result["left_out"]]
    return _group(table, notes, result)


def grounding_table(result: dict[str, Any]) -> RenderableType:
    """Pointing game and Dice of each finding, with random weights and chance beside them."""
    columns: Columns = {"pointing": lambda entry: estimate(entry["pointing"])}
    random = result["settings"]["random_baseline"]
    if random:
        columns["random"] = lambda entry: _value(entry["random"]["pointing"]) if "random" in entry else "–"
    columns["chance"] = lambda entry: number(entry["chance"])
    columns["ceiling"] = lambda entry: number(entry["ceiling"])
    columns["Dice"] = lambda entry: _value(entry["dice"])
    if random:
        columns["random "] = lambda entry: _value(entry["random"]["dice"]) if "random" in entry else "–"
    note = (
        f"pointing game with a tolerance of {result['settings']['tolerance']:g} mm; ceiling: images in which the centre of "
        "some patch lies in the mask"
    )
    return _findings_table("grounding", result, columns, [note], images=True)


def compositional_table(result: dict[str, Any]) -> RenderableType:
    """Accuracy of each kind of changed text, beside random weights and what the texts alone give."""
    from rich.table import Table

    table = _table("compositional", result, Table)
    random = result["settings"]["random_baseline"]
    for column in ("pairs", "accuracy", *(["random"] if random else []), "text alone"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in result["scores"]:
        beside = [_value(entry["random"]["accuracy"])] if random else []
        name = f"{entry['kind']}, {entry['level']}"
        table.add_row(name, f"{entry['pairs']:,}", estimate(entry["accuracy"]), *beside, _value(entry["text_alone"]))
    notes = [f"not scored: {item['name']} ({item['reason']})" for item in result["left_out"]]
    return _group(table, ["chance 0.5; ties count half", *notes], result)


def signed(value: dict[str, Any] | None) -> str:
    """ "+0.120 [+0.080, +0.160]"."""
    if value is None or value["value"] is None:
        return "–"
    ends = "" if value["low"] is None else f" [{value['low']:+.3f}, {value['high']:+.3f}]"
    return f"{value['value']:+.3f}{ends}"


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
        notes.append(unreadable_words(result["unreadable"]))
    lines = [Text(note, style="dim") for note in notes]
    lines += [Text(said, style="yellow") for said in result["caveats"]]
    lines.append(Text(f"evaluation card: {Path(result['folder']) / 'card.html'}"))
    return Group(table, *lines)
