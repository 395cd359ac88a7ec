from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from medfm.data.doctor.checks import rescaled_twice
from medfm.data.doctor.film import inverted, is_chest, shrink


@pytest.mark.parametrize("shape", [(64, 64), (65, 130), (301, 77), (10, 5), (1, 200)])
def test_shrink__keeps_the_mean_of_a_ramp(shape: tuple[int, int]) -> None:
    ramp = np.add.outer(np.linspace(0, 1, shape[0]), np.linspace(0, 1, shape[1])).astype(np.float32)
    small = shrink(ramp, 64)
    assert small.shape == (64, 64)
    assert abs(float(small.mean()) - float(ramp.mean())) < 0.02
    if min(shape) > 1:
        assert (np.diff(small, axis=0) >= -1e-6).all()


def test_inverted__a_body_before_black_and_before_white() -> None:
    yy, xx = np.mgrid[:200, :160]
    body = np.exp(-(((xx - 80) / 40.0) ** 2)) * (0.4 + 0.6 * yy / 200)
    assert inverted(body, chest=False) == ""
    evidence = inverted(1 - body, chest=False)
    assert "% of the border is near white" in evidence
    shuttered = body.copy()
    shuttered[:, :30] = shuttered[:, -30:] = 1.0  # unexposed beside the tube's shutter: white on a raw film
    assert inverted(shuttered, chest=False) == ""
    assert inverted(np.full((50, 50), 3), chest=True) == ""


def test_is_chest() -> None:
    assert is_chest("DX", "PA", "")
    assert is_chest("CR", "", "Chest")
    assert not is_chest("DX", "LATERAL", "CHEST")
    assert not is_chest("DX", "AP", "HAND")
    assert not is_chest("MG", "", "BREAST")


def test_inverted__few_false_alarms_on_real_chest_films(data_dir: Path) -> None:
    """Every fifth film of two sets: as it is, and inverted. The whole of four sets is in benchmarks/results/doctor.md."""
    from PIL import Image

    total = alarms = found = 0
    for name in ("cxr_kermany", "cxr_hannover"):
        with open(data_dir / name / "manifest.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))[::5]
        for row in rows:
            picture = np.asarray(Image.open(data_dir / name / row["image"]).convert("L"), np.float32)
            total += 1
            alarms += bool(inverted(picture, chest=True))
            found += bool(inverted(-picture, chest=True))
    assert total > 180
    assert alarms <= 0.01 * total
    assert found >= 0.9 * total


def test_rescaled_twice__body_with_and_without_padding() -> None:
    body = np.full((40, 40, 10), -1000)
    body[10:30, 10:30] = 40
    padded = body.copy()
    padded[:5] = -2000
    assert rescaled_twice(body) == ""
    assert rescaled_twice(padded) == ""
    assert "rescaled twice" in rescaled_twice(body - 1024)
