"""An HTTP server that misbehaves as it is told, on this machine's loopback."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Entry:
    """What the server says of one path. Each request takes one of `faults`, until none is left.

    Faults: an int, that status; ("drop", n): close after n bytes of the answer; "silent": no answer; ("slow", seconds).
    """

    body: bytes
    etag: str = '"v1"'
    ranges: bool = True
    if_range: bool = True
    length: int | None = None  # claimed instead of the true one
    kind: str = "application/octet-stream"
    location: str = ""
    send_length: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    faults: list[Any] = field(default_factory=list)
    after: Callable[[Entry], None] | None = None  # called after each answer: the file changes on the server


@dataclass
class Server:
    address: str
    entries: dict[str, Entry]
    requests: list[tuple[str, str, str]]  # method, path, Range

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def add(self, path: str, body: bytes, **options: Any) -> Entry:
        self.entries[f"/{path}"] = entry = Entry(body, **options)
        return entry

    def count(self, path: str, method: str = "GET") -> int:
        return sum(1 for m, p, _ in self.requests if (m, p) == (method, f"/{path}"))


def _handler(server: Server, stopping: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # one packet for head and body: else each answer waits for an acknowledgement

        def log_message(self, *_: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            wanted = self.headers.get("Range", "")
            server.requests.append((self.command, path, wanted))
            entry = server.entries.get(path)
            if entry is None:
                self.plain(404)
                return
            fault = entry.faults.pop(0) if entry.faults and body else None
            if fault == "silent":
                stopping.wait(3)
                self.close_connection = True
                return
            if isinstance(fault, int):
                self.plain(fault, {"Retry-After": "0", **entry.headers})
                return
            if entry.location:
                self.plain(302, {"Location": entry.location})
                return
            content, start, status = entry.body, 0, 200
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            fresh = self.headers.get("If-Range", entry.etag) == entry.etag or not entry.if_range
            if match and entry.ranges and fresh:
                start = int(match[1])
                if start >= len(content):
                    self.plain(416, {"Content-Range": f"bytes */{len(content)}"})
                    return
                status = 206
            self.send_response(status)
            piece = content[start:]
            if entry.send_length:
                self.send_header("Content-Length", str(entry.length if entry.length is not None else len(piece)))
            else:
                self.close_connection = True
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if entry.etag:
                self.send_header("ETag", entry.etag)
            self.send_header("Content-Type", entry.kind)
            for name, value in entry.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.body(entry, piece, fault)
                if entry.after is not None:
                    entry.after(entry)

        def body(self, entry: Entry, piece: bytes, fault: Any) -> None:
            try:
                if isinstance(fault, tuple) and fault[0] == "drop":
                    self.wfile.write(piece[: fault[1]])
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.shutdown(2)
                elif isinstance(fault, tuple) and fault[0] == "slow":
                    for i in range(0, len(piece), 1 << 14):
                        self.wfile.write(piece[i : i + (1 << 14)])
                        self.wfile.flush()
                        if stopping.wait(fault[1]):
                            return
                else:
                    self.wfile.write(piece)
                    if entry.length is not None and entry.length > len(piece):
                        self.close_connection = True
            except OSError:
                self.close_connection = True

        def plain(self, status: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server("", {}, [])
    stopping = threading.Event()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made, stopping))
    http.daemon_threads = True
    made.address = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield made
    stopping.set()
    http.shutdown()
    http.server_close()
    thread.join()
