"""Curves and pictures of the card."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image as Pillow
from sklearn.metrics import auc, roc_auc_score, roc_curve

from medfm.evaluation import plots
from medfm.evaluation.statistics import calibration


def decode(uri: str) -> Pillow.Image:
    return Pillow.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_roc_points__enclose_the_auroc(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    target = rng.integers(0, 2, 80)
    score = np.round(rng.normal(size=80) + target, decimals)
    x, y = plots.roc_points(target, score)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert auc(x, y) == pytest.approx(roc_auc_score(target, score))
    expected = roc_curve(target, score, drop_intermediate=False)
    np.testing.assert_allclose(x, expected[0])
    np.testing.assert_allclose(y, expected[1])


def test_figures__hold_the_numbers() -> None:
    target, score = np.array([0, 0, 1, 1]), np.array([0.2, 0.4, 0.3, 0.9])
    figure = plots.roc_figure(target, score, baseline=1 - score, operating_point=(0.5, 1.0))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["model"].get_ydata(), plots.roc_points(target, score)[1])
    assert (lines["threshold from val"].get_xdata()[0], lines["threshold from val"].get_ydata()[0]) == (0.0, 0.5)
    assert "random weights" in lines
    # One image a bin: (0.2 + 0.4 + 0.7 + 0.1) / 4.
    assert "ECE 0.35" in plots.reliability_figure(calibration(target, score)).axes[0].get_title(loc="left")
    image = decode(plots.curve_uri(figure))
    assert image.format == "PNG"
    # The ground is clear, so that the page's own shows in light and dark.
    assert image.getpixel((0, 0))[3] == 0


def test_histogram_figure__stands_equal_scores_and_no_threshold() -> None:
    figure = plots.histogram_figure(np.array([0, 1, 1]), np.array([0.5, 0.5, 0.5]), float("nan"))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["negative (1)", "positive (2)"]


def test_grey_picture__colour_volume_and_type() -> None:
    np.testing.assert_allclose(plots.grey_picture(np.full((1, 3, 4), 51, dtype=np.uint8)), np.full((3, 4), 0.2))
    np.testing.assert_allclose(plots.grey_picture(np.stack([np.zeros((2, 2)), np.ones((2, 2))])), np.full((2, 2), 0.5))
    volume = np.zeros((1, 5, 2, 2), dtype=np.float32)
    volume[0, 2] = 0.7
    np.testing.assert_allclose(plots.grey_picture(volume), np.full((2, 2), 0.7), rtol=1e-6)


def test_overlay__keeps_the_picture_where_the_map_is_lowest() -> None:
    picture, heat = np.full((2, 2), 0.4), np.array([[0.0, 0.1], [0.2, 1.0]])
    result = plots.overlay(picture, heat)
    np.testing.assert_allclose(result[0, 0], 0.4)
    assert result[1, 1, 0] > 0.6
    np.testing.assert_allclose(plots.overlay(picture, np.ones((2, 2))), np.full((2, 2, 3), 0.4))


def test_jpeg_uri__shrinks_and_keeps_the_values() -> None:
    image = decode(plots.jpeg_uri(np.full((300, 600), 0.5), side=128))
    assert image.size == (128, 64)
    assert abs(int(np.asarray(image).mean()) - 128) <= 1
