"""Chest CT: the same anatomy on a voxel grid, as Hounsfield units, with an exact label map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medfm.data.phantom.anatomy import MU_LUNG, MU_NODULE, MU_SOFT, SIDES
from medfm.data.phantom.scene import Scene
from medfm.data.phantom.shapes import Points, Solid, ellipsoid

MU_WATER = 0.0193
MU_FAT = 0.0175
# Values of `masks/*.nii.gz` of CTs; in a volume nothing overlaps.
VALUES = {
    "Right Lung": 1,
    "Left Lung": 2,
    "Heart": 3,
    "Right Pleural Effusion": 4,
    "Left Pleural Effusion": 5,
    "Right Pneumothorax": 6,
    "Left Pneumothorax": 7,
    "Right Consolidation": 8,
    "Left Consolidation": 9,
    "Right Nodule": 10,
    "Left Nodule": 11,
    "Support Devices": 12,
}
FIELD = (400.0, 400.0, 360.0)  # mm along x, y, z
CENTER = (0.0, 0.0, -20.0)


@dataclass(eq=False)
class Volume:
    """A CT before it is written.

    Attributes:
        hu: (i, j, k) int16, axes to the patient's left, back and head (LPS).
        labels: (i, j, k) uint8 of VALUES.
        spacing: mm along i, j, k.
        origin: LPS mm of the first voxel's middle.
        ratio: cardiothoracic ratio measured on the labels.
    """

    hu: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    ratio: float


class _Grid:
    def __init__(self, size: int) -> None:
        self.size = size
        self.spacing = np.array(FIELD) / size
        self.origin = np.array(CENTER) - np.array(FIELD) / 2 + self.spacing / 2
        self.axes = [(self.origin[a] + self.spacing[a] * np.arange(size)).astype(np.float32) for a in range(3)]

    def inside(self, solid: Solid) -> tuple[tuple[slice, ...], np.ndarray]:
        """The box of voxels about a solid, and which of them lie in it."""
        low, high = solid.bounds()
        box = tuple(
            slice(int(np.searchsorted(axis, lo)), int(np.searchsorted(axis, hi, side="right")))
            for axis, lo, hi in zip(self.axes, low, high, strict=True)
        )
        grid = np.stack(np.meshgrid(*(axis[s] for axis, s in zip(self.axes, box, strict=True)), indexing="ij"), axis=-1)
        return box, solid.inside(grid)

    def paint(self, keep: np.ndarray, solid: Solid, value: bool) -> None:
        box, inside = self.inside(solid)
        keep[box][inside] = value

    def filled(self, *solids: Solid) -> np.ndarray:
        keep = np.zeros((self.size,) * 3, bool)
        for solid in solids:
            self.paint(keep, solid, True)
        return keep

    def deposit(self, points: Points, mu: np.ndarray, extra: float) -> np.ndarray:
        """Adds `extra` attenuation for the share of each voxel that the points fill. Returns that share."""
        index = np.rint((points.position - self.origin) / self.spacing).astype(np.int64)
        keep = ((index >= 0) & (index < self.size)).all(axis=1)
        flat = np.ravel_multi_index(tuple(index[keep].T), mu.shape)
        share = np.bincount(flat, points.volume[keep] / self.spacing.prod(), minlength=mu.size).reshape(mu.shape)
        share = np.minimum(share, 1.0).astype(np.float32)
        mu += np.float32(extra) * share
        return share


def voxelise(scene: Scene, size: int, rng: np.random.Generator) -> Volume:
    """Takes the CT of a supine patient, `size` voxels a side."""
    anatomy, grid = scene.anatomy, _Grid(size)
    mu = np.zeros((size,) * 3, np.float32)
    labels = np.zeros(mu.shape, np.uint8)
    body = grid.filled(*anatomy.body)
    mu[body] = MU_SOFT
    mu[body & ~_muscle(body, anatomy.patient.fat, grid)] = MU_FAT
    heart = grid.filled(anatomy.heart)
    texture = _texture(size, rng)
    mu[heart] = MU_SOFT
    labels[heart] = VALUES["Heart"]
    for side in SIDES:
        _side(scene, side, grid, mu, labels, texture)
    for gas in anatomy.gas:
        mu[grid.filled(gas) & body] = 0
    for solid, extra in anatomy.bones:
        mu[grid.filled(solid) & body] += extra
    for points, extra in anatomy.bone_points:
        grid.deposit(points, mu, extra)
    grid.deposit(anatomy.airway, mu, -MU_SOFT)
    for points, extra in scene.devices:
        labels[grid.deposit(points, mu, extra) > 0.02] = VALUES["Support Devices"]
    np.maximum(mu, 0, out=mu)
    hu = (mu / MU_WATER - 1) * 1000 + rng.normal(0, 14, mu.shape)
    hu = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    spacing, origin = (tuple(float(v) for v in a) for a in (grid.spacing, grid.origin))
    return Volume(hu, labels, spacing, origin, _ratio(heart, labels))  # type: ignore[arg-type]


def _side(scene: Scene, side: str, grid: _Grid, mu: np.ndarray, labels: np.ndarray, texture: np.ndarray) -> None:
    """Fills one pleural cavity in `mu` and `labels`."""
    anatomy, name = scene.anatomy, side.capitalize()
    cavity = grid.filled(anatomy.pleura[side])
    for solid in anatomy.carve[side]:
        grid.paint(cavity, solid, False)
    air = cavity
    if side in scene.collapsed:
        lung, core = scene.collapsed[side]
        air = cavity & grid.filled(lung)
        mu[cavity] = 0
        labels[cavity] = VALUES[f"{name} Pneumothorax"]
        rim = air & ~grid.filled(core)
    labels[air] = VALUES[f"{name} Lung"]
    mu[air] = MU_LUNG * (1 + 1.5 * texture[air])
    if scene.edema:
        place = anatomy.hilum[side]
        for reach, share in ((1.0, 0.6), (1.5, 0.4)):
            wet = air & grid.filled(ellipsoid(tuple(place), (60 * reach, 75 * reach, 75 * reach)))
            mu[wet] += 0.0042 * scene.edema * share * (1 + 3 * texture[wet])
    if side in scene.collapsed:
        mu[rim] += 0.15 * (MU_SOFT - MU_LUNG)  # a pleura much thinner than a voxel
    grid.deposit(scene.vessels(side), mu, MU_SOFT - MU_LUNG)
    if side in scene.blobs:
        blobs, share = scene.blobs[side]
        filled = air & grid.filled(*blobs)
        mu[filled] = MU_LUNG + share * (MU_SOFT - MU_LUNG) * (1 + texture[filled])
        labels[filled] = VALUES[f"{name} Consolidation"]
    if side in scene.fluid:
        box = np.argwhere(cavity)
        low, high = box.min(axis=0), box.max(axis=0) + 1
        part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        points = np.stack(np.meshgrid(*(axis[s] for axis, s in zip(grid.axes, part, strict=True)), indexing="ij"), axis=-1)
        fluid = np.zeros_like(cavity)
        fluid[part] = cavity[part] & scene.in_fluid(side, points)
        mu[fluid] = 0.0196  # 15 HU
        labels[fluid] = VALUES[f"{name} Pleural Effusion"]
    if side in scene.nodules:
        nodule = cavity & grid.filled(scene.nodules[side])
        mu[nodule] = MU_NODULE
        labels[nodule] = VALUES[f"{name} Nodule"]


def _muscle(body: np.ndarray, fat: float, grid: _Grid) -> np.ndarray:
    """What lies deeper than the layer of fat under the skin."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(body, sampling=tuple(grid.spacing)) > 4 + 0.8 * fat


def _texture(size: int, rng: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal((size,) * 3, dtype=np.float32), 1.5)
    return 0.06 / noise.std() * noise


def _ratio(heart: np.ndarray, labels: np.ndarray) -> float:
    """Widest heart over widest inner chest along x."""
    hearts = np.flatnonzero(heart.any(axis=(1, 2)))
    chest = np.flatnonzero(
        ((labels != 0) & (labels != VALUES["Heart"]) & (labels != VALUES["Support Devices"])).any(axis=(1, 2))
    )
    return float((hearts[-1] - hearts[0] + 1) / (chest[-1] - chest[0] + 1))
