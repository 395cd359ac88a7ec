"""Shapes and ray sums against arithmetic that can be done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medfm.data.phantom.findings import Finding, labels, with_ratio
from medfm.data.phantom.projection import BITS, Beam, Exposure, cardiothoracic_ratio
from medfm.data.phantom.shapes import Points, Segments, cylinder, ellipsoid, tube
from medfm.data.phantom.study import schedule, simulate


def beam(view: str = "PA", size: int = 128, **options: float) -> Beam:
    # A source 100 m away is a parallel beam.
    return Beam(Exposure(view, distance=100_000.0, gap=10.0, field=320.0, **options), size)  # type: ignore[arg-type]


def test_chord__sphere_and_volume() -> None:
    lens = beam()
    ball = ellipsoid((10.0, 5.0, -20.0), (40.0, 40.0, 40.0))
    chord = lens.rays().chord(ball)
    assert chord.max() == pytest.approx(80.0, rel=6e-3)  # no pixel lies exactly in the middle
    # Path length summed over the pixels' areas is the volume.
    assert chord.sum() * lens.pitch**2 == pytest.approx(4 / 3 * np.pi * 40**3, rel=5e-3)
    row, column = np.unravel_index(chord.argmax(), chord.shape)
    assert abs(column - (63.5 + 10 / 2.5)) <= 1  # towards the patient's left is to the right
    assert abs(row - (63.5 + 20 / 2.5)) <= 1  # below the middle


def test_chord__turned_ellipsoid_keeps_its_volume() -> None:
    lens = beam(yaw=20.0, roll=10.0)
    turned = ellipsoid((0.0, 0.0, 0.0), (60.0, 30.0, 45.0), tilt=25.0, pitch=15.0, yaw=40.0)
    volume = 4 / 3 * np.pi * 60 * 30 * 45
    assert lens.rays().chord(turned).sum() * lens.pitch**2 == pytest.approx(volume, rel=5e-3)


def test_segments__union_is_cut_once() -> None:
    rays = beam().rays()
    ball = ellipsoid((0.0, 0.0, 0.0), (50.0, 50.0, 50.0))
    left, right = ellipsoid((0.0, -10.0, 0.0), (20.0, 20.0, 20.0)), ellipsoid((0.0, 10.0, 0.0), (20.0, 20.0, 20.0))
    rest = Segments([rays.span(ball)]).minus(rays.span(left)).minus(rays.span(right)).length(rays.shape)
    # On the middle ray the two holes cover y from -30 to 30 together.
    assert rest[63:65, 63:65].mean() == pytest.approx(40.0, abs=0.6)
    kept = Segments([rays.span(ball)]).within(rays.span(left)).length(rays.shape)
    np.testing.assert_allclose(kept, rays.chord(left), atol=1e-2)


def test_span__agrees_with_inside() -> None:
    rays = beam("LATERAL", size=48, yaw=7.0).rays()
    solid = cylinder((5.0, -10.0), (30.0, 20.0), -60.0, 80.0) & ellipsoid((0.0, 0.0, 0.0), (60.0, 60.0, 90.0), tilt=10.0)
    t = np.arange(-150, 150, 0.5, dtype=np.float32)
    points = rays.origin[..., None] + rays.direction[..., None] * t
    marched = solid.inside(np.moveaxis(points, 0, -1)).sum(axis=-1) * 0.5
    np.testing.assert_allclose(rays.chord(solid), marched, atol=1.6)
    assert marched.max() > 30


def test_splat__keeps_the_volume_of_a_tube() -> None:
    lens = beam()
    line = np.stack([np.linspace(-80, 80, 400), np.zeros(400), np.linspace(-50, 60, 400)], axis=1)
    rod = tube(line, 4.0)
    length = float(np.hypot(160, 110))
    assert rod.volume.sum() == pytest.approx(np.pi * 16 * length, rel=5e-3)
    assert lens.splat(rod).sum() * lens.pitch**2 == pytest.approx(float(rod.volume.sum()), rel=5e-3)


def test_beam__points_and_rays_meet() -> None:
    lens = Beam(Exposure("AP", 1100.0, 130.0, 380.0, yaw=5.0, roll=3.0, shift=(6.0, -4.0)), 128)
    for place in ((40.0, -30.0, 60.0), (-55.0, 20.0, -35.0)):
        chord = lens.rays().chord(ellipsoid(place, (9.0, 9.0, 9.0)))
        rows, columns = np.nonzero(chord)
        weights = chord[rows, columns]
        column, row, scale = lens.pixels(np.array([place], np.float32))
        assert np.average(columns, weights=weights) == pytest.approx(column[0], abs=0.3)
        assert np.average(rows, weights=weights) == pytest.approx(row[0], abs=0.3)
        assert scale[0] == pytest.approx(1.13, abs=0.06)
    assert lens.splat(Points(np.zeros((1, 3), np.float32), np.ones(1, np.float32))).sum() > 0


def test_cardiothoracic_ratio__counts_columns() -> None:
    mask = np.zeros((10, 30), np.uint16)
    mask[2:8, 5:12] = BITS["Right Lung"]
    mask[2:8, 15:25] = BITS["Left Lung"]
    mask[4:7, 10:18] |= BITS["Heart"]
    assert cardiothoracic_ratio(mask) == 8 / 20
    assert np.isnan(cardiothoracic_ratio(np.zeros((4, 4), np.uint16)))


def test_labels__both_sides_hedges_and_normal() -> None:
    assert labels([])["No Finding"] == 1
    assert labels([Finding("Support Devices", kind="pacemaker")])["No Finding"] == 1
    doubt = labels([Finding("Nodule", "left", "upper", "small", 9, hedged=True)])
    assert (doubt["Nodule"], doubt["Left Nodule"], doubt["Right Nodule"], doubt["No Finding"]) == (-1, -1, 0, -1)
    fluid = [Finding("Pleural Effusion", "left", hedged=True), Finding("Pleural Effusion", "right")]
    both = labels(fluid)
    assert (both["Pleural Effusion"], both["Left Pleural Effusion"], both["Right Pleural Effusion"]) == (1, -1, 1)
    assert (both["Bilateral Pleural Effusion"], both["No Finding"]) == (-1, 0)
    assert [labels(with_ratio([], r))["Cardiomegaly"] for r in (0.48, 0.495, 0.505, 0.52)] == [0, -1, -1, 1]


def test_schedule__does_not_depend_on_n() -> None:
    few, many = list(schedule("chest_xray", 10, 4, 64)), list(schedule("chest_xray", 200, 4, 64))
    assert many[:10] == few
    visits = [v.visit for v in many]
    assert set(visits) == {0, 1, 2}
    assert len({v.patient for v in many}) < 160
    assert len({v.uid("study") for v in many}) == 200
    assert all(v.uid("a").startswith("2.25.") and len(v.uid("a")) <= 64 for v in many)


@pytest.fixture(scope="module")
def studies() -> list:
    return [simulate(visit) for visit in schedule("chest_xray", 40, 11, 96)]


def test_simulate__findings_lie_on_their_side_and_in_their_zone(studies: list) -> None:
    seen = set()
    for study in studies:
        film = study.views[0].film
        middle = film.mask.shape[1] / 2
        lungs = film.mask & (BITS["Right Lung"] | BITS["Left Lung"])
        rows = np.flatnonzero(lungs.any(axis=1))
        for finding in study.findings:
            bit = BITS.get(f"{finding.side.capitalize()} {finding.name}", 0)
            where = np.argwhere(film.mask & bit)
            if not bit:
                continue
            assert len(where), f"{finding.name} left no mask"
            # The patient's left is on the image's right.
            assert (where[:, 1].mean() > middle) == (finding.side == "left")
            if finding.name in ("Nodule", "Consolidation"):
                height = (where[:, 0].mean() - rows[0]) / (rows[-1] - rows[0])
                low, high = {"upper": (0.0, 0.45), "mid": (0.2, 0.7), "lower": (0.4, 1.0)}[finding.zone]
                assert low < height < high
            if finding.name == "Nodule":
                across = np.ptp(where[:, 1]) + 1
                assert across * film.pitch / 1.25 == pytest.approx(finding.amount, abs=1.3 * film.pitch + 0.15 * finding.amount)
            seen.add(finding.name)
    assert {"Pleural Effusion", "Pneumothorax", "Consolidation", "Nodule"} <= seen


def test_simulate__cardiomegaly_is_what_the_mask_measures(studies: list) -> None:
    outcomes = set()
    for study in studies:
        ratio = cardiothoracic_ratio(study.views[0].film.mask)
        assert study.ratio == ratio
        assert study.labels["Cardiomegaly"] == (1 if ratio > 0.51 else 0 if ratio < 0.49 else -1)
        outcomes.add(study.labels["Cardiomegaly"])
    assert {0, 1} <= outcomes


def test_simulate__fluid_is_bright_and_free_air_is_dark(studies: list) -> None:
    compared = set()
    for study in studies:
        film = study.views[0].film
        names = {f.name for f in study.findings}
        for name, brighter in (("Pleural Effusion", True), ("Pneumothorax", False)):
            sides = [f.side for f in study.findings if f.name == name and f.extent == "large"]
            if len(sides) != 1 or "Edema" in names or len(names & {"Pleural Effusion", "Pneumothorax", "Consolidation"}) > 1:
                continue
            bit = film.mask & BITS[f"{sides[0].capitalize()} {name}"] > 0
            other = bit[:, ::-1] & (film.mask & BITS["Heart"] == 0)
            gap = np.median(film.values[bit].astype(float)) - np.median(film.values[other].astype(float))
            assert (gap > 0) == brighter
            compared.add(name)
    assert compared == {"Pleural Effusion", "Pneumothorax"}


def test_simulate__share_of_normal_and_uncertain() -> None:
    from medfm.data.phantom.findings import draw

    tables = [labels(draw("PA", np.random.default_rng(k))) for k in range(3000)]
    share = {name: np.mean([t[name] == 1 for t in tables]) for name in tables[0]}
    assert 0.42 < share["No Finding"] < 0.50  # before the fifth with large hearts
    for name in ("Pleural Effusion", "Pneumothorax", "Consolidation", "Nodule"):
        assert 0.11 < share[name] < 0.22
        assert share[f"Left {name}"] == pytest.approx(share[f"Right {name}"], abs=0.025)
        assert 0.002 < np.mean([t[name] == -1 for t in tables]) < 0.03
