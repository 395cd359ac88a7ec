from __future__ import annotations

import pytest

from medfm.data.doctor.verdict import REASONS, REPAIRS, VERDICTS, WARNINGS, Finding, Judged, reason, sort_note, worst_first


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("gantry tilt: slices shift sideways by 3.63 mm (14.0 degrees) along the stack", "tilt"),
        ("missing slices: 1 between the 4 that are there; gantry tilt as well (15.5 degrees)", "missing"),
        ("slice spacing is not uniform: from 1.081 to 6.999 mm; gantry tilt as well (18.5 degrees)", "spacing"),
        ("all 9 images lie at one position: a time series, or several echoes", "duplicate"),
        ("3 of 4 files have no usable ImageOrientationPatient and ImagePositionPatient", "orientation"),
        ("'a.dcm' cannot be decoded: transfer syntax JPEG Extended (1.2.840.10008.1.2.4.51), 12 bits", "syntax"),
        ("'a.png' is not a PNG or JPEG picture, whatever its name says", "damaged"),
        ("'a.nii.gz': truncated: 12 of 400 bytes are there", "damaged"),
        ("is multi-frame (10 frames), and its frames have no position", "position"),
        ("something new", "refused"),
    ],
)
def test_reason__has_the_code_of_what_is_said_first(text: str, code: str) -> None:
    assert reason(text) == Finding(code, text)
    assert code in REASONS


def test_sort_note__repairs_warnings_and_what_is_ordinary() -> None:
    assert sort_note("padding (21 % of pixels, stored -2000) set to stored -1024") is None
    kind, finding = sort_note("12 voxels that are not finite were set to the lowest value") or ("", Finding("", ""))
    assert (kind, finding.code) == ("repair", "values")
    kind, finding = sort_note("not HU: values from -9000 to 3000 look rescaled twice or not HU") or ("", Finding("", ""))
    assert (kind, finding.code) == ("warning", "hu")
    kind, finding = sort_note("sform and qform differ; the sform was taken") or ("", Finding("", ""))
    assert (kind, finding.code) == ("warning", "orientation")
    for table in (REPAIRS, WARNINGS):
        assert finding.code in table or table is REPAIRS


def test_judged__survives_json_and_sorts_worst_first() -> None:
    one = Judged("a#series=0123456789ab", "accepted", "stack", "CT", 4, (10, 12, 4), (1.0, 1.0, 2.5), "RLE Lossless")
    one.warnings.append(Finding("hu", "not HU"))
    one.phi = ("PatientName",)
    assert Judged.from_json(one.as_json()) == one
    other = Judged("b", "accepted", "image")
    third = Judged("c", "accepted", "image")
    third.reject("copy", "copy of 'b'")
    assert sorted([other, one, third], key=worst_first) == [third, one, other]
    assert set(VERDICTS) >= {one.verdict, third.verdict}
