"""The verb: codes across runs, resuming, refusals, tables, and originals untouched."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm.errors import ConfigError, DataError


def write(path: Path, **tags: Any) -> Path:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "SOPInstanceUID": generate_uid(), "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4", "Modality": "DX", "PatientID": "77", "PatientName": "Doe^Jane", "AccessionNumber": "A9",
        "StudyDate": "20190304", "Rows": 4, "Columns": 4, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, **tags,
    }  # fmt: skip
    for keyword, value in values.items():
        setattr(made, keyword, value)
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    made.PixelData = np.arange(16, dtype=np.uint16).tobytes()
    made["PixelData"].VR = "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    write(folder / "Doe_Jane" / "1.dcm", InstanceNumber=1)
    write(folder / "Doe_Jane" / "2.dcm", InstanceNumber=2)
    write(folder / "Doe_Jane" / "later" / "3.dcm", StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1", StudyDate="20190318")
    write(
        folder / "Roe" / "1.dcm", PatientID="78", PatientName="Roe^Max", StudyInstanceUID="1.2.5", SeriesInstanceUID="1.2.5.1"
    )
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def images(folder: Path) -> dict[str, str]:
    return {k: v for k, v in hashes(folder).items() if k.endswith(".dcm")}


def test_run__writes_a_clean_copy_and_leaves_the_originals(hospital: Path, run: Any, tmp_path: Path) -> None:
    import pydicom

    from medfm.io.phi import identifying

    before = hashes(hospital)
    report = run(hospital, tmp_path / "out")
    assert hashes(hospital) == before
    assert (report.files, report.written, report.patients, report.studies) == (4, {"dicom": 4}, 2, 3)
    for path in (tmp_path / "out").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        assert identifying(dataset) == ()
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.PatientID == path.relative_to(tmp_path / "out").parts[0]
    assert json.loads((tmp_path / "out" / "deidentify.json").read_text())["written"] == {"dicom": 4}
    assert "PatientName" in (tmp_path / "out" / "deidentify.html").read_text()
    assert (tmp_path / "out.private" / "secret").stat().st_mode & 0o077 == 0


def test_run__same_secret_same_codes_another_secret_others(hospital: Path, run: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    run(hospital, tmp_path / "a", secret=secret)
    run(hospital, tmp_path / "b", secret=secret)
    run(hospital, tmp_path / "c")
    assert images(tmp_path / "a") == images(tmp_path / "b")
    assert not set(images(tmp_path / "a")) & set(images(tmp_path / "c"))


def test_run__a_patients_studies_keep_their_interval(hospital: Path, run: Any, tmp_path: Path) -> None:
    import pydicom

    run(hospital, tmp_path / "out")
    days: dict[str, set[datetime]] = {}
    for path in (tmp_path / "out").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        days.setdefault(dataset.PatientID, set()).add(datetime.strptime(dataset.StudyDate, "%Y%m%d"))
    jane = next(sorted(d) for d in days.values() if len(d) == 2)
    assert (jane[1] - jane[0]).days == 14
    assert datetime(2019, 3, 4) not in jane


def test_run__folder_of_one_series_is_one_folder(hospital: Path, run: Any, tmp_path: Path) -> None:
    run(hospital, tmp_path / "out")
    folders = {p.parent for p in (tmp_path / "out").rglob("*.dcm")}
    assert sorted(len(list(f.iterdir())) for f in folders) == [1, 1, 2]


def test_run__again_does_nothing_twice_and_restores_what_was_deleted(hospital: Path, run: Any, tmp_path: Path) -> None:
    run(hospital, tmp_path / "out")
    first = images(tmp_path / "out")
    victim = next((tmp_path / "out").rglob("*.dcm"))
    untouched = next(p for p in (tmp_path / "out").rglob("*.dcm") if p != victim)
    stamp = untouched.stat().st_mtime_ns
    victim.unlink()
    write(hospital / "new.dcm", PatientID="79")
    report = run(hospital, tmp_path / "out")
    assert report.files == 5
    assert set(first) < set(images(tmp_path / "out"))
    assert untouched.stat().st_mtime_ns == stamp


def test_run__goes_on_after_sigkill(run: Any, tmp_path: Path) -> None:
    source = tmp_path / "in"
    for number in range(60):
        write(source / f"{number}.dcm", InstanceNumber=number + 1, SOPInstanceUID=f"1.2.7.{number}")
    code = f"""
