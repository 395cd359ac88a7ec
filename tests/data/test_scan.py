"""The walk, the scan on the engine, and its journal."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from medfm.data import scan as scan_module
from medfm.data import scan_work
from medfm.data.engine_config import EngineConfig
from medfm.data.scan import Item, scan
from medfm.data.survey import relative_path, survey
from medfm.data.walk import Chunk, batches, listed, walk
from medfm.errors import DataError

Write = Callable[..., Path]


def stack(film: Write, folder: Path, series: str, n: int = 4, **tags: Any) -> list[Path]:
    return [
        film(
            folder / f"{series}-{i}.dcm",
            Modality="CT",
            SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
            SeriesInstanceUID=series,
            ImagePositionPatient=[0, 0, 2.5 * i],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1, 1],
            SliceThickness=2.5,
            **tags,
        )
        for i in range(n)
    ]


def rows(items: list[Item]) -> list[tuple[Any, ...]]:
    return [(i.path, i.files, i.header, None if i.header is None else i.header.patient_id) for i in items]


def test_walk__order_what_is_left_out_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/2", "b/1", "a/x/1", ".hidden/1", "__MACOSX/1", "a/.DS_Store", "a/DICOMDIR", "out/1", "3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    chunks = list(walk(tmp_path, skip=[tmp_path / "out"]))
    assert [(Path(c.folder).relative_to(tmp_path).as_posix(), c.names) for c in chunks] == [
        (".", ("3",)),
        ("a/x", ("1",)),
        ("b", ("1", "2")),
    ]
    assert all(c.whole for c in chunks)
    before = chunks[2].stamp
    os.utime(tmp_path / "b" / "1", (1, 1))
    assert [c.stamp == before for c in walk(tmp_path) if c.folder.endswith("/b")] == [False]
    monkeypatch.setattr("medfm.data.walk.LARGEST", 2)
    many = list(listed(tmp_path / "z" / f"{n}" for n in range(5)))
    assert [(c.names, c.whole) for c in many] == [(("0", "1"), False), (("2", "3"), False), (("4",), False)]
    assert [len(b) for b in batches(many, 4)] == [2, 1]
    with pytest.raises(DataError, match="cannot be listed"):
        list(walk(tmp_path / "nowhere"))


def test_relative_path__of_references() -> None:
    root = Path("/data/x")
    assert relative_path("/data/x/a/b.dcm", root) == "a/b.dcm"
    assert relative_path("/data/x#series=0123456789ab", root) == "#series=0123456789ab"
    assert relative_path("/data/x", root) == "."
    assert relative_path("/data/xy/a", root) == "/data/xy/a"


def test_scan__the_root_itself_mixes_series(tmp_path: Path, film: Write) -> None:
    from medfm.io.load import load_image

    stack(film, tmp_path, "1.1")
    stack(film, tmp_path, "1.2", n=5)
    found = scan(tmp_path, None, "decode")
    assert found.rejected == []
    assert sorted(i.files for i in found.items) == [4, 5]
    for item in found.items:
        assert load_image(found.root / item.path).shape[2] == item.files


def test_scan__large_folder_in_parts_equals_the_whole(tmp_path: Path, film: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        stack(film, tmp_path, f"1.{n}", n=6, PatientID=f"SECRET-{n % 2}")
    for place, path in enumerate(sorted(tmp_path.iterdir())):
        path.rename(tmp_path / f"{place % 6}{path.name}")
    film(tmp_path / "film.dcm")
    (tmp_path / "broken.dcm").write_bytes(b"x" * 200)
    whole = scan(tmp_path, None, "headers")
    monkeypatch.setattr("medfm.data.walk.LARGEST", 7)
    parts = scan(tmp_path, None, "headers")
    assert len(whole.items) == 6
    assert rows(parts.items) == rows(whole.items)
    assert parts.rejected == whole.rejected
    assert parts.files == whole.files == 32


def test_scan__goes_on_where_it_stopped_and_the_journal_names_nobody(
    tmp_path: Path, film: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, journal = tmp_path / "in", tmp_path / "m.journal"
    for n in range(6):
        stack(film, root / f"{n}", f"1.2.840.99.{n}", PatientID=f"SECRET-{n}", StudyInstanceUID=f"1.2.840.77.{n}")
    monkeypatch.setattr(scan_module, "batches", partial(batches, size=4))
    plain = scan(root, None, "headers")
    read = scan_work.read_batch

    def stop(batch: tuple[Chunk, ...], root: str, tilt: str) -> Any:
        if batch[0].folder.endswith("/3"):
            raise KeyboardInterrupt
        return read(batch, root)

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "read_batch", stop)
        with pytest.raises(KeyboardInterrupt):
            scan(root, None, "headers", journal=journal)
    text = journal.read_text()
    assert len(text.splitlines()) == 4  # a head and three folders
    for secret in ("SECRET", "1.2.840.77"):
        assert secret not in text
    seen = []

    def watch(batch: tuple[Chunk, ...], root: str, tilt: str) -> Any:
        seen.append(Path(batch[0].folder).name)
        return read(batch, root)

    monkeypatch.setattr(scan_module, "read_batch", watch)
    resumed = scan(root, None, "headers", journal=journal)
    assert seen == ["3", "4", "5"]
    assert resumed.again == 12
    assert rows(resumed.items) == rows(plain.items)
    assert [i.header.patient_id for i in resumed.items if i.header] == [f"SECRET-{n}" for n in range(6)]


def test_scan__a_file_that_kills_its_reader_costs_itself_alone(
    tmp_path: Path, film: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "in"
    stack(film, root / "good", "1.1")
    for n in range(3):
        film(root / f"films/{n}.dcm")

    def fall(chunk: Chunk, keep: bool = False) -> Any:
        if any(name == "1.dcm" for name in chunk.names):
            raise RuntimeError("SECRET value")
        return survey(chunk, keep)

    monkeypatch.setattr(scan_work, "survey", fall)
    found = scan(root, None, "headers")
    assert [i.path for i in found.items] == ["films/0.dcm", "films/2.dcm", "good"]
    ((path, reason),) = found.rejected
    assert path == "films/1.dcm"
    assert "unexpected RuntimeError" in reason
    assert "SECRET" not in reason


def test_scan__copies_and_parts_of_a_series(tmp_path: Path, film: Write) -> None:
    slices = stack(film, tmp_path / "b", "1.1")
    for folder, some in (("a", slices[:2]), ("c", slices)):
        (tmp_path / folder).mkdir()
        for path in some:
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    found = scan(tmp_path, None, "headers")
    assert [i.path for i in found.items] == ["b"]
    assert dict(found.rejected) == dict.fromkeys(("a", "c"), "copy of 'b' (same SOP Instance UID)")


def test_scan__processes_give_what_this_process_gives(tmp_path: Path, film: Write) -> None:
    for n in range(8):
        stack(film, tmp_path / f"{n}", f"1.{n}")
    film(tmp_path / "8/x.dcm", Rows=0)
    alone = scan(tmp_path, None, "headers")
    many = scan(tmp_path, None, "headers", EngineConfig(workers=2))
    assert rows(many.items) == rows(alone.items)
    assert many.rejected == alone.rejected


def test_scan__links_to_one_file_are_copies_and_dangling_ones_are_named(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "a" / "x.png")
    os.symlink(tmp_path / "a" / "x.png", tmp_path / "b" / "y.png")
    os.link(tmp_path / "a" / "x.png", tmp_path / "b" / "z.png")
    os.symlink("/nowhere/x.png", tmp_path / "b" / "lost.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "b" / "pipe.dcm")
    found = scan(tmp_path, None, "headers")
    assert [item.path for item in found.items] == ["a/x.png"]
    assert dict(found.rejected) == {
        "b/lost.png": "'b/lost.png' is a link that leads nowhere",
        "b/y.png": "copy of 'a/x.png' (a link to the same file)",
        "b/z.png": "copy of 'a/x.png' (a link to the same file)",
    }


@pytest.mark.parametrize("level", ["headers", "decode"])
def test_scan__a_tilted_gantry_is_kept_on_request(film: Write, tmp_path: Path, level: str) -> None:
    for number, path in enumerate(stack(film, tmp_path / "tilted", "1.2.3")):
        import pydicom

        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = [0, 1.0 * number, 2.5 * number]
        dataset.save_as(path)
    refused = scan(tmp_path, None, level)
    assert not refused.items
    assert "gantry tilt" in refused.rejected[0][1]
    kept = scan(tmp_path, None, level, tilt="resample")
    assert [(item.path, item.files) for item in kept.items] == [("tilted", 4)]
    assert not kept.rejected
