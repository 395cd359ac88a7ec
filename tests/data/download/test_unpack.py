"""Archives: what is in them comes out whole, what is meant to harm does not."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from medfm.data.download import unpack as module
from medfm.data.download.http import Cancelled
from medfm.data.download.unpack import unpack
from medfm.errors import DataError

Members = dict[str, bytes]
FILES: Members = {"set/a.txt": b"a" * 1000, "set/deep/b.bin": os.urandom(50_000), "set/empty": b""}


def make_zip(path: Path, members: Members, **options: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, members: Members, mode: str = "w:gz", *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return path


def content(folder: Path) -> Members:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("zip", make_zip),
        ("tar", make_tar),
        ("tar", lambda p, m: make_tar(p, m, "w")),
        ("tar", lambda p, m: make_tar(p, m, "w:bz2")),
        ("tar", lambda p, m: make_tar(p, m, "w:xz")),
    ],
)
def test_unpack__all_kinds(tmp_path: Path, kind: str, make: Callable[[Path, Members], Path]) -> None:
    junk = {"__MACOSX/set/._a.txt": b"x", "set/._a.txt": b"x"}
    archive = make(tmp_path / "archive", {**FILES, **junk})
    seen: list[int] = []
    done = unpack(archive, tmp_path / "out", kind, advance=seen.append)
    assert content(tmp_path / "out") == FILES
    assert (done.written, done.skipped, done.bytes) == (3, 2, 51_000)
    assert sum(seen) == done.bytes
    assert dict(done.members) == {k: len(v) for k, v in FILES.items()}


@pytest.mark.parametrize(("kind", "make"), [("zip", make_zip), ("tar", make_tar)])
def test_unpack__goes_on_where_it_stopped(tmp_path: Path, kind: str, make: Callable[[Path, Members], Path]) -> None:
    archive, out = make(tmp_path / "archive", FILES), tmp_path / "out"
    stop = threading.Event()

    def advance(size: int) -> None:
        if size > 1000:
            stop.set()

    with pytest.raises(Cancelled):
        unpack(archive, out, kind, stop, advance)
    assert content(out) == {"set/a.txt": FILES["set/a.txt"]}  # and no temporary file
    assert unpack(archive, out, kind).written == 2
    assert unpack(archive, out, kind).written == 0
    (out / "set/deep/b.bin").write_bytes(b"cut")
    (out / "set/.medfm-unpack-0-1").write_bytes(b"of a run that was killed")
    assert unpack(archive, out, kind).written == 1
    assert content(out) == FILES


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:/evil", "a\nb"])
@pytest.mark.parametrize(("kind", "make"), [("zip", make_zip), ("tar", make_tar)])
def test_unpack__names_that_lead_out(tmp_path: Path, kind: str, make: Callable[[Path, Members], Path], name: str) -> None:
    archive = make(tmp_path / "archive", {name: b"evil"})
    with pytest.raises(DataError, match="leads out of the folder or has a forbidden name"):
        unpack(archive, tmp_path / "in" / "out", kind)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["archive"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_unpack__links_and_devices_in_tar(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(DataError, match="holds a link or a device"):
        unpack(make_tar(tmp_path / "a.tar", {}, "w", info), tmp_path / "out", "tar")
    assert content(tmp_path / "out") == {}


def test_unpack__link_in_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="holds a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out", "zip")


def test_unpack__link_that_lies_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "set").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a link out of"):
        unpack(make_zip(tmp_path / "a.zip", FILES), tmp_path / "out", "zip")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(("kind", "make"), [("zip", make_zip), ("tar", make_tar)])
def test_unpack__bombs(
    tmp_path: Path, kind: str, make: Callable[[Path, Members], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLACK", 1000)
    archive = make(tmp_path / "archive", {"bomb": bytes(5_000_000)})
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        unpack(archive, tmp_path / "out", kind)
    assert content(tmp_path / "out") == {}


@pytest.mark.parametrize(("kind", "make"), [("zip", make_zip), ("tar", make_tar), ("tar", lambda p, m: make_tar(p, m, "w:xz"))])
def test_unpack__broken_archives(tmp_path: Path, kind: str, make: Callable[[Path, Members], Path]) -> None:
    archive = make(tmp_path / "archive", FILES)
    whole = archive.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for broken in (whole[:middle], whole[:-4], b"not an archive" * 100, b"", flipped):
        archive.write_bytes(broken)
        with pytest.raises(DataError, match="archive' is broken or of an unknown kind"):
            unpack(archive, tmp_path / "out", kind)
        # Nothing wrong is left, for a later run passes over what has the right size.
        assert all(FILES[name] == data for name, data in content(tmp_path / "out").items())


def test_unpack__encrypted_zip(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"data"})
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(signature) + offset] |= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="is encrypted"):
        unpack(path, tmp_path / "out", "zip")


def test_unpack__disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DataError, match=r"GB free, 'a\.zip' unpacks to"):
        unpack(make_zip(tmp_path / "a.zip", FILES), tmp_path / "out", "zip")


def test_unpack__names_too_deep_or_not_utf8(tmp_path: Path) -> None:
    deep = make_zip(tmp_path / "deep.zip", {"a/" * 3000 + "b": b"1"})
    with pytest.raises(DataError, match="folders deep; refused"):
        unpack(deep, tmp_path / "out", "zip")
    named = make_zip(tmp_path / "named.zip", {"\u00fcXX": b"1"})
    named.write_bytes(named.read_bytes().replace("\u00fcXX".encode(), b"\xff\xfeXX"))
    with pytest.raises(DataError, match="broken or of an unknown kind"):
        unpack(named, tmp_path / "out", "zip")
