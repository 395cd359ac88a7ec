from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from medfm.data.store.source import content_key, name_keys, state_of, states_of


def test_content_key__goes_by_bytes_selectors_and_modality(tmp_path: Path) -> None:
    first, second = tmp_path / "a.nii", tmp_path / "b.nii"
    first.write_bytes(b"voxels" * 1000)
    shutil.copy(first, second)
    os.utime(second, (1, 1))
    key = content_key(first, "CT")
    assert key == content_key(second, "CT")
    others = {content_key(first, "MR"), content_key(f"{first}#volume=1", "CT"), content_key(f"{first}#volume=2", "CT")}
    second.write_bytes(b"voxels" * 1000 + b".")
    assert len({key, *others, content_key(second, "CT")}) == 5


def test_content_key__of_a_folder_is_that_of_its_files_whatever_their_names(tmp_path: Path) -> None:
    for folder, names in (("a", "12"), ("b", "43")):
        (tmp_path / folder).mkdir()
        for number, name in enumerate(names):
            (tmp_path / folder / name).write_bytes(bytes([number]) * 100)
    key = content_key(tmp_path / "a", "CT")
    assert key == content_key(tmp_path / "b", "CT")
    assert key != content_key(f"{tmp_path / 'a'}#series=0123456789ab", "CT")
    (tmp_path / "a" / "3").write_bytes(b"one more")
    assert key != content_key(tmp_path / "a", "CT")


def test_state_of__file_folder_reference_and_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"123")
    os.utime(file, ns=(5, 7))
    assert state_of(file) == (3, 7) == state_of(f"{file}#volume=2")
    assert state_of(tmp_path / "none") == state_of(f"{tmp_path}/none#volume=2") == state_of(f"{file}#page=2") == (0, 0)
    folder = state_of(tmp_path)
    assert folder[0] == 3
    os.utime(file, ns=(5, 8))
    assert state_of(tmp_path) != folder == (3, folder[1])
    paths = [file, f"{tmp_path}#volume=1", f"{file}#page=2", tmp_path / "none", f"{tmp_path}#volume=2"]
    assert states_of(paths) == [state_of(path) for path in paths]


def test_name_keys__path_and_modality_count() -> None:
    keys = name_keys(["a", "a", "b", "a", "\udcff"], ["CT", "MR", "CT", "CT", ""])
    assert keys.shape == (5, 2)
    assert (keys[0] == keys[3]).all()
    assert len({tuple(k) for k in keys.tolist()}) == 4


def test_content_key__of_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        content_key(tmp_path / "a.png", "")
