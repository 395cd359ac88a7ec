"""`medfm download card=...` against a local server."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from medfm.data.card_download import Download
from medfm.data.cards import card_names, load_card
from medfm.data.download import run as module
from medfm.data.download.config import DownloadConfig
from medfm.data.download.run import render, run_download
from medfm.errors import ConfigError, DataError

PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU"
    b"\x00\x00\x00\nIDATx\x9cc`\x00\x00\x00\x02\x00\x01H\xaf\xa4q\x00\x00\x00\x00IEND\xaeB`\x82"
)


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def make_card(tmp_path: Path) -> Callable[..., str]:
    def make(download: dict[str, Any] | None, access: str = "open") -> str:
        front = {
            "name": "mine",
            "title": "Mine",
            "modality": "DX",
            "body_part": "chest",
            "kind": "2d",
            "where": "https://example.org/mine",
            "access": access,
            "licence": "CC BY 4.0",
            "citation": "none",
            "intensity_units": "display",
            "text_kind": "none",
            "layout": {"images": "images/*.png"},
            **({"download": download} if download is not None else {}),
        }
        path = tmp_path / "mine.md"
        path.write_text(f"---\n{json.dumps(front)}\n---\n")
        return str(path)

    return make


def section(*files: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"files": list(files), "verified": True, "checked": "2026-01-01", "seen": ["https://example.org"], **more}


def run(card: str, root: Path, **options: Any) -> Any:
    return run_download(DownloadConfig(card=card, root=root, retries=1, timeout=2, **options))


def test_run_download__archives_tables_and_the_next_command(tmp_path: Path, server: Any, make_card: Callable[..., str]) -> None:
    archive, table = zipped(images__a=PNG, images__b=PNG).replace(b"images/a", b"images/a"), b"x,y\n"
    server.add("images.zip", archive)
    server.add("t.csv", table)
    card = make_card(
        section(
            {"url": server.url("images.zip"), "unpack": "zip", "md5": md5(archive), "bytes": len(archive), "into": "data"},
            {"url": server.url("t.csv"), "path": "data/tables/t.csv"},
            folder="data",
        )
    )
    root = tmp_path / "my set"
    report = run(card, root)
    assert [(f.path, f.checked, f.again, f.files) for f in report.files] == [
        ("images.zip", "md5", False, 2),
        ("data/tables/t.csv", "size", False, 0),
    ]
    assert sorted(p.name for p in (root / "data/images").iterdir()) == ["a", "b"]
    assert (root / "data/tables/t.csv").read_bytes() == table
    assert not (root / "images.zip").exists()
    assert report.index == f"medfm index card={card} root='{root}/data' out=mine.parquet"
    assert any("t.csv: its source publishes no sum" in n for n in report.notes)
    from rich.console import Console

    console = Console(record=True, width=200, file=io.StringIO())
    console.print(render(report))
    assert "images.zip" in console.export_text()
    # Again: nothing is fetched, until something is missing.
    asked = len(server.requests)
    assert all(f.again for f in run(card, root).files)
    assert len(server.requests) == asked
    (root / "data/images/b").unlink()
    assert [f.again for f in run(card, root).files] == [False, True]
    assert (root / "data/images/b").read_bytes() == PNG


def test_run_download__archive_that_lies_there_is_judged_and_kept(
    tmp_path: Path, server: Any, make_card: Callable[..., str]
) -> None:
    archive = zipped(images__a=PNG)
    root = tmp_path / "set"
    root.mkdir()
    (root / "images.zip").write_bytes(archive)
    card = make_card(section({"url": server.url("images.zip"), "unpack": "zip", "md5": md5(archive)}))
    assert run(card, root, keep_archives=True).files[0].again
    assert (root / "images.zip").exists()
    assert server.count("images.zip") == 0
    (root / "images/a").unlink()
    (root / "images.zip").write_bytes(archive + b"more")
    with pytest.raises(DataError, match=r"images\.zip' is there and is not the file of"):
        run(card, root)


def test_run_download__one_failure_does_not_stop_the_others(tmp_path: Path, server: Any, make_card: Callable[..., str]) -> None:
    names = [f"{i}.bin" for i in range(6)]
    for name in names:
        server.add(name, name.encode() * 1000)
    server.add("2.bin", b"", faults=[404] * 9)
    card = make_card(section(*({"url": server.url(n)} for n in names)))
    with pytest.raises(DataError, match=r"1 of 6 files could not be had:\n  .*/2\.bin: there is no such file") as error:
        run(card, tmp_path / "set", parallel=3)
    assert "5 are in" in str(error.value)
    server.add("2.bin", b"now")
    report = run(card, tmp_path / "set")
    assert [f.again for f in report.files] == [True, True, False, True, True, True]


def test_run_download__parts(tmp_path: Path, server: Any, make_card: Callable[..., str]) -> None:
    for name in ("both.bin", "png.bin", "dcm.bin"):
        server.add(name, b"data")
    card = make_card(
        section(
            {"url": server.url("both.bin")},
            {"url": server.url("png.bin"), "part": "png"},
            {"url": server.url("dcm.bin"), "part": "dcm", "optional": True},
        )
    )
    assert [f.path for f in run(card, tmp_path / "a").files] == ["both.bin", "png.bin"]
    assert [f.path for f in run(card, tmp_path / "b", parts="dcm").files] == ["both.bin", "dcm.bin"]
    with pytest.raises(ConfigError, match=r"parts=dcn: .* has no such part; did you mean 'dcm'"):
        run(card, tmp_path / "c", parts="dcn")


def test_run_download__asks_before_it_fetches(tmp_path: Path, server: Any, make_card: Callable[..., str]) -> None:
    server.add("f.bin", b"data")
    file = {"url": server.url("f.bin")}
    unverified = make_card({"files": [file]})
    with pytest.raises(
        ConfigError, match=r"not confirmed on a public page, and medfm does not guess.*accept_unverified=true:\n  http"
    ):
        run(unverified, tmp_path / "set")
    run(unverified, tmp_path / "set", accept_unverified=True)
    card = make_card(section(file, terms=True))
    with pytest.raises(ConfigError, match=r"its licence must be accepted: CC BY 4\.0\. Read it at https://example\.org/mine"):
        run(card, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    run(card, tmp_path / "other", accept_licence=True)
    apply = make_card({"apply": {"url": "https://example.org/apply", "steps": ["Sign.", "Wait."]}}, access="credentialed")
    with pytest.raises(
        ConfigError,
        match=r"cannot be fetched by medfm: it asks each person.*Go to https://example.org/apply:\n  1. Sign.\n  2. Wait.",
    ):
        run(apply, tmp_path / "third")
    with pytest.raises(ConfigError, match="names no files to download"):
        run(make_card(None), tmp_path / "third")


def test_run_download__disk_that_is_too_small(
    tmp_path: Path, server: Any, make_card: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 5_000

    server.add("f.bin", bytes(8000))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DataError, match="GB free; the download needs at least"):
        run(make_card(section({"url": server.url("f.bin")})), tmp_path / "set")
    assert server.count("f.bin") == 0


def test_run_download__two_at_once_in_one_folder(tmp_path: Path, server: Any, make_card: Callable[..., str]) -> None:
    server.add("f.bin", b"data")
    card = make_card(section({"url": server.url("f.bin")}))
    root = tmp_path / "set"
    root.mkdir()
    with module._alone(root), pytest.raises(ConfigError, match="another medfm download is at work"):
        run(card, root)
    run(card, root)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_command__stopped_and_run_again_goes_on(
    tmp_path: Path, server: Any, make_card: Callable[..., str], how: signal.Signals
) -> None:
    body = bytes(range(256)) * 4000
    entry = server.add("f.bin", body, faults=[("slow", 0.05)])
    card = make_card(section({"url": server.url("f.bin")}))
    command = [sys.executable, "-m", "medfm.cli", "download", f"card={card}", f"root={tmp_path / 'set'}"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    part = tmp_path / "set/f.bin.part"
    limit = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 100_000) and time.monotonic() < limit:
        time.sleep(0.02)
    child.send_signal(how)
    out, _ = child.communicate(timeout=30)
    assert child.returncode != 0
    assert "Traceback" not in out
    had = part.stat().st_size
    assert 100_000 < had < len(body)
    assert not entry.faults
    assert run(card, tmp_path / "set").files[0].bytes == len(body)
    assert server.requests[-1][2] == f"bytes={had}-"
    assert (tmp_path / "set/f.bin").read_bytes() == body


def test_run_download__bars_do_not_fail(tmp_path: Path, server: Any, make_card: Callable[..., str]) -> None:
    server.add("f.bin", bytes(100_000), faults=[503, ("drop", 70_000)])
    card = make_card(section({"url": server.url("f.bin")}))
    assert run_download(DownloadConfig(card=card, root=tmp_path / "set", retries=1), progress=True).files[0].bytes == 100_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give card=NAME, or source="),
        ({"card": "a", "source": "dicomweb://a"}, "give card=NAME, or source="),
        ({"card": "a", "study": "1.2"}, "study is for source="),
        ({"source": "dicomweb://a"}, "or everything=true"),
        ({"source": "dicomweb://a", "everything": True, "modality": "CT"}, "goes with no other filter"),
        ({"source": "dicomweb://a", "study": "1.2", "parts": "png"}, "parts is for a card"),
        ({"source": "dicomweb://a", "patient": 1e5}, "not as it was written: put quotes within quotes"),
        ({"source": "dicomweb://a", "patient": True}, "not as it was written: put quotes within quotes"),
        ({"source": "dicomweb://a", "from": "2020-02-01", "to": "2020-01-01"}, "from must not be later than to"),
        ({"source": "dicomweb://a", "patient": "*"}, "wildcards alone"),
    ],
)
def test_config__what_does_not_go_together(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DownloadConfig(root=tmp_path, **options)


def test_config__query_values_stay_out_of_sight(tmp_path: Path) -> None:
    config = DownloadConfig(source="dicomweb://a", root=tmp_path, patient=4711, study="1.2.3", **{"from": 20200131})
    shown = repr(config) + config.model_dump_json() + str(config)
    assert "4711" not in shown
    assert "1.2.3" not in shown
    assert config.since is not None
    assert config.since.isoformat() == "2020-01-31"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"url": "http://example.org/f.zip"}, "not an https address"),
        ({"url": "ftp://example.org/f.zip"}, "not an https address"),
        ({"url": "https://me:pw@example.org/f.zip"}, "must hold no login"),
        ({"url": "https://example.org/"}, "ends in no file name"),
        ({"url": "https://example.org/a/%2e%2e"}, "ends in no file name"),
        ({"url": "https://example.org/f.zip", "path": "../f.zip"}, "not a path below"),
        ({"url": "https://example.org/f.zip", "into": "/etc"}, "not a path below"),
        ({"url": "https://example.org/f.zip", "md5": "zz"}, "pattern"),
        ({"url": "https://example.org/f.zip", "optional": True}, "needs a part"),
    ],
)
def test_download_section__refuses(file: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Download.model_validate({"files": [file]})
    with pytest.raises(ValidationError, match="give files, or apply"):
        Download.model_validate({})
    with pytest.raises(ValidationError, match="verified addresses need `seen`"):
        Download.model_validate({"files": [{"url": "https://example.org/f"}], "verified": True})
    with pytest.raises(ValidationError, match="two files are stored as 'f'"):
        Download.model_validate({"files": [{"url": "https://example.org/f"}, {"url": "https://example.org/a/f"}]})


def test_cards__each_says_how_it_is_had() -> None:
    for name in card_names():
        card = load_card(name)
        if card.access == "generated":
            continue
        assert card.download is not None, name
        if card.access == "credentialed":
            assert not card.download.files, name
            assert card.download.apply is not None, name
        for file in card.download.files:
            assert "@" not in file.url, name


def test_config__imports_nothing_heavy() -> None:
    heavy = "('torch', 'pandas', 'requests', 'pydicom')"
    code = f"import sys, medfm.data.download.config; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "options", [{"card": "msd:hippocampus", "accept_unverified": True}, {"source": "dicomweb://a", "study": "1.2"}]
)
def test_run_download__root_that_is_a_file(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="folder cannot be made"):
        run_download(DownloadConfig(root=tmp_path / "file", **options))
