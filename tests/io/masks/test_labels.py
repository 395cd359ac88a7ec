"""Label maps, layers, and the label table in a NIfTI header."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io.masks import grid
from medfm.io.masks.labels import join, label_table, labels_in, read_label_table, split

NAMES = {1: "liver", 2: "Bauchspeicheldrüse & <Milz>", 9: "a ]]> b", 300: "肝"}


def with_table(path: Path, table: bytes, kind: type = nibabel.Nifti1Image) -> Path:
    image = kind(np.zeros((3, 4, 5), np.uint8), np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, table))
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_label_table__round_trip(tmp_path: Path, suffix: str, kind: type) -> None:
    path = with_table(tmp_path / f"a{suffix}", label_table(NAMES), kind)
    assert read_label_table(path) == (NAMES, True)


def test_read_label_table__of_another_program_lists_what_it_knows(data_dir: Path) -> None:
    names, every = read_label_table(data_dir / "ct3d_totalsegmentator" / "exampleCT_seg.nii.gz")
    assert (names[1], names[5], len(names), every) == ("spleen", "liver", 117, False)


def test_read_label_table__plain_text_and_damage(tmp_path: Path) -> None:
    plain = b'<CaretExtension><LabelTable><Label Key="4" Red="1">a &amp; b</Label><Label Key="5"></Label></LabelTable>'
    assert read_label_table(with_table(tmp_path / "a.nii", plain)) == ({4: "a & b"}, False)
    for number, text in enumerate(
        [b"<LabelTable><Label Key=", b"</LabelTable>", b"\xff\xfe" * 40, b"<LabelTable></LabelTable>"]
    ):
        assert read_label_table(with_table(tmp_path / f"{number}.nii", text)) == ({}, False)
    (tmp_path / "short.nii").write_bytes(b"\x5c\x01\0\0")
    (tmp_path / "bad.nii.gz").write_bytes(b"\x1f\x8b\x08\0broken")
    assert read_label_table(tmp_path / "short.nii") == ({}, False)
    assert read_label_table(tmp_path / "bad.nii.gz") == ({}, False)


def test_split_and_join__undo_each_other() -> None:
    values = np.random.default_rng(0).integers(0, 300, (6, 7, 8), np.int16)
    layers, names = split(values, {}, (), (), "m")
    assert names == tuple(f"label {n}" for n in np.unique(values[values > 0]))
    joined = join(layers)
    assert joined is not None
    assert joined.dtype == (np.uint8 if len(layers) < 256 else np.uint16)
    np.testing.assert_array_equal(split(joined, {}, (), (), "m")[0], layers)
    assert join(np.stack([layers[0], layers[0]])) is None


def test_split__names_always_and_only() -> None:
    values = np.array([[[0, 2, 7]]])
    names = {2: "two", 3: "three", 7: "seven", 8: "eight"}
    assert split(values, names, (), (), "m")[1] == ("two", "seven")
    assert split(values, names, (3, -1, 0), (), "m")[1] == ("two", "three", "seven")
    layers, kept = split(values, names, (), ("seven", "eight"), "m")
    assert kept == ("seven", "eight")
    assert layers.sum((1, 2, 3)).tolist() == [1, 0]
    with pytest.raises(DataError, match="no segment named 'nine'"):
        split(values, names, (), ("nine",), "m")
    with pytest.raises(DataError, match="list of names"):
        split(values, names, (), "seven", "m")


def test_labels_in__an_image_is_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="down to -3"):
        labels_in(np.array([-3, 4]), "m")
    with pytest.raises(DataError, match="it is an image"):
        labels_in(np.arange(9000), "m")
    assert labels_in(np.array([0, 2**31 - 1, 5]), "m") == [5, 2**31 - 1]
    monkeypatch.setattr(grid, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="only="):
        split(np.array([[[1, 2, 3, 4]]]), {}, (), (), "m")
