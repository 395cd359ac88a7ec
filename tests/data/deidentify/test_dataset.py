"""One object: what is coded, shifted, kept, marked; at any depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm.data.deidentify.codes import Codes, shifted
from medfm.data.deidentify.dataset import Cleaner, mark, refusal
from medfm.data.deidentify.rules import Rules

CODES = Codes(b"0123456789abcdef")


def make(**tags: Any) -> Any:
    from pydicom.dataset import Dataset

    made = Dataset()
    for keyword, value in {"PatientID": "77", "PatientName": "Doe^Jane", "StudyInstanceUID": "1.2.3", **tags}.items():
        setattr(made, keyword, value)
    return made


def cleaned(rules: Rules | None = None, **tags: Any) -> Any:
    made = make(**tags)
    Cleaner(made, rules or Rules(), CODES, "x").clean(made)
    return made


def test_clean__codes_are_the_same_everywhere() -> None:
    from pydicom.sequence import Sequence

    made = cleaned(
        ReferencedImageSequence=Sequence([make(ReferencedSOPInstanceUID="1.2.3", PatientID="78")]), AccessionNumber="9"
    )
    assert made.StudyInstanceUID == CODES.uid("1.2.3") == made.ReferencedImageSequence[0].ReferencedSOPInstanceUID
    assert made.PatientID == str(made.PatientName) == CODES.patient("77") == CODES.patient(" 77 ")
    assert made.AccessionNumber == CODES.number("9")
    assert len(made.StudyInstanceUID) <= 64
    assert len(made.AccessionNumber) <= 16


def test_clean__standard_uids_stay() -> None:
    made = cleaned(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", FrameOfReferenceUID="1.2.840.10008.1.4.1.1")
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert made.FrameOfReferenceUID == "1.2.840.10008.1.4.1.1"


def test_clean__dates_keep_their_intervals_and_times() -> None:
    from datetime import datetime

    made = cleaned(
        StudyDate="20190304", SeriesDate="20190311", StudyTime="101112", AcquisitionDateTime="20190304101112.5+0100",
        PatientBirthDate="19500101", ContentDate="2019",
    )  # fmt: skip
    study, series = (datetime.strptime(made[k].value, "%Y%m%d") for k in ("StudyDate", "SeriesDate"))
    assert (series - study).days == 7
    assert made.StudyDate == shifted("20190304", CODES.days("77")) != "20190304"
    assert made.StudyTime == "101112"
    assert made.AcquisitionDateTime == f"{made.StudyDate}101112.5+0100"
    assert not made.PatientBirthDate
    assert not made.ContentDate
    kept = cleaned(Rules(dates="keep"), StudyDate="20190304", PatientBirthDate="19500101")
    assert kept.StudyDate == "20190304"
    assert not kept.PatientBirthDate
    gone = cleaned(Rules(dates="remove"), StudyDate="20190304", StudyTime="1011", SecondaryReviewDate="20190304")
    assert not gone.get("StudyDate")
    assert not gone.get("StudyTime")
    assert "SecondaryReviewDate" not in gone


def test_shifted__leap_days_old_spelling_and_nonsense() -> None:
    assert shifted("20240301", -1) == "20240229"
    assert shifted("2024.03.01", -1) == "20240229"
    assert shifted("20230229", -1) == ""
    assert shifted("2024", -1) == ""
    assert shifted("00010105", -3650) == ""


def test_days__one_patient_one_distance_and_never_none() -> None:
    days = {CODES.days(str(n)) for n in range(200)}
    assert len(days) > 150
    assert max(days) <= -1
    assert min(days) >= -3650
    assert CODES.days("5") == CODES.days("5")
    assert CODES.days("5") != Codes(b"another secret of 16").days("5")


@pytest.mark.parametrize(
    ("age", "expected"), [("093Y", "090Y"), ("89Y", "089Y"), ("045Y", "045Y"), ("018M", "018M"), ("old", None)]
)
def test_clean__ages(age: str, expected: str | None) -> None:
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    made = make(PatientSex="F", PatientWeight="70")
    made[0x00101010] = RawDataElement(Tag(0x00101010), "AS", len(age), age.encode(), 0, False, True)
    Cleaner(made, Rules(), CODES, "x").clean(made)
    assert made.get("PatientAge") == expected
    assert (made.PatientSex, made.PatientWeight) == ("F", 70)
    bare = cleaned(Rules(keep_patient_characteristics=False), PatientSex="F", PatientWeight="70")
    assert not bare.PatientSex
    assert "PatientWeight" not in bare


def test_clean__a_known_name_in_technique_goes_and_technique_stays() -> None:
    made = cleaned(
        Manufacturer="Doe Imaging", SoftwareVersions="v1 for DOE", ConvolutionKernel="B30f", ManufacturerModelName="Scan 77",
        SequenceName="*tfl3d1", BodyPartExamined="CHEST", CommentsOnTheScheduledProcedureStep="ok",
    )  # fmt: skip
    assert "SoftwareVersions" not in made
    assert made.Manufacturer == "Doe Imaging"  # readers depend on it
    assert made.ConvolutionKernel == "B30f"
    assert made.SequenceName == "*tfl3d1"
    assert made.BodyPartExamined == "CHEST"
    assert "CommentsOnTheScheduledProcedureStep" not in made  # free text that the table does not name


def test_clean__letters_in_a_number_go() -> None:
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    made = make()
    made[0x00180088] = RawDataElement(Tag(0x00180088), "DS", 4, b"Doe ", 0, False, True)
    made[0x00280030] = RawDataElement(Tag(0x00280030), "DS", 8, b"0.5\\0.5 ", 0, False, True)
    Cleaner(made, Rules(), CODES, "x").clean(made)
    assert "SpacingBetweenSlices" not in made
    assert made.PixelSpacing == [0.5, 0.5]


def test_clean__descriptions_on_request() -> None:
    rules = Rules(descriptions="clean")
    made = cleaned(rules, SeriesDescription="T2 ax Doe", StudyDescription="CT chest 3/4/2019", ProtocolName="HEAD 3D")
    assert made.SeriesDescription == "T2 ax [NAME]"
    assert made.StudyDescription == "CT chest [DATE]"
    assert made.ProtocolName == "HEAD 3D"
    assert "SeriesDescription" not in cleaned(SeriesDescription="T2 ax")


def test_clean__safe_private_attributes_on_request() -> None:
    def siemens() -> Any:
        made = make()
        block = made.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0C, "IS", "1000")
        block.add_new(0x08, "LO", "Doe")
        made.private_block(0x0029, "ACME", create=True).add_new(1, "LO", "Doe")
        return made

    made = siemens()
    Cleaner(made, Rules(private="safe"), CODES, "x").clean(made)
    assert made.private_block(0x0019, "SIEMENS MR HEADER")[0x0C].value == 1000
    assert sum(t.group % 2 for t in made.keys()) == 2  # noqa: SIM118, creator and b-value
    made = siemens()
    Cleaner(made, Rules(), CODES, "x").clean(made)
    assert not any(t.group % 2 for t in made.keys())  # noqa: SIM118


def test_mark__says_what_was_done() -> None:
    made = make()
    mark(made, Rules(), "1.0")
    assert made.PatientIdentityRemoved == "YES"
    assert made.LongitudinalTemporalInformationModified == "MODIFIED"
    assert "PS3.15" in made.DeidentificationMethod
    assert [i.CodeValue for i in made.DeidentificationMethodCodeSequence] == ["113100", "113107", "113108"]
    everything = Rules("keep", True, False, "clean", "safe")
    assert [c for c, _ in everything.codes()] == ["113100", "113105", "113106", "113110", "113111"]


@pytest.mark.parametrize(
    ("uid", "words"),
    [
        ("1.2.840.10008.5.1.4.1.1.104.1", "document"),
        ("1.2.840.10008.5.1.4.1.1.88.33", "structured report"),
        ("1.2.840.10008.5.1.4.1.1.66", "raw data"),
        ("1.2.840.10008.5.1.4.1.1.9.1.1", "waveform"),
        ("1.3.12.2.1107.5.9.1", "private"),
        ("", "missing"),
        ("1.2.840.10008.3.1.2.3.3", "no image"),
        ("1.2.840.10008.5.1.4.1.1.66.4", ""),
        ("1.2.840.10008.5.1.4.1.1.2", ""),
    ],
)
def test_refusal__by_sop_class(uid: str, words: str) -> None:
    reason = refusal(make(SOPClassUID=uid))
    assert words in reason
    assert bool(reason) == bool(words)


def test_overlay_in_unused_bits_goes_and_signed_values_stay() -> None:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    from medfm.data.deidentify.pixels import clean_pixels

    values = np.array([-5, 7, -2048, 2047], "<i2")
    drawn = ((values.view("<u2") & 0x0FFF) | 0x8000).astype("<u2")
    made = make(
        Rows=2, Columns=2, BitsAllocated=16, BitsStored=12, HighBit=11, PixelRepresentation=1, PixelData=drawn.tobytes()
    )
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made["PixelData"].VR = "OW"
    made.add_new(0x60000102, "US", 15)
    assert clean_pixels(made) == ["overlay in unused bits"]
    assert np.frombuffer(made.PixelData, "<i2").tolist() == values.tolist()


def test_real_files_load_equal(data_dir: Path, run: Any, tmp_path: Path) -> None:
    """Pixels, geometry, windows and units of every transfer syntax are the original's."""
    import csv

    from medfm.errors import MedfmError
    from medfm.io.load import load_image

    source = data_dir / "dicom" / "transfer_syntaxes"
    run(source, tmp_path / "out", map=tmp_path / "map.csv", burned_in="copy")
    with open(tmp_path / "map.csv", encoding="utf-8", newline="") as file:
        pairs = [(source / row["path"], tmp_path / "out" / row["output"]) for row in csv.DictReader(file)]
    assert (tmp_path / "map.csv").stat().st_mode & 0o077 == 0
    loaded = 0
    for old, new in pairs:
        try:
            before = load_image(old)
        except MedfmError:
            with pytest.raises(MedfmError):
                load_image(new)
            continue
        after = load_image(new)
        np.testing.assert_array_equal(before.array, after.array)
        np.testing.assert_allclose(before.affine, after.affine)
        assert (before.modality, before.intensity_units, before.photometric, before.notes, len(before.windows)) == (
            after.modality, after.intensity_units, after.photometric, after.notes, len(after.windows),
        )  # fmt: skip
        loaded += 1
    assert loaded >= 12


