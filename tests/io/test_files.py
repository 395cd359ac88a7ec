"""Atomic writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfm.errors import ConfigError
from medfm.io.files import atomic_write, require_writable


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


def test_require_writable__leaves_nothing_and_tells_what_to_do(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b", "out")
    assert not list(tmp_path.iterdir())
    require_writable(tmp_path, "out")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "deeper" / "still"):
        with pytest.raises(
            ConfigError, match=r"out '.*' cannot be written: Not a directory; choose another place with out=\.\.\."
        ):
            require_writable(place, "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(ConfigError, match=r"to '/proc/nowhere' cannot be written"):
        require_writable(Path("/proc/nowhere"), "to")
