"""One file over HTTP: resumable, checked, patient with servers, and never half there.

A file grows as `<name>.part` beside its place; `<name>.part.json` holds the address and the server's validator (a strong ETag,
else Last-Modified). A later try sends `Range` with `If-Range` (RFC 9110, sections 13.1.5 and 14.2), so that a file that changed
on the server starts anew. Without a validator a part is only continued where a published sum will judge the whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from medfm.errors import DataError

if TYPE_CHECKING:
    import requests

_CHUNK = 1 << 18
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_PROGRESS = 1 << 16  # bytes that make a try count as progress, so that a slow line is not given up
_LONGEST_WAIT = 120.0


class Cancelled(Exception):
    """Another thread asked to stop."""


class _Retry(Exception):
    """This try failed; the next may not. `after`: seconds that the server asked for."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class Remote:
    """A file to fetch. `bytes`, `md5`, `sha256` are what its source publishes, None or "" where it does not."""

    url: str
    bytes: int | None = None
    md5: str = ""
    sha256: str = ""

    @property
    def shown(self) -> str:
        """The address without its query, which may hold a signature."""
        return self.url.partition("?")[0]

    @property
    def sum(self) -> tuple[str, str]:
        """(algorithm, hex digits), ("", "") where none is published."""
        return ("sha256", self.sha256) if self.sha256 else ("md5", self.md5) if self.md5 else ("", "")


@dataclass(frozen=True)
class Policy:
    """How patient `fetch` is. `pause`: seconds before the first new try; it doubles, with jitter, up to two minutes."""

    retries: int = 6
    timeout: float = 60.0
    pause: float = 1.0


@dataclass(frozen=True)
class Fetched:
    """`checked` says by what the file was judged: "sha256", "md5", "size" (of the card or the server), or "" (nothing)."""

    path: Path
    bytes: int
    checked: str


DEFAULT = Policy()


def _ignore(_: int) -> None: ...


def fetch(
    remote: Remote,
    target: Path,
    session: requests.Session,
    policy: Policy = DEFAULT,
    advance: Callable[[int], None] = _ignore,
    stop: threading.Event | None = None,
) -> Fetched:
    """Bring `remote` to `target`, continuing what an earlier call left behind.

    Args:
        advance: called with the bytes that arrived; negative where a part was thrown away.
        stop: when set, ends with `Cancelled`; the part stays.

    Raises:
        DataError: not there, not allowed, changed, wrong sum or size, disk full, or no progress in `policy.retries` tries.
    """
    stop = stop or threading.Event()
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures, joined, restarted = 0, False, False
    advance(_size(part))
    try:
        while True:
            before = _size(part)
            try:
                size, known = _attempt(remote, part, session, policy, advance, stop)
            except _Retry as problem:
                failures = 0 if _size(part) - before >= _PROGRESS else failures + 1
                joined = joined or _size(part) > 0
                if failures > policy.retries:
                    raise DataError(
                        f"{remote.shown}: {problem}, {failures} times in a row. {_size(part):,} bytes are kept: "
                        "run the same command again to go on"
                    ) from None
                _wait(max(problem.after, policy.pause * 2 ** min(failures, 8) * random.uniform(0.5, 1.0)), stop)
                continue
            checked, wrong = _judge(remote, part, size, known, stop)
            if not wrong:
                break
            advance(-_size(part))
            _forget(part)
            # A file joined from several tries may be of two versions: once more, from the start.
            if not (joined or before) or restarted:
                raise DataError(f"{remote.shown}: {wrong}. Nothing of it was kept")
            restarted, joined = True, False
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        raise DataError(f"'{target}' cannot be written: {error.strerror or type(error).__name__}") from None
    _state(part).unlink(missing_ok=True)
    return Fetched(target, size, checked)


