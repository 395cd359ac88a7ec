"""Atomic writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfm.io.files import atomic_write


def test_atomic_write__replaces_and_keeps_suffix_and_permissions(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.nii.gz"
    with atomic_write(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith(".nii.gz")
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"one")
        assert not target.exists()
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert target.read_bytes() == b"one"
    assert target.stat().st_mode == plain.stat().st_mode
    assert [p.name for p in target.parent.iterdir()] == ["a.nii.gz"]


def test_atomic_write__failure_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_write__nothing_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.txt"):
        pass
    assert not list(tmp_path.iterdir())
