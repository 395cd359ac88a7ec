from __future__ import annotations

import math

import pytest

from medfm.data.values import normalise_age, normalise_modality, normalise_sex, normalise_view, parse_label


def test_normalise_view__known_and_unknown_words() -> None:
    words = ["pa", "AP_horizontal", "AP Supine", "LL", "Lateral", "postero_anterior", "LLD", "", "UNKNOWN"]
    assert [normalise_view(w) for w in words] == ["PA", "AP", "AP", "LATERAL", "LATERAL", "PA", "LLD", "", ""]


def test_normalise_modality__codes() -> None:
    assert [normalise_modality(m) for m in ("X-ray", "MR T1", "ct", "DX", "colour fundus", "")] == [
        "CR", "MR", "CT", "DX", "colour fundus", "",
    ]  # fmt: skip


def test_normalise_sex__letters() -> None:
    assert [normalise_sex(s) for s in ("male", "F ", "Unknown", "")] == ["M", "F", "", ""]


@pytest.mark.parametrize(("text", "years"), [("045Y", 45), ("006M", 0.5), ("58", 58), ("90", 90), ("104", 90), ("0", 0)])
def test_normalise_age__years(text: str, years: float) -> None:
    assert normalise_age(text) == years


@pytest.mark.parametrize("text", ["", "413", "1-5 y", "-3", "nan"])
def test_normalise_age__unclear_is_unknown(text: str) -> None:
    assert math.isnan(normalise_age(text))


def test_parse_label__values() -> None:
    assert [parse_label(v) for v in ("1", "0.0", "-1", 1.0, "True", "false")] == [1, 0, -1, 1, 1, 0]
    assert all(math.isnan(parse_label(v) or 0.0) for v in ("", "nan", float("nan"), "NA"))
    assert [parse_label(v) for v in ("2", "yes", "0.5", "-2", "1e400")] == [None] * 5
