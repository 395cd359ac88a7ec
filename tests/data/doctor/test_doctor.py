"""The whole doctor: on the real DICOM files against verdicts judged by hand, and on small made ones."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from medfm.data.doctor.config import DoctorConfig
from medfm.data.doctor.look import files_of
from medfm.data.doctor.report import DoctorReport
from medfm.data.doctor.run import render, run_doctor
from medfm.data.doctor.verdict import Judged
from medfm.errors import ConfigError, DataError

Write = Callable[..., Path]
EXPECTED = Path(__file__).with_name("expected_dicom.csv")


def doctor(path: Path, out: Path, **options: Any) -> DoctorReport:
    return run_doctor(DoctorConfig(path=path, out=out, **{"workers": 0, **options}))


def by_path(report: DoctorReport) -> dict[str, Judged]:
    return {one.path: one for one in report.judged}


def said(one: Judged) -> str:
    return " | ".join(f.text for f in (*one.reasons, *one.repairs, *one.warnings))


def codes(one: Judged) -> set[str]:
    return {f.code for f in (*one.reasons, *one.repairs, *one.warnings)}


@pytest.fixture
def ct(film: Write) -> Callable[..., list[Path]]:
    """ct(folder, n, at=positions, **tags): slices of a CT 2.5 mm apart along `axis`."""

    def write(
        folder: Path, n: int = 4, at: list[float] | None = None, series: str = "1.2.9", axis: int = 2, **tags: Any
    ) -> list[Path]:
        places = at if at is not None else [2.5 * i for i in range(n)]
        values = {
            "Modality": "CT",
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
            "SeriesInstanceUID": series,
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [1, 1],
            "SliceThickness": 2.5,
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
        }
        return [
            film(
                folder / f"{series}-{i}.dcm",
                **{**values, "ImagePositionPatient": (np.eye(3)[axis] * z).tolist(), "InstanceNumber": i, **tags},
            )
            for i, z in enumerate(places)
        ]

    return write


def test_doctor__real_dicom_files_as_judged_by_hand(tmp_path: Path, data_dir: Path) -> None:
    report = doctor(data_dir / "dicom", tmp_path / "doctor", workers=None)
    found = {}
    for one in report.judged:
        reference = data_dir / "dicom" / one.path
        files = [reference] if one.files == 1 and reference.is_file() else files_of(reference)
        assert len(files) == one.files, one.path
        for file in files:
            found[file.relative_to(data_dir / "dicom").as_posix()] = one
    with open(EXPECTED, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 394
    wrong = []
    for row in rows:
        one = found[row["file"]]
        words = [w for w in row["words"].split("|") if w not in said(one)]
        if one.verdict != row["verdict"] or words or (row["warning"] and row["warning"] not in codes(one)):
            wrong.append((row["file"], row["verdict"], one.verdict, words, said(one)))
    assert not wrong, wrong[:5]
    # What accepts must load, and the NIfTI files beside are judged too.
    assert report.counts["accepted"] > 90
    assert sum(one.files for one in report.judged) == report.files
    text = (tmp_path / "doctor" / "doctor.json").read_text() + (tmp_path / "doctor" / "doctor.journal").read_text()
    import pydicom

    for path in ("pydicom_data/color-pl.dcm", "dcm_qa_ct_ge/In/GE/01.dcm", "transfer_syntaxes/CTImage.dcm"):
        dataset = pydicom.dcmread(data_dir / "dicom" / path, stop_before_pixels=True)
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "SOPInstanceUID"):
            value = str(dataset.get(keyword) or "")
            assert len(value) < 6 or value not in text, keyword


def test_doctor__faults_of_a_tree(tmp_path: Path, ct: Callable[..., list[Path]], film: Write, png: Write) -> None:
    root = tmp_path / "in"
    ct(root / "good")
    ct(root / "gap", at=[0, 2.5, 7.5, 10], series="1.2.10")
    ct(root / "mixed", series="1.2.11")
    ct(root / "mixed", series="1.2.12", n=3)
    ct(root / "scout", series="1.2.13")
    film(
        root / "scout/scout.dcm",
        Modality="CT",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
        SeriesInstanceUID="1.2.13",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
        ImagePositionPatient=[0, 0, 0],
        PixelSpacing=[1, 1],
    )
    film(root / "films/raw.dcm", PresentationIntentType="FOR PROCESSING", PixelSpacing=[1, 1])
    film(root / "films/burned.dcm", BurnedInAnnotation="YES", PixelSpacing=[1, 1])
    (root / "films/broken.dcm").write_bytes((root / "films/raw.dcm").read_bytes()[:400])
    (root / "films/text.png").write_bytes(b"not a picture")
    png(root / "films/picture.png")
    (root / "films/empty.dcm").write_bytes(b"")
    (root / "notes.txt").write_text("SECRET")
    report = doctor(root, tmp_path / "doctor")
    found = by_path(report)
    assert found["good"].verdict == "accepted"
    assert found["good"].shape == (10, 12, 4)
    assert found["gap"].verdict == "rejected"
    assert found["gap"].reasons[0].code == "missing"
    assert sorted(o.shape[2] for p, o in found.items() if p.startswith("mixed#series=") and o.verdict == "accepted") == [3, 4]
    assert found["scout"].verdict == "repaired"
    assert found["scout"].repairs[0].code == "scouts"
    assert "processing" in codes(found["films/raw.dcm"])
    assert "burned in" in codes(found["films/burned.dcm"])
    for name in ("broken.dcm", "text.png", "empty.dcm"):
        assert found[f"films/{name}"].verdict == "rejected"
        assert found[f"films/{name}"].reasons[0].code == "damaged", said(found[f"films/{name}"])
    assert found["films/picture.png"].verdict == "accepted"
    assert "no spacing" in codes(found["films/picture.png"])
    assert "PatientName" in found["good"].phi
    assert report.counts["rejected"] == 4
    console = Console(width=150, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render(report))
    everything = console.export_text() + "".join(
        p.read_text(errors="replace") for p in (tmp_path / "doctor").iterdir() if p.is_file()
    )
    assert "missing slices" in everything
    assert "SECRET" not in everything


def test_doctor__one_uid_same_pixels_or_others(tmp_path: Path, ct: Callable[..., list[Path]], film: Write) -> None:
    root = tmp_path / "in"
    slices = ct(root / "a")
    (root / "b").mkdir()
    for path in slices:
        (root / "b" / path.name).write_bytes(path.read_bytes())
    (root / "part").mkdir()
    for path in slices[:2]:
        (root / "part" / path.name).write_bytes(path.read_bytes())
    film(root / "x/1.dcm", SOPInstanceUID="1.2.77")
    film(root / "x/2.dcm", SOPInstanceUID="1.2.77", SeriesInstanceUID="1.2.78", RescaleSlope=2, RescaleIntercept=0)
    found = by_path(doctor(root, tmp_path / "doctor"))
    assert found["a"].verdict == "accepted"
    assert {found["b"].reasons[0].code, found["part"].reasons[0].code} == {"copy"}
    assert "copy of 'a'" in said(found["part"])
    for name in ("x/1.dcm", "x/2.dcm"):
        assert found[name].verdict == "rejected"
        assert [f.code for f in found[name].reasons] == ["conflict"]
        assert "differ by up to 119" in said(found[name])
    headers = by_path(doctor(root, tmp_path / "headers", decode=False))
    assert "copy" in codes(headers["b"])
    assert headers["b"].verdict == "accepted"  # without pixels no one knows


def test_doctor__values_that_lie(tmp_path: Path, ct: Callable[..., list[Path]], film: Write) -> None:
    root = tmp_path / "in"
    ct(root / "twice", series="1.2.20", RescaleIntercept=-8024)
    ct(root / "plain", series="1.2.21", RescaleIntercept=-60)
    film(root / "film.dcm", PixelSpacing=[1, 1])
    found = by_path(doctor(root, tmp_path / "doctor"))
    assert "hu" in codes(found["twice"])
    assert "rescaled twice" in said(found["twice"])
    assert found["twice"].verdict == "accepted"  # a warning does not reject
    assert "hu" not in codes(found["plain"])
    assert not found["film.dcm"].warnings


def test_doctor__eight_bit_ct_and_blank_film(tmp_path: Path, film: Write) -> None:
    import pydicom

    path = film(tmp_path / "in/ct.dcm", Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2", PixelSpacing=[1, 1])
    dataset = pydicom.dcmread(path)
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = np.arange(120, dtype=np.uint8).tobytes()
    dataset.save_as(path)
    blank = film(tmp_path / "in/blank.dcm", PixelSpacing=[1, 1])
    dataset = pydicom.dcmread(blank)
    dataset.PixelData = np.full(120, 7, np.uint16).tobytes()
    dataset.save_as(blank)
    found = by_path(doctor(tmp_path / "in", tmp_path / "doctor"))
    assert "8 bit" in codes(found["ct.dcm"])
    assert "blank" in codes(found["blank.dcm"])


def test_doctor__tilt_is_refused_or_repaired(tmp_path: Path, film: Write) -> None:
    root = tmp_path / "in"
    for i in range(4):
        film(
            root / f"{i}.dcm",
            Modality="CT",
            SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
            SeriesInstanceUID="1.2.9",
            ImageOrientationPatient=[1, 0, 0, 0, 0.970296, -0.241922],
            ImagePositionPatient=[0, 0, 5 * i],
            PixelSpacing=[1, 1],
            SliceThickness=5,
        )
    (refused,) = doctor(root, tmp_path / "a").judged
    assert (refused.verdict, refused.reasons[0].code) == ("rejected", "tilt")
    assert refused.thumbnail  # of one slice
    (mended,) = doctor(root, tmp_path / "b", tilt="resample").judged
    assert (mended.verdict, mended.repairs[0].code) == ("repaired", "tilt")


def test_doctor__inverted_film_is_a_warning(tmp_path: Path, data_dir: Path, film: Write) -> None:
    import pydicom
    from PIL import Image

    names = sorted((data_dir / "cxr_kermany" / "images").iterdir())[:6]
    for n, name in enumerate(names):
        picture = np.asarray(Image.open(name).convert("L"))[::4, ::4].astype(np.uint16)
        for kind in ("MONOCHROME1", "MONOCHROME2"):
            path = film(
                tmp_path / f"in/{kind}-{n}.dcm",
                PhotometricInterpretation=kind,
                BodyPartExamined="CHEST",
                PixelSpacing=[1, 1],
                Rows=picture.shape[0],
                Columns=picture.shape[1],
            )
            dataset = pydicom.dcmread(path)
            dataset.PixelData = picture.tobytes()
            dataset.save_as(path)
    report = doctor(tmp_path / "in", tmp_path / "doctor")
    inverted = {one.path[:11] for one in report.judged if "inverted" in codes(one)}
    assert inverted == {"MONOCHROME1"}
    assert sum("inverted" in codes(one) for one in report.judged) == len(names)
    assert {one.verdict for one in report.judged} == {"accepted"}


def test_doctor__again_reads_only_what_changed(tmp_path: Path, ct: Callable[..., list[Path]]) -> None:
    root = tmp_path / "in"
    for n in range(30):
        ct(root / f"{n:02d}", series=f"1.2.{n}")
    first = doctor(root, tmp_path / "doctor")
    again = doctor(root, tmp_path / "doctor")
    assert (first.again, again.again) == (0, first.files)
    assert [one.as_json() for one in again.judged] == [one.as_json() for one in first.judged]
    (root / "07" / "1.2.7-2.dcm").unlink()
    third = doctor(root, tmp_path / "doctor")
    assert by_path(third)["07"].verdict == "rejected"
    assert 0 < third.files - third.again <= 24  # its own batch
    # The folder of the report may lie in the tree: its pictures are no series.
    inside = doctor(root, root / "doctor")
    assert {one.path for one in inside.judged} == {one.path for one in third.judged}
    assert {one.path for one in doctor(root, root / "doctor").judged} == {one.path for one in third.judged}


def test_doctor__a_large_flat_folder_is_sorted_into_its_series(
    tmp_path: Path, ct: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "in"
    for n in range(4):
        ct(root, n=6, series=f"1.2.{n}")
    names = sorted(p.name for p in root.iterdir())
    for place, name in enumerate(names):  # series are spread over the parts
        (root / name).rename(root / f"{place % 6}-{name}")
    small = by_path(doctor(root, tmp_path / "small"))
    monkeypatch.setattr("medfm.data.walk.LARGEST", 5)
    large = by_path(doctor(root, tmp_path / "large"))
    assert len(small) == 4
    assert {p: (o.verdict, o.files, o.shape) for p, o in large.items()} == {
        p: (o.verdict, o.files, o.shape) for p, o in small.items()
    }
    assert all(one.verdict == "accepted" and one.shape == (10, 12, 6) for one in large.values())


def test_doctor__a_manifest(tmp_path: Path, ct: Callable[..., list[Path]], film: Write) -> None:
    from medfm.data.index import index
    from medfm.data.index_config import IndexConfig

    root = tmp_path / "in"
    ct(root / "mixed", series="1.2.11")
    ct(root / "mixed", series="1.2.12", n=3)
    ct(root / "alone", series="1.2.13")
    film(root / "film.dcm", PixelSpacing=[1, 1])
    manifest = index(IndexConfig(images=root, out=tmp_path / "m.csv")).out
    film(root / "later.dcm")
    report = doctor(manifest, tmp_path / "doctor")
    assert len(report.judged) == 4
    assert report.counts["accepted"] == 4
    (root / "film.dcm").unlink()
    report = doctor(manifest, tmp_path / "doctor")
    assert by_path(report)["film.dcm"].reasons[0].code == "absent"


def test_doctor__a_manifest_whose_images_are_elsewhere_says_what_to_set(tmp_path: Path, film: Write) -> None:
    from medfm.data.index import index
    from medfm.data.index_config import IndexConfig

    for name in ("a.dcm", "b.dcm"):
        film(tmp_path / "in" / name, PixelSpacing=[1, 1])
    manifest = index(IndexConfig(images=tmp_path / "in", out=tmp_path / "m.parquet")).out
    (tmp_path / "in").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"none of the 2 files that '.*m\.parquet' names is there below '.*in'; .* root=FOLDER"):
        doctor(manifest, tmp_path / "doctor")
    (tmp_path / "moved" / "b.dcm").rename(tmp_path / "moved" / "c.dcm")
    report = doctor(manifest, tmp_path / "doctor", root=tmp_path / "moved")
    assert report.counts["accepted"] == 1
    assert by_path(report)["b.dcm"].reasons[0].code == "absent"
    assert any("1 of the 2 files and series that 'm.parquet' names are not there; root=FOLDER" in note for note in report.notes)
    console = Console(record=True, width=200)
    console.print(render(report))
    assert "root=FOLDER" in console.export_text()


def test_doctor__of_several_sequences_each_file_is_judged(tmp_path: Path) -> None:
    import nibabel

    import medfm
    from medfm.data.index import index
    from medfm.data.index_config import IndexConfig

    for patient in ("p1", "p2"):
        (tmp_path / "in" / patient).mkdir(parents=True)
        for name in ("t1.nii.gz", "t2.nii.gz"):
            image = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 900, (16, 16, 12)).astype(np.int16), np.eye(4))
            image.set_sform(np.eye(4), 1)
            nibabel.save(image, tmp_path / "in" / patient / name)
    config = IndexConfig(images=tmp_path / "in", out=tmp_path / "m.parquet", sequences=("t1.nii.gz", "t2.nii.gz"))
    manifest = index(config).out
    report = doctor(manifest, tmp_path / "doctor")
    assert {path: one.verdict for path, one in by_path(report).items()} == dict.fromkeys(
        ["p1/t1.nii.gz", "p1/t2.nii.gz", "p2/t1.nii.gz", "p2/t2.nii.gz"], "accepted"
    )
    (tmp_path / "in" / "p2" / "t2.nii.gz").unlink()
    verdicts = {path: one.verdict for path, one in by_path(doctor(manifest, tmp_path / "doctor")).items()}
    assert verdicts.pop("p2/t2.nii.gz") == "rejected"
    assert set(verdicts.values()) == {"accepted"}
    options = {"out": tmp_path / "one", "workers": 0}
    one = medfm.doctor(f"{tmp_path}/in/p1/t1.nii.gz|t2.nii.gz", options)
    assert sorted(by_path(one)) == ["t1.nii.gz", "t2.nii.gz"]
    assert one.counts["accepted"] == 2
    with pytest.raises(ConfigError, match=r"path +'.*in/p2/t2\.nii\.gz' does not exist; of parts with"):
        medfm.doctor(f"{tmp_path}/in/p2/t1.nii.gz|t2.nii.gz", options)


def test_doctor__strict_and_nothing_to_look_at(tmp_path: Path, ct: Callable[..., list[Path]]) -> None:
    ct(tmp_path / "in", at=[0, 2.5, 7.5, 10])
    with pytest.raises(DataError, match=r"1 of 1 series are rejected \(1 missing\); see .*doctor.html"):
        doctor(tmp_path / "in", tmp_path / "doctor", strict=True)
    assert (tmp_path / "doctor" / "doctor.html").is_file()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        doctor(tmp_path / "empty", tmp_path / "doctor")
    (tmp_path / "empty" / "readme.txt").write_text("x")
    with pytest.raises(DataError, match="holds no images among its 1 files"):
        doctor(tmp_path / "empty", tmp_path / "doctor")
    with pytest.raises(ConfigError, match="name another folder"):
        doctor(tmp_path / "in", tmp_path / "in")
    with pytest.raises(DataError, match="cannot be made"):
        doctor(tmp_path / "in", tmp_path / "empty" / "readme.txt")
    (single,) = doctor(tmp_path / "in" / "1.2.9-0.dcm", tmp_path / "single").judged
    assert (single.path, single.verdict) == ("1.2.9-0.dcm", "accepted")


def test_doctor__json_has_a_version(tmp_path: Path, ct: Callable[..., list[Path]]) -> None:
    ct(tmp_path / "in")
    report = doctor(tmp_path / "in", tmp_path / "doctor")
    written = json.loads((tmp_path / "doctor" / "doctor.json").read_text())
    assert written["schema"] == "medfm.doctor/1"
    assert [Judged.from_json(values) for values in written["judged"]] == report.judged


def test_doctor__what_kills_its_reader_costs_itself_alone(
    tmp_path: Path, ct: Callable[..., list[Path]], film: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medfm.data.doctor import checks

    root = tmp_path / "in"
    ct(root / "good")
    for n in range(3):
        film(root / f"films/{n}.dcm", PixelSpacing=[1, 1])
    judge = checks.judge_image

    def fall(one: Judged, header: Any, image: Any) -> None:
        if one.path == "films/1.dcm":
            raise RuntimeError("SECRET value")
        judge(one, header, image)

    monkeypatch.setattr(checks, "judge_image", fall)
    report = doctor(root, tmp_path / "doctor")
    found = by_path(report)
    assert {p: o.verdict for p, o in found.items() if o.verdict != "accepted"} == {"films/1.dcm": "rejected"}
    assert found["films/1.dcm"].reasons[0].code == "crash"
    assert "SECRET value" not in said(found["films/1.dcm"])
    assert len(found) == 4
    assert report.files == 7
    # What failed so is tried again by the next run.
    monkeypatch.setattr(checks, "judge_image", judge)
    assert doctor(root, tmp_path / "doctor").counts["accepted"] == 4


def test_doctor__a_folder_in_parts_that_share_a_series_says_by_what(tmp_path: Path, ct: Callable[..., list[Path]]) -> None:
    root = tmp_path / "in"
    ct(root / "planes", series="1.2.5")
    for path in (root / "planes").iterdir():
        path.rename(path.with_name(f"a{path.name}"))
    ct(root / "planes", series="1.2.5", axis=0, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    report = doctor(root, tmp_path / "doctor")
    assert [one.verdict for one in report.judged] == ["repaired"] * 2
    for one in report.judged:
        assert one.shape == (10, 12, 4)
        assert one.repairs[0].code == "mixed"
        assert "orientation by up to 90 degrees" in said(one)


def test_doctor__nifti_headers_and_values(tmp_path: Path) -> None:
    import nibabel

    root = tmp_path / "in"
    root.mkdir()
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)

    def save(name: str, array: np.ndarray, sform: int = 1, shift: float = 0.0) -> None:
        image = nibabel.Nifti1Image(array, np.eye(4))
        image.set_sform(np.eye(4), code=sform)
        moved = np.eye(4)
        moved[0, 3] = shift
        image.set_qform(moved, code=1 if sform else 0)
        nibabel.save(image, root / name)

    save("good.nii.gz", values)
    save("nan.nii.gz", np.where(values == 7, np.nan, values).astype(np.float32))
    save("two.nii", values, shift=9.0)
    save("none.nii", values, sform=0)
    (root / "cut.nii").write_bytes((root / "none.nii").read_bytes()[:400])
    found = by_path(doctor(root, tmp_path / "doctor"))
    assert (found["good.nii.gz"].verdict, found["good.nii.gz"].warnings) == ("accepted", [])
    assert (found["nan.nii.gz"].verdict, found["nan.nii.gz"].repairs[0].code) == ("repaired", "values")
    assert "orientation" in codes(found["two.nii"])
    assert "orientation" in codes(found["none.nii"])
    assert (found["cut.nii"].verdict, found["cut.nii"].reasons[0].code) == ("rejected", "damaged")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_doctor__a_pipe_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a folder nor a file"):
        doctor(tmp_path / "pipe", tmp_path / "out")


def test_doctor__many_dangling_links_are_counted(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    for n in range(11):
        os.symlink("/nowhere", tmp_path / f"lost{n:02}.dcm")
    report = doctor(tmp_path, tmp_path / "out")
    assert report.counts["accepted"] == 1
    assert report.notes[0] == "left out: 'lost00.dcm' is a link that leads nowhere"
    assert report.notes[-1].startswith("left out: 3 more")


def test_report__ties_are_ordered_by_name(tmp_path: Path) -> None:
    judged = [Judged("a", "accepted", "image", phi=("StudyDate", "PatientID", "AccessionNumber", "StudyID"))]
    assert list(DoctorReport(tmp_path, tmp_path, 1, judged).identifying) == [
        "AccessionNumber",
        "PatientID",
        "StudyDate",
        "StudyID",
    ]
