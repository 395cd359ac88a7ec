"""The quick pass over headers: equal to pydicom, or left to it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_files

from medfm.errors import DataError
from medfm.io.dataset import read_header
from medfm.io.walk import Unusual, walk_header

Writer = Callable[..., Path]


def walk(path: Path) -> tuple[pydicom.Dataset, int]:
    with open(path, "rb") as file:
        return walk_header(file)


def assert_equals_pydicom(path: Path) -> bool:
    """Whether the quick pass took the file; then its elements must be pydicom's."""
    try:
        dataset, offset = walk(path)
    except Unusual:
        return False
    expected = pydicom.dcmread(path, stop_before_pixels=True)
    assert [e.tag for e in dataset] == [e.tag for e in expected], path
    for ours, theirs in zip(dataset, expected, strict=True):
        assert (ours.VR, ours.value) == (theirs.VR, theirs.value), (path, ours.tag)
    assert dataset.file_meta == expected.file_meta
    assert path.read_bytes()[offset : offset + 2] == b"\xe0\x7f"
    return True


def test_walk_header__equals_pydicom_on_its_own_files() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taken = [assert_equals_pydicom(Path(path)) for path in get_testdata_files() if Path(path).is_file()]
    assert sum(taken) > 60


def test_walk_header__equals_pydicom_on_real_files(data_dir: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = [p for p in sorted((data_dir / "dicom").rglob("*.dcm")) if "sag_mprage" not in str(p)]
        taken = [assert_equals_pydicom(path) for path in paths]
    assert sum(taken) > 0.8 * len(taken)


def test_walk_header__nested_sequences_of_both_lengths(write_dicom: Writer) -> None:
    from pydicom.dataset import Dataset

    for syntax in ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2"):
        for undefined in (False, True):
            inner, outer = Dataset(), Dataset()
            inner.CodeValue, inner.CodeMeaning = "1", "x" * 33
            outer.CodeValue = "2"
            outer.ConceptCodeSequence = [inner, inner]
            path = write_dicom(
                np.zeros((2, 2), np.uint8), syntax=syntax, ViewCodeSequence=[outer, inner], BodyPartExamined="CHEST"
            )
            dataset = pydicom.dcmread(path)
            for sequence in (dataset["ViewCodeSequence"], dataset.ViewCodeSequence[0]["ConceptCodeSequence"]):
                sequence.is_undefined_length = undefined
                for item in sequence.value:
                    item.is_undefined_length_sequence_item = undefined
            dataset.save_as(path)
            assert assert_equals_pydicom(path)
            assert read_header(path).dataset.ViewCodeSequence[0].ConceptCodeSequence[1].CodeMeaning == "x" * 33


def test_walk_header__a_header_longer_than_the_first_read(write_dicom: Writer) -> None:
    path = write_dicom(np.zeros((2, 2), np.uint8), PixelPaddingValue=7, ICCProfile=bytes(400_000))
    assert assert_equals_pydicom(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[132:],  # no preamble
        lambda raw: raw.replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00ZZ"),  # an unknown VR
        lambda raw: raw.replace(b"\x28\x00\x10\x00US", b"\x08\x00\x05\x00US"),  # a tag out of order
        lambda raw: raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"),  # big-endian it says
        lambda raw: raw[:500],
        lambda raw: raw[: raw.index(b"\xe0\x7f\x10\x00")],  # no pixels
    ],
)
def test_walk_header__leaves_the_unusual_to_pydicom(write_dicom: Writer, damage: Callable[[bytes], bytes]) -> None:
    path = write_dicom(np.zeros((2, 2), np.uint8))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Unusual):
        walk(path)
    message = ""
    try:
        read_header(path)
    except DataError as error:
        message = str(error)
    assert "SECRET" not in message


def test_walk_header__transfer_syntax_that_is_no_uid(write_dicom: Writer) -> None:
    path = write_dicom(np.zeros((2, 2), np.uint16))
    data = path.read_bytes()
    assert data.count(b"\x02\x00\x10\x00UI") == 1
    path.write_bytes(data.replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x10\x00LO"))
    with pytest.raises(Unusual):
        walk(path)
