from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfm.text.clean import has_placeholder, normalise, normalise_lines


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Dr. [**Last Name (un) 12**]\nwas  told", "Dr. ___ was told"),
        ("Comparison [**2019-\n01-02**].", "Comparison ___."),
        ("XXXX-year-old with XXXX.", "___-year-old with ___."),
        ("sent to <ORG> by <PERSON_1>, R<L and 5 <ORGAN donors", "sent to ___ by ___, R<L and 5 <ORGAN donors"),
        ("___F at _____ on ____-__-__", "___F at ___ on ___-___-___"),
        ("[REDACTED] and [PA]", "___ and [PA]"),
        ("“Clear” – it’s\u00a0normal\u200b.", '"Clear" - it\'s normal.'),
        ("  \n\t ", ""),
        ("Exxxtra", "Exxxtra"),
    ],
)
def test_normalise__known_spellings(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


@given(st.text(alphabet=st.sampled_from("ab _X[]*<>ORG\n\t.é\u200b“"), max_size=60))
def test_normalise__is_idempotent_and_one_line(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert "\n" not in once
    assert "  " not in once


def test_normalise_lines__keeps_lines_but_not_inside_placeholders() -> None:
    assert normalise_lines("FINDINGS:\r\n  a  b\n\n\n\nseen by [**Name\nFoo**]\n") == "FINDINGS:\na b\n\nseen by ___"


def test_has_placeholder__only_where_something_was_removed() -> None:
    assert has_placeholder("seen by XXXX")
    assert not has_placeholder("X-ray of the xxl lung < 5 mm")
