from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medfm.data.index import index
from medfm.data.index_config import IndexConfig
from medfm.data.index_report import IndexReport, render
from medfm.data.manifest import read_manifest
from medfm.data.splits import assign_split
from medfm.errors import ConfigError, DataError

Write = Callable[..., Path]


def run(tmp_path: Path, **options: Any) -> IndexReport:
    options.setdefault("images", tmp_path / "images")
    return index(IndexConfig(out=tmp_path / "out" / "m.parquet", **options))


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def films(tmp_path: Path, film: Write) -> list[Path]:
    """Three films of two patients."""
    common = {"ViewPosition": "PA", "PatientSex": "F"}
    return [
        film(tmp_path / "images/b/1.dcm", PatientID="SECRET-2", StudyInstanceUID="1.2.20", PatientAge="045Y", **common),
        film(tmp_path / "images/b/2.dcm", PatientID="SECRET-2", StudyInstanceUID="1.2.20", PatientAge="095Y", **common),
        film(tmp_path / "images/a/3.dcm", PatientID="SECRET-1", StudyInstanceUID="1.2.10", **common),
    ]


def test_index__dicom_without_a_table_hides_ids_and_splits_by_raw_id(tmp_path: Path, films: list[Path]) -> None:
    report = run(tmp_path, seed=5)
    frame = report.manifest.frame
    assert frame["image"].tolist() == ["a/3.dcm", "b/1.dcm", "b/2.dcm"]
    assert frame["patient_id"].tolist() == ["p000001", "p000002", "p000002"]
    assert frame["study_id"].tolist() == ["s000001", "s000002", "s000002"]
    assert frame["view"].tolist() == ["PA"] * 3
    assert frame["sex"].tolist() == ["F"] * 3
    assert frame["age"].tolist()[1:] == [45.0, 90.0]
    assert frame["split"].tolist() == [assign_split(f"SECRET-{i}", 5) for i in (1, 2, 2)]
    written = read_manifest(tmp_path / "out" / "m.parquet")
    everything = written.frame.to_csv() + json.dumps(written.meta)
    assert "a/3.dcm" in everything
    assert "SECRET" not in everything
    assert "1.2.20" not in everything


def test_index__named_columns_keep_their_ids(tmp_path: Path, films: list[Path]) -> None:
    reports = table(tmp_path / "r.csv", "file,case,exam,report", "1.dcm,c7,e1,A b.", "2.dcm,c7,e1,C d.", "3.dcm,c8,e2,E f.")
    frame = run(tmp_path, reports=reports, patient="case", study="exam").manifest.frame
    assert frame["patient_id"].tolist() == ["c8", "c7", "c7"]
    assert frame["study_id"].tolist() == ["e2", "e1", "e1"]
    assert frame["report"].tolist() == ["E f.", "A b.", "C d."]
    frame = run(
        tmp_path, reports=table(tmp_path / "r.csv", "file,patient_id,report", "1.dcm,c7,x y", "2.dcm,c7,x y", "3.dcm,c8,x y")
    ).manifest.frame
    assert frame["patient_id"].tolist() == ["p000002", "p000001", "p000001"]  # found by itself: coded


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["path,report", "b/1.dcm,r1", "b\\2.dcm,r2", "./a/3.dcm,r3"], "column 'path' = relative path (3 of 3"),
        (["f,report", "x/y/1.dcm,r1", "x/y/2.dcm,r2", "3.dcm,r3"], "column 'f' = file name (3 of 3"),
        (["f,report", "1,r1", "2.png,r2", "3,r3"], "column 'f' = file name without suffix (3 of 3"),
        (["uid,report", "1.2.20,r12", "1.2.10,r3"], "column 'uid' = Study Instance UID (3 of 3"),
        (["folder,report", "b,r12", "a,r3"], "column 'folder' = folder name (3 of 3"),
        (["mrn,report", "SECRET-2,r12", "SECRET-1,r3"], "column 'mrn' = patient id (3 of 3"),
    ],
)
def test_index__finds_how_the_table_joins(tmp_path: Path, films: list[Path], lines: list[str], said: str) -> None:
    report = run(tmp_path, reports=table(tmp_path / "r.csv", *lines))
    assert report.joined.startswith(said)
    texts = report.manifest.frame["report"].tolist()
    assert texts[0] == "r3"
    assert texts[1] in ("r1", "r12")


