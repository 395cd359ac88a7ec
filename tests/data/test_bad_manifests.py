"""Manifests as people make them: what is wrong is named with its row, what is only odd is read, and no report is quoted."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medfm.data.check import check_manifest
from medfm.data.manifest import read_manifest
from medfm.errors import DataError

HEAD = "image,patient_id,split,report"
# Stands in every report and every patient's number: it must be in no message.
SECRET = "SECRETWORD"


def lines(*rows: str, head: str = HEAD) -> str:
    return "\n".join([head, *rows]) + "\n"


def good(n: int, patient: str = "", split: str = "train", report: str = "No effusion.") -> str:
    """Row n: images/n.png of its own patient."""
    return f"images/{n}.png,{patient or f'{SECRET}{n}'},{split},{SECRET} {report}"


def parquet(folder: Path, **columns: Any) -> Path:
    path = folder / "m.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@dataclass
class Case:
    """A manifest and what must be said of it.

    `text`: a CSV; `make`: writes anything else. `error`: words of read_manifest's refusal. `found`: kind -> row numbers as a
    person sees them, of check_manifest. `words`: further words of its summary. Neither: it is good, with `rows` rows.
    """

    text: str | bytes = ""
    make: Callable[[Path], Path] | None = None
    error: str = ""
    found: dict[str, list[int]] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    rows: int = 2


def _packed(folder: Path) -> Path:
    path = folder / "m.csv.gz"
    path.write_bytes(gzip.compress(lines(good(0), good(1)).encode()))
    return path


def _damaged_gz(folder: Path) -> Path:
    path = _packed(folder)
    path.write_bytes(path.read_bytes()[:-12])
    return path


def _renamed(name: str, of: Callable[[Path], Path]) -> Callable[[Path], Path]:
    return lambda folder: of(folder).rename(folder / name)


def _sound_parquet(folder: Path) -> Path:
    images, patients = [f"images/{n}.png" for n in range(2)], [f"{SECRET}{n}" for n in range(2)]
    return parquet(folder, image=images, patient_id=patients, split=["train"] * 2, report=[SECRET] * 2)


def _cut_parquet(folder: Path) -> Path:
    path = _sound_parquet(folder)
    path.write_bytes(path.read_bytes()[:-30])
    return path


def _excel(folder: Path) -> Path:
    path = folder / "m.csv"
    path.write_bytes(b"PK\x03\x04" + SECRET.encode() * 50)
    return path


def _absent(folder: Path) -> Path:
    return folder / "none.csv"


def _folder(folder: Path) -> Path:
    return folder


def _meta(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "m.csv"
        path.write_text(lines(good(0), good(1)))
        (folder / "m.csv.meta.json").write_text(text)
        return path

    return make


def _twin_columns(folder: Path) -> Path:
    table = pa.Table.from_arrays(
        [pa.array(["images/0.png"])] * 2 + [pa.array(["x"])] * 2, ["image", "image", "patient_id", "split"]
    )
    pq.write_table(table, folder / "m.parquet")
    return folder / "m.parquet"


def _lists(folder: Path) -> Path:
    return parquet(folder, image=[["images/0.png", SECRET]], patient_id=["a"], split=["train"])


def _bytes(folder: Path) -> Path:
    return parquet(folder, image=["images/0.png"], patient_id=[SECRET.encode()], split=["train"])


def _number_ids(folder: Path) -> Path:
    """Whole numbers that pandas made floats, because one is missing."""
    frame = pd.DataFrame(
        {"image": ["images/0.png", "images/1.png"], "patient_id": [7.0, float("nan")], "split": ["train", "val"]}
    )
    frame.to_parquet(folder / "m.parquet")
    return folder / "m.parquet"


def _labels(*values: str) -> str:
    rows = (f"{good(n)},{value}" for n, value in enumerate(values))
    return lines(*rows, head=f"{HEAD},label:Edema")


CASES = {
    # --- cannot be read at all
    "no file": Case(make=_absent, error="does not exist"),
    "a folder": Case(make=_folder, error="is a folder"),
    "an empty file": Case(b"", error="is empty"),
    "blank lines alone": Case("\n\n\n", error="is empty"),
    "a header alone": Case(lines(), error="has no rows"),
    "a parquet file without rows": Case(
        make=lambda f: parquet(
            f, image=pa.array([], pa.string()), patient_id=pa.array([], pa.string()), split=pa.array([], pa.string())
        ),
        error="has no rows",
    ),
    "no image column": Case(lines("p,train", head="patient_id,split"), error="no column 'image'"),
    "no split and no patient": Case(lines("images/0.png", head="image"), error="no column 'patient_id', 'split'"),
    "no header": Case(lines(good(1), head=good(0)), error="no column 'image'"),
    "Image for image": Case(
        lines(good(0), head="Image,patient_id,split,report"), error="no column 'image'; did you mean 'Image'"
    ),
    "a column twice": Case(lines("a,b,c,d", head="image,image,patient_id,split"), error="two columns named 'image'"),
    "columns that differ in case": Case(lines("a,b,p,train", head="image,Image,patient_id,split"), error="'image' and 'Image'"),
    "two columns in parquet": Case(make=_twin_columns, error="two columns named 'image'"),
    "labels that differ in case": Case(lines(good(0) + ",1,0", head=f"{HEAD},label:Edema,Label:edema"), error="two columns"),
    "UTF-16": Case(lines(good(0)).encode("utf-16"), error="UTF-16"),
    "a header that is not UTF-8": Case(HEAD.encode() + b",caf\xe9\n", error="header is not UTF-8"),
    "a quote that is never closed": Case(
        lines(good(0), f'images/1.png,p,train,"{SECRET}', good(2)), error="row 3: a quote that is never"
    ),
    "a quote closed in another row": Case(
        lines(good(0), f'images/1.png,p,train,"{SECRET} x', f'images/2.png,p,train,"{SECRET}"'), error="row 3: .*quote"
    ),
    "commas without quotes": Case(
        lines(good(0), good(1) + ", and more, of it"), error="row 3 has more cells than the 4 columns"
    ),
    "two delimiters": Case(
        lines(good(0), good(1).replace(",", ";"), good(2).replace(",", ";")), error="row 3, 4 does not part"
    ),
    "a cell of 20 MB": Case(lines(f'images/0.png,p,train,"{SECRET * 2_000_000}"'), error="row 2: field larger"),
    "an Excel file": Case(make=_excel, error="Excel"),
    "parquet named csv": Case(make=_renamed("m.csv", _sound_parquet), error="is a parquet file"),
    "csv named parquet": Case(make=_renamed("m.parquet", _packed), error="no readable parquet"),
    "a cut parquet file": Case(make=_cut_parquet, error="no readable parquet"),
    "gzip without its suffix": Case(make=_renamed("m.csv", _packed), error="packed by gzip"),
    "a cut gzip file": Case(make=_damaged_gz, error="cannot be read"),
    "lists in a column": Case(make=_lists, error="column 'image' holds list"),
    "bytes in a column": Case(make=_bytes, error="column 'patient_id' holds binary"),
    "a meta file that is no JSON": Case(make=_meta("{oops"), error="no readable JSON"),
    "a meta file that is a list": Case(make=_meta("[1]"), error="no readable JSON"),
    "a meta file whose root is a number": Case(make=_meta('{"root": 5}'), error="no readable JSON"),
    # --- can be read, and rows are wrong
    "a patient in two splits": Case(lines(good(0, "p"), good(1, "p", "test"), good(2)), found={"leak": [2]}),
    "a patient in two splits, by a space": Case(lines(good(0, "p"), good(1, "p ", "test")), found={"leak": [2]}),
    "a row twice": Case(lines(good(0), good(1), good(0)), found={"duplicate": [4]}, words=("as row 2",)),
    "a row twice, spelled otherwise": Case(
        lines(good(0), f"./images//0.png,{SECRET}0,train,x"), found={"duplicate": [3]}, words=("as row 2",)
    ),
    "labels that are none": Case(_labels("1", "yes", "2", "-1", "0.5", ""), found={"label": [3, 4, 6]}, words=("Edema",)),
    "labels that are infinite": Case(_labels("inf", "-inf", "0"), found={"label": [2, 3]}),
    "labels with a comma": Case(_labels('"0,0"', "1"), found={"label": [2]}),
    "unknown splits": Case(
        lines(good(0, split="Train"), good(1, split="fold1"), good(2, split="")), found={"split": [2, 3, 4]}
    ),
    "absolute paths outside": Case(lines("/etc/hostname,p,train,x", good(1)), found={"outside": [2]}),
    "paths that leave the root": Case(lines(good(0), f"../secret.png,p,train,{SECRET}"), found={"outside": [3]}),
    "paths that leave the root in the middle": Case(lines(good(0), "images/../../x.png,p,train,x"), found={"outside": [3]}),
    "a mask outside": Case(
        lines("images/0.png,p,train,../../m.png", head="image,patient_id,split,mask"), found={"outside": [2]}
    ),
    "missing files": Case(lines(good(0), good(77)), found={"missing": [3]}, words=("'images/77.png'",)),
    "files in a wrong root": Case(lines("pictures/0.png,p,train,x", "pictures/1.png,q,train,x"), found={"missing": [2, 3]}),
    "backslashes": Case(lines(good(0), r"images\1.png,p,train,x"), found={"missing": [3]}, words=("write /",)),
    "a NUL in a path": Case(lines(good(0), "images/1\0.png,p,train,x"), found={"missing": [3]}, words=("no path",)),
    "a path that is a text": Case(
        lines(good(0), f'"{SECRET} with effusion, {SECRET * 30}",p,train,x'), found={"missing": [3]}, words=("no path",)
    ),
    "no path": Case(lines(good(0), ",p,train,x"), found={"missing": [3]}, words=("(no path)",)),
    "a file that is no image": Case(lines("notes.txt,p,train,x", good(1)), found={"unreadable": [2]}),
    "a picture that is cut": Case(lines("cut.png,p,train,x", good(1)), found={"unreadable": [2]}),
    "patients that are missing": Case(
        lines(good(0, " "), good(1, "nan"), good(2, "None"), good(3)), found={"patient": [2, 3, 4]}
    ),
    "patients that are missing in parquet": Case(make=_number_ids, found={"patient": [1]}),
    "a report that is not UTF-8": Case(
        lines(good(0), good(1)).encode() + b"images/2.png,p,val,caf\xe9 SECRETWORD\n", found={"encoding": [4]}
    ),
    "a path that is not UTF-8": Case(lines(good(0)).encode() + b"images/caf\xe9.png,p,val,x\n", found={"missing": [3]}),
    "reports that are empty": Case(
        lines(good(0), "images/1.png,p,train,", "images/2.png,q,train, ___ "), found={"empty": [3, 4]}
    ),
    "rows that are short": Case(lines(good(0), "images/1.png,p"), found={"split": [3], "empty": [3]}),
    "a wrong row behind blank lines": Case(lines(good(0), "", "", good(1, split="fold1")), found={"split": [5]}),
    "a wrong row behind a text of many lines": Case(
        lines(f'images/0.png,p,train,"{SECRET}\n\nline\nline"', good(77)), found={"missing": [3]}
    ),
    "many things at once": Case(
        lines(good(0), good(77), "images/2.png,p,fold1,x", f"../x.png,{SECRET},train,x"),
        found={"outside": [5], "missing": [3], "split": [4]},
    ),
    # --- odd, and good
    "a byte-order mark": Case(b"\xef\xbb\xbf" + lines(good(0), good(1)).encode()),
    "semicolons and Windows line ends": Case(lines(good(0), good(1)).replace(",", ";").replace("\n", "\r\n")),
    "tabs": Case(lines(good(0), good(1)).replace(",", "\t")),
    "quoted newlines and quotes": Case(
        lines(f'images/0.png,p,train,"{SECRET}\r\nsaid ""none""\n"', '"images/1.png",q,val,"x, y"')
    ),
    "spaces around names and splits": Case(
        lines("images/0.png, p , train ,x", good(1), head=" image , patient_id,split , report")
    ),
    "no line end at the end": Case(lines(good(0), good(1)).rstrip("\n")),
    "trailing delimiters": Case(lines(good(0) + ",", good(1) + ",,")),
    "gzip": Case(make=_packed),
    "parquet": Case(make=_sound_parquet),
    "columns of one's own": Case(lines(good(0) + ",x,5", good(1) + ",y,", head=f"{HEAD},centre,Centre")),
    "labels in words": Case(_labels("true", "False", "nan", "-1", "1.0"), rows=5),
    "blank lines": Case(lines(good(0), "", good(1), "", "")),
    "an absolute path inside": Case("ABSOLUTE", rows=1),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with four pictures, a text and a cut picture."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    for n in range(6):
        Image.fromarray(np.full((9, 8), 20 * n, np.uint8)).save(folder / "images" / f"{n}.png")
    (folder / "notes.txt").write_text(SECRET)
    (folder / "cut.png").write_bytes((folder / "images" / "0.png").read_bytes()[:20])
    return folder


@pytest.mark.parametrize("name", CASES)
def test_bad_manifest(name: str, tmp_path: Path, root: Path) -> None:
    case = CASES[name]
    if case.make is not None:
        path = case.make(tmp_path)
    else:
        path = tmp_path / "m.csv"
        text = lines(good(0).replace("images", f"{root}/images")) if case.text == "ABSOLUTE" else case.text
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if case.error:
        with pytest.raises(DataError, match=case.error) as refusal:
            read_manifest(path, root)
        assert path.name in str(refusal.value)
        assert SECRET not in str(refusal.value)
        return
    manifest = read_manifest(path, root)
    report = check_manifest(manifest, need_text="empty" in case.found, level="headers", workers=1)
    text = report.summary()
    assert SECRET not in text
    shift = 0 if path.suffix == ".parquet" else 2
    assert {kind: [row + shift for row in problem.rows] for kind, problem in report.problems.items()} == case.found, text
    for kind, rows in case.found.items():
        assert f"row {rows[0]}" in str(report.problems[kind])
    for words in case.words:
        assert words in text
    if not case.found:
        assert len(manifest) == case.rows
        assert report.clean(manifest, "fail") is manifest


def test_cases__at_least_thirty_are_bad() -> None:
    assert sum(bool(case.error or case.found) for case in CASES.values()) >= 50
    assert sum(not (case.error or case.found) for case in CASES.values()) >= 10


def test_read_manifest__keeps_leading_zeros_and_whole_numbers(tmp_path: Path, root: Path) -> None:
    (tmp_path / "m.csv").write_text(lines(good(0, "0012"), good(1, "12")))
    assert read_manifest(tmp_path / "m.csv", root).frame["patient_id"].tolist() == ["0012", "12"]
    assert read_manifest(_number_ids(tmp_path), root).frame["patient_id"].tolist() == ["7", ""]


def test_read_manifest__rows_keep_their_numbers_behind_blank_lines(tmp_path: Path, root: Path) -> None:
    (tmp_path / "m.csv").write_text(lines("", good(0), "", "", good(1)))
    manifest = read_manifest(tmp_path / "m.csv", root)
    assert [manifest.row_name(row) for row in manifest.frame.index] == ["row 3", "row 6"]
    assert manifest.image_path(4) == root / "images/1.png"


def test_check_manifest__a_reference_into_a_folder_is_no_missing_file(tmp_path: Path, root: Path) -> None:
    """`folder#series=KEY` names a series in a folder; the folder is what must be there."""
    (tmp_path / "m.csv").write_text(
        lines("images#series=0123456789ab,p,train,x", "none#series=0123456789ab,q,train,x", head=HEAD)
    )
    report = check_manifest(read_manifest(tmp_path / "m.csv", root), workers=1)
    assert report.problems["missing"].rows == [1]
    assert "missing" not in {kind for kind, problem in report.problems.items() if 0 in problem.rows}
