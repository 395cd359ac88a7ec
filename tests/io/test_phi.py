"""Keywords of what identifies, never values; and where pixels may show text."""

from __future__ import annotations

from typing import Any

import pytest

from medfm.io.phi import burned_in, face, identifying


def dataset(**tags: Any) -> Any:
    from pydicom.dataset import Dataset

    made = Dataset()
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    return made


def test_identifying__names_keywords_and_counts_private_tags() -> None:
    from pydicom.sequence import Sequence

    made = dataset(
        PatientName="Doe^Jane", PatientID="77", StudyDate="20190304", PatientSex="F", AccessionNumber="", Modality="CT"
    )
    made.RequestAttributesSequence = Sequence([dataset(RequestingPhysician="House^G")])
    block = made.private_block(0x0009, "ACME", create=True)
    block.add_new(1, "LO", "Doe")
    block.add_new(2, "LO", "")
    found = identifying(made)
    assert found == ("PatientID", "PatientName", "RequestAttributesSequence.RequestingPhysician", "StudyDate", "1 private tag")
    assert not any(value in " ".join(found) for value in ("Doe", "77", "2019", "House"))


def test_identifying__dummies_and_declared_codes_do_not_count() -> None:
    assert identifying(dataset(PatientName="Anonymous^^", PatientBirthDate="00010101", StationName="ANONYMIZED")) == ()
    coded = dataset(PatientName="P1", PatientID="P1", StudyDate="20190304", PatientIdentityRemoved="YES")
    assert identifying(coded) == ("StudyDate",)
    coded.LongitudinalTemporalInformationModified = "MODIFIED"
    assert identifying(coded) == ()
    coded.OperatorsName = "Miller"
    assert identifying(coded) == ("OperatorsName",)


def test_identifying__damaged_values_do_not_raise() -> None:
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    made = dataset(PatientWeight="1")
    for tag, value in ((0x00100030, b"\xff\xfe"), (0x00081140, b"no sequence")):
        made[tag] = RawDataElement(Tag(tag), "UN", len(value), value, 0, False, True)
    assert "PatientBirthDate" in identifying(made)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation is YES"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ConversionType": "WSD"}, "secondary capture (workstation)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, "secondary capture"),
        ({"Modality": "US"}, "ultrasound"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.2"}, "ultrasound"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "Modality": "SEG"}, ""),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.30", "Modality": "MR"}, ""),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4", "Modality": "XC", "BurnedInAnnotation": "NO"}, "a photograph"),
        ({"Modality": "XC", "RecognizableVisualFeatures": "NO"}, ""),
        ({"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"], "BurnedInAnnotation": "NO"}, "screen save"),
        ({"RecognizableVisualFeatures": "YES"}, "RecognizableVisualFeatures"),
        ({"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "MPR"]}, ""),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, ""),
        ({}, ""),
    ],
)
def test_burned_in(tags: dict[str, Any], words: str) -> None:
    reason = burned_in(dataset(**tags))
    assert words in reason
    assert bool(reason) == bool(words)


def test_face__heads_of_slices_only() -> None:
    assert face(dataset(Modality="MR", BodyPartExamined="BRAIN")) == "MR of a head"
    assert face(dataset(Modality="CR", BodyPartExamined="SKULL")) == ""
    assert face(dataset(Modality="CT", BodyPartExamined="CHEST")) == ""
    assert face(dataset(Modality="CT", BodyPartExamined="HEAD", RecognizableVisualFeatures="NO")) == ""
    for words in ("CARDIAC CT", "ILIAC", "T1 SURFACE COIL ABDOMEN", "INCIDENTAL NODULE", "LINEAR"):
        assert face(dataset(Modality="CT", ProtocolName=words)) == ""
    for words in ("IAC", "CT_FACE", "DENTAL", "INNER EARS", "EYES"):
        assert face(dataset(Modality="CT", ProtocolName=words)) == "CT of a head"