def test_index__ambiguous_join_is_refused_with_the_choices(tmp_path: Path, films: list[Path]) -> None:
    reports = table(tmp_path / "r.csv", "now,before,report", "1.dcm,2.dcm,r1", "2.dcm,3.dcm,r2", "3.dcm,1.dcm,r3")
    with pytest.raises(ConfigError, match=r"2 ways that disagree: column 'now' = file name .* column 'before' = .* on=COLUMN"):
        run(tmp_path, reports=reports)
    report = run(tmp_path, reports=reports, on="before")
    assert report.manifest.frame["report"].tolist() == ["r2", "r3", "r1"]


def test_index__join_errors(tmp_path: Path, films: list[Path]) -> None:
    reports = table(tmp_path / "r.csv", "image_name,report", "9.dcm,r1")
    with pytest.raises(ConfigError, match=r"on=image_nam: table 'r.csv' has no such column; did you mean 'image_name'"):
        run(tmp_path, reports=reports, on="image_nam")
    with pytest.raises(DataError, match=r"table 'r.csv' joins no image") as error:
        run(tmp_path, reports=reports)
    assert "SECRET" not in str(error.value)
    with pytest.raises(ConfigError, match=r"text=txt: .* has no such column"):
        run(tmp_path, reports=table(tmp_path / "r.csv", "f,body", "1.dcm,x"), text="txt")
    with pytest.raises(ConfigError, match=r"no column named report, report_text, text"):
        run(tmp_path, reports=table(tmp_path / "r.csv", "f,body", "1.dcm,x"))


def test_index__several_rows_for_an_image(tmp_path: Path, films: list[Path]) -> None:
    reports = table(tmp_path / "r.csv", "f,report", "1.dcm,same", "1.dcm,same", "2.dcm,one", "2.dcm,two", "3.dcm,x")
    report = run(tmp_path, reports=reports)
    assert report.manifest.frame["report"].tolist() == ["x", "same"]
    assert report.reasons == {"several different rows in r.csv (by f); join by a column that is unique": (1, ["b/2.dcm"])}


def test_index__findings_and_impression_are_put_together(tmp_path: Path, films: list[Path]) -> None:
    reports = table(tmp_path / "r.csv", "f,Findings,Impression,text", "1.dcm,Clear.,Normal.,", "2.dcm,,Normal.,", "3.dcm,,,")
    report = run(tmp_path, reports=reports)
    assert report.manifest.frame["report"].tolist() == ["", "FINDINGS: Clear.\n\nIMPRESSION: Normal.", "IMPRESSION: Normal."]
    assert report.columns["report"] == "'Findings' + 'Impression'"
    assert report.reports["empty"] == 1


