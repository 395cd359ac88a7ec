"""One generated study: everything about study k of a seed follows from (kind, seed, size, k) alone."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from medfm.data.phantom import anatomy, findings, projection, questions, reports, scene, volume
from medfm.data.phantom.findings import Finding

Kind = Literal["chest_xray", "chest_ct"]
# Number streams of numpy generators, so that no two draws share one.
_PATIENT, _VISITS, _STUDY, _LATERAL = 1, 2, 3, 4
_KINDS = {"chest_xray": 0, "chest_ct": 1}
DEFAULT_SIZE = {"chest_xray": 256, "chest_ct": 96}


@dataclass(frozen=True)
class Visit:
    """Which patient comes, for which time."""

    kind: Kind
    seed: int
    size: int
    index: int
    patient: int
    visit: int

    @property
    def patient_id(self) -> str:
        """Holds the seed: sets of two seeds have no patient in common. Equal over kinds: the same body is imaged."""
        return f"PHANTOM-{self.seed}-{self.patient:06d}"

    @property
    def study_id(self) -> str:
        return f"{'CT' if self.kind == 'chest_ct' else 'CXR'}-{self.seed}-{self.index:06d}"

    def uid(self, role: str) -> str:
        """A UUID-derived UID (DICOM PS3.5 B.2), fixed by what is identified."""
        text = f"medfm phantom/{self.kind}/{self.seed}/{self.size}/{self.index}/{role}"
        return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"


@dataclass(frozen=True)
class Box:
    """A finding's bounding box in pixels of one image; x1 and y1 are one beyond the last."""

    finding: str
    side: str
    zone: str
    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(eq=False)
class View:
    """One image of a study. `name` is its path below `images/` (films) or the series folder (CT)."""

    name: str
    view: str
    film: projection.Film | None
    volume: volume.Volume | None
    boxes: list[Box]
    questions: list[questions.Question]
    inverted: bool
    compression: Literal["", "rle", "jpeg_ls", "jpeg_2000"]


@dataclass(eq=False)
class Study:
    visit: Visit
    patient: anatomy.Patient
    age: int
    date: datetime.date
    findings: list[Finding]
    labels: dict[str, int]
    ratio: float
    report: str
    views: list[View]

    @property
    def modality(self) -> str:
        """Portable films are CR, films of the X-ray room are DX."""
        if self.visit.kind == "chest_ct":
            return "CT"
        return "CR" if self.views[0].view == "AP" else "DX"


def schedule(kind: Kind, n: int, seed: int, size: int) -> Iterator[Visit]:
    """The first n studies: patients in turn, each with 1 to 3 visits."""
    patient = index = 0
    while index < n:
        visits = int(np.random.default_rng([seed, _VISITS, patient]).choice((1, 2, 3), p=(0.55, 0.3, 0.15)))
        for visit in range(min(visits, n - index)):
            yield Visit(kind, seed, size, index, patient, visit)
            index += 1
        patient += 1


def simulate(visit: Visit) -> Study:
    """Images the patient."""
    patient = anatomy.sample_patient(visit.patient, np.random.default_rng([visit.seed, _PATIENT, visit.patient]))
    rng = np.random.default_rng([visit.seed, _STUDY, _KINDS[visit.kind], visit.index])
    day = 37 * visit.patient % 700 + 211 * visit.visit
    if visit.kind == "chest_ct":
        main, more = "CT", tuple[str, ...]()
    else:
        main = "AP" if rng.random() < 0.3 else "PA"
        more = ("LATERAL",) if rng.random() < (0.15 if main == "PA" else 0.02) else ()
    found = findings.draw(main, rng)
    congestion = max((f.amount for f in found if f.name == "Edema"), default=0.0)
    breath = float(np.clip(rng.normal(-6 if main == "AP" else 2, 6), -16, 14))
    body = [int(s) for s in rng.integers(0, 2**32, 2)]  # the same organs for every view of the study

    def scenery(supine: bool, arms_up: bool) -> scene.Scene:
        organs = anatomy.build(patient, breath, congestion, arms_up, np.random.default_rng(body))
        return scene.make(organs, found, supine, np.random.default_rng([*body, 1]))

    views: list[View] = []
    if main == "CT":
        taken = volume.voxelise(scenery(supine=True, arms_up=True), visit.size, rng)
        ratio = taken.ratio
        views.append(View(visit.study_id, "CT", None, taken, [], [], False, ""))
    else:
        exposure = projection.sample_exposure(main, patient.width, rng)
        film = projection.film(scenery(supine=False, arms_up=False), exposure, visit.size, rng)
        ratio = film.ratio
        for view in (main, *more):
            if view != main:
                rng = np.random.default_rng([visit.seed, _LATERAL, visit.index])
                exposure = projection.sample_exposure(view, patient.width, rng)
                film = projection.film(scenery(supine=False, arms_up=True), exposure, visit.size, rng)
            squeeze = ("rle", "jpeg_ls", "jpeg_2000")[int(rng.integers(3))] if rng.random() < 0.2 else ""
            name = f"{visit.study_id}_{view}.dcm"
            views.append(View(name, view, film, None, [], [], bool(rng.random() < 0.2), squeeze))  # type: ignore[arg-type]
    rng = np.random.default_rng([*body, 2])
    found = findings.with_ratio(found, ratio)
    table = findings.labels(found)
    for image in views:
        image.questions = questions.questions(found, table, image.view, rng)
        if image.film is not None:
            image.boxes = boxes(image.film.mask, found)
    text = reports.report(found, (main, *more), visit.visit > 0, rng)
    return Study(
        visit=visit,
        patient=patient,
        age=patient.age + (day // 365 if patient.age < 89 else 0),
        date=datetime.date(2020, 1, 1) + datetime.timedelta(days=day),
        findings=found,
        labels=table,
        ratio=ratio,
        report=text,
        views=views,
    )


def boxes(mask: np.ndarray, found: list[Finding]) -> list[Box]:
    """Boxes of the findings that a mask (rows, columns) of bits shows."""
    result = []
    for finding in found:
        name = {"Cardiomegaly": "Heart"}.get(finding.name, f"{finding.side.capitalize()} {finding.name}".strip())
        name = "Support Devices" if finding.kind else name
        bit = projection.BITS.get(name, 0)
        rows, cols = np.flatnonzero((mask & bit).any(axis=1)), np.flatnonzero((mask & bit).any(axis=0))
        if len(rows):
            x0, x1, y0, y1 = (int(v) for v in (cols[0], cols[-1] + 1, rows[0], rows[-1] + 1))
            result.append(Box(finding.name, finding.side, finding.zone, x0, y0, x1, y1))
    return result


def image_path(visit: Visit, view: View) -> str:
    """Relative path that a manifest names: the film, or the CT as one NIfTI volume."""
    folder, suffix = ("volumes", ".nii.gz") if visit.kind == "chest_ct" else ("images", "")
    return str(PurePosixPath(folder) / (view.name + suffix))


def mask_path(view: View) -> str:
    return f"masks/{view.name.removesuffix('.dcm')}.nii.gz"
