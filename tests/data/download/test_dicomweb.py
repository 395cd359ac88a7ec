"""Retrieval from a DICOMweb server of the test's own, which fails in the ways that servers fail."""

from __future__ import annotations

import datetime
import io
import json
import logging
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from medfm.data.download.config import DownloadConfig
from medfm.data.download.dicomweb import is_whole, retrieve
from medfm.data.download.dicomweb_session import parse_source
from medfm.data.download.http import Policy
from medfm.data.download.run import render, run_download
from medfm.errors import ConfigError, DataError

QUICK = Policy(retries=2, timeout=2.0, pause=0.001)
PATIENT = "MARKER-4711"


def made(study: str, series: str, uid: str, modality: str = "CT", date: str = "20200131", patient: str = PATIENT) -> bytes:
    """A small DICOM file as bytes."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = uid
    d.StudyInstanceUID, d.SeriesInstanceUID, d.Modality = study, series, modality
    d.PatientID, d.PatientName, d.StudyDate = patient, "MARKER^NAME", date
    d.Rows = d.Columns = 64
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit, d.PixelRepresentation = 15, 0
    d.PixelData = np.arange(64 * 64, dtype=np.uint16).tobytes()
    d["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    d.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@dataclass
class Pacs:
    source: str = ""
    instances: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    faults: dict[str, list[Any]] = field(default_factory=dict)  # the path's last part -> what to do, one a request
    extra: list[dict[str, Any]] = field(default_factory=list)  # more entries in instance searches
    login: str = ""
    paged: bool = True
    heeds_filters: bool = True
    requests: list[str] = field(default_factory=list)
    seen_logins: list[str] = field(default_factory=list)

    def add(self, study: str, series: str, uid: str, **options: Any) -> None:
        self.instances[study, series, uid] = made(study, series, uid, **options)

    def wado(self) -> int:
        return sum("/instances/" in r for r in self.requests)


def entry(**values: str) -> dict[str, Any]:
    from pydicom.datadict import tag_for_keyword

    return {f"{tag_for_keyword(k):08X}": {"vr": "UI", "Value": [v]} for k, v in values.items()}


def _handler(pacs: Pacs) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # one packet for head and body: else each answer waits for an acknowledgement

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            pacs.requests.append(self.path)
            pacs.seen_logins.append(self.headers.get("Authorization", ""))
            url = urlsplit(self.path)
            query = {k: v[0] for k, v in parse_qs(url.query).items()}
            parts = [p for p in url.path.split("/") if p][1:]  # after /dicom-web
            faults = pacs.faults.get(parts[-1], [])
            fault = faults.pop(0) if faults else None
            if pacs.login and self.headers.get("Authorization") != pacs.login:
                fault = 401
            if isinstance(fault, int):
                self.send(fault, b"MARKER in an error page", "text/plain")
            elif fault == "drop":
                self.connection.shutdown(2)
                self.close_connection = True
            elif fault == "not json":
                self.send(200, b"<html>MARKER</html>", "application/dicom+json")
            elif len(parts) == 6:
                self.retrieve((parts[1], parts[3], parts[5]), fault)
            else:
                self.search(parts, query)

        def search(self, parts: list[str], query: dict[str, str]) -> None:
            import pydicom

            found: dict[str, dict[str, Any]] = {}
            for (study, series, uid), raw in sorted(pacs.instances.items()):
                d = pydicom.dcmread(io.BytesIO(raw), stop_before_pixels=True)
                if (len(parts) > 1 and parts[1] != study) or (len(parts) > 3 and parts[3] != series):
                    continue
                if pacs.heeds_filters and any(
                    str(getattr(d, k)) != v
                    for k, v in query.items()
                    if k in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality")
                ):
                    continue
                first, _, last = query.get("StudyDate", "-").partition("-")
                if not (first or "0") <= d.StudyDate <= (last or "9"):
                    continue
                if parts[-1] == "studies":
                    found[study] = entry(StudyInstanceUID=study)
                elif parts[-1] == "series":
                    found[series] = entry(StudyInstanceUID=study, SeriesInstanceUID=series, Modality=d.Modality)
                else:
                    found[uid] = entry(StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID=uid)
            listed = [*found.values(), *(pacs.extra if parts[-1] == "instances" else [])]
            if pacs.paged:
                offset, limit = int(query.get("offset", 0)), min(int(query.get("limit", 500)), 500)
                listed = listed[offset : offset + limit]
            if not listed:
                self.send(204, b"", "application/dicom+json")
            else:
                self.send(200, json.dumps(listed).encode(), "application/dicom+json")

        def retrieve(self, key: tuple[str, str, str], fault: Any) -> None:
            raw = pacs.instances.get(key)
            if raw is None:
                self.send(404, b"MARKER", "text/plain")
                return
            kind = 'multipart/related; type="application/dicom"; boundary=XX'
            head, tail = b"\r\n--XX\r\nContent-Type: application/dicom\r\n\r\n", b"\r\n--XX--\r\n"
            body = head + raw + tail
            if fault == "no closing":  # as a proxy does that closes early after a chunked answer
                body = head + raw[:-2000]
            elif fault == "empty":
                body = b"\r\n--XX--\r\n"
            elif fault == "two":
                body = head + raw + head + raw + tail
            elif fault == "other":
                body = head + made(*key[:2], "1.2.3.999") + tail
            elif fault == "no dicom":
                body = head + b"MARKER, no image" + tail
            elif fault == "cut":
                self.send(200, body, kind, cut=len(body) // 2)
                return
            elif fault == "plain":
                self.send(200, raw, "application/dicom")
                return
            elif fault == "html":
                self.send(200, b"<html>MARKER</html>", "text/html")
                return
            self.send(200, body, kind)

        def send(self, status: int, body: bytes, kind: str, cut: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", kind)
            if status == 503:
                self.send_header("Retry-After", "0")
            self.send_header("Warning", f'299 pacs "MARKER of {PATIENT}"')
            self.end_headers()
            self.wfile.write(body[:cut])
            if cut is not None:
                self.wfile.flush()
                self.connection.shutdown(2)
                self.close_connection = True

    return Handler


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    server = Pacs()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    server.source = f"dicomweb://127.0.0.1:{http.server_address[1]}/dicom-web"
    for i in range(4):
        server.add("1.2.1", "1.2.1.1", f"1.2.1.1.{i}")
    server.add("1.2.1", "1.2.1.2", "1.2.1.2.0", modality="SR")
    server.add("1.2.2", "1.2.2.1", "1.2.2.1.0", date="20210615", patient="OTHER")
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    http.shutdown()
    http.server_close()
    thread.join()


def names(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def test_retrieve__everything_byte_for_byte(tmp_path: Path, pacs: Pacs) -> None:
    done = retrieve(pacs.source, tmp_path, policy=QUICK)
    assert (done.studies, done.series, done.instances, done.written, done.again) == (2, 3, 6, 6, 0)
    assert names(tmp_path) == sorted(f"{a}/{b}/{c}.dcm" for a, b, c in pacs.instances)
    for key, raw in pacs.instances.items():
        assert (tmp_path / key[0] / key[1] / f"{key[2]}.dcm").read_bytes() == raw
    assert done.bytes == sum(map(len, pacs.instances.values()))


@pytest.mark.parametrize("heeds_filters", [True, False])
@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"study": "1.2.2"}, ["1.2.2.1.0"]),
        ({"study": "1.2.1", "series": "1.2.1.2"}, ["1.2.1.2.0"]),
        ({"series": "1.2.1.2"}, ["1.2.1.2.0"]),
        ({"modality": ["SR"]}, ["1.2.1.2.0"]),
        ({"study": "1.2.1", "modality": ["SR", "CT"]}, ["1.2.1.1.0", "1.2.1.1.1", "1.2.1.1.2", "1.2.1.1.3", "1.2.1.2.0"]),
        ({"since": datetime.date(2021, 1, 1)}, ["1.2.2.1.0"]),
        ({"until": datetime.date(2020, 1, 31), "modality": ["SR"]}, ["1.2.1.2.0"]),
        ({"since": datetime.date(2020, 2, 1), "until": datetime.date(2020, 3, 1)}, []),
    ],
)
def test_retrieve__filters(
    tmp_path: Path, pacs: Pacs, filters: dict[str, Any], expected: list[str], heeds_filters: bool
) -> None:
    pacs.heeds_filters = heeds_filters
    retrieve(pacs.source, tmp_path, policy=QUICK, **filters)
    assert [Path(n).stem for n in names(tmp_path)] == expected


def test_retrieve__by_patient(tmp_path: Path, pacs: Pacs) -> None:
    assert retrieve(pacs.source, tmp_path, patient="OTHER", policy=QUICK).instances == 1


def test_retrieve__again_fetches_only_what_is_missing_or_broken(tmp_path: Path, pacs: Pacs) -> None:
    retrieve(pacs.source, tmp_path, policy=QUICK)
    files = sorted(tmp_path.rglob("*.dcm"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-100])
    files[2].write_bytes(files[3].read_bytes())  # another instance under this name
    before = pacs.wado()
    done = retrieve(pacs.source, tmp_path, policy=QUICK)
    assert (done.written, done.again) == (3, 3)
    assert pacs.wado() - before == 3
    for key, raw in pacs.instances.items():
        assert (tmp_path / key[0] / key[1] / f"{key[2]}.dcm").read_bytes() == raw


@pytest.mark.parametrize("fault", [503, 429, "drop", "cut", "no closing"])
def test_retrieve__tries_again(tmp_path: Path, pacs: Pacs, fault: Any) -> None:
    pacs.faults = {"1.2.1.1.1": [fault, fault], "instances": [fault] if fault != "no closing" and fault != "cut" else []}
    done = retrieve(pacs.source, tmp_path, policy=QUICK)
    assert done.written == 6
    assert not done.failed
    path = tmp_path / "1.2.1/1.2.1.1/1.2.1.1.1.dcm"
    assert path.read_bytes() == pacs.instances["1.2.1", "1.2.1.1", "1.2.1.1.1"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (404, "the server answers HTTP 404"),
        (500, r"the server answers HTTP 500, 3 times"),
        ("drop", r"the connection failed or broke off, 3 times"),
        ("no closing", r"the connection failed or broke off, 3 times"),
        ("empty", "not of the form that DICOMweb asks for"),
        ("two", "not of the form that DICOMweb asks for"),
        ("html", "not of the form that DICOMweb asks for"),
        ("other", "the server sent another instance than the one asked for"),
        ("no dicom", "the server sent no DICOM file"),
    ],
)
def test_retrieve__one_bad_instance_is_listed_and_the_others_come(tmp_path: Path, pacs: Pacs, fault: Any, reason: str) -> None:
    pacs.faults = {"1.2.1.1.2": [fault] * 9}
    done = retrieve(pacs.source, tmp_path, policy=QUICK)
    assert (done.written, done.instances) == (5, 6)
    assert [path for path, _ in done.failed] == ["1.2.1/1.2.1.1/1.2.1.1.2.dcm"]
    assert reason in done.failed[0][1]
    assert done.failed_path is not None
    assert reason in done.failed_path.read_text()
    assert not (tmp_path / "1.2.1/1.2.1.1/1.2.1.1.2.dcm").exists()
    pacs.faults = {}
    done = retrieve(pacs.source, tmp_path, policy=QUICK)
    assert (done.written, done.again, done.failed_path) == (1, 5, None)
    assert not (tmp_path / "failed.csv").exists()


def test_retrieve__instance_that_is_not_wrapped(tmp_path: Path, pacs: Pacs) -> None:
    pacs.faults = {"1.2.1.1.2": ["plain"]}
    assert retrieve(pacs.source, tmp_path, policy=QUICK).written == 6


def test_retrieve__duplicates_and_uids_that_are_no_path(tmp_path: Path, pacs: Pacs) -> None:
    pacs.extra = [entry(SOPInstanceUID=uid) for uid in ("1.2.1.1.0", "../../evil", "/etc/evil", "1" * 65, "", "1.2.1.1.0")]
    done = retrieve(pacs.source, tmp_path, study="1.2.1", series="1.2.1.1", policy=QUICK)
    assert (done.instances, done.written) == (4, 4)
    assert done.notes == ["4 instances have a UID that is none: left out"]
    assert not list(tmp_path.parent.glob("evil*"))


@pytest.mark.parametrize("paged", [True, False])
def test_retrieve__pages(tmp_path: Path, pacs: Pacs, monkeypatch: pytest.MonkeyPatch, paged: bool) -> None:
    from medfm.data.download import dicomweb

    monkeypatch.setattr(dicomweb, "_PAGE", 2)  # a server that pays no heed to limit and offset must not be asked for ever
    pacs.paged = paged
    assert retrieve(pacs.source, tmp_path, policy=QUICK).written == 6
    assert len(pacs.requests) < 40


def test_retrieve__search_failures(tmp_path: Path, pacs: Pacs) -> None:
    pacs.faults = {"studies": [500] * 9}
    with pytest.raises(DataError, match="the DICOMweb search failed: the server answers HTTP 500, 3 times"):
        retrieve(pacs.source, tmp_path, policy=QUICK)
    pacs.faults = {"studies": ["not json"]}
    with pytest.raises(DataError, match="the server's answer is no DICOM JSON"):
        retrieve(pacs.source, tmp_path, policy=QUICK)
    with pytest.raises(DataError, match="the DICOMweb search failed: the connection failed"):
        retrieve("dicomweb://127.0.0.1:9/x", tmp_path, policy=QUICK)
    with pytest.raises(ConfigError, match="study is no DICOM UID"):
        retrieve(pacs.source, tmp_path, study="../MARKER", policy=QUICK)


def test_retrieve__login(tmp_path: Path, pacs: Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs.login = "Bearer SECRET-TOKEN"
    with pytest.raises(ConfigError, match=r"refuses the login \(HTTP 401\): set token_file="):
        retrieve(pacs.source, tmp_path / "a", policy=QUICK)
    token = tmp_path / "token"
    token.write_text("SECRET-TOKEN\n")
    assert retrieve(pacs.source, tmp_path / "a", token_file=token, policy=QUICK).written == 6
    monkeypatch.setenv("MEDFM_DICOMWEB_TOKEN", "SECRET-TOKEN")
    assert retrieve(pacs.source, tmp_path / "b", policy=QUICK).written == 6
    monkeypatch.delenv("MEDFM_DICOMWEB_TOKEN")
    monkeypatch.setenv("MEDFM_DICOMWEB_USER", "me")
    monkeypatch.setenv("MEDFM_DICOMWEB_PASSWORD", "pw")
    pacs.login = "Basic bWU6cHc="
    assert retrieve(pacs.source, tmp_path / "c", policy=QUICK).written == 6
    with pytest.raises(ConfigError, match="would travel without encryption: use dicomwebs://"):
        retrieve("dicomweb://pacs.example.org/x", tmp_path, policy=QUICK)


def test_retrieve__refused_in_the_midst_stops_at_once(tmp_path: Path, pacs: Pacs) -> None:
    pacs.faults = {f"1.2.1.1.{i}": [403] * 9 for i in range(4)}
    with pytest.raises(ConfigError, match=r"refuses the login \(HTTP 403\)"):
        retrieve(pacs.source, tmp_path, policy=QUICK)


def test_retrieve__says_nothing_of_what_was_asked_for(
    tmp_path: Path,
    pacs: Pacs,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEDFM_DICOMWEB_TOKEN", "SECRET-TOKEN")
    caplog.set_level(logging.DEBUG)
    for name in ("urllib3.connectionpool", "dicomweb_client.web", "pydicom"):
        caplog.set_level(logging.DEBUG, logger=name)
    pacs.faults = {"1.2.1.1.2": [404], "1.2.1.1.1": ["no dicom"], "1.2.1.1.0": ["cut"] * 9, "1.2.1.1.3": ["other"]}
    config = DownloadConfig(source=pacs.source, root=tmp_path, patient=PATIENT, retries=0, timeout=2)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(DataError) as error:
            run_download(config, progress=True)
    out = capfd.readouterr()
    text = f"{error.value}{caplog.text}{out.out}{out.err}{[str(w.message) for w in heard]}"
    assert "4 of 5 instances could not be retrieved" in text
    for secret in ("MARKER", "4711", "SECRET", "1.2.1.1"):
        assert secret not in text.replace(str(tmp_path), ""), secret


def test_run_download__dicomweb(tmp_path: Path, pacs: Pacs) -> None:
    config = DownloadConfig(source=pacs.source, root=tmp_path, study="1.2.1", timeout=2)
    report = run_download(config)
    assert report.retrieved.written == 5
    assert report.index == f"medfm index images={tmp_path} text_kind=none out=manifest.parquet"
    from rich.console import Console

    console = Console(record=True, width=200, file=io.StringIO())
    console.print(render(report))
    assert "5 instances of 2 series of 1 studies retrieved" in console.export_text()
    with pytest.raises(DataError, match="the search found nothing"):
        run_download(DownloadConfig(source=pacs.source, root=tmp_path, study="1.2.99", timeout=2))


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("dicomweb://host:8042/dicom-web/", "http://host:8042/dicom-web"),
        ("dicomweb+http://host/x", "http://host/x"),
        ("dicomwebs://host", "https://host"),
        ("dicomweb+https://host:1/a/b", "https://host:1/a/b"),
        ("dicomweb://[::1]:8042/x", "http://[::1]:8042/x"),
    ],
)
def test_parse_source(source: str, url: str) -> None:
    assert parse_source(source) == url


@pytest.mark.parametrize(
    "source",
    ["http://host", "dicomweb:///x", "dicomweb://me:SECRET@host/x", "dicomweb://h/x?q=SECRET", "dicomweb://[::1/SECRET"],
)
def test_parse_source__refused_without_echo(source: str) -> None:
    with pytest.raises(ConfigError, match="source must") as error:
        parse_source(source)
    assert "SECRET" not in str(error.value)


def test_is_whole__real_files_and_their_cut_copies(tmp_path: Path) -> None:
    import pydicom
    from pydicom.data import get_testdata_file

    for name in ("CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "rtplan.dcm"):
        raw = Path(str(get_testdata_file(name))).read_bytes()
        uid = str(pydicom.dcmread(io.BytesIO(raw)).SOPInstanceUID)
        path = tmp_path / name
        path.write_bytes(raw)
        assert is_whole(path, uid), name
        assert not is_whole(path, uid + "1"), name
        path.write_bytes(raw[:-50])
        assert not is_whole(path, uid), name
    assert not is_whole(tmp_path / "absent.dcm", "1.2")
