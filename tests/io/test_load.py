"""Dispatch, and walking over a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures

from medfm.errors import DataError
from medfm.io.load import find_images, is_image_file, load_image, peek
from medfm.io.nifti import save_nifti

Writer = Callable[..., Path]


@pytest.mark.parametrize("call", [load_image, peek])
def test_load_and_peek__missing_empty_and_foreign(tmp_path: Path, call: Callable[[Path], object]) -> None:
    with pytest.raises(DataError, match="does not exist"):
        call(tmp_path / "no.dcm")
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="is empty"):
        call(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match="no image that medfm reads"):
        call(tmp_path / "a.csv")


def test_load__dicom_without_suffix(write_dicom: Writer) -> None:
    path = write_dicom(np.zeros((2, 3), np.uint8), name="1.2.840.113619")
    assert load_image(path).shape == (3, 2, 1)
    assert is_image_file(path)


def test_load__declared_modality_never_overrules_the_file(write_dicom: Writer) -> None:
    pixels = np.zeros((2, 2), np.uint8)
    assert load_image(write_dicom(pixels, Modality="DX"), modality="CT").modality == "DX"
    assert load_image(write_dicom(pixels, Modality="OT"), modality="CR").modality == "CR"


def test_find_images__sorted_and_without_rubbish(write_dicom: Writer, tmp_path: Path) -> None:
    pixels = np.zeros((2, 2), np.uint8)
    kept = [
        write_dicom(pixels, name="b/IM1"),
        write_dicom(pixels, name="b/a.dcm"),
        write_dicom(pixels, name="a/z.dcm"),
    ]
    for name in ("b/DICOMDIR", "b/.hidden.dcm", ".git/x.dcm", "__MACOSX/x.dcm", "b/notes.csv"):
        write_dicom(pixels, name=name)
    (tmp_path / "b" / "README").write_text("text")
    (tmp_path / "c.nii.gz").write_bytes(b"x")
    (tmp_path / "d.JPG").write_bytes(b"x")
    found = [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)]
    assert found == ["c.nii.gz", "d.JPG", "a/z.dcm", "b/IM1", "b/a.dcm"]
    assert set(kept) < set(find_images(tmp_path))


def test_find_images__no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        list(find_images(tmp_path / "no"))


@pytest.mark.parametrize("name", ["a.dcm", "a.nii", "a.nii.gz", "a.png", "a.jpg"])
def test_load_and_peek__damaged_bytes_give_a_data_error_or_an_image(write_dicom: Writer, tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (16, 16), dtype=np.uint8)
    path = tmp_path / name
    if name.endswith(".dcm"):
        write_dicom(pixels, name=name, PixelSpacing=[1, 1], WindowCenter=9, WindowWidth=9, PatientAge="030Y")
    elif ".nii" in name:
        save_nifti(pixels[:, :, None], np.eye(4), path)
    else:
        Pictures.fromarray(pixels).save(path)
    good = path.read_bytes()
    messages = []
    for trial in range(150):
        bad = bytearray(good)
        for place in rng.integers(0, len(bad), rng.integers(1, 8)):
            bad[place] = rng.integers(0, 256)
        path.write_bytes(bad[: rng.integers(1, len(bad))] if trial % 4 == 0 else bad)
        for call in (load_image, peek):
            try:
                call(path)
            except DataError as error:
                messages.append(str(error))
    assert len(messages) > 20
    assert not any("SECRET" in message for message in messages)
