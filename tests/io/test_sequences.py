"""Several sequences as one image."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medfm.errors import DataError
from medfm.io.load import load_image, peek
from medfm.io.sequences import join_sequences, missing_part, split_sequences


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def test_split_sequences__others_are_relative_to_the_first(tmp_path: Path) -> None:
    assert split_sequences("root/p1/t1.nii|t2.nii|../p2/x.nii") == ["root/p1/t1.nii", "root/p1/t2.nii", "root/p2/x.nii"]
    assert split_sequences("plain.nii") == ["plain.nii"]
    odd = write(tmp_path / "a|b.nii", np.ones((2, 3, 4), np.int16))
    assert split_sequences(odd) == [str(odd)]


def test_missing_part__names_the_file_and_where_it_was_looked_for(tmp_path: Path) -> None:
    for name in ("p1/t1.nii", "p1/t2.nii"):
        write(tmp_path / name, np.ones((2, 3, 4), np.int16))
    assert missing_part(tmp_path / "p1/t1.nii|t2.nii") == missing_part(f"{tmp_path}/p1/t1.nii#volume=0|t2.nii") == ""
    said = missing_part(tmp_path / "p1/t1.nii|p1/t2.nii")
    assert said.startswith(f"'{tmp_path}/p1/p1/t2.nii' does not exist; of parts with '|' between, all but the first start from")
    assert missing_part(tmp_path / "none.nii#volume=1") == f"'{tmp_path}/none.nii' does not exist"
    assert "is no selector" in missing_part(tmp_path / "p1/t1.nii#page=1")


def test_join_sequences__is_taken_apart_again() -> None:
    paths = ["p1/a/t1.nii", "p1/a/t2.nii", "p1/b/t3.nii"]
    assert join_sequences(paths) == "p1/a/t1.nii|t2.nii|../b/t3.nii"
    assert split_sequences(join_sequences(paths)) == paths


def test_load_image__stacks_values_as_they_are(tmp_path: Path) -> None:
    one = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    two = (one * 0.5).astype(np.float32)
    write(tmp_path / "t1.nii.gz", one)
    write(tmp_path / "t2.nii.gz", two)
    image = load_image(f"{tmp_path}/t1.nii.gz|t2.nii.gz", "MR")
    assert image.last_axis == "sequence"
    assert image.modality == "MR"
    np.testing.assert_array_equal(image.array[..., 0], one)
    np.testing.assert_array_equal(image.array[..., 1], two)
    assert peek(f"{tmp_path}/t1.nii.gz|t2.nii.gz").shape == (2, 3, 4, 2)


def test_load_image__another_grid_is_resampled_onto_the_first(tmp_path: Path) -> None:
    """A field that is linear in millimetres has the same values on any grid."""

    def field(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
        mm = index @ affine[:3, :3].T + affine[:3, 3]
        return (mm @ np.array([1.0, 2.0, 3.0])).astype(np.float32)

    coarse, fine = np.diag([2.0, -2.0, 2.0, 1.0]), np.diag([-1.0, 1.0, 1.5, 1.0])
    coarse[:3, 3], fine[:3, 3] = (4, 14, 4), (24, -2, 0)
    write(tmp_path / "a.nii.gz", field((6, 5, 4), coarse), coarse)
    write(tmp_path / "b.nii.gz", field((30, 24, 16), fine), fine)
    image = load_image(f"{tmp_path}/a.nii.gz|b.nii.gz")
    np.testing.assert_allclose(image.array[..., 1], image.array[..., 0], atol=1e-3)
    assert "resampled" in " ".join(image.notes)


def test_load_image__a_sequence_without_orientation_is_laid_voxel_on_voxel(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 900, (20, 18, 16)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, 3] = (-10, -9, -8)
    write(tmp_path / "t1.nii", array, affine)
    bare = nibabel.Nifti1Image(array, None)
    bare.set_sform(None, 0)
    bare.set_qform(None, 0)
    nibabel.save(bare, tmp_path / "t2.nii")
    image = load_image(f"{tmp_path}/t1.nii|t2.nii", "MR")
    np.testing.assert_array_equal(image.array[..., 1], array)
    assert any("laid voxel on voxel" in note for note in image.notes)


def test_load_image__a_missing_sequence_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", np.ones((2, 3, 4), np.int16))
    with pytest.raises(DataError, match=r"b\.nii\.gz' does not exist"):
        load_image(f"{tmp_path}/a.nii.gz|b.nii.gz")


def test_load_image__different_units_are_refused(tmp_path: Path) -> None:
    from medfm.io.sequences import stack_sequences

    write(tmp_path / "a.nii.gz", np.ones((2, 3, 4), np.int16))
    with pytest.raises(DataError, match="mixes HU and arbitrary"):
        stack_sequences([load_image(tmp_path / "a.nii.gz", "CT"), load_image(tmp_path / "a.nii.gz", "MR")], "both")


def test_load_image__a_real_brain(data_dir: Path) -> None:
    image = load_image(f"{data_dir}/mr3d_stroke/T1.nii.gz|T2.nii.gz|FLAIR.nii.gz", "MR")
    assert image.shape == (124, 160, 140, 3)
    for number, name in enumerate(("T1", "T2", "FLAIR")):
        single = load_image(data_dir / f"mr3d_stroke/{name}.nii.gz")
        np.testing.assert_array_equal(image.array[..., number], single.array)


@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_load_image__a_sequence_that_lies_elsewhere_is_refused(turn: float, tmp_path: Path) -> None:
    affine = np.diag([turn, 1.0, 2.0, 1.0])
    write(tmp_path / "t1.nii.gz", np.ones((20, 9, 8), np.float32), affine)
    small, far = affine.copy(), affine.copy()
    small[:3, 3] = (7.2 * turn, 3.1, 4.9)
    far[:3, 3] = (0, 0, 17.5)
    write(tmp_path / "small.nii.gz", np.ones((2, 2, 2), np.float32), small)
    write(tmp_path / "far.nii.gz", np.ones((20, 9, 8), np.float32), far)
    load_image(f"{tmp_path}/t1.nii.gz|small.nii.gz")
    load_image(f"{tmp_path}/small.nii.gz|t1.nii.gz")
    with pytest.raises(DataError, match=r"far\.nii\.gz' does not overlap .*t1\.nii\.gz"):
        load_image(f"{tmp_path}/t1.nii.gz|far.nii.gz")