def test_real_mosaics_load_equal_with_safe_private(data_dir: Path, run: Any, tmp_path: Path) -> None:
    from medfm.io.load import load_image

    source = tmp_path / "in"
    source.mkdir()
    (source / "1.dcm").write_bytes((data_dir / "dicom" / "dcm_qa_ts" / "In" / "1.dcm").read_bytes())
    report = run(source, tmp_path / "out", private="safe")
    assert report.mosaics == 0
    new = next((tmp_path / "out").rglob("*.dcm"))
    before, after = load_image(source / "1.dcm"), load_image(new)
    np.testing.assert_array_equal(before.array, after.array)
    np.testing.assert_allclose(before.affine, after.affine, atol=1e-5)
    assert run(source, tmp_path / "bare").mosaics == 1


def test_clean__instance_uids_hung_on_a_class_are_coded() -> None:
    made = cleaned(SOPInstanceUID="1.2.840.10008.5.1.4.1.1.2.20190304.7", StudyInstanceUID="1.2.840.10008.19500101")
    assert made.SOPInstanceUID.startswith("2.25.")
    assert made.StudyInstanceUID.startswith("2.25.")


@pytest.mark.parametrize(
    ("charset", "name", "text"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎", "コイル山田太郎"),
        ("ISO_IR 144", "Иванова^Мария", "Coil Иванова"),
        ("GB18030", "Wang^XiaoDong=王^小东", "王小东"),
        ("ISO_IR 100", "Müllerström^Jörg", "Muellerstroem"),
        ("ISO_IR 192", "Zebrowski^Quentina", "T1_ZEBROWSKI"),
        ("ISO_IR 192", "Zebrowski^Quentina", "QuentinaZebrowski"),
    ],
)
def test_clean__names_in_kept_text_of_any_character_set(tmp_path: Path, charset: Any, name: str, text: str) -> None:
    import pydicom

    made = make(SpecificCharacterSet=charset, PatientName=name, ReceiveCoilName=text, StageName="Cine 2")
    made.save_as(tmp_path / "x.dcm", implicit_vr=False, little_endian=True)
    read = pydicom.dcmread(tmp_path / "x.dcm", force=True)
    read.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    Cleaner(read, Rules(), CODES, "x").clean(read)
    assert "ReceiveCoilName" not in read
    assert read.StageName == "Cine 2"