def make_root(root: Path) -> None:
    """The folder to fill. Raises DataError where it cannot be made or written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"root={root}: the folder cannot be made: {error.strerror or type(error).__name__}") from None
    if not os.access(root, os.W_OK | os.X_OK):
        raise DataError(f"root={root}: the folder cannot be written: Permission denied")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _wait(seconds: float, stop: threading.Event) -> None:
    if stop.wait(min(seconds, _LONGEST_WAIT)):
        raise Cancelled


def _state(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state(part).unlink(missing_ok=True)


def _remembered(remote: Remote, part: Path) -> tuple[int, str]:
    """(bytes that may be continued, validator)."""
    try:
        state = json.loads(_state(part).read_text(encoding="utf-8"))
        size = part.stat().st_size
    except (OSError, ValueError):
        return 0, ""
    if not isinstance(state, dict) or state.get("url") != remote.url:
        return 0, ""
    validator = str(state.get("validator", ""))
    return (size, validator) if validator or remote.sum[0] else (0, "")


def _attempt(
    remote: Remote, part: Path, session: requests.Session, policy: Policy, advance: Callable[[int], None], stop: threading.Event
) -> tuple[int, bool]:
    """One request. Returns (size, whether the server told it) once `part` is complete; raises _Retry or DataError."""
    import requests
    import urllib3

    start, validator = _remembered(remote, part)
    if not start and part.exists():
        advance(-_size(part))
        part.unlink()
    headers = {"Accept-Encoding": "identity"}  # sizes and sums are those of the file as it lies on the server
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    try:
        response = session.get(remote.url, headers=headers, stream=True, timeout=policy.timeout)
    except requests.TooManyRedirects:
        raise DataError(f"{remote.shown}: the server redirects in circles") from None
    except requests.exceptions.SSLError:
        raise DataError(f"{remote.shown}: the server's certificate cannot be trusted") from None
    except requests.RequestException as error:
        raise _Retry(_words(error)) from None
    with response:
        if urlsplit(remote.url).scheme == "https" and urlsplit(response.url).scheme != "https":
            raise DataError(f"{remote.shown}: the server redirects to an address without encryption; nothing was fetched")
        total = _total(remote, response, start)
        if total is None:  # 416: the part is as long as the file, or longer
            if _complete(remote, response, start):
                return start, True
            advance(-start)
            _forget(part)
            raise _Retry("the part is longer than the file on the server")
        if start and response.status_code != 206:
            advance(-start)
            start = 0
        elif start and validator and _validator(response) not in (validator, ""):
            # A server that heeds Range and not If-Range: these bytes are of another version.
            advance(-start)
            _forget(part)
            raise _Retry("the file changed on the server")
        _refuse_page(remote, response)
        if remote.bytes is not None and 0 <= total != remote.bytes:
            raise DataError(
                f"{remote.shown}: the server's file has {total:,} bytes, the card says {remote.bytes:,}: it was changed. "
                "Look at the data set's page; nothing was fetched"
            )
        free = shutil.disk_usage(part.parent).free
        if total - start > free:
            raise DataError(
                f"'{part.parent}' has {free / 1e9:.1f} GB free, {remote.shown} needs {(total - start) / 1e9:.1f} GB more"
            )
        _remember(remote, part, response)
        got = start
        with open(part, "r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            try:
                for chunk in response.raw.stream(_CHUNK, decode_content=False):
                    file.write(chunk)
                    got += len(chunk)
                    advance(len(chunk))
                    if stop.is_set():
                        raise Cancelled
            except (urllib3.exceptions.HTTPError, requests.RequestException) as error:
                raise _Retry(_words(error)) from None
        if 0 <= total != got:
            raise _Retry(f"the connection ended after {got:,} of {total:,} bytes")
        return got, total >= 0


def _total(remote: Remote, response: requests.Response, start: int) -> int | None:
    """Size of the whole file, -1 where the server does not say, None for 416. Raises for all others but 200 and 206."""
    status = response.status_code
    if status == 200:
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdigit() and "Transfer-Encoding" not in response.headers else -1
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if match is None or int(match[1]) != start:
            raise DataError(f"{remote.shown}: the server answered with another range than asked for; nothing was joined to it")
        return int(match[3]) if match[3] != "*" else -1
    if status == 416 and start:
        return None
    if status in _AGAIN:
        raise _Retry(f"the server answers HTTP {status}", _retry_after(response))
    if status in (401, 403):
        raise DataError(f"{remote.shown}: the server asks for a login or forbids access (HTTP {status})")
    if status in (404, 410):
        raise DataError(f"{remote.shown}: there is no such file any more (HTTP {status})")
    raise DataError(f"{remote.shown}: the server answers HTTP {status}")


def _complete(remote: Remote, response: requests.Response, start: int) -> bool:
    match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", "").strip())
    return start == (int(match[1]) if match else remote.bytes)


def _retry_after(response: requests.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0


def _refuse_page(remote: Remote, response: requests.Response) -> None:
    kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml") and not urlsplit(remote.url).path.endswith((".html", ".htm")):
        raise DataError(
            f"{remote.shown}: the server sent a web page, not the file: a login or a notice. Open the address by hand"
        )
    if response.headers.get("Content-Encoding", "identity") not in ("identity", ""):
        raise DataError(f"{remote.shown}: the server sent the file in a coding that was not asked for")


def _validator(response: requests.Response) -> str:
    """What names this version of the file; a weak ETag may not be used for joining (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _remember(remote: Remote, part: Path, response: requests.Response) -> None:
    place = _state(part)
    temporary = place.with_name(place.name + ".tmp")
    temporary.write_text(json.dumps({"url": remote.url, "validator": _validator(response)}), encoding="utf-8")
    os.replace(temporary, place)


def _words(error: BaseException) -> str:
    """What went wrong, without the address that libraries put into their texts."""
    text = str(error).lower()
    if "incompleteread" in text or "connection broken" in text:
        return "the connection broke off"
    if "timed out" in text or "timeout" in type(error).__name__.lower():
        return "the server was silent for too long"
    if "name or service" in text or "nodename" in text or "resolve" in text:
        return "the server's name is not known here (is this machine connected?)"
    if "refused" in text:
        return "the server refused the connection"
    return "the connection failed"


def _judge(remote: Remote, part: Path, size: int, known: bool, stop: threading.Event) -> tuple[str, str]:
    """(by what it was judged, what is wrong or "")."""
    algorithm, published = remote.sum
    if remote.bytes is not None and size != remote.bytes:
        return "size", f"{size:,} bytes arrived, the card says {remote.bytes:,}"
    if not algorithm:
        return "size" if known or remote.bytes is not None else "", ""
    found = digest(part, algorithm, stop)
    if found != published:
        return algorithm, f"the {algorithm} of what arrived is {found}, its source publishes {published}"
    return algorithm, ""


def digest(path: Path, algorithm: str, stop: threading.Event | None = None) -> str:
    """Hex digits of a file's sum."""
    state = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            if stop is not None and stop.is_set():
                raise Cancelled
            state.update(chunk)
    return state.hexdigest()


def ask_size(remote: Remote, session: requests.Session, timeout: float) -> int | None:
    """What the server says a file's size is; None where it does not say or does not answer."""
    import requests

    if remote.bytes is not None:
        return remote.bytes
    try:
        with session.head(
            remote.url, headers={"Accept-Encoding": "identity"}, allow_redirects=True, timeout=min(timeout, 15.0)
        ) as answer:
            length = answer.headers.get("Content-Length", "")
            return int(length) if answer.status_code == 200 and length.isdigit() else None
    except requests.RequestException:
        return None


def new_session() -> requests.Session:
    """A session that names medfm and never sends a login: netrc and cookies stay at home."""
    import requests

    class NoLogin(requests.auth.AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            return request

    session = requests.Session()
    session.auth = NoLogin()
    session.headers["User-Agent"] = "medfm-download"
    session.max_redirects = 10
    return session