import sys
from medfm.data.deidentify import work
from medfm.data.deidentify.config import DeidentifyConfig
from medfm.data.deidentify.run import run_deidentify
import medfm.data.deidentify.run as verb
slow = work.process
def process(relative, job):
    import time; time.sleep(0.02)
    return slow(relative, job)
verb.process = process
run_deidentify(DeidentifyConfig(**{{"in": {str(source)!r}, "out": {str(tmp_path / "out")!r}, "workers": 0}}))
"""
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    journal = tmp_path / "out.private" / "journal.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (journal.exists() and len(journal.read_bytes().splitlines()) > 10):
        assert child.poll() is None, child.stderr.read().decode() if child.stderr else ""
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    partial = len(images(tmp_path / "out"))
    assert 10 <= partial < 60
    report = run(source, tmp_path / "out")
    assert report.again >= 10
    assert len(images(tmp_path / "out")) == 60
    # Half-written files of the killed run may stay hidden, never under a final name.
    assert not any(p.name.startswith(".tmp-") and p.suffix != ".dcm" for p in (tmp_path / "out").rglob("*"))


def test_run__on_processes_gives_the_same(hospital: Path, run: Any, tmp_path: Path) -> None:
    run(hospital, tmp_path / "a", secret=tmp_path / "s")
    run(hospital, tmp_path / "b", secret=tmp_path / "s", workers=2)
    assert images(tmp_path / "a") == images(tmp_path / "b")


def test_run__refuses_a_used_folder_and_changed_options(hospital: Path, run: Any, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        run(hospital, tmp_path / "full")
    assert hashes(tmp_path / "full").keys() == {"x"}
    run(hospital, tmp_path / "out")
    with pytest.raises(ConfigError, match="not empty"):
        run(hospital, tmp_path / "out", dates="remove")
    with pytest.raises(ConfigError, match="not empty"):
        run(hospital, tmp_path / "out", secret=tmp_path / "other")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"out": "in/out"}, "inside one another"),
        ({"out": "."}, "inside one another"),
        ({"secret": "out/secret"}, "outside of out"),
        ({"map": "out/map.csv"}, "outside of out"),
        ({"text": "report"}, "reports=FILE"),
    ],
)
def test_config__refuses(hospital: Path, run: Any, tmp_path: Path, values: dict[str, str], words: str) -> None:
    paths = {k: tmp_path / v if k != "text" else v for k, v in values.items()}
    with pytest.raises(ValueError, match=words):
        run(hospital, **{"out": tmp_path / "out", **paths})


def test_secret__too_short_is_refused(hospital: Path, run: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("short")
    with pytest.raises(ConfigError, match="at least 16"):
        run(hospital, tmp_path / "out", secret=tmp_path / "secret")


def test_burned_in__quarantine_copy_skip(hospital: Path, run: Any, tmp_path: Path) -> None:
    write(hospital / "us.dcm", Modality="US", SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1")
    report = run(hospital, tmp_path / "a")
    assert len(images(tmp_path / "a.quarantine")) == report.quarantined == 1
    assert len(images(tmp_path / "a")) == 4
    assert list(report.burned_in) == ["ultrasound, and BurnedInAnnotation is not NO"]
    assert len(images(tmp_path / "b")) == 0
    copied = run(hospital, tmp_path / "b", burned_in="copy")
    assert len(images(tmp_path / "b")) == 5
    assert copied.flagged == 1
    skipped = run(hospital, tmp_path / "c", burned_in="skip")
    assert len(images(tmp_path / "c")) == 4
    assert not (tmp_path / "c.quarantine").exists()
    assert "may show text" in next(iter(skipped.skipped))


def test_reports__join_again_and_lose_names(hospital: Path, run: Any, tmp_path: Path) -> None:
    import medfm

    table = tmp_path / "reports.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["PatientID", "AccessionNumber", "StudyInstanceUID", "path", "report", "referrer", "effusion"])
        writer.writerow(
            ["77", "A9", "1.2.3", "Doe_Jane/1.dcm", "Jane has no effusion. Told House on 3/4/2019.", "House, Greg", "0"]
        )
        writer.writerow(["78", "A9", "1.2.5", "Roe/1.dcm", "Large effusion. Max Roe was told. T2 is bright.", "Wilson, J", "1"])
    report = run(hospital, tmp_path / "out", reports=table, keep="effusion")
    text = (tmp_path / "out" / "reports.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert [r["report"] for r in rows] == [
        "[NAME] has no effusion. Told [NAME] on [DATE].", "Large effusion. [NAME] was told. T2 is bright.",
    ]  # fmt: skip
    assert [r["effusion"] for r in rows] == ["0", "1"]
    assert "referrer" not in rows[0]
    assert all((tmp_path / "out" / r["path"]).is_file() for r in rows)
    assert report.table.replaced == {"name": 3, "date": 1}
    assert report.table.dropped == ["referrer"]
    manifest = medfm.index(
        {
            "images": tmp_path / "out",
            "reports": tmp_path / "out" / "reports.csv",
            "on": "StudyInstanceUID",
            "out": tmp_path / "m.parquet",
        }
    ).manifest.frame
    assert (manifest["report"] != "").sum() == 3  # two films of Jane's first study, one of Max


def test_reports__a_wrong_column_is_found_before_any_work(hospital: Path, run: Any, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("PatientID,report\n77,clear\n")
    with pytest.raises(ConfigError, match="did you mean 'report'"):
        run(hospital, tmp_path / "out", reports=tmp_path / "r.csv", text="reprot")
    assert not (tmp_path / "out").exists()


def test_left_out__lists_input_paths_in_the_private_folder_only(hospital: Path, run: Any, tmp_path: Path) -> None:
    (hospital / "Doe_Jane" / "befundbrief.docx").write_bytes(b"dear")
    report = run(hospital, tmp_path / "out")
    assert report.skipped == {"no image that medfm de-identifies (.docx)": 1}
    assert "befundbrief.docx" in (tmp_path / "out.private" / "left_out.csv").read_text()
    assert "befundbrief" not in (tmp_path / "out" / "deidentify.html").read_text()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_run__pipes_do_not_hang_it(hospital: Path, tmp_path: Path, run: Any) -> None:
    os.mkfifo(hospital / "Doe_Jane" / "pipe.dcm")
    report = run(hospital, tmp_path / "out")
    assert report.done == 4
    assert report.skipped == {"no file to read, but a pipe, socket or device": 1}


def test_run__empty_folder_is_refused(tmp_path: Path, run: Any) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_run__folders_that_cannot_be_listed_are_named(
    hospital: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def closed(path: Any) -> Any:
        if str(path).endswith("Roe"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    report = run(hospital, tmp_path / "out")
    assert report.files == 3
    assert any("could not be listed" in note for note in report.notes)


def test_run__ids_that_differ_in_spelling_are_reported(hospital: Path, tmp_path: Path, run: Any) -> None:
    write(hospital / "x.dcm", PatientID="Ab 077")
    write(hospital / "y.dcm", PatientID="AB077")
    report = run(hospital, tmp_path / "out")
    assert report.alike == 2
    assert any("case, spaces" in note for note in report.notes)
    assert run(hospital.parent / "in", tmp_path / "again", secret=tmp_path / "out.private" / "secret").patients == 4


def test_run__images_without_patient_get_its_code(tmp_path: Path, run: Any) -> None:
    import pydicom

    for n in (1, 2):
        write(tmp_path / "in" / f"{n}.dcm", PatientID="", PatientName="", InstanceNumber=n)
    run(tmp_path / "in", tmp_path / "out")
    found = [pydicom.dcmread(p) for p in (tmp_path / "out").rglob("*.dcm")]
    assert len(found) == 2
    assert {str(d.PatientID) for d in found} == {p.name for p in (tmp_path / "out").glob("P*")}


def test_run__half_files_of_a_killed_run_go(hospital: Path, tmp_path: Path, run: Any) -> None:
    run(hospital, tmp_path / "out")
    left = next((tmp_path / "out").glob("P*")) / ".tmp-1-abc-x.dcm"
    left.write_bytes(b"half")
    run(hospital, tmp_path / "out")
    assert not left.exists()


def test_run__columns_of_illness_are_no_names_and_german_ones_of_staff_are(hospital: Path, tmp_path: Path, run: Any) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "patient_id,clinical_history,patient_history,procedure_name,Befunder,zuweiser,report\n"
        '77,Pneumonia cough,dyspnea,CT Thorax contrast,Kowalski Jan,Dr. Lindqvist,"Pneumonia, cough, dyspnea on CT Thorax '
        'contrast. Kowalski told Lindqvist."\n',
        encoding="utf-8",
    )
    run(hospital, tmp_path / "out", reports=table)
    with open(tmp_path / "out" / "reports.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["report"] == "Pneumonia, cough, dyspnea on CT Thorax contrast. [NAME] told [NAME]."
