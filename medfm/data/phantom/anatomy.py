"""Who is imaged: a made-up patient, and the organs that the patient's measures give. See shapes.py for the coordinates."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from medfm.data.phantom.shapes import Points, Solid, bezier, cylinder, ellipsoid, join, resample, tube

# Linear attenuation at an effective energy of 70 keV, per mm (density times the NIST XCOM mass attenuation, rounded).
MU_SOFT = 0.0200
MU_LUNG = 0.0048
MU_NODULE = 0.0340  # with calcium, as a granuloma
MU_CORTICAL = 0.0560
MU_TRABECULAR = 0.0280
MU_DEVICE = 0.3000

SIDES = ("right", "left")
SIGN = {"right": -1.0, "left": 1.0}  # x grows to the patient's left


@dataclass(frozen=True)
class Patient:
    """Measures that stay with a patient over all studies; scales are relative to the reference adult."""

    index: int
    sex: str
    age: int
    width: float
    depth: float
    height: float
    fat: float  # mm of chest wall beyond the reference
    heart: float  # scale of the heart's radii
    breast: float  # radius in mm, 0 for none
    stomach: float  # radius of the gas bubble in mm, 0 for none


def sample_patient(index: int, rng: np.random.Generator) -> Patient:
    sex = "F" if rng.random() < 0.5 else "M"
    age = int(np.clip(rng.normal(58, 17), 18, 89))
    female = sex == "F"
    enlarged = rng.random() < 0.13 + 0.0016 * (age - 18)
    return Patient(
        index=index,
        sex=sex,
        age=age,
        width=float(np.clip(rng.normal(0.95 if female else 1.02, 0.045), 0.84, 1.13)),
        depth=float(np.clip(rng.normal(0.96 if female else 1.02, 0.06), 0.82, 1.18)),
        height=float(np.clip(rng.normal(0.95 if female else 1.02, 0.045), 0.84, 1.13)),
        fat=float(np.clip(rng.gamma(2.5, 5.0), 0, 40)),
        # Two groups with a gap keep most ratios away from one half; the label is measured on the film, not taken from here.
        heart=float(rng.uniform(1.26, 1.52) if enlarged else rng.uniform(0.92, 1.08)),
        breast=float(rng.uniform(36, 62)) if female else 0.0,
        stomach=float(rng.uniform(14, 27)) if rng.random() < 0.6 else 0.0,
    )


@dataclass(eq=False)
class Anatomy:
    """Organs of one patient at one moment.

    Attributes:
        body: convex parts that together are everything inside the skin.
        pleura: per side, the pleural cavity before `carve` is cut out of it.
        carve: per side, what pushes into the cavity: diaphragm dome, heart, great vessels, hilum, spine.
        heart: the heart alone.
        gas: hollows in soft tissue (stomach bubble).
        bones: solids with their attenuation beyond soft tissue.
        bone_points: thin bones as points with their attenuation beyond soft tissue.
        airway: trachea and main bronchi.
        vessels: per side, the lung's vessels.
        hilum: per side, where vessels start.
        apex, dome: per side, z of the lung's top and of the diaphragm's top.
        floor: per side, z of the lowest recess.
        center: per side, the lung's centre line in x and y, and half-widths.
    """

    patient: Patient
    body: list[Solid]
    pleura: dict[str, Solid]
    carve: dict[str, list[Solid]]
    heart: Solid
    gas: list[Solid]
    bones: list[tuple[Solid, float]]
    bone_points: list[tuple[Points, float]]
    airway: Points
    vessels: dict[str, Points]
    hilum: dict[str, np.ndarray]
    apex: dict[str, float]
    dome: dict[str, float]
    floor: dict[str, float]
    center: dict[str, tuple[float, float, float]]
    half: tuple[float, float] = field(default=(70.0, 95.0))

    def in_cavity(self, side: str, points: np.ndarray) -> np.ndarray:
        """(..., 3) points -> bool: inside the pleural cavity of a side."""
        keep = self.pleura[side].inside(points)
        for solid in self.carve[side]:
            keep &= ~solid.inside(points)
        return keep


def build(patient: Patient, breath: float, congestion: float, arms_up: bool, rng: np.random.Generator) -> Anatomy:
    """The organs.

    Args:
        breath: mm that the diaphragm stands below (positive, deep breath) or above its reference height.
        congestion: 0 for normal vessels, 1 for those of pulmonary edema.
        arms_up: arms and shoulders are lifted out of the field, as for a lateral film and for CT.
    """
    w, d, h = patient.width, patient.depth, patient.height

    def e(x: float, y: float, z: float, rx: float, ry: float, rz: float, tilt: float = 0.0, pitch: float = 0.0) -> Solid:
        return ellipsoid((x * w, y * d, z * h), (rx * w, ry * d, rz * h), tilt, pitch)

    fat = patient.fat
    body = [
        ellipsoid((0, 0, -80 * h), (168 * w + fat, 112 * d + fat, 340 * h)),
        ellipsoid((0, 25 * d, 98 * h), ((150 if arms_up else 225) * w + fat, 72 * d + 0.7 * fat, 68 * h + 0.5 * fat)),
        cylinder((0, 25 * d), (58 * w + 0.4 * fat, 56 * d + 0.4 * fat), 60 * h, 400 * h),
    ]
    if patient.breast:
        r = patient.breast
        # Flat above, full below: the upper border fades into the chest wall, the lower one shows.
        body += [
            ellipsoid((s * 74 * w, -(90 * d + 0.8 * fat), -30 * h - 0.5 * r), (1.15 * r, 0.46 * r, 1.3 * r), pitch=-16.0)
            for s in (-1, 1)
        ]

    cage = e(0, 0, -90, 143, 97, 262)
    grow = patient.heart
    tall = 1 + 0.55 * (grow - 1)
    # A poor breath lifts the diaphragm, and the heart lies broader on it.
    wide = grow * (1 - 0.0022 * breath)
    heart = ellipsoid(
        ((6 + 17 * grow) * w, -28 * d, (-84 - 0.6 * breath + 44 * tall) * h),
        (66 * wide * w, 47 * tall * d, 47 * tall * h),
        tilt=32,
    )
    shared = [
        heart,
        cylinder((0, 4 * d), (23 * w, 62 * d), -260 * h, 160 * h),
        cylinder((-19 * w, -8 * d), (11 * w, 14 * d), -10 * h, 112 * h),  # superior vena cava
        e(-16, -20, 22, 20, 26, 36),  # ascending aorta
        e(19, 14, 64, 19, 32, 18),  # aortic knob
        e(27, -8, 30, 19, 22, 22),  # pulmonary trunk
        cylinder((17 * w, 48 * d), (13 * w, 13 * d), -160 * h, 66 * h),  # descending aorta
        cylinder((0, 62 * d), (21 * w, 26 * d), -260 * h, 200 * h),  # spine
    ]
    pleura, carve, hilum, vessels = {}, {}, {}, {}
    apex, dome, floor, center = {}, {}, {}, {}
    lift = {"right": 9.0, "left": -5.0}
    for side in SIDES:
        s = SIGN[side]
        base = -152 + lift[side] - breath
        pleura[side] = (e(s * 73, 2, -45, 74, 99, 196, tilt=-5.5 * s) & cage).cut((0, 0, -1), -(base - 8) * h)
        top = e(s * 70, 8, base, 88, 118, 74, pitch=-4)
        hilum[side] = np.array([s * 36 * w, 6 * d, (8 if side == "left" else 0) * h], np.float32)
        bulge = ellipsoid(tuple(hilum[side]), (13 * w, 15 * d, 19 * h), tilt=-8 * s)
        carve[side] = [top, bulge, *shared]
        dome[side] = (base + 73) * h
        floor[side] = (base + 22) * h
        apex[side] = 143 * h
        center[side] = (s * 73 * w, 2 * d, -45 * h)
        vessels[side] = _vessels(hilum[side], s, patient, dome[side], congestion, rng)
    gas = []
    if patient.stomach:
        r = patient.stomach
        gas.append(ellipsoid((62 * w, -15 * d, dome["left"] - 16 - r), (1.35 * r, 1.2 * r, r)))
    bones: list[tuple[Solid, float]] = [
        (cylinder((0, 64 * d), (18 * w, 16 * d), -300 * h, 200 * h), 0.6 * (MU_TRABECULAR - MU_SOFT)),
        (e(0, -88, 5, 19, 6, 95, pitch=-8), MU_TRABECULAR - MU_SOFT),
    ]
    if not arms_up:
        bones += [(e(s * 196, 15, 112, 25, 25, 26), MU_TRABECULAR + 0.003 - MU_SOFT) for s in (-1, 1)]
    bone_points = _bones(patient, rng)
    if arms_up:
        # The shoulder blades turn away with the arms: what would stick out of the narrower body is left out.
        bone_points = [(p.where(np.any([part.inside(p.position) for part in body], axis=0)), mu) for p, mu in bone_points]
    return Anatomy(
        patient=patient,
        body=body,
        pleura=pleura,
        carve=carve,
        heart=heart,
        gas=gas,
        bones=bones,
        bone_points=bone_points,
        airway=_airway(patient),
        vessels=vessels,
        hilum=hilum,
        apex=apex,
        dome=dome,
        floor=floor,
        center=center,
        half=(74 * w, 97 * d),
    )


def _vessels(hilum: np.ndarray, s: float, patient: Patient, dome: float, congestion: float, rng: np.random.Generator) -> Points:
    """A tree of curved, tapering tubes from the hilum: 9 branches, each with 4 children, each with 3."""
    scale = np.array([patient.width, patient.depth, patient.height])
    low, high = dome - 14.0, 146.0 * patient.height
    # Main branches fan out in the coronal plane, more of them downwards; angle 0 points to the chest wall.
    angle = np.deg2rad(np.array([78, 58, 38, 18, -4, -24, -42, -60, -78]) + rng.normal(0, 5, 9))
    reach = np.where(angle > 0, (high - hilum[2]) * 0.80, (hilum[2] - low) * 0.85)
    end = np.stack([s * np.cos(angle) * 78 * scale[0], rng.uniform(-60, 70, 9) * scale[1], np.sin(angle) * reach], 1) + hilum
    parts, start, radius = [], np.broadcast_to(hilum, end.shape), rng.uniform(3.6, 4.6, (9, 1)) * (1 + 0.35 * congestion)
    bend, samples = 9.0, 34
    for children in (4, 3, 0):
        control = 0.5 * (start + end) + rng.normal(0, bend, end.shape)
        line = bezier(start, control, end, samples)
        t = np.linspace(0, 1, samples)
        rings = ((0.0, 1), (0.75, 4)) if children else ((0.0, 1),)
        parts.append(tube(line, np.maximum(radius * (1 - 0.75 * t), 0.45 + 0.3 * congestion), rings))
        if not children:
            break
        along = (end - start) / np.linalg.norm(end - start, axis=1, keepdims=True)
        length = np.linalg.norm(end - start, axis=1)
        at = np.linspace(0.30, 0.88, children) + rng.uniform(-0.06, 0.06, (len(end), children))
        index = np.rint(at * (samples - 1)).astype(int)
        first = line[np.arange(len(end))[:, None], index]
        aside = rng.normal(size=first.shape) * [1, 0.8, 1]
        aside /= np.linalg.norm(aside, axis=2, keepdims=True)
        way = along[:, None] + 0.85 * aside
        way /= np.linalg.norm(way, axis=2, keepdims=True)
        end = (first + way * (length[:, None, None] * rng.uniform(0.42, 0.62, (len(end), children, 1)))).reshape(-1, 3)
        radius = (radius * (1 - 0.75 * at) * 0.8).reshape(-1, 1)
        start, bend, samples = first.reshape(-1, 3), bend * 0.6, (26 if children == 4 else 20)
    return join(parts)


def _airway(patient: Patient) -> Points:
    w, d, h = patient.width, patient.depth, patient.height
    carina = np.array([-2 * w, 22 * d, 38 * h])
    wind = resample(np.array([[-1 * w, 15 * d, 230 * h], [-3 * w, 20 * d, 90 * h], carina]), 1.5)
    rings = ((0.0, 1), (0.3, 5), (0.6, 9), (0.88, 13))
    parts = [tube(wind, 8.5 * w, rings)]
    for s, drop in ((-1, 30), (1, 24)):
        end = carina + np.array([s * 36 * w, 2 * d, -drop * h])
        parts.append(tube(resample(np.stack([carina, end]), 1.5), 5.5 * w, rings))
    return join(parts)


_DISC = np.array([(x, y) for x in np.linspace(-0.97, 0.97, 17) for y in np.linspace(-0.95, 0.95, 15) if x * x + y * y < 1])


def _bones(patient: Patient, rng: np.random.Generator) -> list[tuple[Points, float]]:
    """Ribs, clavicles, scapulae, vertebral end plates and pedicles: (points, attenuation beyond soft tissue)."""
    w, d, h = patient.width, patient.depth, patient.height
    cortical: list[Points] = []
    marrow: list[Points] = []
    _rods(_ribs(patient, rng), np.array([6.2 if k else 5.0 for k in range(11)] * 2), 3.9, cortical, marrow)
    for s in (-1.0, 1.0):
        knots = np.array([[20, -80, 98], [60, -92, 104], [110, -55, 122], [168, -8, 132]]) * [s * w, d, h]
        clavicle = resample(_smooth(knots), 1.2)
        _rods(clavicle[None], np.array([6.2]), 6.2, cortical, marrow)
    border = [tube(np.stack([resample(_smooth(line), count=110) for line in _scapula_lines(w, d, h)]), 2.6, ((0.6, 5),))]
    plate = [_triangle(*corners) for corners in _scapula_plates(w, d, h)]
    plates_of_spine = []
    for k in range(16):
        z = (170 - 23.5 * k) * h
        angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        for rise in (-8.0, 8.0):  # end plates
            gx, gy = _DISC[:, 0] * 17.5 * w, _DISC[:, 1] * 16 * d + 64 * d
            disc = np.stack([gx, gy, z + rise * h + rng.normal(0, 1.0, len(gx))], 1)
            plates_of_spine.append(Points(disc.astype(np.float32), np.full(len(gx), 600.0 / len(gx), np.float32)))
        for s in (-1.0, 1.0):  # pedicles seen end on
            loop = np.stack([s * 12 * w + 3.6 * np.cos(angle), np.full(14, 84 * d), z + 4.6 * np.sin(angle)], 1)
            plates_of_spine.append(Points(loop.astype(np.float32), np.full(14, 22.0, np.float32)))
    tops = np.stack([np.zeros(16), np.full(16, 88 * d), (170 - 23.5 * np.arange(16)) * h], 1)
    spinous = tops[:, None] + np.linspace(0, 1, 10)[:, None] * [0, 18 * d, -14 * h]
    plates_of_spine.append(tube(spinous, 2.8, ((0.5, 4),)))
    return [
        (join(cortical + border + plates_of_spine), MU_CORTICAL - MU_SOFT),
        (join(marrow + plate), MU_TRABECULAR - MU_SOFT),
    ]


_RIB_SPAN = np.array([118, 134, 140, 143, 145, 146, 144, 138, 126, 112, 92])[:, None]  # degrees from the spine to the cartilage
_RIB_DROP = np.array([34, 46, 56, 64, 70, 75, 80, 82, 78, 66, 48])[:, None]  # mm


def _ribs(patient: Patient, rng: np.random.Generator) -> np.ndarray:
    """(22, S, 3) centre lines of ribs 1 to 11, right then left: from the spine round the cage to where cartilage begins."""
    w, d, h = patient.width, patient.depth, patient.height
    k = np.arange(11)[:, None]
    turn = np.deg2rad(_RIB_SPAN - 10) * np.linspace(0, 1, 160)
    angle, turn = turn + np.deg2rad(10), turn / np.deg2rad(135)
    fall = 5 * h * np.sin(np.pi * np.clip(turn * 3, 0, 1)) - _RIB_DROP * h * turn**1.25
    sides = []
    for sign in (-1.0, 1.0):
        z = (148 - 22.5 * k + 0.12 * k * k) * h + rng.normal(0, 1.2, (11, 1)) + fall
        # Just outside the pleura: the cage's ellipsoid at this height, which narrows to the top.
        share = np.sqrt(np.clip(1 - ((z / h + 90) / 266) ** 2, 0.10, 1))
        x = sign * (143 * share + 3.5) * w * np.sin(angle) ** 0.9
        y = np.minimum((97 * share + 3.5) * d * np.cos(angle), 94 * d * share + 2)
        sides.append(np.stack([x, y, z], axis=2))
    return np.concatenate(sides)


def _rods(lines: np.ndarray, tall: np.ndarray, thick: float, cortical: list[Points], marrow: list[Points]) -> None:
    """Flat rods about (R, S, 3) lines: an oval of half-height `tall` and half-thickness `thick` with a 1.3 mm cortex."""
    lines = lines.astype(np.float32)
    along = np.gradient(lines, axis=1)
    step = np.linalg.norm(along, axis=2)
    along /= step[..., None]
    out = np.concatenate([lines[..., :2], np.zeros_like(lines[..., :1])], axis=2)
    out -= (out * along).sum(axis=2, keepdims=True) * along
    out /= np.linalg.norm(out, axis=2, keepdims=True)
    up = np.cross(along, out)
    tall = tall.astype(np.float32)[:, None, None]

    def put(shares: list[tuple[float, float]], area: np.ndarray, into: list[Points]) -> None:
        places = [lines + np.float32(a) * (tall - 0.5) * up + np.float32(b) * (thick - 0.5) * out for a, b in shares]
        volume = area[:, :, 0] * step / len(shares)
        position = np.stack(places).reshape(-1, 3)
        into.append(Points(position, np.broadcast_to(volume, (len(shares), *volume.shape)).reshape(-1)))

    full, core = np.pi * tall * thick, np.pi * (tall - 1.3) * (thick - 1.3)
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    put([(float(np.cos(a)), float(np.sin(a))) for a in angles], full - core, cortical)
    put([(0.0, 0.0)] + [(0.5 * float(np.cos(a)), 0.5 * float(np.sin(a))) for a in angles[::2]], core, marrow)


def _scapula_lines(w: float, d: float, h: float) -> list[np.ndarray]:
    lines = []
    for s in (-1.0, 1.0):
        scale = np.array([s * w, d, h])
        lines += [
            np.array([[126, 78, 138], [136, 92, 60], [146, 92, -8]]) * scale,  # medial border
            np.array([[146, 92, -8], [166, 76, 50], [178, 40, 98]]) * scale,  # lateral border
            np.array([[130, 88, 108], [160, 74, 122], [186, 30, 140]]) * scale,  # spine and acromion
        ]
    return lines


def _scapula_plates(w: float, d: float, h: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    plates = []
    for s in (-1.0, 1.0):
        scale = np.array([s * w, d, h])
        corners = [np.array(p) * scale for p in ((126, 78, 138), (146, 92, -8), (178, 40, 104))]
        plates.append((corners[0], corners[1], corners[2]))
    return plates


def _triangle(a: np.ndarray, b: np.ndarray, c: np.ndarray, n: int = 64, thickness: float = 4.0) -> Points:
    """A triangular plate as points."""
    i, j = np.meshgrid(np.arange(n), np.arange(n))
    u, v = (i[i + j < n] + 0.33) / n, (j[i + j < n] + 0.33) / n
    place = a + u[:, None] * (b - a) + v[:, None] * (c - a)
    area = 0.5 * float(np.linalg.norm(np.cross(b - a, c - a)))
    return Points(place.astype(np.float32), np.full(len(u), area * thickness / len(u), np.float32))


def _smooth(knots: np.ndarray) -> np.ndarray:
    """A cubic through all knots (3 or 4 of them), (40, 3)."""
    t = np.linspace(0, 1, len(knots))
    fine = np.linspace(0, 1, 40)
    return np.stack([np.polyval(np.polyfit(t, knots[:, i], len(knots) - 1), fine) for i in range(3)], axis=1)
