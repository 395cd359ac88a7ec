"""The README.md that every generated folder holds."""

from __future__ import annotations

from medfm.data.phantom.findings import LABELS
from medfm.data.phantom.projection import BITS
from medfm.data.phantom.volume import VALUES

_FILMS = """\
    images/*.dcm       films: CR (portable AP) and DX (PA, some LATERAL), 12 bits; about a fifth MONOCHROME1, a fifth compressed
                       (RLE, JPEG-LS, JPEG 2000, all lossless). The patient's left is on the image's right, by a burned-in L
    reports.csv        one row an image: ids, view, sex, age, a split by patient, the report, one column a label (1, 0, -1)
    masks/*.nii.gz     exact projections of what was put in, (columns, rows, 1) uint16 on the film's grid. They overlap, so
                       values are sums of bits: `mask & 4` is the heart. A lung is its pleural cavity, with fluid and air
    boxes.csv          boxes of findings in pixels; x1 and y1 are one beyond the last pixel
    questions.csv      questions with answers, open and closed
"""
_CTS = """\
    volumes/*.nii.gz   CTs in Hounsfield units, int16
    images/<study>/    the same CTs as DICOM series
    reports.csv        one row a CT: ids, sex, age, a split by patient, the report, one column a label (1, 0, -1)
    masks/*.nii.gz     exact label maps on the volume's grid, uint8
    questions.csv      questions with answers, open and closed
"""


def readme(kind: str, n: int, seed: int, size: int, masks: bool) -> str:
    films = kind == "chest_xray"
    values = BITS if films else VALUES
    table = "\n".join(f"    {value:>5}  {name}" for name, value in values.items())
    what = "bits" if films else "values"
    return f"""# medfm phantom: {kind}, {n} studies, seed {seed}

Made by `medfm phantom kind={kind} n={n} seed={seed} size={size} masks={str(masks).lower()} out=...`. The same command gives the
same bytes.

**A generated world with known answers.** No person was imaged. Bodies are ellipsoids and tubes with physical attenuation;
findings are matter added to them; reports are sentences filled from a table. Use it to test software, to learn medfm and as an
oracle whose answers are exact. Numbers reached on it say that a pipeline works. They say nothing about patients, and no claim
about patients may rest on them. There is no licence to observe and nothing private in it.

## What is here

{_FILMS if films else _CTS}
`phantom.json` and `.studies/` let an interrupted run go on; they may be deleted afterwards.

## Labels

{", ".join(LABELS)}.

They follow the geometry. `Cardiomegaly` is 1 where the cardiothoracic ratio, measured on the image, is above 0.51, 0 below
0.49, and -1 between. -1 elsewhere marks a subtle finding that the report calls possible. `No Finding` is 1 where nothing but
devices is present. Zones are thirds of the lung between the diaphragm's dome and the apex.

## Mask {what}

{table}
"""
