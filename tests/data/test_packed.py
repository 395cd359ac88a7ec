from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfm.data.packed import CodedTexts, PackedTexts

texts = st.lists(st.text(st.characters(), max_size=8), max_size=12)


@given(texts)
def test_packed_and_coded__are_the_list_they_were_made_of(values: list[str]) -> None:
    values = [*values, "\udc80 lone", ""]
    for kind in (PackedTexts, CodedTexts):
        packed = kind(values)
        assert list(packed) == values
        assert len(packed) == len(values)


def test_packed__indexes_as_a_list_does() -> None:
    packed = PackedTexts(["a", "", "bcd"])
    assert packed[-1] == packed[2] == "bcd"
    for index in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            packed[index]


def test_coded__keeps_equal_texts_once() -> None:
    coded = CodedTexts(["one report"] * 1000 + ["another"])
    assert list(coded.unique) == ["one report", "another"]
    assert coded.nbytes < 5000
