"""Rules of the collapse guard on made-up numbers: what is an alarm, when, and in which words."""

from __future__ import annotations

import math

import pytest

from medfm.training.collapse import Alarm, CollapseRules
from medfm.training.config import GuardConfig

TOP = math.log(1024)


def _rules(total: int = 1000, **changes: float) -> CollapseRules:
    return CollapseRules(GuardConfig.model_validate(changes), total, prototypes=1024, batch=32)


def _teacher(rules: CollapseRules, information: list[float], entropy: float = 5.0) -> list[Alarm | None]:
    return [rules.teacher(10 * n, entropy, entropy + value) for n, value in enumerate(information, start=1)]


def _features(rules: CollapseRules, spread: list[float]) -> list[Alarm | None]:
    return [
        rules.features(50 * n, {"mean_cosine": 1 - value, "effective_rank": 2.0}) for n, value in enumerate(spread, start=1)
    ]


def test_teacher__a_fall_that_lasts_is_an_alarm() -> None:
    found = _teacher(_rules(), [0.2, 0.01, 0.01, 0.01])
    assert found[:3] == [None, None, None]
    alarm = found[3]
    assert alarm is not None
    assert (alarm.kind, alarm.step) == ("same answer", 40)
    assert "same answer to every image" in alarm.text
    assert "0.2 at step 10" in alarm.text
    assert "entropy 5 of 6.93 nats" in alarm.text
    assert alarm.evidence["information"] == pytest.approx(0.01)
    assert alarm.evidence["checks_in_a_row"] == 3


def test_teacher__a_dip_or_a_slow_fall_is_none() -> None:
    # As long as an answer tells 0.03 nats it tells something, and a fifth of the best is what healthy starts fall to.
    assert not any(_teacher(_rules(), [0.9, 0.01, 0.01, 0.2, 0.01, 0.01, 0.2]))
    assert not any(_teacher(_rules(), [0.9] + 10 * [0.04]))
    assert not any(_teacher(_rules(), [0.02] + 10 * [0.005]))


def test_teacher__kinds_have_their_own_advice() -> None:
    one_hot = _teacher(_rules(), [0.3, 0, 0, 0], entropy=0.01)[-1]
    uniform = _teacher(_rules(), [0.3, 0, 0, 0], entropy=TOP - 1e-4)[-1]
    assert one_hot is not None
    assert uniform is not None
    assert one_hot.kind == "one-hot"
    assert "Centre the teacher" in one_hot.text
    assert uniform.kind == "uniform"
    assert "Sharpen the teacher" in uniform.text


def test_teacher__that_never_told_images_apart_is_given_time() -> None:
    """LayerScale of 1e-5 starts a class token that is the same for every image."""
    found = _teacher(_rules(total=1000), 20 * [1e-6])
    # Judged from step 100 on, a tenth of the run, three looks in a row.
    assert next(alarm.step for alarm in found if alarm) == 130
    assert "never more" in next(alarm for alarm in _teacher(_rules(total=100), 20 * [0.0]) if alarm).text
    # One that rises, however late and from however little, is healthy (these were a DINOv2's), as is one that begins in time.
    assert not any(_teacher(_rules(total=10), [0, 1.9e-6, 1.2e-5, 2.4e-5, 4.3e-5]))
    assert not any(_teacher(_rules(total=1000), 8 * [1e-6] + 20 * [0.05]))


def test_features__are_compared_with_their_own_best() -> None:
    # Healthy networks may have all features within 1e-3 of each other.
    assert not any(_features(_rules(), 10 * [1e-3]))
    found = _features(_rules(), [0.1, 0.02, 5e-4, 5e-4, 5e-4])
    assert found[:4] == [None, None, None, None]
    assert found[4] is not None
    assert found[4].kind == "features"
    assert "0.1 at step 50" in found[4].text


def test_features__that_are_not_finite_are_an_alarm_at_once() -> None:
    alarm = _rules().features(7, {"mean_cosine": math.nan}, "student/")
    assert alarm is not None
    assert alarm.kind == "not finite"
    assert "the student's features are not finite" in alarm.text


def test_rules__go_on_where_they_were() -> None:
    first = _rules()
    assert not any(_teacher(first, [0.2, 0.01, 0.01]))
    second = _rules()
    second.load_state_dict(first.state_dict())
    assert second.teacher(40, 5.0, 5.01) is not None


def test_rules__thresholds_are_the_recipes() -> None:
    assert any(_teacher(_rules(patience=1), [0.2, 0.01]))
    assert not any(_teacher(_rules(min_information=0.001), [0.2] + 5 * [0.01]))
    assert not any(_features(_rules(min_spread=0.001), [0.1] + 5 * [5e-4]))
