from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medfm.data.check import check_manifest, checked, prepare
from medfm.data.config import DataConfig
from medfm.data.manifest import Manifest, read_manifest
from medfm.errors import DataError
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess


@pytest.fixture
def bad(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Manifest:
    """One row of each problem; rows 0, 1 and 9 are good. Reports hold the word SECRET."""
    n = 12
    manifest = make_manifest(
        n,
        reports=[f"SECRET report {i}." for i in range(n)],
        patient_id=[f"id{i}" for i in range(n)],
        **{"label:Edema": [1.0, 0, -1, math.nan, 2, 1, 1, 1, 1, 1, 1, 1]},
    )
    frame = manifest.frame
    (tmp_path / frame.at[2, "image"]).unlink()
    (tmp_path / frame.at[3, "image"]).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    frame.loc[5, "image"] = frame.at[0, "image"]
    frame.loc[6, "patient_id"] = "id9"
    frame.loc[9, "split"] = "test"
    frame.loc[7, "report"] = " ___ "
    frame.loc[8, "report"] = "caf\udce9 SECRET"
    frame.loc[10, "split"] = "fold1"
    frame.loc[11, "patient_id"] = ""
    return manifest


EXPECTED = {"missing": [2], "unreadable": [3], "duplicate": [5], "leak": [6], "split": [10], "patient": [11], "empty": [7]}
EXPECTED |= {"encoding": [8], "label": [4]}


def test_check_manifest__every_kind_is_found_once(bad: Manifest) -> None:
    report = check_manifest(bad, need_text=True)
    assert {kind: p.rows for kind, p in report.problems.items()} == EXPECTED
    assert list(report.problems) == list(EXPECTED)
    assert report.counts == dict.fromkeys(EXPECTED, 1)


def test_clean__fail_names_every_problem_and_no_patient_data(bad: Manifest) -> None:
    with pytest.raises(DataError) as error:
        check_manifest(bad, need_text=True).clean(bad, "fail")
    text = str(error.value)
    assert text.startswith("m.parquet: 9 of 12 rows cannot be used")
    for line in (
        "1 image files do not exist, first: row 2 'images/2.png'",
        "1 images cannot be read, first: row 3 'images/3.png': ",
        "1 rows name an image that an earlier row names, first: row 5 'images/0.png', as row 0",
        "1 rows put their patient into a second split, first: row 6 'images/6.png' is train, its patient is also in test",
        "1 rows have a label outside 1, 0, -1 and empty, first: row 4 'images/4.png' (Edema)",
        "1 reports are empty, first: row 7 'images/7.png'",
        "1 rows hold text that is not UTF-8, first: row 8 'images/8.png'",
        "Set data.on_error=skip",
    ):
        assert line in text
    assert "SECRET" not in text
    assert "id9" not in text
    assert str(bad.root) not in text


def test_clean__skip_keeps_good_rows_under_their_numbers(bad: Manifest) -> None:
    kept = check_manifest(bad, need_text=True).clean(bad, "skip")
    assert kept.frame.index.tolist() == [0, 1, 9]
    assert kept.meta["skipped"] == {"rows": 9, **dict.fromkeys(EXPECTED, 1)}
    assert len(bad) == 12
    assert check_manifest(kept, need_text=True).problems == {}
    assert check_manifest(kept).clean(kept, "fail") is kept


def test_check_manifest__levels(bad: Manifest, tmp_path: Path) -> None:
    assert {"missing", "unreadable"} & set(check_manifest(bad, level="none").problems) == set()
    # A truncated JPEG has a whole header: only decoding shows it.
    bad.frame.loc[1, "image"] = "images/1.jpg"
    path = tmp_path / "images/1.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:30_000])
    assert check_manifest(bad, level="headers").problems["unreadable"].rows == [3]
    assert check_manifest(bad, level="decode").problems["unreadable"].rows == [1, 3]
    assert check_manifest(bad, level="decode", splits=["test"]).problems.get("unreadable") is None


def test_check_manifest__decode_also_asks_the_contract(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest(3)

    def contract(image: Any) -> Any:
        if image.source.endswith("1.png"):
            raise DataError("modality 'OT' is not accepted")
        return image.array

    report = check_manifest(manifest, level="decode", preprocess=contract)
    assert report.problems["unreadable"].rows == [1]
    assert "is not accepted" in report.problems["unreadable"].examples[0]


def test_check_manifest__hounsfield_units_need_ct(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest(4, modality=["CT", "", "MR", "CT"])
    contract = Preprocess(PreprocessConfig(size=(32, 32), window="hu"))
    problem = check_manifest(manifest, preprocess=contract).problems["modality"]
    assert problem.rows == [2]
    assert "'images/2.png' (MR)" in problem.examples[0]
    assert check_manifest(manifest, level="none", preprocess=contract).problems["modality"].rows == [2]
    assert 2 not in check_manifest(manifest, level="decode", preprocess=contract).problems["unreadable"].rows  # said once
    assert "modality" not in check_manifest(manifest, preprocess=Preprocess(PreprocessConfig(size=(32, 32)))).problems
    assert "modality" not in check_manifest(manifest).problems


def test_check_manifest__says_which_file_lies_outside(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest(2, mask=["", "../masks/1.png"])
    assert "mask '../masks/1.png'" in check_manifest(manifest).problems["outside"].examples[0]


def test_check_manifest__empty_reports_matter_only_to_what_reads_text(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest(4, reports=["a b", "", "c d", ""], split=["train", "train", "val", "val"])
    assert check_manifest(manifest).problems == {}
    assert check_manifest(manifest, need_text=True).problems["empty"].rows == [1, 3]
    assert check_manifest(manifest, need_text=True, splits=["train"]).problems["empty"].rows == [1]


def test_check_manifest__examples_are_few_and_counts_exact(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest(40, write=False)
    problem = check_manifest(manifest, workers=4).problems["missing"]
    assert len(problem.rows) == 40
    assert len(problem.examples) == 3
    assert str(problem).startswith("40 image files do not exist, first: row 0 'images/0.png'; row 1 ")


def test_check_manifest__a_leak_keeps_the_held_out_rows(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest(4, patient_id=["a", "a", "a", "b"], split=["train", "val", "test", "train"])
    kept = check_manifest(manifest).clean(manifest, "skip")
    assert kept.frame.index.tolist() == [2, 3]


def test_check_manifest__csv_with_broken_bytes(tmp_path: Path, png: Callable[..., Path]) -> None:
    png(tmp_path / "a.png")
    (tmp_path / "m.csv").write_bytes(b"image,patient_id,split,report\na.png,1,train,caf\xe9 SECRET\n")
    manifest = read_manifest(tmp_path / "m.csv")
    with pytest.raises(DataError, match=r"1 rows hold text that is not UTF-8, first: row 2 'a.png'") as error:
        check_manifest(manifest).clean(manifest)
    assert "SECRET" not in str(error.value)
    with pytest.raises(DataError, match="No row is left"):
        check_manifest(manifest).clean(manifest, "skip")


def test_prepare__takes_the_data_config_and_says_what_it_left_out(
    bad: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(manifest=tmp_path / "m.parquet", on_error="skip", check_files="none")
    kept = prepare(bad, config)
    assert kept.meta["skipped"]["rows"] == 7
    assert "7 of 12 rows cannot be used" in caplog.text
    assert "SECRET" not in caplog.text
    with pytest.raises(DataError):
        checked(bad, DataConfig(manifest=tmp_path / "m.parquet"))
