from __future__ import annotations

from collections import Counter

import pytest

from medfm.data.splits import assign_split, leaks, split_name
from medfm.errors import ConfigError


def test_assign_split__shares_hold_and_depend_on_patient_and_seed_alone() -> None:
    patients = [f"patient {i}" for i in range(5000)]
    first = {p: assign_split(p, seed=0) for p in patients}
    shares = Counter(first.values())
    assert shares["train"] == pytest.approx(4000, abs=100)  # standard deviation 28
    assert shares["val"] == pytest.approx(500, abs=80)
    assert {p: assign_split(p, seed=0) for p in reversed(patients[::7])} == {p: first[p] for p in patients[::7]}
    assert any(assign_split(p, seed=1) != first[p] for p in patients)


def test_assign_split__is_pinned() -> None:
    # These must never change: a new release must not move patients between splits.
    drawn = {f"p{i}": assign_split(f"p{i}", 0) for i in range(24)}
    assert {p for p, s in drawn.items() if s == "val"} == {"p8", "p13", "p21"}
    assert {p for p, s in drawn.items() if s == "test"} == {"p11", "p17", "p23"}


def test_assign_split__empty_shares_get_nobody() -> None:
    drawn = {assign_split(str(i), 0, (0.5, 0.5, 0.0)) for i in range(300)}
    assert drawn == {"train", "val"}
    with pytest.raises(ConfigError, match="sum to 1"):
        assign_split("a", 0, (0.5, 0.1, 0.1))


def test_split_name__spellings() -> None:
    assert [split_name(s) for s in ("Validate", "dev", "TRAIN", " test ", "", "fold3")] == [
        "val",
        "val",
        "train",
        "test",
        "",
        None,
    ]


def test_leaks__most_held_out_first() -> None:
    patients = ["a", "a", "b", "b", "c", "c", ""]
    splits = ["train", "test", "val", "train", "val", "val", "test"]
    assert leaks(patients, splits) == {"a": ("test", "train"), "b": ("val", "train")}
