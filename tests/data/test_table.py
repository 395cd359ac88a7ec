from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from medfm.data.table import is_broken, read_table
from medfm.errors import DataError


def test_read_table__delimiters_quotes_bom_gz(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffa;b\n1;"x;\ny"\n\n;é\n'.encode())
    frame = read_table(path)
    assert frame.to_dict("list") == {"a": ["1", ""], "b": ["x;\ny", "é"]}
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(b"a\tb\n1\t2\n"))
    assert read_table(packed).to_dict("list") == {"a": ["1"], "b": ["2"]}


def test_read_table__names_the_rows_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_bytes(b'id,report\n1,fine\n2,caf\xe9\n3,"two\nlines"\n4,na\xefve\n')
    with pytest.raises(
        DataError, match=r"reports.csv' is not UTF-8 in 2 rows: row 3, 5 \(columns: report\).*latin-1.*encoding=latin-1"
    ) as error:
        read_table(path)
    assert "caf" not in str(error.value)
    assert read_table(path, encoding="latin-1")["report"].tolist() == ["fine", "café", "two\nlines", "naïve"]
    lenient = read_table(path, lenient=True)
    assert [is_broken(v) for v in lenient["report"]] == [False, True, False, True]


def test_read_table__guesses_windows_and_utf16(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"a\nit\x92s\n")
    with pytest.raises(DataError, match="encoding=cp1252"):
        read_table(path)
    path.write_bytes("a\nb\n".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        read_table(path)
    assert read_table(path, encoding="utf-16")["a"].tolist() == ["b"]


def test_read_table__refuses_rows_longer_than_the_header(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n1,no, quotes\n1,2,\n1\n")
    with pytest.raises(DataError, match="row 3 has more cells than the 2 columns"):
        read_table(path)
    path.write_text("a,b\n1,2,\n1\n")
    assert read_table(path).to_dict("list") == {"a": ["1", "1"], "b": ["2", ""]}


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("a,a\n1,2\n", "two columns named 'a'")])
def test_read_table__unusable(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(path)
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "absent.csv")
