"""Talk with a DICOMweb server: address, login, patience, and no word of what is asked for in any log."""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from medfm.data.download.http import Cancelled, Policy
from medfm.errors import ConfigError

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
_SCHEMES = {"dicomweb": "http", "dicomweb+http": "http", "dicomwebs": "https", "dicomweb+https": "https"}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_QUIET = ("dicomweb_client", "urllib3", "requests", "pydicom")


class _Retry(Exception):
    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def parse_source(source: str) -> str:
    """The http(s) address of `dicomweb://host:port/path` or `dicomwebs://...`.

    Raises:
        ConfigError: another scheme, no host, or a login within the address.
    """
    try:
        parts = urlsplit(source)
    except ValueError:  # half an IPv6 address
        raise ConfigError("source must name a host: dicomweb://host:port/path") from None
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise ConfigError("source must be dicomweb://host:port/path (http) or dicomwebs://host/path (https)")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "source must hold neither login nor query: set in the environment MEDFM_DICOMWEB_TOKEN, or MEDFM_DICOMWEB_USER and "
            "MEDFM_DICOMWEB_PASSWORD"
        )
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        raise ConfigError("source: the port is no number") from None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{scheme}://{host}{port}{parts.path.rstrip('/')}"


def patiently(call: Callable[[], T], policy: Policy, stop: threading.Event, give_up: Callable[[str], Exception]) -> T:
    """`call()`, tried again while that may help. Raises ConfigError for a refused login, else `give_up(reason)`."""
    failures = 0
    while True:
        if stop.is_set():
            raise Cancelled
        try:
            return _translated(call, give_up)
        except _Retry as problem:
            failures += 1
            if failures > policy.retries:
                raise give_up(f"{problem}, {failures} times" if failures > 1 else str(problem)) from None
            seconds = max(problem.after, policy.pause * 2 ** min(failures - 1, 7) * random.uniform(0.5, 1.0))
            if stop.wait(min(seconds, 120.0)):
                raise Cancelled from None


def _translated(call: Callable[[], T], give_up: Callable[[str], Exception]) -> T:
    """`call()` with the libraries' exceptions, whose texts hold addresses, put into our words."""
    import pydicom
    import requests

    try:
        return call()
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise ConfigError(
                f"the DICOMweb server refuses the login (HTTP {status}): set token_file=, or in the environment "
                "MEDFM_DICOMWEB_TOKEN, or MEDFM_DICOMWEB_USER and MEDFM_DICOMWEB_PASSWORD"
            ) from None
        if status in _AGAIN:
            after = error.response.headers.get("Retry-After", "") if error.response is not None else ""
            raise _Retry(f"the server answers HTTP {status}", float(after) if after.isdigit() else 0.0) from None
        raise give_up(f"the server answers HTTP {status}") from None
    except requests.exceptions.SSLError:
        raise ConfigError(
            "the DICOMweb server's certificate cannot be trusted: name its authority with ca_bundle=FILE"
        ) from None
    except requests.exceptions.JSONDecodeError:
        raise give_up("the server's answer is no DICOM JSON") from None
    except requests.Timeout:
        raise _Retry("the server was silent for too long") from None
    except requests.RequestException:
        raise _Retry("the connection failed or broke off") from None
    except pydicom.errors.InvalidDicomError:
        raise give_up("the server sent no DICOM file") from None
    except (ValueError, KeyError, IndexError, EOFError, TypeError, AttributeError, OSError):
        raise give_up("the server's answer is not of the form that DICOMweb asks for") from None


def login_for(url: str, token_file: Path | None) -> Any:
    """(user, password), a bearer login, or None. Raises ConfigError for a secret that would travel in the clear."""
    import requests

    class Bearer(requests.auth.AuthBase):
        def __init__(self, token: str) -> None:
            self.token = token

        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {self.token}"
            return request

    token = os.environ.get("MEDFM_DICOMWEB_TOKEN", "").strip()
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"token_file={token_file} cannot be read") from None
        if not token:
            raise ConfigError(f"token_file={token_file} is empty")
    user, password = os.environ.get("MEDFM_DICOMWEB_USER", ""), os.environ.get("MEDFM_DICOMWEB_PASSWORD", "")
    login = Bearer(token) if token else (user, password) if user else None
    parts = urlsplit(url)
    if login is not None and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ConfigError("a login would travel without encryption: use dicomwebs://host/path")
    if any(ord(c) < 32 or ord(c) > 126 for c in token):
        raise ConfigError("the DICOMweb token holds characters that no header may hold")
    return login


def new_client(url: str, login: Any, policy: Policy, ca_bundle: Path | None) -> Any:
    import requests
    from dicomweb_client.api import DICOMwebClient

    session = requests.Session()
    session.auth = login
    session.max_redirects = 5
    if ca_bundle is not None:
        session.verify = str(ca_bundle)
    client = DICOMwebClient(url, session=session, callback=_check_answer, timeout=policy.timeout, permissive_uid=True)
    client.set_http_retry_params(retry=False)  # knows status codes only; `patiently` knows broken connections too
    return client


def _check_answer(response: requests.Response, *_: Any, **__: Any) -> requests.Response:
    """dicomweb-client takes a multipart answer without its closing boundary for whole: it is a broken connection."""
    import requests

    kind = response.headers.get("Content-Type", "")
    match = re.search(r'boundary="?([^";]+)"?', kind, re.IGNORECASE)
    if response.status_code == 200 and kind.lower().startswith("multipart/") and match is not None:
        closing = b"--" + match[1].encode() + b"--"
        if closing not in response.content[-(len(closing) + 1024) :]:
            raise requests.ConnectionError("the answer ends before its closing boundary")
    return response


@contextmanager
def silence() -> Iterator[None]:
    """No address, header or warning of the libraries reaches a log: they hold query values and tokens."""
    loggers = [logging.getLogger(name) for name in _QUIET]
    loggers += [logging.getLogger(n) for n in list(logging.root.manager.loggerDict) if n.split(".")[0] in _QUIET and "." in n]
    before = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in before:
            logger.setLevel(level)
