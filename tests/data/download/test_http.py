"""One file from a server that drops, lies, changes and is slow: right, or refused by name."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from medfm.data.download.http import Cancelled, Policy, Remote, fetch, new_session
from medfm.errors import DataError

QUICK = Policy(retries=3, timeout=1.0, pause=0.001)
BODY = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(20_000))  # 640,000 bytes that do not repeat
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
SHA256 = hashlib.sha256(BODY).hexdigest()


def get(server: Any, target: Path, path: str = "f.bin", **known: Any) -> Any:
    return fetch(Remote(server.url(path), **known), target, new_session(), QUICK)


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_fetch__whole_file_and_what_it_was_checked_by(tmp_path: Path, server: Any) -> None:
    server.add("f.bin", BODY)
    assert get(server, tmp_path / "a.bin").checked == "size"
    assert get(server, tmp_path / "b.bin", md5=MD5).checked == "md5"
    assert get(server, tmp_path / "c.bin", sha256=SHA256, md5="0" * 32, bytes=len(BODY)).checked == "sha256"
    assert all((tmp_path / n).read_bytes() == BODY for n in ("a.bin", "b.bin", "c.bin"))
    assert left(tmp_path) == ["a.bin", "b.bin", "c.bin"]
    server.add("unsized.bin", BODY, send_length=False)
    assert get(server, tmp_path / "d.bin", path="unsized.bin").checked == ""


def test_fetch__continues_after_each_dropped_connection(tmp_path: Path, server: Any) -> None:
    drops = [("drop", 150_000), ("drop", 150_000), ("drop", 10), ("drop", 0), ("drop", 150_000)]
    entry = server.add("f.bin", BODY, faults=list(drops))
    seen: list[int] = []
    fetch(Remote(server.url("f.bin")), tmp_path / "f.bin", new_session(), QUICK, seen.append)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert not entry.faults
    assert sum(seen) == len(BODY)
    starts = [int(r.removeprefix("bytes=").rstrip("-") or 0) for _, _, r in server.requests if r]
    assert starts == sorted(starts)
    assert starts[-1] >= 450_000


def test_fetch__drops_without_progress_end_and_keep_what_came(tmp_path: Path, server: Any) -> None:
    server.add("f.bin", BODY, faults=[("drop", 100_000), *[("drop", 0)] * 20])
    with pytest.raises(DataError, match=r"/f\.bin: .*(broke|ended).*, 4 times in a row\. 100,000 bytes are kept"):
        get(server, tmp_path / "f.bin")
    assert left(tmp_path) == ["f.bin.part", "f.bin.part.json"]
    server.entries["/f.bin"].faults.clear()
    get(server, tmp_path / "f.bin")
    assert server.requests[-1][2] == "bytes=100000-"
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_fetch__server_that_ignores_range_starts_anew(tmp_path: Path, server: Any) -> None:
    server.add("f.bin", BODY, ranges=False, faults=[("drop", 200_000)])
    get(server, tmp_path / "f.bin")
    assert (tmp_path / "f.bin").read_bytes() == BODY


@pytest.mark.parametrize("if_range", [True, False])
def test_fetch__file_that_changes_between_tries_is_never_a_mixture(tmp_path: Path, server: Any, if_range: bool) -> None:
    new = BODY[::-1]

    def change(entry: Any) -> None:
        entry.body, entry.etag, entry.after = new, '"v2"', None

    server.add("f.bin", BODY, faults=[("drop", 200_000)], after=change, if_range=if_range)
    get(server, tmp_path / "f.bin")
    assert (tmp_path / "f.bin").read_bytes() == new


def test_fetch__without_validator_a_part_is_continued_only_for_a_sum(tmp_path: Path, server: Any) -> None:
    server.add("f.bin", BODY, etag="", faults=[("drop", 200_000)])
    get(server, tmp_path / "f.bin")
    assert [r for _, _, r in server.requests] == ["", ""]
    server.add("g.bin", BODY, etag='W/"weak"', faults=[("drop", 200_000)])
    get(server, tmp_path / "g.bin", path="g.bin", md5=MD5)
    assert server.requests[-1][2] == "bytes=200000-"
    assert (tmp_path / "f.bin").read_bytes() == (tmp_path / "g.bin").read_bytes() == BODY


def test_fetch__mixture_that_the_sum_finds_is_fetched_once_more(tmp_path: Path, server: Any) -> None:
    def change(entry: Any) -> None:
        entry.body, entry.after = BODY, None

    server.add("f.bin", BODY[::-1], etag="", faults=[("drop", 200_000)], after=change)
    assert get(server, tmp_path / "f.bin", sha256=SHA256).checked == "sha256"
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_fetch__wrong_sum_is_refused_and_nothing_kept(tmp_path: Path, server: Any) -> None:
    server.add("f.bin", BODY)
    with pytest.raises(DataError, match=f"the md5 of what arrived is {MD5}, its source publishes {'0' * 32}"):
        get(server, tmp_path / "f.bin", md5="0" * 32)
    assert left(tmp_path) == []
    assert server.count("f.bin") == 1
    server.add("g.bin", BODY, faults=[("drop", 200_000), None, ("drop", 200_000), None, ("drop", 200_000)])
    with pytest.raises(DataError, match="the md5 of what arrived"):
        get(server, tmp_path / "g.bin", path="g.bin", md5="0" * 32)
    assert server.count("g.bin") <= 4  # tried once more from the start, not for ever


def test_fetch__content_length_that_is_wrong(tmp_path: Path, server: Any) -> None:
    server.add("range.bin", BODY, length=len(BODY) + 5)
    get(server, tmp_path / "range.bin", path="range.bin")  # 416 to the rest says what the size is
    assert (tmp_path / "range.bin").read_bytes() == BODY
    server.add("long.bin", BODY, length=len(BODY) + 5, ranges=False)
    with pytest.raises(DataError, match=r"long\.bin: .* times in a row"):
        get(server, tmp_path / "a.bin", path="long.bin")
    server.add("short.bin", BODY, length=len(BODY) - 5)
    with pytest.raises(DataError, match=r"the server's file has 639,995 bytes, the card says 640,000: it was changed"):
        get(server, tmp_path / "b.bin", path="short.bin", bytes=len(BODY))
    with pytest.raises(DataError, match="the sha256 of what arrived"):
        get(server, tmp_path / "b.bin", path="short.bin", sha256=SHA256)
    assert not (tmp_path / "a.bin").exists()
    assert not (tmp_path / "b.bin").exists()


def test_fetch__busy_server_is_asked_again(tmp_path: Path, server: Any) -> None:
    server.add("f.bin", BODY, faults=[503, 429, 502])
    get(server, tmp_path / "f.bin")
    assert server.count("f.bin") == 4
    server.add("g.bin", BODY, faults=[503] * 9)
    with pytest.raises(DataError, match="the server answers HTTP 503, 4 times in a row"):
        get(server, tmp_path / "g.bin", path="g.bin")


def test_fetch__slow_and_silent_servers(tmp_path: Path, server: Any) -> None:
    server.add("f.bin", BODY[:100_000], faults=["silent", ("slow", 0.02)])
    get(server, tmp_path / "f.bin")
    assert (tmp_path / "f.bin").read_bytes() == BODY[:100_000]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faults": [404]}, "there is no such file any more"),
        ({"faults": [410]}, "there is no such file any more"),
        ({"faults": [403]}, "asks for a login or forbids access"),
        ({"faults": [401]}, "asks for a login or forbids access"),
        ({"faults": [418]}, "answers HTTP 418"),
        ({"kind": "text/html; charset=utf-8"}, "the server sent a web page, not the file"),
        ({"headers": {"Content-Encoding": "gzip"}}, "in a coding that was not asked for"),
    ],
)
def test_fetch__refused_at_once(tmp_path: Path, server: Any, options: dict[str, Any], message: str) -> None:
    server.add("f.bin", BODY, **options)
    with pytest.raises(DataError, match=message):
        fetch(Remote(server.url("f.bin?signature=SECRET")), tmp_path / "f.bin", new_session(), QUICK)
    assert server.count("f.bin") == 1
    assert left(tmp_path) == []


def test_fetch__errors_do_not_show_the_query(tmp_path: Path, server: Any) -> None:
    with pytest.raises(DataError) as error:
        fetch(Remote(server.url("none.bin?signature=SECRET")), tmp_path / "f.bin", new_session(), QUICK)
    assert "SECRET" not in str(error.value)


def test_fetch__redirects(tmp_path: Path, server: Any) -> None:
    server.add("there.bin", BODY)
    server.add("f.bin", b"", location="/there.bin")
    assert get(server, tmp_path / "f.bin").bytes == len(BODY)
    server.add("round.bin", b"", location="/round.bin")
    with pytest.raises(DataError, match="redirects in circles"):
        get(server, tmp_path / "g.bin", path="round.bin")


def test_fetch__nobody_there(tmp_path: Path, server: Any) -> None:
    with pytest.raises(DataError, match="refused the connection, 4 times in a row"):
        fetch(Remote("http://127.0.0.1:9/f.bin"), tmp_path / "f.bin", new_session(), QUICK)


def test_fetch__part_as_long_as_the_file_or_longer(tmp_path: Path, server: Any) -> None:
    server.add("f.bin", BODY, faults=[("drop", 200_000), *[403] * 2])
    with pytest.raises(DataError):
        get(server, tmp_path / "f.bin")
    server.entries["/f.bin"].faults.clear()
    part = tmp_path / "f.bin.part"
    part.write_bytes(BODY)
    get(server, tmp_path / "f.bin")
    assert (tmp_path / "f.bin").read_bytes() == BODY
    server.add("f.bin", BODY, faults=[("drop", 200_000), 403])
    with pytest.raises(DataError):
        get(server, tmp_path / "f.bin")
    part.write_bytes(BODY + b"more")
    server.entries["/f.bin"].faults.clear()
    get(server, tmp_path / "f.bin")
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_fetch__part_of_another_address_is_not_continued(tmp_path: Path, server: Any) -> None:
    server.add("f.bin", BODY[::-1], faults=[("drop", 200_000), 403])
    with pytest.raises(DataError):
        get(server, tmp_path / "same.bin")
    server.add("g.bin", BODY)
    get(server, tmp_path / "same.bin", path="g.bin")
    assert (tmp_path / "same.bin").read_bytes() == BODY


def test_fetch__disk_that_is_too_small(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from medfm.data.download import http

    class Usage:
        free = 1000

    server.add("f.bin", BODY)
    monkeypatch.setattr(http.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DataError, match=r"GB free, .*/f\.bin needs"):
        get(server, tmp_path / "f.bin")


def test_fetch__place_that_cannot_be_written(tmp_path: Path, server: Any) -> None:
    server.add("f.bin", BODY)
    (tmp_path / "f.bin.part").mkdir()
    with pytest.raises(DataError, match=r"f\.bin' cannot be written"):
        get(server, tmp_path / "f.bin")


def test_fetch__stops_when_asked_and_keeps_the_part(tmp_path: Path, server: Any) -> None:
    server.add("f.bin", BODY, faults=[("slow", 0.05)])
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(Cancelled):
        fetch(Remote(server.url("f.bin")), tmp_path / "f.bin", new_session(), QUICK, stop=stop)
    assert left(tmp_path) == ["f.bin.part", "f.bin.part.json"]


def test_fetch__netrc_login_is_not_sent(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password SECRET\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    session = new_session()
    request = session.prepare_request(__import__("requests").Request("GET", server.url("f.bin")))
    assert "Authorization" not in request.headers


def test_fetch__killed_process_is_continued(tmp_path: Path, server: Any) -> None:
    server.add("f.bin", BODY, faults=[("slow", 0.03)])
    code = (
        "import sys; from pathlib import Path; from medfm.data.download.http import *;"
        "fetch(Remote(sys.argv[1]), Path(sys.argv[2]), new_session())"
    )
    child = subprocess.Popen([sys.executable, "-c", code, server.url("f.bin"), str(tmp_path / "f.bin")])
    part = tmp_path / "f.bin.part"
    limit = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 100_000) and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    size = part.stat().st_size
    assert 100_000 < size < len(BODY)
    get(server, tmp_path / "f.bin", sha256=SHA256)
    assert server.requests[-1][2] == f"bytes={size}-"
    assert (tmp_path / "f.bin").read_bytes() == BODY
