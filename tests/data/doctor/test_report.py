from __future__ import annotations

import json
import re
from pathlib import Path

from PIL import Image

from medfm.data.doctor.report import DoctorReport, sort, write_json, write_pages
from medfm.data.doctor.verdict import Finding, Judged


def made(tmp_path: Path, n: int) -> DoctorReport:
    (tmp_path / "thumbnails").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "thumbnails" / "x.jpg")
    judged = []
    for i in range(n):
        one = Judged(f"f/<b>{i}", "accepted", "image", "CR", shape=(10, 12, 1), thumbnail="thumbnails/x.jpg")
        if i % 10 == 0:
            one.reject("missing", "missing slices: <3>")
        if i % 3 == 0:
            one.warnings.append(Finding("inverted", "seems inverted"))
        one.phi = ("PatientName", f"{i + 1} private tags")
        judged.append(one)
    return DoctorReport(Path("in"), tmp_path, n, sort(judged))


def test_write_pages__worst_first_in_pages_that_stand_alone(tmp_path: Path) -> None:
    report = made(tmp_path, 700)
    (tmp_path / "doctor-9.html").write_text("stale")
    first = write_pages(report, most=1000)
    names = sorted(p.name for p in tmp_path.glob("*.html"))
    assert names == ["doctor-2.html", "doctor-3.html", "doctor.html"]
    page = first.read_text()
    cards = re.findall(r'<li class="(is-[a-z-]+)', page)
    assert len(cards) == 300
    assert cards[:70] == ["is-rejected"] * 70
    assert "is-rejected" not in (tmp_path / "doctor-3.html").read_text().split("</style>")[1]
    assert "<b>" not in page  # escaped
    assert "missing slices: &lt;3&gt;" in page
    assert not re.search(r'(src|href)="(?!data:image/jpeg|doctor(-\d)?\.html)', page)  # nothing from outside
    assert page.count('loading="lazy"') == 300
    assert 'lang="en"' in page
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img [^>]*>", page))
    capped = write_pages(report, most=10)
    assert "The first 300 of 700" in capped.read_text()
    assert [p.name for p in tmp_path.glob("doctor-*.html")] == []


def test_write_json__one_series_a_line(tmp_path: Path) -> None:
    report = made(tmp_path, 20)
    path = write_json(report)
    assert len(json.loads(path.read_text())["judged"]) == 20
    lines = [line.rstrip(",") for line in path.read_text().splitlines() if line.startswith('{"path"')]
    assert [json.loads(line)["verdict"] for line in lines].count("rejected") == 2
    assert report.codes("reasons") == {"missing": 2}
    assert report.identifying == {"PatientName": 20, "private tags": 20}


def test_write_pages__nothing_found(tmp_path: Path) -> None:
    report = DoctorReport(Path("in"), tmp_path, 0, [])
    assert "0 series in 0 files" in write_pages(report, 100).read_text()
    assert json.loads(write_json(report).read_text())["judged"] == []
