from __future__ import annotations

from pathlib import Path

from PIL import Image

from medfm.training.logs import CsvLogger, draw_curves, read_metrics


def test_csv_logger__drops_rows_after_the_resumed_step_and_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    for step in (10, 20, 30):
        logger.log_metrics({"train/loss": 1.0 / step}, step)
    with path.open("a") as file:
        file.write("40,train/lo")
    resumed = CsvLogger(path, resumed_step=20)
    resumed.log_metrics({"train/loss": 0.5}, 30)
    assert read_metrics(path) == [(10, "train/loss", 0.1), (20, "train/loss", 0.05), (30, "train/loss", 0.5)]


def test_csv_logger__a_new_run_starts_empty(tmp_path: Path) -> None:
    CsvLogger(tmp_path / "m.csv").log_metrics({"x": 1.0}, 1)
    CsvLogger(tmp_path / "m.csv")
    assert read_metrics(tmp_path / "m.csv") == []


def test_draw_curves__one_panel_a_number(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path / "metrics.csv")
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
    for step in (1, 2):
        logger.log_metrics({"train/loss": 2.0, "lr": 0.1}, step)
    logger.log_metrics({"val/loss": 1.5}, 2)
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 2 * 300