def test_index__rejects_and_says_why(tmp_path: Path, films: list[Path], png: Write) -> None:
    (tmp_path / "images/broken.png").write_bytes(b"not a picture")
    (tmp_path / "images/copy.dcm").write_bytes(films[0].read_bytes())
    png(tmp_path / "images/alone.png")
    reports = table(
        tmp_path / "r.csv",
        "f,report,label:Edema",
        "1.dcm,x y,1",
        "2.dcm,x y,",
        "3.dcm,x y,maybe",
        "copy.dcm,x,0",
        "gone.dcm,x,0",
    )
    report = run(tmp_path, reports=reports)
    assert report.manifest.frame["image"].tolist() == ["b/1.dcm", "b/2.dcm"]
    assert report.labels == {"Edema": {"1": 1, "0": 0, "-1": 0, "": 1}}
    assert set(report.reasons) == {
        "the file is not a PNG or JPEG picture, whatever its name says",
        "copy of another file (same SOP Instance UID)",
        "no row in r.csv (by f)",
        "label 'Edema' is outside 1, 0, -1 and empty",
    }
    assert report.rejected_path is not None
    with open(report.rejected_path, encoding="utf-8", newline="") as file:
        listed = list(csv.reader(file))
    assert listed[0] == ["path", "reason"]
    assert [r[0] for r in listed[1:]] == ["a/3.dcm", "alone.png", "broken.png", "copy.dcm"]
    assert any("1 of 5 rows" in n or "2 of 5 rows" in n for n in report.notes)
    with pytest.raises(DataError, match=r"4 of 6 files cannot be indexed:\n(.*\n)*.*Set on_error=skip"):
        run(tmp_path, reports=reports, on_error="fail")
    text = _text(report)
    assert "rejected: 4" in text
    assert "SECRET" not in text
    # A later run without rejects leaves no stale list.
    for name in ("broken.png", "copy.dcm", "alone.png"):
        (tmp_path / "images" / name).unlink()
    assert run(tmp_path).rejected_path is None
    assert not report.rejected_path.exists()


def _text(report: IndexReport) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(report))
    return console.export_text()


def test_index__official_split_and_its_leaks(tmp_path: Path, png: Write) -> None:
    for i in range(5):
        png(tmp_path / f"images/{i}.png")
    lines = ["f,who,split,text", "0.png,a,training,x", "1.png,a,test,x", "2.png,b,validate,x", "3.png,c,fold9,x", "4.png,d,,x"]
    report = run(tmp_path, reports=table(tmp_path / "r.csv", *lines), patient="who", fractions=(1, 0, 0))
    found = dict(zip(report.manifest.frame["image"], report.manifest.frame["split"], strict=True))
    assert found == {"1.png": "test", "2.png": "val", "4.png": "train"}
    assert set(report.reasons) == {
        "its patient is also in test: taken out of train",
        "split 'fold9' is none of train, val, test",
    }
    assert "1 patients are in two splits (1 in train and test)" in report.notes
    assert "1 images have no official split: drawn by patient" in report.notes


def test_index__labels_as_json_columns_or_pattern(tmp_path: Path, png: Write) -> None:
    for i in range(2):
        png(tmp_path / f"images/{i}.png")
    labels = [json.dumps({"Edema": 1, "Mass": None}), json.dumps({"Edema": -1, "Mass": False})]
    quoted = ['"' + text.replace('"', '""') + '"' for text in labels]
    reports = table(tmp_path / "r.csv", "f,text,labels,find_A,find_B", f"0,x,{quoted[0]},1,0", f"1,x,{quoted[1]},,-1.0")
    counts = run(tmp_path, reports=reports, labels="labels").labels
    assert counts == {"Edema": {"1": 1, "0": 0, "-1": 1, "": 0}, "Mass": {"1": 0, "0": 1, "-1": 0, "": 1}}
    counts = run(tmp_path, reports=reports, labels=["find_*"]).labels
    assert counts["find_A"] == {"1": 1, "0": 0, "-1": 0, "": 1}
    with pytest.raises(ConfigError, match=r"labels=\['zz\*'\]"):
        run(tmp_path, reports=reports, labels=["zz*"])


def test_index__ids_of_headers_are_coded_beside_a_named_column(tmp_path: Path, film: Write) -> None:
    for name, patient in {"a": "MRN-1", "b": "MRN-1", "c": "MRN-2", "d": "MRN-3"}.items():
        film(tmp_path / f"images/{name}.dcm", PatientID=patient, StudyInstanceUID=f"1.2.{patient[-1]}")
    lines = ["image,pid,study,text", "a.dcm,p000001,s1,x", "b.dcm,,,x", "c.dcm,,,x", "d.dcm,p9,,x"]
    report = run(tmp_path, reports=table(tmp_path / "r.csv", *lines), patient="pid", study="study")
    # b is another image of a's patient and study; c's header names one that the table does not know.
    assert report.manifest.frame["patient_id"].tolist() == ["p000001", "p000001", "p000002", "p9"]
    assert report.manifest.frame["study_id"].tolist() == ["s1", "s1", "s000001", "s000002"]


