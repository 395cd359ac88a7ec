"""References: a path and what to take from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfm.errors import DataError
from medfm.io.reference import join_reference, split_reference

KEY = "0123456789ab"


@pytest.mark.parametrize(
    ("text", "path", "selectors"),
    [
        ("a/b", "a/b", {}),
        (f"a/b#series={KEY}", "a/b", {"series": KEY}),
        ("a/b.dcm#volume=3", "a/b.dcm", {"volume": "3"}),
        (f"a/b#series={KEY},volume=12", "a/b", {"series": KEY, "volume": "12"}),
        ("a#1/b", "a#1/b", {}),  # the mark belongs to a folder's name
        ("#x", "#x", {}),
    ],
)
def test_split_reference(text: str, path: str, selectors: dict[str, str]) -> None:
    assert split_reference(text) == (Path(path), selectors)
    assert join_reference(path, **selectors) == text


@pytest.mark.parametrize(
    "tail", ["", "series", "series=xyz", "volume=-1", "volume=1,volume=2", "slice=3", f"series={KEY};volume=1"]
)
def test_split_reference__no_selector(tail: str) -> None:
    with pytest.raises(DataError, match="does not exist, and what follows '#' is no selector"):
        split_reference(f"a/b#{tail}")


def test_split_reference__a_path_that_exists_wins(tmp_path: Path) -> None:
    odd = tmp_path / "scan#volume=3"
    odd.mkdir()
    assert split_reference(odd) == (odd, {})
    assert split_reference(f"{odd}#volume=1") == (odd, {"volume": "1"})


def test_join_reference__refuses_what_it_could_not_split() -> None:
    assert join_reference("a", series="", volume=2) == "a#volume=2"
    with pytest.raises(DataError, match="slice=2"):
        join_reference("a", slice=2)
