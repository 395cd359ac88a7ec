"""Anatomy with findings in it: fluid, free air, consolidated lung, nodules, devices as geometry."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from medfm.data.phantom.anatomy import MU_DEVICE, SIGN, Anatomy
from medfm.data.phantom.findings import Finding
from medfm.data.phantom.shapes import Points, Solid, ellipsoid, join, resample, tube


@dataclass(eq=False)
class Scene:
    """What is imaged.

    Attributes:
        fluid: per side, (the half-space that fluid may fill, the bowl-shaped lung that floats in it or None).
        collapsed: per side, the lung that is left by a pneumothorax, and the same without its 1.5 mm of visceral pleura.
        blobs: per side, the parts of a consolidation and the share of air they replace.
        nodules: per side.
        edema: 0 to 1.
        devices: points with their attenuation beyond soft tissue.
    """

    anatomy: Anatomy
    findings: list[Finding]
    fluid: dict[str, tuple[Solid, Solid | None]] = field(default_factory=dict)
    collapsed: dict[str, tuple[Solid, Solid]] = field(default_factory=dict)
    blobs: dict[str, tuple[list[Solid], float]] = field(default_factory=dict)
    nodules: dict[str, Solid] = field(default_factory=dict)
    edema: float = 0.0
    devices: list[tuple[Points, float]] = field(default_factory=list)

    def in_fluid(self, side: str, points: np.ndarray) -> np.ndarray:
        """(..., 3) points of the pleural cavity -> bool."""
        if side not in self.fluid:
            return np.zeros(points.shape[:-1], bool)
        below, bowl = self.fluid[side]
        wet = below.inside(points)
        return wet if bowl is None else wet & ~bowl.inside(points)

    def vessels(self, side: str) -> Points:
        """The vessels that show: inside aerated lung."""
        points = self.anatomy.vessels[side]
        keep = self.anatomy.in_cavity(side, points.position)
        if side in self.collapsed:
            keep &= self.collapsed[side][1].inside(points.position)
        if side in self.fluid:
            keep &= ~self.in_fluid(side, points.position)
        if side in self.blobs:
            for blob in self.blobs[side][0]:
                keep &= ~blob.inside(points.position)
        return points.where(keep)


def make(anatomy: Anatomy, found: list[Finding], supine: bool, rng: np.random.Generator) -> Scene:
    """Gives every finding its place. Cardiomegaly is already in the anatomy.

    In a `supine` patient fluid lies at the back and free air in front; otherwise fluid stands at the base and air rises.
    """
    scene = Scene(anatomy, found)
    for finding in found:
        side = finding.side
        if finding.name == "Pleural Effusion":
            scene.fluid[side] = _layer(anatomy, side, finding.amount) if supine else _fluid(anatomy, side, finding.amount)
        elif finding.name == "Pneumothorax":
            lung, core = (_collapsed(anatomy, side, finding.amount + pleura, supine) for pleura in (0.0, 1.5))
            scene.collapsed[side] = lung, core
        elif finding.name == "Consolidation":
            density = 0.42 if finding.hedged else 0.88
            scene.blobs[side] = _consolidation(anatomy, finding, rng), density
        elif finding.name == "Nodule":
            radius = finding.amount / 2
            place = _place(anatomy, side, finding.zone, radius + 6, rng)
            wobble = rng.uniform(0.93, 1.07, 3)
            scene.nodules[side] = ellipsoid(tuple(place), tuple(radius * wobble / wobble.mean()))
        elif finding.name == "Edema":
            scene.edema = finding.amount
        elif finding.name == "Support Devices":
            scene.devices = _device(anatomy, finding, rng)
    return scene


def _layer(anatomy: Anatomy, side: str, share: float) -> tuple[Solid, None]:
    """Fluid at the back of a supine patient, up to a share of the chest's depth."""
    _, y, _ = anatomy.center[side]
    half_y = anatomy.half[1]
    return Solid((), (((0.0, -1.0, 0.0), -(y + half_y * (1 - 1.6 * share))),)), None


def _fluid(anatomy: Anatomy, side: str, share: float) -> tuple[Solid, Solid]:
    """Fluid up to a share of the lung's height, its surface rising to the chest wall (the meniscus)."""
    x, y, _ = anatomy.center[side]
    half_x, half_y = anatomy.half
    floor, apex = anatomy.floor[side], anatomy.apex[side]
    rise = (44 + 80 * min(share, 0.45)) * anatomy.patient.height
    low = floor + share * (apex - floor) - 0.35 * rise
    # The rim reaches the lateral wall at the top, and the bowl leans over the mediastinum.
    bowl = ellipsoid((x - SIGN[side] * 0.18 * half_x, y, low + rise), (1.20 * half_x, 1.03 * half_y, rise))
    return Solid((), (((0.0, 0.0, 1.0), low + rise),)), bowl


def _collapsed(anatomy: Anatomy, side: str, gap: float, supine: bool) -> Solid:
    """The lung after it has left the chest wall by `gap` mm: at its side and, upright, more at its apex; supine, in front."""
    p, s = anatomy.patient, SIGN[side]
    w, d, h = p.width, p.depth, p.height
    side_gap, high = (0.3 * gap, 0.5 * gap) if supine else (gap, 1.5 * gap)
    front = gap if supine else 0.3 * gap
    back = 0.0 if supine else 0.3 * gap
    move, thin = (front - back) / 2, (front + back) / 2
    lung = ellipsoid(
        (s * (73 * w - side_gap / 2), 2 * d + move, -45 * h - high / 2),
        (74 * w - side_gap / 2, 99 * d - thin, 196 * h - high / 2),
        tilt=-5.5 * s,
    )
    cage = ellipsoid((0, move, -90 * h - high / 2), (143 * w - side_gap, 97 * d - thin, 262 * h - high / 2))
    return lung & cage