@pytest.mark.parametrize("spelling", ["{0}/masks", "./{0}/masks/", ".\\{0}\\masks", "./{0}/masks/liver.png"])
def test_index__masks_in_any_spelling_are_no_images(tmp_path: Path, png: Write, spelling: str) -> None:
    for name in ("1/ct.png", "1/masks/liver.png", "2/ct.png", "2/masks/liver.png"):
        png(tmp_path / "images" / name)
    lines = ["case,mask,text", *(f"{case},{spelling.format(case)},a b" for case in (1, 2))]
    report = run(tmp_path, reports=table(tmp_path / "r.csv", *lines))
    assert report.manifest.frame["image"].tolist() == ["1/ct.png", "2/ct.png"]
    assert report.manifest.frame["mask"].tolist() == [f"{case}/masks{'/liver.png' * ('liver' in spelling)}" for case in (1, 2)]


def test_index__mask_outside_of_root_is_rejected(tmp_path: Path, png: Write) -> None:
    for name in ("images/0.png", "images/1.png", "elsewhere/0.png"):
        png(tmp_path / name)
    reports = table(tmp_path / "r.csv", "image,mask,text", "0.png,../elsewhere/0.png,a b", "1.png,,c d")
    report = run(tmp_path, reports=reports)
    assert report.manifest.frame["image"].tolist() == ["1.png"]
    assert report.rejected == [("0.png", "its mask lies outside of root, below which all must lie")]


def test_index__masks_beside_images_are_set_aside(tmp_path: Path, png: Write) -> None:
    for name in ("images/0.png", "images/1.png", "masks/0.png", "masks/1.png"):
        png(tmp_path / "images" / name)
    lines = ["image,mask,text", "images/0.png,masks/0.png,a b", "images/1.png,masks/1.png,c d"]
    report = run(tmp_path, reports=table(tmp_path / "r.csv", *lines))
    assert report.manifest.frame["image"].tolist() == ["images/0.png", "images/1.png"]
    assert report.manifest.frame["mask"].tolist() == ["masks/0.png", "masks/1.png"]
    assert report.rejected == []
    assert "2 files are masks of the column 'mask'" in report.notes


def test_index__encoding(tmp_path: Path, png: Write) -> None:
    png(tmp_path / "images/0.png")
    (tmp_path / "r.csv").write_bytes(b"f,text\n0,caf\xe9 au lait\n")
    with pytest.raises(DataError, match=r"row 2 \(columns: text\).*set encoding=latin-1"):
        run(tmp_path, reports=tmp_path / "r.csv")
    report = run(tmp_path, reports=tmp_path / "r.csv", encoding="latin-1")
    assert report.manifest.frame["report"].tolist() == ["café au lait"]


