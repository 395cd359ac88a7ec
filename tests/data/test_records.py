"""JSON, JSON lines and XML as tables, and how cards join rows that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medfm.data.card_layout import Layout, XmlRows
from medfm.data.layout import apply
from medfm.data.records import read_records
from medfm.errors import DataError


def read(tmp_path: Path, name: str, text: str | bytes, **options: Any) -> list[dict[str, str]]:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_records(path, **options).to_dict("records")


def test_read_records__json_forms(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.json", '[{"a": 1, "b": {"c": "x", "d": null}, "e": ["p", 2]}, {"a": "2", "f": [{"g": 1}]}]')
    assert rows == [
        {"a": "1", "b.c": "x", "b.d": "", "e": "p|2", "f": ""},
        {"a": "2", "b.c": "", "b.d": "", "e": "", "f": '[{"g": 1}]'},
    ]
    pair = '{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}'
    msd = f'{{"name": "Spleen", "training": [{pair}], "test": ["./t.nii.gz"]}}'
    assert read(tmp_path, "a.json", msd, records="training") == [
        {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    ]
    assert read(tmp_path, "a.json", msd, records="test") == [{"value": "./t.nii.gz"}]
    assert read(tmp_path, "a.json", '{"x": {"y": 1}, "z": {"y": 2}}') == [{"key": "x", "y": "1"}, {"key": "z", "y": "2"}]
    assert read(tmp_path, "a.json", '{"a": [1, 2], "b": ["x", "y"]}') == [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]
    assert read(tmp_path, "a.json", '{"q1": "yes", "q2": 3}') == [{"key": "q1", "value": "yes"}, {"key": "q2", "value": "3"}]
    assert read(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}\n') == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.json", '[{"a": 1},\n{"a": SECRET]', {}, r"a\.json', line 2 is no readable JSON"),
        ("a.json", '["SECRET", 2]', {}, "is not a list of JSON objects"),
        ("a.json", '{"a": 1}', {"records": "b.c"}, r"has no key 'b\.c'"),
        ("a.json", b'"\xe9"', {}, "is not utf-8 text"),
        ("a.json", "[" * 100_000, {}, "is no readable JSON"),
        ("a.jsonl", '{"a": 1}\nSECRET', {}, "line 2 is no readable JSON"),
        ("a.jsonl", "3", {}, "line 1 is no JSON object"),
        ("a.xml", "<a/>", {}, "the card must say with xml:"),
        ("a.xml", "<a>\n<b>SECRET</a>", {"xml": XmlRows()}, "line 2 is no readable XML"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY e "SECRET">]><a>&e;</a>', {"xml": XmlRows()}, "declares XML entities"),
    ],
)
def test_read_records__refused_without_content(
    tmp_path: Path, name: str, text: str | bytes, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, name, text, **options)
    assert "SECRET" not in str(error.value)


def test_read_records__xml(tmp_path: Path) -> None:
    text = '<r n="1"><t k="A">one\n two</t><t k="A">three</t><t k="B"/><i id="x"><c> y </c></i><i id="z"/></r>'
    xml = XmlRows(rows="i", document={"n": "@n", "a": 't[@k="A"]', "b": 't[@k="B"]', "k": "t/@k"}, row={"id": "@id", "c": "c"})
    assert read(tmp_path, "a.xml", text, xml=xml) == [
        {"n": "1", "a": "one two|three", "b": "", "k": "A|A|B", "id": "x", "c": "y"},
        {"n": "1", "a": "one two|three", "b": "", "k": "A|A|B", "id": "z", "c": ""},
    ]
    whole = XmlRows(document={"n": "@n"})
    assert read(tmp_path, "a.xml", text, xml=whole) == [{"n": "1"}]


def applied(tmp_path: Path, table: dict[str, Any], text: str) -> Any:
    (tmp_path / "t.csv").write_text(text)
    layout = Layout.model_validate({"images": "*.png", "tables": [{"file": "t.csv", "join": {"image": "name"}, **table}]})
    return apply(tmp_path, ["a.png", "b.png"], layout)


def test_apply__several_rows(tmp_path: Path) -> None:
    text = "image,reader,x,y,z\na.png,R1,1,0,1\na.png,R2,1,0,0\na.png,R3,0,0,\nb.png,R1,1,1,1\nb.png,R2,0,1,1\n"
    assert not applied(tmp_path, {}, text).variables
    majority = applied(tmp_path, {"several": "majority"}, text).variables
    assert {k: majority["a.png"][k] for k in ("x", "y", "z", "reader")} == {"x": "1", "y": "0", "z": "", "reader": ""}
    assert majority["b.png"]["x"] == "-1"  # a tie is uncertain
    any_reader = applied(tmp_path, {"several": "any"}, text).variables
    assert (any_reader["a.png"]["x"], any_reader["a.png"]["y"], any_reader["b.png"]["x"]) == ("1", "0", "1")
    first = applied(tmp_path, {"several": "first"}, text).variables
    assert first["b.png"]["reader"] == "R1"
    taken = applied(tmp_path, {"take": ["y"]}, text).variables
    assert set(taken) == {"a.png", "b.png"}
    assert "x" not in taken["a.png"]


def test_apply__equal_votes_count(tmp_path: Path) -> None:
    text = "image,x\na.png,1\na.png,0\na.png,1\na.png,0\na.png,1\nb.png,0\n"
    assert applied(tmp_path, {"several": "majority"}, text).variables["a.png"]["x"] == "1"


def test_apply__delimiter_and_quotes(tmp_path: Path) -> None:
    text = 'a.png\t"Left, and right, and more", he said\nb.png\tplain\n'
    found = applied(tmp_path, {"names": ["image", "text"], "delimiter": "\t", "quoted": False}, text).variables
    assert found["a.png"]["text"] == '"Left, and right, and more", he said'


def test_apply__reference_with_selector_is_the_folder(tmp_path: Path) -> None:
    layout = Layout.model_validate({"images": "*", "path": r"(?P<patient>P\d+)/(?P<series>S\d+)$"})
    found = apply(tmp_path, ["P1/S2#series=0123456789ab", "P1/S2", "P1/S#2"], layout)
    assert found.variables["P1/S2#series=0123456789ab"]["series"] == "S2"
    assert found.variables["P1/S2"]["path"] == "P1/S2"
    assert [p for p, _ in found.rejected] == ["P1/S#2"]


def test_apply__files_take_the_first_that_exists(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/a.png").write_bytes(b"")
    layout = Layout.model_validate({"images": "*", "files": {"mask": ["none/{name}", "{absent}/{name}", "masks/{name}"]}})
    found = apply(tmp_path, ["a.png", "b.png"], layout).variables
    assert found["a.png"]["mask"] == "masks/a.png"
    assert "mask" not in found["b.png"]