def _consolidation(anatomy: Anatomy, finding: Finding, rng: np.random.Generator) -> list[Solid]:
    across = finding.amount
    place = _place(anatomy, finding.side, finding.zone, 18, rng)
    count = 9
    offsets = rng.normal(size=(count, 3))
    offsets *= 0.34 * across * rng.random((count, 1)) ** 0.5 / np.linalg.norm(offsets, axis=1, keepdims=True)
    radii = across * rng.uniform(0.17, 0.27, (count, 3))
    return [ellipsoid(tuple(place + o), tuple(r), yaw=float(rng.uniform(0, 90))) for o, r in zip(offsets, radii, strict=True)]


def zone_range(anatomy: Anatomy, side: str, zone: str) -> tuple[float, float]:
    """z of a zone's bottom and top: thirds of the lung between the diaphragm's dome and the apex."""
    low, high = anatomy.dome[side], anatomy.apex[side]
    k = ("lower", "mid", "upper").index(zone)
    return low + (high - low) * k / 3, low + (high - low) * (k + 1) / 3


def _place(anatomy: Anatomy, side: str, zone: str, margin: float, rng: np.random.Generator) -> np.ndarray:
    """A point (3,) at least about `margin` mm inside aerated lung, seen clear of the heart and the diaphragm from the front."""
    low, high = zone_range(anatomy, side, zone)
    x, y, _ = anatomy.center[side]
    half_x, half_y = anatomy.half
    n = 1500
    points = np.stack(
        [rng.uniform(x - half_x, x + half_x, n), rng.uniform(y - half_y, y + half_y, n), rng.uniform(low + 4, high - 4, n)],
        axis=1,
    ).astype(np.float32)
    seen = points.copy()
    for shrink in (1.0, 0.75, 0.5, 0.25, 0.0):
        keep = anatomy.in_cavity(side, points)
        for axis in range(3):
            for sign in (-1, 1):
                moved = points.copy()
                moved[:, axis] += sign * margin * shrink
                keep &= anatomy.in_cavity(side, moved)
        for solid, front in ((anatomy.heart, -28), (anatomy.carve[side][0], 8)):
            seen[:, 1] = front * anatomy.patient.depth
            for reach in (-0.7, 0.7):
                seen[:, 0] = points[:, 0] + reach * margin * shrink
                keep &= ~solid.inside(seen)
            seen[:, 0] = points[:, 0]
            seen[:, 2] = points[:, 2] - 0.7 * margin * shrink
            keep &= ~solid.inside(seen)
            seen[:, 2] = points[:, 2]
        if keep.any():
            return points[int(np.argmax(keep))].astype(np.float64)
    return np.array([x, y, (low + high) / 2])


def _device(anatomy: Anatomy, finding: Finding, rng: np.random.Generator) -> list[tuple[Points, float]]:
    p = anatomy.patient
    scale = np.array([p.width, p.depth, p.height])
    s = SIGN.get(finding.side, 0.0)
    vein = [[-19, -8, 96], [-18, -8, 40]]
    if finding.kind == "endotracheal tube":
        line = resample(np.array([[0, 12, 260], [-1, 15, 200], [-3, 20, 90], [-3, 21, 66]]) * scale, 0.8)
        stripe = line + np.array([3.0, -3.0, 0], np.float32)
        return [(tube(stripe, 1.6, ((0.6, 4),)), MU_DEVICE), (tube(line, 5.0, ((0.9, 10),)), 0.03)]
    if finding.kind == "central line":
        start = [[s * 40, 8, 230], [s * 36, 2, 150]] if rng.random() < 0.6 else [[s * 130, -75, 96], [s * 80, -60, 108]]
        tip = [-18, -8, float(rng.uniform(8, 36))]
        line = resample(_curve(np.array([*start, *vein[:1], tip]) * scale), 0.8)
        return [(tube(line, 1.7, ((0.6, 4),)), MU_DEVICE)]
    # Pacemaker: a titanium can under the skin below the clavicle, leads through the subclavian vein to the right heart.
    front = -(112 * p.depth + p.fat) * 0.78
    place = np.array([s * 108 * p.width, front, 62 * p.height])
    u = np.linspace(-1, 1, 34)
    gx, gz = np.meshgrid(u, u)
    keep = gx**4 + np.abs(gz) ** 4 < 1
    can = np.stack([place[0] + 24 * gx[keep], np.full(keep.sum(), front), place[2] + 20 * gz[keep]], axis=1).astype(np.float32)
    volume = np.full(len(can), 4 * 24 * 20 * 0.85 * 7.0 / len(can), np.float32)
    atrium = np.array([[-16, -14, 6], [-30, -34, -14], [-24, -44, -2]]) * scale
    apex = np.array([[-14, -14, 0], [0, -30, -44], [40 * p.heart, -40, -66]]) * scale
    leads = []
    for end in (atrium, apex):
        route = np.concatenate([(place + np.array([0, 8, 18]))[None], np.array([[s * 70, -48, 106], *vein[:1]]) * scale, end])
        leads.append(tube(resample(_curve(route), 0.8), 1.4, ((0.5, 4),)))
    return [(Points(can, volume), MU_DEVICE), (join(leads), MU_DEVICE)]


def _curve(knots: np.ndarray) -> np.ndarray:
    """A smooth curve through knots (K, 3): Catmull-Rom, 12 samples a piece."""
    padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    t = np.linspace(0, 1, 12, endpoint=False)[:, None]
    pieces = []
    for a, b, c, e in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - e) * t**2 + (3 * b - a - 3 * c + e) * t**3))
    return np.concatenate([*pieces, knots[-1:]])