def test_clean__names_and_numbers_in_terms() -> None:
    made = cleaned(
        PatientName="Chest^Jane", PatientID="7654321", BodyPartExamined="CHEST", ScanOptions="ID7654321", SeriesNumber=7654321
    )
    assert made.BodyPartExamined == "CHEST"
    assert "ScanOptions" not in made
    assert "SeriesNumber" not in made
    assert "BodyPartExamined" not in cleaned(BodyPartExamined="JANE DOE")


def test_jpeg_2000_in_boxes__text_goes_and_pixels_stay() -> None:
    """Frames in JP2 boxes are not conformant, but written by some: XML and UUID boxes and comments are blanked."""
    import struct
    from io import BytesIO

    from PIL import Image
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.uid import JPEG2000Lossless

    from medfm.data.deidentify.pixels import clean_pixels

    pixels = np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(file := BytesIO(), "JPEG2000", irreversible=False, comment=b"Doe")
    plain = file.getvalue()
    assert b"Doe" in plain
    at = plain.index(b"jp2c") - 4
    boxes = b"".join(
        struct.pack(">I4s", 8 + len(text), kind) + text for kind, text in ((b"xml ", b"<p>Doe</p>"), (b"uuid", b"Doe!" * 9))
    )
    made = make(Rows=16, Columns=16, BitsAllocated=8, PixelData=encapsulate([plain[:at] + boxes + plain[at:]]))
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = JPEG2000Lossless
    made["PixelData"].VR = "OB"
    assert clean_pixels(made) == ["comments in the compressed stream"]
    assert b"Doe" not in made.PixelData
    frame = next(generate_frames(made.PixelData, number_of_frames=1))
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(frame))), pixels)