def test_index__series_become_one_row_even_in_a_mixed_folder(tmp_path: Path, film: Write) -> None:
    def slices(folder: str, series: str, n: int, gap: float = 0) -> None:
        for i in range(n):
            film(
                tmp_path / f"images/{folder}/{series}-{i}.dcm",
                Modality="CT",
                SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
                SeriesInstanceUID=series,
                ImagePositionPatient=[0, 0, 2.5 * i + (gap if i else 0)],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                PixelSpacing=[1, 1],
                SliceThickness=2.5,
                RescaleSlope=1,
                RescaleIntercept=-1024,
            )

    slices("volume", "1.1", 4)
    slices("single", "1.2", 1)
    slices("mixed", "1.3", 3)
    slices("mixed", "1.4", 5)
    slices("mixed", "1.5", 4, gap=5)
    film(tmp_path / "images/mixed/film.dcm")
    report = run(tmp_path)
    frame = report.manifest.frame
    images = frame["image"].tolist()
    assert images == sorted(images)
    assert {i for i in images if "#" not in i} == {"mixed/film.dcm", "single/1.2-0.dcm", "volume"}
    mixed = [i for i in images if i.startswith("mixed#series=")]
    assert len(mixed) == 2
    assert report.manifest.meta["intensity_units"] == "arbitrary"  # a film among the CTs
    ((path, reason),) = report.rejected
    assert path.startswith("mixed#series=")
    assert "missing slices" in reason
    from medfm.io.load import load_image

    depths = {load_image(report.manifest.root / i).shape[2] for i in mixed}
    assert depths == {3, 5}
    assert load_image(report.manifest.image_path(images.index("volume"))).shape == (10, 12, 4)
    again = read_manifest(tmp_path / "out" / "m.parquet")
    assert again.frame["image"].tolist() == images
    from medfm.data.check import check_manifest

    for level in ("headers", "decode"):
        assert check_manifest(again, level=level).problems == {}


def test_index__pictures_without_patients_say_so(tmp_path: Path, png: Write) -> None:
    for i in range(30):
        png(tmp_path / f"images/{i}.png")
    report = run(tmp_path)
    assert report.manifest.frame["patient_id"].nunique() == 30
    assert any(n.startswith("30 images name no patient") for n in report.notes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no usable image"):
        run(tmp_path, images=tmp_path / "empty")


def test_index__config_messages(tmp_path: Path) -> None:
    for options, message in (
        ({}, "give images=DIR, or card=NAME root=DIR"),
        ({"card": "kermany"}, "card=NAME needs root=DIR"),
        ({"card": "kermany", "root": tmp_path, "text": "x"}, "leave out text"),
        ({"images": tmp_path, "out": "m.xlsx"}, r"\.parquet or \.csv"),
        ({"images": tmp_path, "fractions": (0.5, 0.1, 0.1)}, "sum to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            IndexConfig(**options)


def test_index__real_kermany(tmp_path: Path, data_dir: Path) -> None:
    report = run(
        tmp_path,
        images=data_dir / "cxr_kermany",
        reports=data_dir / "cxr_kermany" / "manifest.csv",
        on="image",
        text="text_derived",
        text_kind="label sentences",
        labels="labels",
        patient="patient_id",
        split="split",
    )
    counts = report.manifest.meta["counts"]
    assert (counts["images"], counts["patients"]) == (683, 512)
    assert {s: n["images"] for s, n in counts["splits"].items()} == {"train": 482, "val": 94, "test": 107}
    assert report.labels["pneumonia"] == {"1": 462, "0": 221, "-1": 0, "": 0}
    assert report.reports["distinct"] == 3
    assert report.reports["normal"] == 221
    assert report.rejected == []  # masks are set aside, not rejected
    assert report.manifest.meta["text_kind"] == "label sentences"


def test_index__real_notes(tmp_path: Path, data_dir: Path) -> None:
    folder = data_dir / "cxr_ieee8023_nc"
    report = run(tmp_path, images=folder, reports=folder / "manifest.csv")
    assert report.joined.startswith("column 'image' = relative path")
    # Two files bear two different notes each; which is right cannot be known.
    assert len(report.manifest) == 156
    assert len(report.rejected) == 2
    assert set(report.manifest.frame["modality"]) == {"CR"}


def test_index__real_dicom_folder(tmp_path: Path, data_dir: Path) -> None:
    report = run(tmp_path, images=data_dir / "dicom")
    frame = report.manifest.frame
    assert "mr_sag_mprage" in frame["image"].tolist()
    assert (frame["image"].str.startswith("ct_slices_ny_sbu")).sum() == 20
    assert frame["patient_id"].str.fullmatch(r"p\d{6}").all()
    assert len(frame) > 60
    assert any("SEG" in reason for reason in report.reasons)
