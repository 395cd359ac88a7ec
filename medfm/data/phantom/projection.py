"""Radiographs: ray sums by a cone beam, Beer-Lambert, scatter, blur and quantum noise, and the exact masks of what was put in.

Linear attenuation adds up along a ray; where solids overlap, intervals are cut exactly (shapes.py), and thin structures are
points whose volume times attenuation is shared among pixels. Detector values are logarithms, as in computed radiography.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medfm.data.phantom.anatomy import MU_LUNG, MU_NODULE, MU_SOFT, SIDES, SIGN
from medfm.data.phantom.scene import Scene
from medfm.data.phantom.shapes import FAR, Points, Rays, Segments, Solid, Span, ellipsoid, rotation

# Projections overlap, so a mask is a set of bits: what lies on the ray of a pixel. Values of `masks/*.nii.gz`.
BITS = {
    "Right Lung": 1,
    "Left Lung": 2,
    "Heart": 4,
    "Right Pleural Effusion": 8,
    "Left Pleural Effusion": 16,
    "Right Pneumothorax": 32,
    "Left Pneumothorax": 64,
    "Right Consolidation": 128,
    "Left Consolidation": 256,
    "Right Nodule": 512,
    "Left Nodule": 1024,
    "Support Devices": 2048,
}
# mm of a structure on the ray that count as seen: lung, heart, fluid, free air, consolidation, nodule, device.
_LUNG, _HEART, _FLUID, _AIR, _CONSOLIDATION, _NODULE, _DEVICE = 20.0, 6.0, 8.0, 8.0, 8.0, 1.0, 0.3

_AXES = {  # columns, rows and beam in the patient's LPS axes
    "PA": ((1, 0, 0), (0, 0, -1), (0, -1, 0)),
    "AP": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "LATERAL": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
}


@dataclass(frozen=True)
class Exposure:
    """How a film is taken.

    Attributes:
        view: "PA", "AP" or "LATERAL" (left side to the detector, the patient faces the image's left).
        distance, gap: mm from the source, and from the patient's middle, to the detector.
        field: mm of the detector's side.
        yaw, roll: degrees the patient is turned about the body axis, and leans.
        shift: mm the patient stands beside the middle, (columns, rows).
        dose: relative number of quanta.
        offset: exposure index error, added to log attenuation.
        shutters: share of the side that collimation covers: left, right, top, bottom.
    """

    view: str
    distance: float
    gap: float
    field: float
    yaw: float = 0.0
    roll: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    dose: float = 1.0
    offset: float = 0.0
    shutters: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


def sample_exposure(view: str, wide: float, rng: np.random.Generator) -> Exposure:
    """`wide` is the patient's width scale: the field is set to the patient."""
    portable = view == "AP"
    shutters = np.where(rng.random(4) < 0.3, rng.uniform(0.01, 0.06, 4), 0.0)
    return Exposure(
        view=view,
        distance=float(rng.uniform(1050, 1250) if portable else 1800),
        gap=float(rng.uniform(120, 150) if portable else 170),
        field=float(np.clip(345 + 45 * wide + rng.normal(0, 10), 350, 430)) * (1.04 if portable else 1.0),
        yaw=float(rng.normal(0, 3.0 if portable else 1.7)),
        roll=float(rng.normal(0, 2.0 if portable else 1.0)),
        shift=(float(rng.normal(0, 7)), float(rng.normal(4, 8))),
        dose=float(np.exp(rng.normal(-0.4 if portable else 0.0, 0.25))),
        # Exposure control brings the denser lateral path to the same signal.
        offset=float(rng.normal(-0.9 if view == "LATERAL" else 0.0, 0.12)),
        shutters=tuple(float(v) for v in shutters),  # type: ignore[arg-type]
    )


class Beam:
    """A cone beam through the patient onto a square detector of `size` pixels."""

    def __init__(self, exposure: Exposure, size: int) -> None:
        self.size = size
        self.pitch = exposure.field / size
        self.source = exposure.distance - exposure.gap  # mm from the source to the patient's middle
        self.distance = exposure.distance
        turn = rotation(exposure.roll, 0.0, exposure.yaw).astype(np.float32)
        # Unit vectors of columns, rows and beam, as seen from a patient who is turned.
        self.u, self.v, self.w = (turn.T @ np.asarray(a, np.float32) for a in _AXES[exposure.view])
        self.shift = exposure.shift

    def rays(self) -> Rays:
        at = (np.arange(self.size, dtype=np.float32) - (self.size - 1) / 2) * np.float32(
            self.pitch * self.source / self.distance
        )
        col, row = (a.astype(np.float32) for a in np.meshgrid(at, at))
        u, v, w = (a[:, None, None] for a in (self.u, self.v, self.w))
        # Origins lie in the patient's middle, so that float32 never subtracts metres.
        origin = u * (col - np.float32(self.shift[0])) + v * (row - np.float32(self.shift[1]))
        way = u * col + v * row + w * np.float32(self.source)
        way /= np.sqrt((way * way).sum(axis=0))
        return Rays(origin, way, lambda points: self.pixels(points)[:2])

    def pixels(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, 3) -> column, row (in pixels, fractions kept) and the magnification there."""
        scale = np.float32(self.distance) / (np.float32(self.source) + points @ self.w)
        middle = np.float32((self.size - 1) / 2)
        col = (points @ self.u + self.shift[0]) * scale / np.float32(self.pitch) + middle
        row = (points @ self.v + self.shift[1]) * scale / np.float32(self.pitch) + middle
        return col, row, scale

    def splat(self, points: Points) -> np.ndarray:
        """(size, size) mm of path through thin structures: each point's volume over its pixel's area, shared by four pixels."""
        col, row, scale = self.pixels(points.position)
        weight = points.volume * (scale / np.float32(self.pitch)) ** 2
        c0, r0 = np.floor(col), np.floor(row)
        fc, fr = col - c0, row - r0
        n = self.size
        keep = (c0 >= 0) & (r0 >= 0) & (c0 < n - 1) & (r0 < n - 1)
        index = r0[keep].astype(np.int64) * n + c0[keep].astype(np.int64)
        fc, fr, weight = fc[keep], fr[keep], weight[keep]
        total = np.zeros(n * n)
        for jump, share in ((0, (1 - fc) * (1 - fr)), (1, fc * (1 - fr)), (n, (1 - fc) * fr), (n + 1, fc * fr)):
            total += np.bincount(index + jump, weights=weight * share, minlength=n * n)
        return total.reshape(n, n).astype(np.float32)


@dataclass(eq=False)
class Film:
    """A radiograph before it is written.

    Attributes:
        values: (rows, columns) uint16, 12 bits, larger means more attenuation.
        mask: (rows, columns) uint16 of BITS.
        window: centre and width of a sensible display.
        ratio: cardiothoracic ratio measured on the mask; NaN for a lateral view.
        pitch: mm of a detector pixel.
    """

    values: np.ndarray
    mask: np.ndarray
    window: tuple[int, int]
    ratio: float
    pitch: float


def film(scene: Scene, exposure: Exposure, size: int, rng: np.random.Generator) -> Film:
    """Takes the film."""
    beam = Beam(exposure, size)
    attenuation, mask = ray_sums(scene, beam, rng)
    ratio = cardiothoracic_ratio(mask) if exposure.view != "LATERAL" else float("nan")
    values, window = detect(attenuation, exposure, mask, rng)
    return Film(values, mask, window, ratio, beam.pitch)


def cardiothoracic_ratio(mask: np.ndarray) -> float:
    """Widest heart over widest inner chest, in columns of a frontal mask (rows, columns)."""
    heart = np.flatnonzero((mask & BITS["Heart"]).any(axis=0))
    lungs = np.flatnonzero((mask & (BITS["Right Lung"] | BITS["Left Lung"])).any(axis=0))
    if not len(heart) or not len(lungs):
        return float("nan")
    return float((heart[-1] - heart[0] + 1) / (lungs[-1] - lungs[0] + 1))


def ray_sums(scene: Scene, beam: Beam, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(size, size) float32 attenuation integrals (no unit), and the mask."""
    anatomy = scene.anatomy
    rays = beam.rays()
    shape = rays.shape
    known: dict[int, Span] = {}

    def span(solid: Solid) -> Span:
        if id(solid) not in known:
            known[id(solid)] = rays.span(solid)
        return known[id(solid)]

    body = Segments([_hull([span(part) for part in anatomy.body], shape)])
    total = MU_SOFT * body.length(shape)
    mask = np.zeros(shape, np.uint16)
    mask[rays.chord(anatomy.heart) > _HEART] |= BITS["Heart"]
    texture = _texture(beam.size, beam.pitch * beam.source / beam.distance, rng)
    for side in SIDES:
        cavity = Segments([span(anatomy.pleura[side])])
        for solid in anatomy.carve[side]:
            cavity = cavity.minus(span(solid))
        _chest_side(scene, side, cavity, rays, beam, texture, total, mask)
    for gas in anatomy.gas:
        total -= MU_SOFT * body.within(span(gas)).length(shape)
    for solid, extra in anatomy.bones:
        total += extra * body.within(span(solid)).length(shape)
    for points, extra in anatomy.bone_points:
        total += extra * beam.splat(points)
    total -= MU_SOFT * beam.splat(anatomy.airway)
    for points, extra in scene.devices:
        path = beam.splat(points)
        mask[path > _DEVICE] |= BITS["Support Devices"]
        total += extra * path
    return np.maximum(total, 0), mask


def _chest_side(
    scene: Scene, side: str, cavity: Segments, rays: Rays, beam: Beam, texture: np.ndarray, total: np.ndarray, mask: np.ndarray
) -> None:
    """Adds one pleural cavity, with what is in it, to the attenuation `total` and to `mask` in place."""
    from scipy.ndimage import gaussian_filter

    shape, mm = rays.shape, beam.pitch * beam.source / beam.distance
    name = side.capitalize()
    space = cavity.length(shape)
    mask[space > _LUNG] |= BITS[f"{name} Lung"]
    total += (MU_LUNG - MU_SOFT) * space
    air, density = space, MU_LUNG
    if side in scene.collapsed:
        lung, core = scene.collapsed[side]
        left = cavity.within(rays.span(lung))
        air = left.length(shape)
        gone = space - air
        mask[gone > _AIR] |= BITS[f"{name} Pneumothorax"]
        pleura = air - left.within(rays.span(core)).length(shape)
        # What left the chest wall is compressed in what remains, partly: blood leaves it too.
        density = MU_LUNG * min(1.45, 1 + 0.012 * _gap(scene, side))
        total += -MU_LUNG * gone + (density - MU_LUNG) * air + 0.9 * (MU_SOFT - MU_LUNG) * pleura
    if side in scene.fluid:
        below, bowl = scene.fluid[side]
        wet = cavity.within(rays.span(below))
        fluid = (wet if bowl is None else wet.minus(rays.span(bowl))).length(shape)
        fluid = np.minimum(gaussian_filter(fluid, 2.5 / mm), air)
        mask[fluid > _FLUID] |= BITS[f"{name} Pleural Effusion"]
        air = air - fluid
        total += (MU_SOFT - MU_LUNG) * fluid
    if side in scene.blobs:
        blobs, share = scene.blobs[side]
        chords = np.zeros(shape, np.float32)
        for blob in blobs:
            chords += rays.chord(blob)
        # Overlapping parts fill the ray's lung at most once.
        filled = air * (1 - np.exp(-chords / np.maximum(air, 1)))
        filled = np.minimum(gaussian_filter(filled, 3.0 / mm), air)
        mask[filled > _CONSOLIDATION] |= BITS[f"{name} Consolidation"]
        total += share * (MU_SOFT - MU_LUNG) * filled * (1 + 2.2 * texture)
    if side in scene.nodules:
        nodule = cavity.within(rays.span(scene.nodules[side])).length(shape)
        mask[nodule > _NODULE] |= BITS[f"{name} Nodule"]
        total += (MU_NODULE - MU_LUNG) * nodule
    total += density * air * texture * (1 + 2.0 * scene.edema)
    if scene.edema:
        haze = np.minimum(gaussian_filter(_haze(scene, side, rays), 12 / mm, truncate=2.5), air)
        total += 0.0042 * scene.edema * haze * (1 + 3 * texture)
    total += (MU_SOFT - MU_LUNG) * beam.splat(scene.vessels(side))


def detect(
    attenuation: np.ndarray, exposure: Exposure, mask: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int]]:
    """Attenuation integrals -> 12-bit detector values, and a display window. Collimation spares what `mask` shows."""
    from scipy.ndimage import gaussian_filter

    size = attenuation.shape[0]
    primary = np.exp(-attenuation)
    # Scatter is smooth: a share of what reaches the detector nearby, found on a coarse grid. Direct air scatters nothing.
    step = max(size // 32, 1)
    coarse = np.minimum(primary, 0.25)[: size // step * step, : size // step * step]
    coarse = coarse.reshape(size // step, step, size // step, step).mean(axis=(1, 3))
    scatter = _enlarge(gaussian_filter(coarse, 3.5), step, size)
    share = 0.17 if exposure.view == "PA" else 0.24
    signal = gaussian_filter(primary, 0.55 * size / 256) + share * scatter
    quanta = np.maximum(signal, 1e-5) * 60_000 * exposure.dose * (256 / size) ** 2
    # Normal approximation of Poisson counts; there are hundreds even behind the spine.
    counts = np.maximum(quanta + np.sqrt(quanta) * rng.standard_normal(quanta.shape, dtype=np.float32), 1.0)
    signal = gaussian_filter(counts / (60_000 * exposure.dose * (256 / size) ** 2), 0.35)
    values = (-np.log(np.maximum(signal, 1e-5)) + exposure.offset) * 740 + 150
    values = np.clip(values, 0, 4095)
    inside = values[attenuation > 0.8]
    low, high = np.percentile(inside if inside.size else values, (1.0, 99.5))
    values = np.rint(values).astype(np.uint16)
    _mark(values)
    cols, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    room = (cols[0], size - 1 - cols[-1], rows[0], size - 1 - rows[-1]) if len(cols) else (size,) * 4
    left, right, top, bottom = (min(round(s * size), max(int(r) - 2, 0)) for s, r in zip(exposure.shutters, room, strict=True))
    values[:top], values[:, :left] = 0, 0
    values[size - bottom :], values[:, size - right :] = 0, 0
    return values, (round((low + high) / 2), max(round(high - low), 1))


_LETTER = ("1000", "1000", "1000", "1000", "1000", "1000", "1111")


def _mark(values: np.ndarray) -> None:
    """Burns the lead letter L beside the patient's left shoulder: upper right of a frontal film."""
    size = len(values)
    k = max(round(size / 100), 1)
    letter = np.kron(np.array([[int(c) for c in row] for row in _LETTER]), np.ones((k, k))).astype(bool)
    rows, cols = letter.shape
    top, left = round(0.075 * size), round(0.925 * size) - cols
    patch = values[top : top + rows, left : left + cols]
    patch[letter] = 3950


def _hull(spans: list[Span], shape: tuple[int, int]) -> Span:
    """From the first entry to the last exit: gaps between parts of the body are filled."""
    start, end = np.full(shape, FAR, np.float32), np.full(shape, -FAR, np.float32)
    for span in spans:
        start[span.window] = np.minimum(start[span.window], span.start)
        end[span.window] = np.maximum(end[span.window], np.where(span.end < FAR, span.end, -FAR))
    np.copyto(end, FAR, where=start >= FAR)
    return Span((slice(0, shape[0]), slice(0, shape[1])), start, end)


def _texture(size: int, mm: float, rng: np.random.Generator) -> np.ndarray:
    """(size, size) smooth noise of standard deviation about 0.05: lobules and small vessels that no ray resolves."""
    from scipy.ndimage import gaussian_filter

    noise = np.zeros((size, size), np.float32)
    for grain, strength in ((2.2, 0.03), (6.0, 0.035), (16.0, 0.03)):
        # Coarse noise is made on a coarse grid: at least two cells a standard deviation.
        step = max(int(grain / mm / 2), 1)
        n = -(-size // step) + 1
        layer = gaussian_filter(rng.standard_normal((n, n), dtype=np.float32), grain / mm / step, truncate=3)
        noise += strength / layer.std() * _enlarge(layer, step, size)
    return noise


def _enlarge(coarse: np.ndarray, step: int, size: int) -> np.ndarray:
    """(n, n) cells of `step` pixels -> (size, size), bilinear between the cells' middles; 10x scipy's zoom."""
    if step == 1:
        return coarse[:size, :size]
    at = np.clip((np.arange(size) + 0.5) / step - 0.5, 0, len(coarse) - 1)
    low = np.minimum(at.astype(int), len(coarse) - 2)
    share = (at - low).astype(np.float32)
    rows = coarse[low] * (1 - share[:, None]) + coarse[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def _haze(scene: Scene, side: str, rays: Rays) -> np.ndarray:
    """mm of lung about the hilum that edema fills most: the butterfly."""
    place = scene.anatomy.hilum[side]
    near = ellipsoid((place[0] + SIGN[side] * 26, place[1], place[2] - 16), (44, 60, 66))
    far = ellipsoid((place[0] + SIGN[side] * 36, place[1], place[2] - 28), (66, 85, 100))
    return rays.chord(near) + 0.5 * rays.chord(far)


def _gap(scene: Scene, side: str) -> float:
    return next(f.amount for f in scene.findings if f.name == "Pneumothorax" and f.side == side)
